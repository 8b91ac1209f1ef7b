from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from handoff_actors.control_groups import groups, memory_limit, memory_used
from handoff_actors.errors import ConfigurationError
from handoff_actors.resources.capabilities import NodeCapacity, fits, from_micro, to_micro
from handoff_actors.resources.machine import cgroup_limits, machine_capabilities


@pytest.mark.parametrize(
    ("amount", "micro"),
    [
        (1, 1_000_000),
        (0, 0),
        (0.1, 100_000),
        (1e-6, 1),
        (Decimal("0.3"), 300_000),
        (Fraction(1, 3), 333_333),
        (10**30, 10**36),
    ],
)
def test_numbers_of_every_kind_are_counted_exactly(amount, micro):
    assert to_micro({"cpu": amount}, "cost") == {"cpu": micro}
    assert type(to_micro({"cpu": amount}, "cost")["cpu"]) is int


def test_numpy_scalars_are_numbers_and_do_not_overflow():
    numpy = pytest.importorskip("numpy")
    amounts = {"a": numpy.int8(100), "b": numpy.float16(0.5), "c": numpy.float64(2.5)}
    assert to_micro(amounts, "cost") == {"a": 100_000_000, "b": 500_000, "c": 2_500_000}
    with pytest.raises(ConfigurationError):
        to_micro({"a": numpy.float64("nan")}, "cost")


@pytest.mark.parametrize(
    "amount",
    [-1, -0.1, math.nan, math.inf, -math.inf, True, False, "1", None, 1j, 1e305, [],
     Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity")],
)  # fmt: skip
def test_bad_amounts_are_refused_by_name_and_value(amount):
    with pytest.raises(ConfigurationError, match=r"cost of 'f'.*'gpu'"):
        to_micro({"cpu": 1, "gpu": amount}, "cost of 'f'")


@pytest.mark.parametrize("name", ["", 3, None, b"cpu", ("cpu",)])
def test_bad_names_are_refused(name):
    with pytest.raises(ConfigurationError, match="resource name"):
        to_micro({name: 1}, "cost")


@pytest.mark.parametrize("amounts", [None, 3, "cpu", [("cpu", 1)], {"cpu"}])
def test_what_is_no_mapping_is_refused(amounts):
    with pytest.raises(ConfigurationError, match="mapping"):
        to_micro(amounts, "cost")


def test_from_micro_undoes_to_micro():
    assert from_micro(to_micro({"cpu": 0.3, "memory": 7}, "x")) == {"cpu": 0.3, "memory": 7.0}


def test_fits_is_exact_where_floats_are_not():
    assert 0.1 + 0.2 > 0.3
    assert fits({"cpu": 0.1 + 0.2}, {"cpu": 0.3})
    assert not fits({"cpu": 0.300001}, {"cpu": 0.3})
    assert not fits({"gpu": 1}, {"cpu": 8})
    assert fits({"gpu": 0}, {"cpu": -1})
    assert NodeCapacity({"cpu": 1}, {"cpu": 4}).fits({"cpu": 1})
    assert not NodeCapacity({"cpu": 1}, {"cpu": 4}).fits({"cpu": 2})


def test_this_machine_has_a_core_and_memory():
    found = machine_capabilities()
    assert set(found) == {"cpu", "memory"}
    assert found["cpu"] >= 1
    assert found["memory"] > 10


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_the_tightest_control_group_counts(tmp_path):
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system/job\n",
            "sys/fs/cgroup/system/job/cpu.max": "max 100000\n",
            "sys/fs/cgroup/system/job/memory.max": "3000000\n",
            "sys/fs/cgroup/system/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/system/memory.max": "5000000\n",
        },
    )
    assert cgroup_limits(root) == (1.5, 3_000_000)


def test_version_one_control_groups_are_read(tmp_path):
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n1:name=systemd:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "64000000\n",
        },
    )
    assert cgroup_limits(root) == (2.5, 64_000_000)


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/job", "", ("memory.max", "memory.current", "inactive_file")),
        ("3:memory:/job", "memory/", ("memory.limit_in_bytes", "memory.usage_in_bytes",
                                      "total_inactive_file")),
    ],
)  # fmt: skip
def test_what_a_control_group_has_is_read_without_what_it_would_give_up(
    tmp_path, line, folder, names
):
    limit, used, cached = names
    group = f"sys/fs/cgroup/{folder}job"
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": line + "\n",
            f"{group}/{limit}": "5000\n",
            f"{group}/{used}": "3000\n",
            f"{group}/memory.stat": f"rss 700\n{cached} 1000\n",
        },
    )
    inner, *outer = groups(root, "memory")
    assert inner == root / group
    assert (memory_limit(inner), memory_used(inner)) == (5000, 2000)
    assert [(memory_limit(each), memory_used(each)) for each in outer] == [(None, 0)]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
        {"proc/self/cgroup": "nonsense\n0::/../..\n", "sys/fs/cgroup/cpu.max": "\n"},
        {"proc/self/cgroup": "2:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
         "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
    ],
)  # fmt: skip
def test_no_limit_is_no_limit(tmp_path, files):
    assert cgroup_limits(write(tmp_path, files)) == (None, None)

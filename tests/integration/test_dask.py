"""``handoff.dask_get``: Dask's collections on a runtime; some of Dask's own tests too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import handoff_actors as handoff

dask = pytest.importorskip("dask", minversion="2024.12")
pytest.importorskip("numpy")

import dask.array as da  # noqa: E402
import dask.bag as db  # noqa: E402
from dask.diagnostics import ProgressBar  # noqa: E402


@pytest.fixture
def started(default):
    return default.start(capabilities={"cpu": 2})


def get(**options):
    return lambda dsk, keys, **more: handoff.dask_get(dsk, keys, **options, **more)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_collections(started, isolation):
    x = da.ones((20, 20), chunks=10)
    squares = db.range(30, npartitions=4).map(lambda n: n * n)
    delayed = dask.delayed(max)(dask.delayed(int)("4"), 3)
    found = dask.compute(
        (x + x.T).sum(), squares.sum(), delayed, scheduler=get(isolation=isolation)
    )
    assert found == (800, sum(n * n for n in range(30)), 4)


def test_without_a_runtime_there_is_one_for_the_call(default):
    assert dask.delayed(abs)(-1).compute(scheduler=handoff.dask_get) == 1
    with pytest.raises(handoff.NotStartedError):
        handoff.node()


def test_graphs_by_hand(started):
    graph = {"a": 1, "b": (abs, -2), ("c", 0): (max, "a", "b"), "d": "b",
             "e": (sum, ["a", ("c", 0)]), "unused": (int, "no number")}  # fmt: skip
    assert handoff.dask_get(graph, "e") == 3
    assert handoff.dask_get(graph, ["a", ["d", ("c", 0)], "a"]) == (1, (2, 2), 1)
    assert handoff.dask_get(graph, "a") == 1


def test_a_task_that_raises_raises_here(started):
    with pytest.raises(ZeroDivisionError) as raised:
        db.range(4, npartitions=2).map(lambda n: 1 / (n - 2)).sum().compute(
            scheduler=handoff.dask_get
        )
    assert "in the Dask task" in raised.value.__notes__[0]


def test_a_worker_that_dies_costs_one_attempt(started, tmp_path):
    mark = tmp_path / "died"

    def die_once():
        if not mark.exists():
            mark.touch()
            os.abort()
        return 5

    assert dask.delayed(die_once)().compute(scheduler=get(isolation="process")) == 5


def test_retries_and_width(started):
    tries = []

    def at_last(_):
        tries.append(1)
        return 1 / (len(tries) > 2)

    graph = {"a": (at_last, 1)}
    assert handoff.dask_get(graph, "a", retries=2, num_workers=1) == 1.0
    tries.clear()
    with pytest.raises(ZeroDivisionError):
        handoff.dask_get(graph, "a")


def test_collections_inside_tasks(started):
    def inner(n):
        return db.range(n, npartitions=2).sum().compute(scheduler=handoff.dask_get)

    assert dask.delayed(inner)(5).compute(scheduler=handoff.dask_get) == 10


def test_callbacks_of_dask_are_served(started, capsys):
    with ProgressBar():
        assert da.ones(40, chunks=10).sum().compute(scheduler=handoff.dask_get) == 40
    assert "100% Completed" in capsys.readouterr().out


PLUGIN = """
import dask.base
import handoff_actors as handoff

handoff.start()
calls = []


def get(dsk, keys, **options):
    calls.append(1)
    return handoff.dask_get(dsk, keys, **options)


for name in ("sync", "synchronous", "single-threaded", "threads", "threading"):
    dask.base.named_schedulers[name] = get


def pytest_sessionfinish():
    assert len(calls) > 100
"""


def test_some_of_dasks_own_tests(tmp_path):
    """All that there are took minutes; they were run while this was built."""
    (tmp_path / "handoff_plugin.py").write_text(PLUGIN)
    root = Path(dask.__file__).parent
    files = ["tests/test_delayed.py", "array/tests/test_ufunc.py", "array/tests/test_stats.py"]
    if not all((root / file).is_file() for file in files):
        pytest.skip("this Dask came without its tests")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "handoff_plugin", "-p", "no:cacheprovider",
         "-p", "no:randomly", "-W", "ignore", "-c", os.devnull, "--rootdir", str(tmp_path),
         "-k", "not mocker", *(str(root / file) for file in files)],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(handoff.__file__).parents[1]}"},
        cwd=tmp_path, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]

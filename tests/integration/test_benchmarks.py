"""The benchmark runs and prints its table; how fast anything is, is no test's business."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def benchmarks(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_two_cases_in_quick_mode(tmp_path):
    file = tmp_path / "rows.json"
    done = benchmarks("chain", "one", "--quick", "--json", str(file))
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert [row["case"] for row in rows] == [
        "chain 1000",
        "chain 1000, again",
        "one function, one core",
        "one function, two cores",
        "one function, again, one core",
        "one function, again, two cores",
    ]
    for row in rows:
        assert row["case"] in done.stdout
        assert 0 < row["ours"] < math.inf
        assert 0 < row["floor"] < math.inf
        assert row["reached"] == (row["ratio"] <= row["target"]["limit"])
    assert "of 6 targets reached" in done.stdout


def test_an_unknown_case_is_named():
    done = benchmarks("chian")
    assert done.returncode == 2
    assert "no such case: chian" in done.stderr


def test_ours_beside_a_peer():
    # In a process of its own: what the standard library starts beside a pool stays with it.
    script = """
        import json
        from tests.benchmarks import peers

        peers.PEERS = {"ThreadPool(2)": peers.PEERS["ThreadPool(2)"]}
        print(json.dumps([(row.case, row.ours, row.floor) for row in peers.peers(True)]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [case.partition(", beside ") for case, _, _ in rows] == [
        (case, ", beside ", peer)
        for peer in ("a plain loop", "ThreadPool(2)")
        for case in ("layered 100x5", "wide 200", "chain 50", "one function")
    ]
    assert all(0 < ours < math.inf and 0 < floor < math.inf for _, ours, floor in rows)


def test_a_peer_that_leaves_a_process_is_found_out(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from tests.benchmarks import peers

    before = peers.children()
    monkeypatch.setenv(peers.MARK, str(os.getpid()))
    # One whose parent has ended.
    start = (
        "import subprocess as s, sys\n"
        "print(s.Popen([sys.executable, '-c', 'input()'], stdout=s.DEVNULL, stderr=s.DEVNULL).pid)"
    )
    reader, writer = os.pipe()
    started = subprocess.run([sys.executable, "-c", start], stdin=reader, stdout=subprocess.PIPE)
    os.close(reader)
    monkeypatch.setattr(peers, "GONE", 0.1)
    with pytest.raises(RuntimeError, match=f"Dask left processes behind.*{int(started.stdout)}"):
        peers.see_gone("Dask", before)
    os.close(writer)
    monkeypatch.setattr(peers, "GONE", 20.0)
    peers.see_gone("Dask", before)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(400.0, 0.9), (100.0, 0.7), (25.0, 0.3)], 50.0),
        ([(400.0, 0.9), (100.0, 0.5), (25.0, 0.3)], 100.0),
        ([(400.0, 0.4), (100.0, 0.3)], math.inf),
        ([(400.0, 0.9), (100.0, 0.8)], 100.0),
        ([(400.0, 0.4), (200.0, 0.6), (50.0, 0.4), (25.0, 0.3)], 100.0),
    ],
)
def test_metg_is_where_half_is_reached(points, expected, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from tests.benchmarks.cases_parallel import metg

    assert metg(points) == pytest.approx(expected)

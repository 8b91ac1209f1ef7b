"""A checkpoint of a run over nodes: results are kept from wherever they are, as they come."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
N = 60

SCRIPT = """
    import functools, os, time
    import handoff_actors as handoff
    from handoff_actors import Function

    SIZE = 50_000  # so large that a result stays on the node that made it

    def code(i, *args):
        time.sleep(0.01)
        total = (i + sum(int.from_bytes(arg[:8], "big") for arg in args)) %% 2**32
        with open("log", "a") as file:
            file.write(f"{i} {handoff.current().node}\\n")
        return total.to_bytes(8, "big") + bytes(SIZE)

    def last(*args):
        return sum(int.from_bytes(arg[:8], "big") for arg in args)

    handoff.start(name="home", capabilities={"cpu": 2})
    names = handoff.start_nodes(2, names=["b", "c"], capabilities={"cpu": 2})
    dag = handoff.new("chains")
    for i in range(%d):
        node = ("home", "b", "c")[i %% 3]
        args = range(max(0, i - 3), i)
        dag.add_function(Function(i, args, functools.partial(code, i), node=node))
    dag.add_function(Function("sum", range(%d), last))
    print("go", flush=True)
    result = handoff.execute(dag, checkpoint="c")
    assert all(len(result.results[i]) == SIZE + 8 for i in range(%d))
    print(result.results["sum"], flush=True)
    handoff.stop()
    """


def begin(folder: Path) -> subprocess.Popen[str]:
    path = folder / "script.py"
    path.write_text(textwrap.dedent(SCRIPT % (N, N, N)))
    process = subprocess.Popen(
        [sys.executable, str(path)], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    return process


def ran(folder: Path) -> Counter[int]:
    path = folder / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(int(line.split()[0]) for line in lines)


def kept(folder: Path) -> set[str]:
    """The functions whose results are in the file, as it is after the process is dead."""
    with contextlib.closing(sqlite3.connect(folder / "c")) as connection:
        return {name for (name,) in connection.execute("SELECT function FROM results")}


def expected_sum() -> int:
    totals: list[int] = []
    for i in range(N):
        totals.append((i + sum(totals[max(0, i - 3) : i])) % 2**32)
    return sum(totals)


def test_a_killed_orchestrator_goes_on_from_what_nodes_had_made(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    for least in (12, 30):
        process = begin(tmp_path)
        eventually(lambda least=least: len(ran(tmp_path)) >= least, 30.0)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before, had = ran(tmp_path), kept(tmp_path)
    assert len(had) >= 12, "results that stay on other nodes are kept as they come"
    assert {int(name) % 3 for name in had} == {0, 1, 2}
    (tmp_path / "log").unlink()
    process = begin(tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.split() == [str(expected_sum())]
    again = ran(tmp_path)
    assert {str(i) for i in again} == {str(i) for i in range(N)} - had, "exactly what was not kept"
    assert set(again.values()) == {1}
    assert sum(again[i] for i in before) < 15, "little more than what was in the air ran twice"
    (tmp_path / "log").unlink()
    process = begin(tmp_path)
    out, err = process.communicate(timeout=60)
    assert out.split() == [str(expected_sum())], err
    assert not ran(tmp_path)

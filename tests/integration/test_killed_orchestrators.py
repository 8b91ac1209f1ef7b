"""An orchestrator that is killed while its functions run on a node that others use too."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import handoff_actors as handoff
from handoff_actors import DAG, Function
from tests.gates import until
from tests.programs import Program

KEY = "dc" * 32

DOOMED = """
    import logging, os, sys, time
    import handoff_actors as handoff
    from handoff_actors import DAG, Function

    address, folder = sys.argv[1:]
    handoff.start(name="doomed", capabilities={"cpu": 1}, authkey="KEY",
                  heartbeat_timeout=2.0)
    handoff.connect(address)


    def mark(name):
        with open(f"{folder}/{name}", "a") as file:
            print(os.getpid(), file=file)


    class Value:
        def __init__(self):
            self.data = b"v" * 1_000_000

        def __del__(self):
            mark("freed")


    def runs(isolation):
        mark("begun " + isolation)
        while not handoff.current().cancelled():
            time.sleep(0.005)
        mark("cancelled " + isolation)


    dag = DAG("doomed")
    dag.add_function(Function("value", code=Value, node="n"))
    for isolation in ("thread", "process"):
        dag.add_function(
            Function(isolation, ["value"], lambda v, how=isolation: runs(how), node="n",
                     cost={"cpu": 1}, isolation=isolation)
        )
    for k in range(5):
        dag.add_function(Function(k, ["value"], lambda v: mark("queued"), node="n",
                                  cost={"cpu": 1}))
    handoff.submit(dag)
    second = DAG("second").add_function(Function("w", code=lambda: runs("second"), node="n"))
    handoff.submit(second)
    print("submitted", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def programs(leaks: Any) -> Iterator[list[Program]]:
    made: list[Program] = []
    yield made
    for program in made:
        program.close()


@pytest.fixture
def node(programs: list[Program]) -> Program:
    """A node that belongs to nobody, with three cpus."""
    program = Program(
        [
            sys.executable,
            "-m",
            "handoff_actors",
            "node",
            "--name",
            "n",
            "--cpu",
            "3",
            "--heartbeat-timeout",
            "2",
        ],
        {"HANDOFF_AUTHKEY": KEY},
    )
    programs.append(program)
    return program


def marks(folder: Path, name: str) -> list[int]:
    """The processes that have left that mark, as often as they have."""
    path = folder / name
    return list(map(int, path.read_text().split())) if path.exists() else []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_node_cancels_and_frees_what_it_had_for_an_orchestrator_that_is_gone(
    node: Program,
    programs: list[Program],
    make_runtime: Callable[..., handoff.Runtime],
    script: Any,
    tmp_path: Path,
    how: signal.Signals,
) -> None:
    address = node.wait_for(r"node n listens on (\S+)")[1]
    other = make_runtime(name="other", authkey=KEY, capabilities={"cpu": 1}, heartbeat_timeout=2.0)
    other.connect(address)

    class Undisturbed:
        """The run of somebody else: begins before the kill, ends after it."""

        def __init__(self, folder: Path) -> None:
            self.folder = str(folder)

        def __call__(self) -> tuple[str, int]:
            Path(self.folder, "other begun").touch()
            while not Path(self.folder, "go").exists():
                time.sleep(0.005)
            return handoff.current().node, handoff.current().attempt

    dag = DAG("undisturbed")
    dag.add_function(Function("x", code=Undisturbed(tmp_path), node="n", cost={"cpu": 1}))
    run = other.submit(dag)
    until(lambda: (tmp_path / "other begun").exists())

    path = script.write(DOOMED.replace("KEY", KEY))
    doomed = Program([sys.executable, str(path), address, str(tmp_path)])
    programs.append(doomed)
    doomed.wait_for("submitted")
    for kind in ("thread", "process", "second"):
        until(lambda k=kind: marks(tmp_path, f"begun {k}"))
    until(lambda: other.node_info("n").available == {**other.node_info("n").available, "cpu": 0})
    assert not marks(tmp_path, "freed")
    began = time.monotonic()
    os.kill(doomed.pid, how)
    for kind in ("thread", "second"):
        until(lambda k=kind: marks(tmp_path, f"cancelled {k}"))
    (worker,) = marks(tmp_path, "begun process")
    assert worker not in (node.pid, doomed.pid)
    until(lambda: not psutil.pid_exists(worker))
    # What it holds is what the other run has; the values are gone; what waited never began.
    until(lambda: other.node_info("n").available["cpu"] == 2)
    until(lambda: marks(tmp_path, "freed"))
    assert time.monotonic() - began < (2.0 if how is signal.SIGKILL else 6.0)
    assert not marks(tmp_path, "queued")
    assert not run.done()
    again = DAG("again")
    for k in range(4):
        again.add_function(Function(k, code=lambda: 1, node="n", cost={"cpu": 1}))
    assert len(other.execute(again, timeout=20.0).results) == 4
    (tmp_path / "go").touch()
    assert run.result(20.0).results["x"] == ("n", 1)
    until(lambda: other.node_info("n").available["cpu"] == 3)
    until(lambda: other.nodes() == ["n"])  # a frozen one is given up by each for itself
    assert other.node_info("doomed").state == "down"
    if how is signal.SIGSTOP:
        # When it thaws it is a node like any other, and what it ran is run again.
        os.kill(doomed.pid, signal.SIGCONT)
        until(lambda: "doomed" in other.nodes())
        until(lambda: len(marks(tmp_path, "begun thread")) == 2)

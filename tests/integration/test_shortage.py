"""A machine that gives no more threads: what runs goes on, later, and nothing is lost."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import handoff_actors as handoff


def test_a_run_that_gets_no_thread_waits_for_one(
    make_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime(capabilities={"cpu": 2})
    start = threading.Thread.start
    refusals = [20]

    def refuse(thread: threading.Thread) -> None:
        if refusals[0] > 0 and thread.name.startswith("handoff"):
            refusals[0] -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    meet = threading.Barrier(3)
    dag = handoff.DAG("d")
    for i in range(3):
        dag.add_function(handoff.Function(i, (), meet.wait, extra_args=(10,)))
    dag.add_function(handoff.Function("sum", (0, 1, 2), lambda *a: sum(a), cost={"cpu": 1}))
    assert runtime.execute(dag, timeout=15).results["sum"] == 3
    assert refusals == [0]
    assert runtime.execute(dag, dag_id="again").results["sum"] == 3

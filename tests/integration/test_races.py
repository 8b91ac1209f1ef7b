"""Races that a reader of the code found: each is brought about on purpose, or often enough."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors.testing import InjectedCrash

Make = Callable[..., handoff.Runtime]
Together = Callable[..., list[Any]]


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads take turns as often as the interpreter lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def dag_of(*functions: handoff.Function) -> handoff.DAG:
    dag = handoff.DAG()
    for function in functions:
        dag.add_function(function)
    return dag


# Names.


def test_dag_ids_that_read_the_same_run_side_by_side(runtime: handoff.Runtime) -> None:
    gate = threading.Event()
    first = runtime.submit(dag_of(handoff.Function("a", (), gate.wait)), dag_id=1)
    second = runtime.submit(dag_of(handoff.Function("a", (), lambda: 2)), dag_id="1")
    assert second.result(10).results["a"] == 2
    gate.set()
    assert first.result(10).results["a"] is True


def test_a_cancelled_run_makes_room_for_the_next_at_once(runtime: handoff.Runtime) -> None:
    for number in range(100):
        old = runtime.submit(dag_of(handoff.Function("a", (), lambda: 0)), dag_id="again")
        old.cancel()
        new = runtime.submit(dag_of(handoff.Function("a", (), lambda n=number: n)), dag_id="again")
        assert new.result(10).results["a"] == number


# The runner.


def test_outcomes_that_come_while_others_are_committed(make_runtime: Make, hurried: None) -> None:
    runtime = make_runtime(max_workers=16, max_restarts=1_000_000)
    dag = dag_of(*(handoff.Function(i, (), time.sleep, extra_args=(1e-6,)) for i in range(3000)))
    for _ in range(12):
        assert len(runtime.execute(dag, dag_id="many").results) == 3000
    assert "run:many" not in runtime.status().restarts


def test_an_allocator_is_asked_again_at_a_steady_pace(make_runtime: Make) -> None:
    """However often it was asked while it left something out."""
    asked: list[int] = []
    done = threading.Event()

    class Hesitant:
        def allocate(
            self,
            requests: Sequence[Any],
            nodes: Mapping[str, Any],
        ) -> Mapping[Any, str]:
            asked.append(len(requests))
            here = next(iter(nodes))
            return {r.id: here for r in requests if r.id != "late" or done.is_set()}

    runtime = make_runtime(allocator=Hesitant(), capabilities={"cpu": 1})
    chain = [handoff.Function(0, (), lambda: 0), handoff.Function(1, (0,), lambda n: n + 1)]
    chain += [handoff.Function(i, (i - 1, i - 2), lambda n, _: n + 1) for i in range(2, 200)]
    run = runtime.submit(dag_of(handoff.Function("late", (), lambda: "late"), *chain))
    for id_, _ in run.as_completed(timeout=10):
        if id_ == 199:
            break
    before = len(asked)
    threading.Event().wait(0.3)
    # 15 are due in that time; one timer for each step made hundreds.
    assert len(asked) - before < 40
    done.set()
    assert run.result(10).results["late"] == "late"


def test_who_listens_to_a_run_whose_runner_is_gone_for_good(
    make_runtime: Make, spawn: Callable[..., Any]
) -> None:
    runtime = make_runtime(max_restarts=2)
    gate = threading.Event()
    dag = dag_of(handoff.Function("a", (), lambda: 1), handoff.Function("b", ("a",), slow(gate)))
    run = runtime.submit(dag, dag_id="poisoned")
    seen: list[Any] = []

    def listen() -> None:
        seen.extend(run.as_completed())

    listener = spawn(listen)
    while not seen and run.progress().finished < 1:
        threading.Event().wait(0.001)
    for _ in range(4):
        handoff.testing.crash("run:poisoned", runtime=runtime)
    with pytest.raises(handoff.ActorCrashedError) as caught:
        listener.result(10)
    assert isinstance(caught.value.__cause__, InjectedCrash)
    assert seen == [("a", 1)]
    gate.set()


def slow(gate: threading.Event) -> Callable[..., Any]:
    def wait(*_: Any) -> bool:
        return gate.wait(20)

    return wait

"""Races that a reader of the code found: each is brought about on purpose, or often enough."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors.events import EventBus, RuntimeFailed
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


# Lanes, permits and claims.


def busy(runtime: handoff.Runtime) -> tuple[int, int]:
    """Threads at work, and claims held."""
    status = runtime.status()
    return status.workers["threads"]["busy"], len(status.claims)


def test_max_concurrency_bounds_classes_together(runtime: handoff.Runtime) -> None:
    """Their claims come at the same time; a class may wait for room with none in hand."""
    lock = threading.Lock()
    at_work: list[int] = []
    most: list[int] = [0]

    def work() -> None:
        with lock:
            at_work.append(1)
            most[0] = max(most[0], len(at_work))
        time.sleep(0.002)
        with lock:
            at_work.pop()

    async def await_work() -> None:
        work()

    dag = dag_of(
        *(handoff.Function(("cpu", i), (), work, cost={"cpu": 0.1}) for i in range(5)),
        *(handoff.Function(("memory", i), (), work, cost={"memory": 1}) for i in range(5)),
        *(handoff.Function(("free", i), (), work) for i in range(5)),
        *(handoff.Function(("timed", i), (), work, timeout=5) for i in range(5)),
        *(handoff.Function(("async", i), (), await_work, cost={"cpu": 0.1}) for i in range(5)),
    )
    for limit in (1, 2):
        most[0] = 0
        run = runtime.submit(dag, max_concurrency=limit)
        assert len(run.result(20).results) == 25
        assert most[0] == limit


def test_a_waiting_function_makes_room_for_another_class(runtime: handoff.Runtime) -> None:
    dag = dag_of(
        handoff.Function("waits", (), lambda: handoff.get_result("own", "made", 5), cost={"cpu": 1})
    )
    dag.add_function(handoff.Function("made", (), lambda: 7, timeout=5))
    run = runtime.submit(dag, dag_id="own", max_concurrency=1)
    assert run.result(4).results["waits"] == 7


def test_a_waiting_coroutine_makes_room_in_its_run(runtime: handoff.Runtime) -> None:
    async def waits() -> Any:
        return await handoff.aio.get_result("own", "made", 5)

    async def made() -> int:
        return 7

    for code in (made, lambda: 7):
        dag = dag_of(handoff.Function("waits", (), waits), handoff.Function("made", (), code))
        run = runtime.submit(dag, dag_id="own", max_concurrency=1)
        assert run.result(4).results["waits"] == 7


def test_a_coroutine_that_ignores_its_end_makes_room_for_its_next_attempt(
    runtime: handoff.Runtime,
) -> None:
    ended = threading.Event()

    async def stubborn() -> int:
        if handoff.current().attempt > 1:
            return 2
        while not ended.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue
        return 1

    dag = dag_of(handoff.Function("f", (), stubborn, timeout=0.05, max_retries=1))
    try:
        run = runtime.submit(dag, max_concurrency=1)
        assert run.result(4).results["f"] == 2
    finally:
        ended.set()


def test_awaiting_on_a_loop_of_ones_own_lends_too(make_runtime: Make) -> None:
    runtime = make_runtime(max_workers=1, capabilities={"cpu": 1})

    def waits() -> Any:
        return asyncio.run(handoff.aio.get_result("own", "made", 5))

    dag = dag_of(
        handoff.Function("waits", (), waits, cost={"cpu": 1}),
        handoff.Function("made", (), lambda: 7, cost={"cpu": 1}),
    )
    assert runtime.submit(dag, dag_id="own").result(4).results["waits"] == 7


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_thread_that_is_given_up_and_waits(
    make_runtime: Make, when: str, eventually: Callable[..., None]
) -> None:
    """Whether its time is over before it waits or while it does, its place is counted once."""
    runtime = make_runtime(max_workers=2, capabilities={"cpu": 2})

    def code() -> int:
        if handoff.current().attempt == 1:
            if when == "before":
                time.sleep(0.1)
            with contextlib.suppress(handoff.ResultTimeoutError):
                handoff.get_result("nobody", "x", 0.3)
        return handoff.current().attempt

    dag = dag_of(
        handoff.Function("f", (), code, timeout=0.05, max_retries=1, cost={"cpu": 1}),
        handoff.Function("g", ("f",), lambda attempt: attempt, cost={"cpu": 2}),
    )
    run = runtime.submit(dag, max_concurrency=1)
    assert run.result(5).results["g"] == 2
    eventually(lambda: busy(runtime) == (0, 0))


def test_timed_functions_give_way_to_other_runs(make_runtime: Make) -> None:
    runtime = make_runtime(max_workers=1, capabilities={"cpu": 1})
    nap = {"extra_args": (0.01,), "timeout": 5}
    long = dag_of(*(handoff.Function(i, (), time.sleep, **nap) for i in range(100)))
    run = runtime.submit(long)
    list(zip(run.as_completed(), range(3), strict=False))
    runtime.submit(dag_of(handoff.Function("a", (), lambda: 1))).result(5)
    assert run.progress().finished < 50
    assert len(run.result(10).results) == 100


def test_permits_and_claims_are_whole_after_many_ends(
    make_runtime: Make, hurried: None, together: Together, eventually: Callable[..., None]
) -> None:
    runtime = make_runtime(max_workers=3, capabilities={"cpu": 3})
    functions = [
        handoff.Function(i, (), time.sleep, extra_args=(1e-4,), cost={"cpu": 1}) for i in range(9)
    ]
    functions.append(handoff.Function("last", tuple(range(9)), lambda *_: 1))

    def call(number: int) -> Callable[[], None]:
        def work() -> None:
            for turn in range(40):
                run = runtime.submit(dag_of(*functions), dag_id=(number, turn))
                if turn % 3 == 0:
                    run.cancel()
                else:
                    run.result(10)

        return work

    together([call(n) for n in range(4)], 60)
    eventually(lambda: busy(runtime) == (0, 0))


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_bug_in_a_lane_costs_its_run_only(
    make_runtime: Make, monkeypatch: pytest.MonkeyPatch, isolation: str
) -> None:
    runtime = make_runtime(max_workers=1, isolation=isolation)
    faults = [MemoryError("in the lane")]

    def fail(*_: Any) -> None:
        if faults:
            raise faults.pop()

    with monkeypatch.context() as patch:
        patch.setattr(f"{LANES[isolation]}", fail)
        dag = dag_of(handoff.Function("a", (), int))
        run = runtime.submit(dag)
        if isolation == "process":
            with pytest.raises(handoff.FunctionFailedError) as caught:
                run.result(20)
            assert isinstance(caught.value.__cause__, MemoryError)
        else:
            assert run.result(20).results["a"] == 0
    assert runtime.execute(dag_of(handoff.Function("b", (), int))).results["b"] == 0
    workers = runtime.status().workers
    assert (workers["threads"]["busy"], workers["processes"]["busy"]) == (0, 0)


LANES = {
    "thread": "handoff_actors.execution.workers.thread.ThreadLane._account",
    "process": "handoff_actors.execution.workers.process_worker.ProcessWorker.receive",
}
"""Of each lane something that it calls outside of the wall around the user's code."""


# The face.


def test_stop_ends_a_synchronous_run_after_the_function_in_progress(
    runtime: handoff.Runtime, spawn: Callable[..., Any]
) -> None:
    begun, stopped, ran = threading.Event(), threading.Event(), []

    def code() -> None:
        ran.append(1)
        begun.set()
        stopped.wait(10)

    dag = dag_of(*(handoff.Function(i, (), code) for i in range(5)))
    execution = spawn(lambda: runtime.execute(dag, synchronous=True))
    assert begun.wait(10)
    runtime.stop()
    stopped.set()
    with pytest.raises(handoff.RunCancelledError):
        execution.result(10)
    assert len(ran) == 1


def test_a_task_cancelled_while_its_run_is_admitted(
    runtime: handoff.Runtime, eventually: Callable[..., None]
) -> None:
    """The run was on its way in when its task was cancelled: it is cancelled when it is there."""

    def code() -> None:
        while not handoff.current().cancelled():
            time.sleep(0.001)

    dag = dag_of(*(handoff.Function(i, (), code, cost={"cpu": 1}) for i in range(3)))

    async def begin_and_think_again() -> None:
        task = asyncio.ensure_future(handoff.aio.execute(dag))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    outer = dag_of(handoff.Function("f", (), lambda: asyncio.run(begin_and_think_again())))
    runtime.execute(outer, timeout=10)
    eventually(lambda: busy(runtime) == (0, 0))


class Hooked:
    """A lock; ``then`` is called once, as soon as it was given back."""

    def __init__(self, then: Callable[[], object]) -> None:
        self.lock = threading.Lock()
        self.then: list[Callable[[], object]] = [then]

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        if self.then:
            self.then.pop()()


def test_a_subscriber_that_comes_as_the_last_one_goes() -> None:
    """The last one to go ends the thread; whoever comes in that moment has one all the same."""
    bus = EventBus()
    heard = threading.Event()
    last = bus.subscribe(lambda event: None)
    bus._lock = Hooked(lambda: bus.subscribe(lambda event: heard.set()))  # type: ignore[assignment]
    last.cancel()
    bus.publish(RuntimeFailed(reason="none"))
    assert heard.wait(1)
    bus.close()


def test_work_that_comes_while_the_claim_is_on_its_way_back(
    make_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last lane of a class leaves, and gives its claim back after more work has come."""
    from handoff_actors.execution.crew import Crew

    runtime = make_runtime(capabilities={"cpu": 2})
    end_claim, seen = Crew.end_claim, []

    def late(self: Any, lane: Any) -> None:
        if not seen and lane.claim is not None:
            seen.append(lane)
            end = time.monotonic() + 2
            while not self.ready and time.monotonic() < end:
                time.sleep(0.001)
        end_claim(self, lane)

    monkeypatch.setattr(Crew, "end_claim", late)
    dag = handoff.new()
    dag.add_function(handoff.Function("a", (), lambda: 1, cost={"cpu": 1}))
    dag.add_function(handoff.Function("b", ["a"], lambda a: time.sleep(0.05) or a))
    dag.add_function(handoff.Function("c", ["b", "a"], lambda b, a: b + a, cost={"cpu": 1}))
    assert runtime.submit(dag).result(10).results["c"] == 2
    assert seen

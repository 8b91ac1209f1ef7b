"""How functions end: retries, timeouts, cancelling; and runs that are followed as they go."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import Function
from tests.functions import Gate, fails_until, single, wait_for

# Retries.


def test_four_attempts_by_default(runtime: handoff.Runtime) -> None:
    assert runtime.execute(single(fails_until(4))).results["f"] == 4
    with pytest.raises(handoff.FunctionFailedError) as caught:
        runtime.execute(single(fails_until(5)))
    assert caught.value.attempts == 4
    assert str(caught.value.__cause__) == "attempt 4"


@pytest.mark.parametrize(
    ("runtimes", "runs", "own", "attempts"),
    [(3, None, None, 4), (0, None, None, 1), (1, None, None, 2), (1, 2, None, 3), (5, 4, 0, 1)],
)
def test_whose_max_retries_counts(
    make_runtime: Any, runtimes: int, runs: int | None, own: int | None, attempts: int
) -> None:
    runtime = make_runtime(max_retries=runtimes)
    code = fails_until(99)
    with pytest.raises(handoff.FunctionFailedError) as caught:
        runtime.execute(single(code, max_retries=own), max_retries=runs)
    assert caught.value.attempts == attempts
    assert code.seen == list(range(1, attempts + 1))  # type: ignore[attr-defined]


@pytest.mark.parametrize("synchronous", [False, True])
@pytest.mark.parametrize(
    "error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, BaseException, MemoryError,
              StopIteration, asyncio.CancelledError, RecursionError, NotImplementedError],
)  # fmt: skip
def test_whatever_is_raised_is_an_outcome(
    runtime: handoff.Runtime, error: type[BaseException], synchronous: bool
) -> None:
    if synchronous and error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):  # it is the caller's own thread that is stopped
            runtime.execute(single(fails_until(2, error)), synchronous=True)
        return
    assert runtime.execute(single(fails_until(2, error)), synchronous=synchronous).results["f"] == 2
    with pytest.raises(handoff.FunctionFailedError) as caught:
        runtime.execute(single(fails_until(9, error)), max_retries=1, synchronous=synchronous)
    assert type(caught.value.__cause__) is error
    assert not runtime.status().restarts
    assert runtime.execute(single(lambda: 1)).results["f"] == 1


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, BaseException])
def test_whatever_a_coroutine_raises_is_an_outcome(
    runtime: handoff.Runtime, error: type[BaseException]
) -> None:
    inner = fails_until(2, error)

    async def code() -> Any:
        await asyncio.sleep(0)
        return inner()

    assert runtime.execute(single(code)).results["f"] == 2
    inner = fails_until(9, error)
    with pytest.raises(handoff.FunctionFailedError) as caught:
        runtime.execute(single(code), max_retries=1)
    assert type(caught.value.__cause__) is error
    assert runtime.execute(single(fails_until(1))).results["f"] == 1
    assert not runtime.status().restarts


def test_a_coroutine_that_cancels_itself_fails(runtime: handoff.Runtime) -> None:
    async def code() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(10)

    with pytest.raises(handoff.FunctionFailedError):
        runtime.execute(single(code, max_retries=0))
    assert runtime.execute(single(lambda: 1)).results["f"] == 1


def test_recursion_without_end(runtime: handoff.Runtime) -> None:
    def again(n: int = 0) -> int:
        return again(n + 1)

    for synchronous in (False, True):
        with pytest.raises(handoff.FunctionFailedError) as caught:
            runtime.execute(single(again, max_retries=0), synchronous=synchronous)
        assert isinstance(caught.value.__cause__, RecursionError)
    assert runtime.execute(single(lambda: 1)).results["f"] == 1


def test_retries_wait_doubling(runtime: handoff.Runtime) -> None:
    times: list[float] = []

    def code() -> None:
        times.append(time.monotonic())
        raise ValueError

    with pytest.raises(handoff.FunctionFailedError):
        runtime.execute(single(code, max_retries=3, retry_delay=0.05))
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert [p >= d for p, d in zip(pauses, (0.05, 0.1, 0.2), strict=True)] == [True] * 3
    assert sum(pauses) < 2


def test_a_retry_that_waits_holds_nothing(runtime: handoff.Runtime, claims_at_zero: Any) -> None:
    failed = threading.Event()

    def code() -> None:
        failed.set()
        raise ValueError

    run = runtime.submit(single(code, retry_delay=30, cost={"cpu": 2}))
    assert failed.wait(10)
    claims_at_zero(runtime)
    other = handoff.new().add_function(Function("g", (), lambda: 5, cost={"cpu": 2}))
    assert runtime.execute(other).results["g"] == 5
    assert run.cancel()
    with pytest.raises(handoff.RunCancelledError):
        run.result(5)


def test_a_failure_stops_what_is_downstream_and_beside(runtime: handoff.Runtime) -> None:
    ran: list[str] = []
    gate = Gate()
    dag = handoff.new("d")
    dag.add_function(Function("good", (), lambda: "kept"))
    dag.add_function(Function("bad", ["good"], fails_until(99), max_retries=0))
    dag.add_function(Function("down", ["bad"], lambda _: ran.append("down")))
    dag.add_function(Function("beside", (), gate))
    dag.add_function(Function("after", ["beside"], lambda _: ran.append("after")))
    run = runtime.submit(dag)
    with pytest.raises(handoff.FunctionFailedError) as caught:
        run.result(10)
    assert caught.value.function_id == "bad"
    gate.open.set()
    assert runtime.execute(single(lambda: 1)).results["f"] == 1
    assert ran == []
    assert runtime.get_local_value("d", "good") == "kept"
    assert run.progress().state == "failed"
    for missing in ("bad", "down", "after"):
        with pytest.raises(handoff.ValueNotFoundError):
            runtime.get_local_value("d", missing)


def test_siblings_of_a_failure_are_told(runtime: handoff.Runtime) -> None:
    told, started = threading.Event(), threading.Event()

    def sibling() -> None:
        started.set()
        end = time.monotonic() + 20
        while not handoff.current().cancelled() and time.monotonic() < end:
            time.sleep(0.001)
        if time.monotonic() < end:
            told.set()

    def bad() -> None:
        started.wait(10)
        raise ValueError

    dag = single(bad, max_retries=0).add_function(Function("g", (), sibling))
    with pytest.raises(handoff.FunctionFailedError):
        runtime.execute(dag)
    assert told.wait(10)


# Timeouts.


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
def test_a_function_that_takes_too_long(
    runtime: handoff.Runtime, gate: Gate, kind: str, claims_at_zero: Any
) -> None:
    async def coroutine() -> None:
        await asyncio.sleep(30)

    code: Any = gate if kind == "thread" else coroutine
    started = time.monotonic()
    with pytest.raises(handoff.FunctionTimeoutError) as caught:
        runtime.execute(single(code, timeout=0.05, max_retries=1, cost={"cpu": 1}))
    assert time.monotonic() - started < 5
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert (error.timeout, error.attempts, error.function_id) == (0.05, 2, "f")
    gate.open.set()
    claims_at_zero(runtime)


def test_an_abandoned_thread_keeps_its_claim(
    runtime: handoff.Runtime, gate: Gate, claims_at_zero: Any
) -> None:
    with pytest.raises(handoff.FunctionTimeoutError):
        runtime.execute(single(gate, timeout=0.05, max_retries=0, cost={"cpu": 1.5}), dag_id="d")
    status = runtime.status()
    assert [(c.dag_id, dict(c.amounts)) for c in status.claims] == [("d", {"cpu": 1.5})]
    assert status.workers["abandoned_threads"] == [{"dag_id": "d", "function_id": "f"}]
    assert not runtime.resources_available(runtime.node(), {"cpu": 1})
    assert runtime.execute(single(lambda: 1, cost={"cpu": 0.5})).results["f"] == 1
    waiting = runtime.submit(single(lambda: 2, cost={"cpu": 1}))
    with pytest.raises(TimeoutError):
        waiting.result(0.1)
    gate.open.set()
    assert waiting.result(10).results["f"] == 2
    claims_at_zero(runtime)
    wait_for(lambda: not runtime.status().workers["abandoned_threads"])


def test_the_late_outcome_of_an_abandoned_attempt_is_ignored(runtime: handoff.Runtime) -> None:
    first, late = Gate("late"), []

    def code() -> str:
        if handoff.current().attempt == 1:
            late.append(first())
            return "late"
        return "in time"

    result = runtime.execute(single(code, timeout=0.1, max_retries=1))
    assert result.results["f"] == "in time"
    first.open.set()
    wait_for(lambda: late)
    runtime.execute(single(lambda: 1))
    assert result.results["f"] == "in time"


def test_a_timeout_that_is_kept(runtime: handoff.Runtime) -> None:
    async def coroutine() -> int:
        await asyncio.sleep(0)
        return 2

    dag = single(lambda: 1, timeout=20).add_function(Function("g", (), coroutine, timeout=20))
    assert dict(runtime.execute(dag).results) == {"f": 1, "g": 2}


def test_abandoned_threads_are_replaced(make_runtime: Any) -> None:
    runtime = make_runtime(max_workers=1, shutdown_timeout=0.2)
    gates = [Gate() for _ in range(3)]
    for gate in gates:
        with pytest.raises(handoff.FunctionTimeoutError):
            runtime.execute(single(gate, timeout=0.02, max_retries=0))
        assert runtime.execute(single(lambda: 1)).results["f"] == 1
    for gate in gates:
        gate.open.set()


@pytest.mark.parametrize("kind", ["thread", "coroutine", "waiting for a claim"])
def test_a_run_that_takes_too_long(
    runtime: handoff.Runtime, gate: Gate, kind: str, claims_at_zero: Any
) -> None:
    async def coroutine() -> None:
        await asyncio.sleep(30)

    code: Any = coroutine if kind == "coroutine" else gate
    holder = None
    if kind.startswith("waiting"):
        holder = runtime.submit(single(gate, cost={"cpu": 2}))
        assert gate.entered.wait(10)
    with pytest.raises(handoff.ExecutionTimeoutError) as caught:
        runtime.execute(single(code, cost={"cpu": 1}), timeout=0.1)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.timeout == 0.1
    gate.open.set()
    if holder is not None:
        holder.result(10)
    claims_at_zero(runtime)


# Cancelling.


def test_cancel_while_it_runs(runtime: handoff.Runtime, gate: Gate, claims_at_zero: Any) -> None:
    ran: list[int] = []
    dag = single(gate, cost={"cpu": 1})
    dag.add_function(Function("g", ["f"], ran.append, cost={"cpu": 1}))
    run = runtime.submit(dag)
    assert gate.entered.wait(10)
    assert run.cancel()
    assert run.cancel(), "it did end cancelled"
    with pytest.raises(handoff.RunCancelledError) as caught:
        run.result(5)
    import concurrent.futures

    assert isinstance(caught.value, concurrent.futures.CancelledError)
    assert run.cancelled()
    assert run.done()
    assert not run.running()
    gate.open.set()
    claims_at_zero(runtime)
    assert ran == []
    wait_for(lambda: run.progress().state == "cancelled")


def test_cancel_before_anything_ran(runtime: handoff.Runtime, gate: Gate) -> None:
    holder = runtime.submit(single(gate, cost={"cpu": 2}))
    assert gate.entered.wait(10)
    ran: list[int] = []
    run = runtime.submit(single(lambda: ran.append(1), cost={"cpu": 1}))
    assert run.cancel()
    with pytest.raises(handoff.RunCancelledError):
        run.result(5)
    gate.open.set()
    holder.result(10)
    runtime.execute(single(lambda: 1, cost={"cpu": 2}))
    assert ran == []


def test_cancel_a_coroutine(runtime: handoff.Runtime, claims_at_zero: Any) -> None:
    started, cancelled = threading.Event(), threading.Event()

    async def code() -> None:
        started.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    run = runtime.submit(single(code, cost={"cpu": 1}))
    assert started.wait(10)
    assert run.cancel()
    assert cancelled.wait(10)
    claims_at_zero(runtime)


def test_a_coroutine_that_will_not_be_cancelled(runtime: handoff.Runtime) -> None:
    started, ended = threading.Event(), threading.Event()

    async def code() -> str:
        started.set()
        for _ in range(5):
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue
        ended.set()
        return "stubborn"

    run = runtime.submit(single(code))
    assert started.wait(10)
    assert run.cancel()
    with pytest.raises(handoff.RunCancelledError):
        run.result(1)
    assert ended.wait(10)
    assert runtime.execute(single(lambda: 1)).results["f"] == 1


def test_thread_code_can_see_that_it_is_cancelled(runtime: handoff.Runtime) -> None:
    started, left = threading.Event(), threading.Event()

    def code() -> None:
        started.set()
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if handoff.current().cancelled():
                left.set()
                return
            time.sleep(0.001)

    run = runtime.submit(single(code))
    assert started.wait(10)
    run.cancel()
    assert left.wait(10)


def test_cancel_races_with_the_end(runtime: handoff.Runtime, claims_at_zero: Any) -> None:
    for i in range(200):
        run = runtime.submit(single(lambda: 1, cost={"cpu": 1}), dag_id=i)
        cancelled = run.cancel()
        try:
            run.result(10)
            assert not cancelled
        except handoff.RunCancelledError:
            assert cancelled
    claims_at_zero(runtime)


def test_cancel_from_a_callback_and_from_a_function(runtime: handoff.Runtime) -> None:
    box: list[handoff.Run] = []
    there = threading.Event()

    def code() -> None:
        there.wait(10)
        box[0].cancel()

    box.append(runtime.submit(single(code)))
    there.set()
    with pytest.raises(handoff.RunCancelledError):
        box[0].result(10)
    done = threading.Event()
    run = runtime.submit(single(lambda: 1))
    run.add_done_callback(lambda r: (r.cancel(), done.set()))
    assert done.wait(10)
    assert run.result(1).results["f"] == 1


def test_a_done_callback_that_raises_or_waits_harms_nobody(runtime: handoff.Runtime) -> None:
    hold, entered = threading.Event(), threading.Event()

    def callback(_: Any) -> None:
        entered.set()
        hold.wait(10)

    gate = Gate()
    run = runtime.submit(single(gate))
    run.add_done_callback(callback)
    gate.open.set()
    assert entered.wait(10)
    try:
        assert runtime.execute(single(lambda: 1), timeout=5).results["f"] == 1
    finally:
        hold.set()


# as_completed.


def test_as_completed_while_it_runs(runtime: handoff.Runtime) -> None:
    gate = Gate("second")
    dag = handoff.new().add_function(Function("a", (), lambda: "first"))
    dag.add_function(Function("b", ["a"], gate))
    dag.add_function(Function("c", ["b"], lambda b: b + " third"))
    run = runtime.submit(dag)
    finished = run.as_completed(timeout=10)
    assert next(finished) == ("a", "first")
    assert gate.entered.wait(10)
    gate.open.set()
    assert list(finished) == [("b", "second"), ("c", "second third")]
    assert [i for i, _ in run.as_completed()] == ["a", "b", "c"]


def test_as_completed_of_a_run_that_fails(runtime: handoff.Runtime) -> None:
    dag = handoff.new().add_function(Function("a", (), lambda: 1))
    dag.add_function(Function("b", ["a"], fails_until(99), max_retries=0))
    for _ in range(2):
        run = runtime.submit(dag)
        seen = []
        with pytest.raises(handoff.FunctionFailedError):  # noqa: PT012
            for pair in run.as_completed(timeout=10):
                seen.append(pair)
        assert seen == [("a", 1)]


def test_as_completed_of_a_run_that_is_cancelled(runtime: handoff.Runtime, gate: Gate) -> None:
    run = runtime.submit(single(gate).add_function(Function("g", (), lambda: 1)))
    finished = run.as_completed(timeout=10)
    assert next(finished) == ("g", 1)
    run.cancel()
    with pytest.raises(handoff.RunCancelledError):
        list(finished)


def test_as_completed_with_a_timeout(runtime: handoff.Runtime, gate: Gate) -> None:
    run = runtime.submit(single(gate))
    with pytest.raises(TimeoutError):
        next(run.as_completed(timeout=0.05))
    gate.open.set()
    assert list(run.as_completed(timeout=10)) == [("f", "through")]


def test_as_completed_by_several_at_once(runtime: handoff.Runtime, together: Any) -> None:
    dag = handoff.new()
    for i in range(100):
        dag.add_function(Function(i, [i - 1] if i else [], lambda *a: len(a)))
    run = runtime.submit(dag)
    for seen in together([lambda: list(run.as_completed(10))] * 4):
        assert [i for i, _ in seen] == list(range(100))

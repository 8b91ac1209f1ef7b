"""How functions are run on threads and loops: retries, timeouts, claims, cancelling, keeping."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import Argument, Collocated, Function


class Gate:
    """A function that says that it runs, and waits to be let go (20 s at most)."""

    def __init__(self, value: Any = "through") -> None:
        self.value = value
        self.entered = threading.Event()
        self.open = threading.Event()
        self.calls = 0

    def __call__(self, *_: Any) -> Any:
        self.calls += 1
        self.entered.set()
        self.open.wait(20)
        return self.value


@pytest.fixture
def gate() -> Any:
    made = Gate()
    yield made
    made.open.set()


class Meter:
    """Counts how many run at once.

    Each stays until ``expected`` are there (2 s at most), and then 10 ms longer, so that one too
    many has the time to come and be seen.
    """

    def __init__(self, expected: int = 1) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.expected = expected
        self.full = threading.Event()
        self.too_many = threading.Event()

    def __call__(self, *_: Any) -> int:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now >= self.expected:
                self.full.set()
            if self.now > self.expected:
                self.too_many.set()
        self.full.wait(2)
        self.too_many.wait(0.01)
        with self.lock:
            self.now -= 1
        return self.most


def single(code: Callable[..., Any], **options: Any) -> handoff.DAG:
    return handoff.new().add_function(Function("f", (), code, **options))


def wait_for(predicate: Callable[[], object], deadline: float = 10.0) -> None:
    end = time.monotonic() + deadline
    while not predicate():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.001)


# Retries.


def fails_until(attempt: int, error: type[BaseException] = ValueError) -> Callable[..., Any]:
    seen: list[int] = []

    def code(*_: Any) -> int:
        seen.append(handoff.current().attempt)
        if len(seen) < attempt:
            raise error(f"attempt {len(seen)}")
        return len(seen)

    code.seen = seen  # type: ignore[attr-defined]
    return code


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


# Keeping and retaining.


def diamond(dag_id: Any = None) -> handoff.DAG:
    dag = handoff.new(dag_id)
    dag.add_function(Function("a", (), lambda: 1))
    dag.add_function(Function("b", ["a"], lambda a: a + 1))
    dag.add_function(Function("c", ["a"], lambda a: a + 2))
    dag.add_function(Function("d", ["b", "c"], lambda b, c: b * c))
    return dag


@pytest.mark.parametrize("synchronous", [False, True])
@pytest.mark.parametrize(
    ("keep", "kept"),
    [("all", "abcd"), ("sinks", "d"), (["b"], "b"), (["a", "d"], "ad"), ([], ""), (("c",), "c")],
)
def test_keep(runtime: handoff.Runtime, keep: Any, kept: str, synchronous: bool) -> None:
    result = runtime.execute(diamond("d"), keep=keep, synchronous=synchronous)
    assert sorted(result.results) == sorted(kept)
    assert len(result.results) == len(kept)
    for name in "abcd":
        if name in kept:
            assert runtime.get_local_value("d", name) == result.results[name]
        else:
            with pytest.raises(KeyError):
                result.results[name]
            with pytest.raises(handoff.ValueNotFoundError):
                result.results[name]
            with pytest.raises(handoff.ValueNotFoundError):
                runtime.get_local_value("d", name)
            with pytest.raises(handoff.ResultTimeoutError):
                runtime.get_result("d", name, 30)


class Value:
    """Something that can be seen to be freed."""


class Made:
    """Makes values, and knows which are alive."""

    def __init__(self) -> None:
        self.values: weakref.WeakSet[Value] = weakref.WeakSet()

    def __call__(self, *_: Any) -> Value:
        value = Value()
        self.values.add(value)
        return value

    def alive(self) -> int:
        gc.collect()
        return len(self.values)


@pytest.fixture
def made() -> Made:
    return Made()


@pytest.mark.parametrize("synchronous", [False, True])
def test_values_not_kept_are_freed_as_their_last_consumer_ends(
    runtime: handoff.Runtime, synchronous: bool, made: Made
) -> None:
    alive: list[int] = []

    def code(*_: Any) -> Value:
        alive.append(made.alive())
        return made()

    dag = handoff.new()
    for i in range(50):
        dag.add_function(Function(i, [i - 1] if i else [], code))
    result = runtime.execute(dag, keep="sinks", synchronous=synchronous)
    assert max(alive) <= 6
    assert list(result.results) == [49]
    wait_for(lambda: made.alive() == 1)


def test_release_frees(runtime: handoff.Runtime, made: Made) -> None:
    result = runtime.execute(single(made), dag_id="d")
    assert made.alive() == 1
    result.release()
    wait_for(lambda: made.alive() == 0)
    with pytest.raises(handoff.ValueNotFoundError):
        runtime.get_local_value("d", "f")


def test_old_runs_are_released_unless_somebody_holds_their_result(
    make_runtime: Any, made: Made
) -> None:
    runtime = make_runtime(max_retained_runs=3)
    held = runtime.execute(single(made), dag_id="held")
    for i in range(20):
        runtime.execute(single(made), dag_id=i)
    wait_for(lambda: made.alive() <= 4)
    assert isinstance(held.results["f"], Value)
    assert isinstance(runtime.get_local_value("held", "f"), Value)
    assert isinstance(runtime.get_local_value(19, "f"), Value)
    with pytest.raises(handoff.ValueNotFoundError):
        runtime.get_local_value(0, "f")
    wait_for(lambda: len(runtime.status().runs) <= 4)
    del held
    gc.collect()
    for i in range(20, 24):
        runtime.execute(single(made), dag_id=i)
    wait_for(lambda: made.alive() <= 3)


def test_what_is_no_more_retained_cannot_be_had_from_the_next_call_on(make_runtime: Any) -> None:
    runtime = make_runtime(max_retained_runs=2)
    reads: list[Callable[[Any], object]] = [
        lambda i: runtime.get_value(i, "f"),
        lambda i: runtime.get_local_value(i, "f"),
        lambda i: runtime.lookup_data_location(i, "f"),
    ]
    for i in range(30):
        runtime.execute(single(lambda: 1), dag_id=i)
        if i >= 2:
            with pytest.raises(handoff.ValueNotFoundError):
                reads[i % 3](i - 2)
        assert runtime.synchronize(i, ["f"]) == {"f": 1}
        assert len(runtime.status().runs) <= 2


def test_nothing_is_retained_when_asked_so(make_runtime: Any, made: Made) -> None:
    runtime = make_runtime(max_retained_runs=0)
    result = runtime.execute(single(made))
    assert isinstance(result.results["f"], Value)
    del result
    runtime.execute(single(lambda: 1))
    wait_for(lambda: made.alive() == 0)
    wait_for(lambda: len(runtime.status().runs) <= 1)


def test_failed_and_cancelled_runs_are_released_too(make_runtime: Any, made: Made) -> None:
    runtime = make_runtime(max_retained_runs=2)
    for i in range(10):
        dag = single(made).add_function(Function("g", ["f"], fails_until(99), max_retries=0))
        run = runtime.submit(dag, dag_id=i)
        run.exception(10)
        del run, dag
    wait_for(lambda: made.alive() <= 2)
    wait_for(lambda: len(runtime.status().runs) <= 2)


def test_run_again_never_sees_old_values(runtime: handoff.Runtime) -> None:
    numbers = iter(range(100))
    gate = Gate()
    dag = handoff.new("d").add_function(Function("n", (), lambda: next(numbers)))
    dag.add_function(Function("m", ["n"], lambda n: n * 10))
    first = runtime.execute(dag)
    runtime.store_value("d", "mine", "kept")
    slow = handoff.new("d").add_function(Function("n", (), gate))
    run = runtime.submit(slow)
    assert gate.entered.wait(10)
    for old in ("n", "m"):
        with pytest.raises(handoff.ValueNotFoundError):
            runtime.get_local_value("d", old)
    gate.open.set()
    run.result(10)
    assert runtime.get_local_value("d", "n") == "through"
    assert dict(first.results) == {"n": 0, "m": 0}, "an ExecutionResult means its own run"
    second = runtime.execute(dag)
    assert dict(second.results) == {"n": 1, "m": 10}
    assert runtime.get_result("d", "m") == 10
    first.release()
    assert runtime.get_result("d", "m") == 10
    assert dict(second.results) == {"n": 1, "m": 10}


def test_stored_under_the_id_of_a_function(runtime: handoff.Runtime) -> None:
    runtime.store_value("d", "n", "old")
    seen: list[Any] = []
    dag = handoff.new("d").add_function(Function("n", (), lambda: "new"))
    dag.add_function(Function("m", ["n"], seen.append))
    result = runtime.execute(dag)
    assert seen == ["new"]
    assert result.results["n"] == "new"
    assert runtime.get_result("d", "n") == "new"


# Arguments.


@pytest.mark.parametrize("synchronous", [False, True])
def test_arguments(runtime: handoff.Runtime, synchronous: bool) -> None:
    def gather(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    dag = handoff.new()
    dag.add_function(Function("a", (), lambda: 1))
    dag.add_function(Function("b", (), lambda: None))
    dag.add_function(Function("c", ["a", "b", "a"], gather, extra_args=[9], extra_kwargs={"k": 8}))
    dag.add_function(
        Function("l", ["b", "a"], gather, argument_inclusion="as_list", extra_args=[7])
    )
    dag.add_function(Function("none", (), gather, argument_inclusion="as_list"))
    results = runtime.execute(dag, synchronous=synchronous).results
    assert results["c"] == ((1, None, 1, 9), {"k": 8})
    assert results["l"] == (([None, 1], 7), {})
    assert results["none"] == (([],), {})


@pytest.mark.parametrize("synchronous", [False, True])
def test_inlines(runtime: handoff.Runtime, synchronous: bool) -> None:
    calls: list[str] = []

    def log(name: str, value: Any) -> Any:
        calls.append(name)
        return value

    dag = handoff.new()
    dag.add_function(Function("a", (), lambda: 1))
    dag.add_function(Function("i", ["a"], lambda a: log("i", a + 10), type="inline"))
    dag.add_function(Function("j", ["i", "a"], lambda i, a: log("j", i + a), type="inline"))
    dag.add_function(Function("b", ["j", "i"], lambda j, i: (j, i)))
    dag.add_function(Function("c", ["j"], lambda j: j))
    result = runtime.execute(dag, synchronous=synchronous)
    assert dict(result.results) == {"a": 1, "b": (12, 11), "c": 12}
    assert "i" not in result.results
    assert sorted(calls) == ["i", "i", "j", "j"], "once for each attempt of a dependent"


def test_an_inline_that_fails_is_a_failure_of_its_dependent(runtime: handoff.Runtime) -> None:
    code = fails_until(2)
    dag = handoff.new().add_function(Function("i", (), code, type="inline"))
    dag.add_function(Function("b", ["i"], lambda i: i))
    assert runtime.execute(dag).results["b"] == 2
    dag = handoff.new().add_function(Function("i", (), fails_until(99), type="inline"))
    dag.add_function(Function("b", ["i"], lambda i: i, max_retries=1))
    with pytest.raises(handoff.FunctionFailedError) as caught:
        runtime.execute(dag)
    assert caught.value.attempts == 2
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("synchronous", [False, True])
def test_inputs(runtime: handoff.Runtime, synchronous: bool) -> None:
    execute = functools.partial(runtime.execute, synchronous=synchronous)
    dag = handoff.new("d")
    dag.add_function(Function("x", type="input"))
    dag.add_function(Function("y", type="input"))
    dag.add_function(Function("sum", ["x", "y"], lambda x, y: (x, y)))
    assert execute(dag, inputs={"x": 1, "y": None}).results["sum"] == (1, None)
    assert execute(dag, inputs={"x": 2, "y": 3}).results["sum"] == (2, 3)
    for inputs in (None, {}, {"x": 1}):
        with pytest.raises(handoff.MissingInputError) as caught:
            execute(dag, inputs=inputs)
        assert "y" in caught.value.missing
    with pytest.raises(handoff.MissingInputError) as unknown:
        execute(dag, inputs={"x": 1, "y": 1, "z": 1})
    assert list(unknown.value.unknown) == ["z"]


@pytest.mark.parametrize("synchronous", [False, True])
def test_serialisers(runtime: handoff.Runtime, synchronous: bool) -> None:
    me, seen = runtime.node(), []

    def out(data: Any, source: str, target: str, *extra: Any) -> Any:
        seen.append(("out", source, target, extra))
        return [data]

    def back(data: Any, source: str, target: str, *extra: Any) -> Any:
        seen.append(("back", source, target, extra))
        return data[0] * 2

    dag = handoff.new().add_function(Function("a", (), lambda: 21))
    dag.add_function(Function("b", [Argument("a", (out, [1, 2]), back)], lambda x: x))
    dag.add_function(Function("c", [Argument("a", out), "a"], lambda x, y: (x, y)))
    results = runtime.execute(dag, synchronous=synchronous).results
    assert results["b"] == 42
    assert results["c"] == ([21], 21)
    assert ("out", me, me, (1, 2)) in seen
    assert ("back", me, me, ()) in seen
    assert len(seen) == 3


def test_a_serialiser_that_raises(runtime: handoff.Runtime) -> None:
    def out(*_: Any) -> Any:
        raise ValueError("cannot")

    dag = handoff.new().add_function(Function("a", (), lambda: 21))
    dag.add_function(Function("b", [Argument("a", out)], lambda x: x, max_retries=0))
    with pytest.raises((handoff.FunctionFailedError, handoff.SerializationError)) as caught:
        runtime.execute(dag)
    assert caught.value.function_id == "b"
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("synchronous", [False, True])
def test_init_and_batches_are_streams_of_one_item(
    runtime: handoff.Runtime, synchronous: bool
) -> None:
    dag = handoff.new().add_function(Function("a", (), lambda: 5))
    dag.add_function(Function("i", ["a"], lambda s, a: ((s, a), s), init=lambda: "state"))
    dag.add_function(
        Function("j", ["a"], lambda s, a: (s + a, s), init=(lambda x, y: x + y, [1, 2]))
    )
    dag.add_function(Function("k", ["a"], lambda items: [x * 2 for (x,) in items], batch_size=10))
    results = runtime.execute(dag, synchronous=synchronous).results
    assert results["i"] == ("state", 5)
    assert results["j"] == 8
    assert results["k"] == 10


def test_an_init_that_raises_and_a_state_that_is_no_pair(runtime: handoff.Runtime) -> None:
    def bad() -> None:
        raise ValueError("init")

    with pytest.raises(handoff.FunctionFailedError) as caught:
        runtime.execute(single(lambda s: (1, s), init=bad, max_retries=0))
    assert str(caught.value.__cause__) == "init"
    with pytest.raises(handoff.FunctionFailedError):
        runtime.execute(single(lambda s: 7, init=lambda: 1, max_retries=0))
    with pytest.raises(handoff.FunctionFailedError):
        runtime.execute(single(lambda items: [1, 2, 3], batch_size=5, max_retries=0))


@pytest.mark.parametrize("synchronous", [False, True])
def test_callables_of_all_kinds(runtime: handoff.Runtime, synchronous: bool) -> None:
    class Adder:
        def __init__(self, n: int) -> None:
            self.n = n

        def __call__(self, x: int) -> int:
            return x + self.n

        def method(self, x: int) -> int:
            return x * self.n

        @staticmethod
        def static(x: int) -> int:
            return -x

        async def awaited(self, x: int) -> int:
            await asyncio.sleep(0)
            return x - self.n

    adder = Adder(3)
    codes: dict[str, Any] = {
        "object": adder,
        "method": adder.method,
        "static": Adder.static,
        "partial": functools.partial(pow, 2),
        "builtin": abs,
        "type": str,
        "name": "math:sqrt",
        "dotted": "os.path:basename",
        "async method": adder.awaited,
    }
    dag = handoff.new().add_function(Function("x", (), lambda: 4))
    for name, code in codes.items():
        if name != "dotted":
            dag.add_function(Function(name, ["x"], code))
    dag.add_function(Function("path", (), lambda: "/a/b"))
    dag.add_function(Function("dotted", ["path"], codes["dotted"]))
    results = runtime.execute(dag, synchronous=synchronous).results
    assert [results[name] for name in codes] == [7, 12, -4, 16, 4, "4", 2.0, "b", 1]


def test_unusual_ids_and_values(runtime: handoff.Runtime) -> None:
    class Awkward:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("compared")

        __hash__ = None  # type: ignore[assignment]

        def __bool__(self) -> bool:
            raise RuntimeError("asked for truth")

        def __repr__(self) -> str:
            raise RuntimeError("shown")

        def __len__(self) -> int:
            raise RuntimeError("measured")

    dag = handoff.new(("a", "tuple"))
    dag.add_function(Function(0, (), Awkward))
    dag.add_function(Function("", [0], lambda x: x))
    dag.add_function(Function((1, 2), ["", 0], lambda x, y: x is y))
    dag.add_function(Function(frozenset({1}), [(1, 2)], lambda x: ValueError("value")))
    results = runtime.execute(dag).results
    assert results[1, 2] is True
    assert isinstance(results[frozenset({1})], ValueError)
    assert isinstance(runtime.get_value(("a", "tuple"), 0), Awkward)


def test_each_attempt_has_a_copy_of_the_callers_context(runtime: handoff.Runtime) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")
    seen: list[str] = []

    def code() -> None:
        seen.append(variable.get())
        variable.set("changed inside")
        if len(seen) < 3:
            raise ValueError

    async def coroutine(_: Any) -> str:
        await asyncio.sleep(0)
        return variable.get()

    variable.set("callers")
    dag = single(code).add_function(Function("g", ["f"], coroutine))
    run = runtime.submit(dag)
    variable.set("later")
    assert run.result(10).results["g"] == "callers"
    assert seen == ["callers"] * 3
    assert variable.get() == "later"


# Workers, claims, order.


def test_three_functions_meet_at_a_barrier(runtime: handoff.Runtime) -> None:
    for _ in range(20):
        barrier = threading.Barrier(3)
        dag = handoff.new().add_function(Function("a", (), lambda: 1))
        for i in range(3):
            dag.add_function(Function(i, ["a"], lambda _: barrier.wait(10)))
        results = runtime.execute(dag).results
        assert sorted(results[i] for i in range(3)) == [0, 1, 2]


def test_nothing_waits_behind_a_slow_one(runtime: handoff.Runtime, gate: Gate) -> None:
    dag = single(gate)
    for i in range(500):
        dag.add_function(Function(i, (), lambda: 1))
    run = runtime.submit(dag)
    finished = dict(pair for _, pair in zip(range(500), run.as_completed(10), strict=False))
    assert set(finished) == set(range(500))
    gate.open.set()
    run.result(10)


def test_many_coroutines_are_in_flight_at_once(runtime: handoff.Runtime) -> None:
    count, all_there = 0, asyncio.Event()

    async def code() -> int:
        nonlocal count
        count += 1
        if count == 300:
            all_there.set()
        await asyncio.wait_for(all_there.wait(), 10)
        return count

    dag = handoff.new()
    for i in range(300):
        dag.add_function(Function(i, (), code))
    assert set(runtime.execute(dag).results.values()) == {300}


@pytest.mark.parametrize(("cpu", "most"), [(1, 2), (0.5, 4), (2, 1), (0.1, 20)])
def test_claims_bound_what_runs_at_once(
    runtime: handoff.Runtime, cpu: float, most: int, claims_at_zero: Any
) -> None:
    meter = Meter(most)
    dag = handoff.new()
    for i in range(most * 3):
        dag.add_function(Function(i, (), meter, cost={"cpu": cpu}))
    runtime.execute(dag)
    assert meter.most == most
    claims_at_zero(runtime)


def test_two_runs_share_what_there_is(runtime: handoff.Runtime, claims_at_zero: Any) -> None:
    meter = Meter(2)
    runs = []
    for name in range(6):
        dag = handoff.new(name)
        for i in range(10):
            dag.add_function(Function(i, [i - 1] if i % 2 else [], meter, cost={"cpu": 1}))
        runs.append(runtime.submit(dag))
    for run in runs:
        run.result(20)
    assert meter.most == 2
    claims_at_zero(runtime)


def test_several_resources_at_once(runtime: handoff.Runtime, claims_at_zero: Any) -> None:
    runtime.register_local_node({"cpu": 4, "memory": 100, "gpu": 1})
    lock, used, most = threading.Lock(), {"cpu": 0.0, "memory": 0.0, "gpu": 0.0}, {}

    def code(cost: dict[str, float]) -> None:
        with lock:
            for name, amount in cost.items():
                used[name] += amount
                most[name] = max(most.get(name, 0.0), used[name])
        time.sleep(0.001)
        with lock:
            for name, amount in cost.items():
                used[name] -= amount

    costs = [{"cpu": 1}, {"memory": 60, "cpu": 0.5}, {"gpu": 1}, {"gpu": 0.3, "memory": 30}, {}]
    dag = handoff.new()
    for i in range(100):
        cost = costs[i % len(costs)]
        dag.add_function(Function(i, (), code, extra_args=[cost], cost=cost))
    runtime.execute(dag)
    assert most["cpu"] <= 4 + 1e-6
    assert most["memory"] <= 100 + 1e-6
    assert most["gpu"] <= 1 + 1e-6
    claims_at_zero(runtime)


def test_a_big_one_is_not_starved_by_small_ones(runtime: handoff.Runtime) -> None:
    stop, big_ran = threading.Event(), threading.Event()
    small = handoff.new("small")
    for i in range(3000):
        small.add_function(Function(i, (), lambda: stop.is_set() or time.sleep(0.002),
                                    cost={"cpu": 1}))  # fmt: skip
    run = runtime.submit(small)
    big = runtime.submit(single(big_ran.set, cost={"cpu": 2}))
    try:
        big.result(5)
        assert not run.done()
    finally:
        stop.set()
        run.cancel()


def test_zero_and_empty_costs(runtime: handoff.Runtime) -> None:
    dag = single(lambda: 1, cost={"cpu": 0})
    dag.add_function(Function("g", (), lambda: 2, cost={}))
    dag.add_function(Function("h", (), lambda: 3, cost={"unheard_of": 0}))
    assert dict(runtime.execute(dag).results) == {"f": 1, "g": 2, "h": 3}


def test_the_claim_is_back_before_the_outcome_is_told(runtime: handoff.Runtime) -> None:
    for i in range(50):
        runtime.execute(single(lambda: 1, cost={"cpu": 2}), dag_id=i)
        assert runtime.resources_available(runtime.node(), {"cpu": 2})
        assert not runtime.status().claims


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_max_concurrency(runtime: handoff.Runtime, limit: int) -> None:
    meter = Meter(limit)
    dag = handoff.new()
    for i in range(limit * 4):
        dag.add_function(Function(i, (), meter))
    runtime.execute(dag, max_concurrency=limit)
    assert meter.most == limit


def test_max_concurrency_counts_coroutines(runtime: handoff.Runtime) -> None:
    now = most = 0

    async def code() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1

    dag = handoff.new()
    for i in range(20):
        dag.add_function(Function(i, (), code))
    runtime.execute(dag, max_concurrency=3)
    assert most == 3


def test_max_workers(make_runtime: Any) -> None:
    runtime = make_runtime(max_workers=2)
    meter = Meter(2)
    runs = []
    for name in range(3):
        dag = handoff.new(name)
        for i in range(5):
            dag.add_function(Function(i, (), meter))
        runs.append(runtime.submit(dag))
    for run in runs:
        run.result(20)
    assert meter.most == 2


def test_one_after_another_on_the_calling_thread(runtime: handoff.Runtime) -> None:
    threads: list[Any] = []
    order: list[int] = []
    dag = handoff.new()
    for i in range(20):
        dag.add_function(
            Function(i, [i // 2] if i else [], lambda *_, i=i: (
                threads.append(threading.current_thread()), order.append(i))))  # fmt: skip
    run = runtime.submit(dag, synchronous=True)
    assert run.done()
    assert set(threads) == {threading.current_thread()}
    assert sorted(order) == list(range(20))
    assert all(order.index(i // 2) < order.index(i) for i in range(1, 20))
    orders = {tuple(order)}
    for _ in range(3):
        order.clear()
        runtime.execute(dag, synchronous=True)
        orders.add(tuple(order))
    assert len(orders) == 1, "deterministic"


def test_synchronous_has_costs_timeouts_and_isolation_too(runtime: handoff.Runtime) -> None:
    dag = single(lambda: 1, cost={"cpu": 1}, timeout=5.0)
    assert runtime.execute(dag, synchronous=True).results["f"] == 1
    with pytest.raises(handoff.AllocationError):
        runtime.execute(single(lambda: 1, cost={"cpu": 3}), synchronous=True)
    run = runtime.submit(single(fails_until(9), max_retries=0), synchronous=True)
    assert run.done()
    assert isinstance(run.exception(), handoff.FunctionFailedError)


# Nested runs.


def nested(depth: int, cost: dict[str, float] | None) -> int:
    if depth == 0:
        return 0
    dag = handoff.new().add_function(
        Function("n", (), nested, extra_args=[depth - 1, cost], cost=cost)
    )
    return int(handoff.execute(dag).results["n"]) + 1


@pytest.mark.parametrize("cost", [None, {"cpu": 1}])
def test_nested_runs_with_one_worker_and_one_cpu(
    make_runtime: Any, cost: Any, claims_at_zero: Any
) -> None:
    runtime = make_runtime(max_workers=1, capabilities={"cpu": 1})
    dag = single(nested, extra_args=[10, cost], cost=cost)
    assert runtime.execute(dag, timeout=15).results["f"] == 10
    claims_at_zero(runtime)


def test_wide_nested_runs_with_one_worker(make_runtime: Any, claims_at_zero: Any) -> None:
    runtime = make_runtime(max_workers=1, capabilities={"cpu": 1})
    dag = handoff.new()
    for i in range(8):
        dag.add_function(Function(i, (), nested, extra_args=[3, {"cpu": 1}], cost={"cpu": 1}))
    assert set(runtime.execute(dag, timeout=15).results.values()) == {3}
    claims_at_zero(runtime)


def test_nested_submit_result_and_as_completed(make_runtime: Any) -> None:
    runtime = make_runtime(max_workers=1, capabilities={"cpu": 1})

    def outer() -> Any:
        inner = handoff.new()
        for i in range(3):
            inner.add_function(Function(i, (), lambda i=i: i, cost={"cpu": 1}))
        run = handoff.submit(inner)
        return sorted(run.as_completed(10)), run.result(10).results[2]

    pairs, two = runtime.execute(single(outer, cost={"cpu": 1}), timeout=15).results["f"]
    assert pairs == [(0, 0), (1, 1), (2, 2)]
    assert two == 2


def test_a_function_that_waits_for_another_functions_result(make_runtime: Any) -> None:
    runtime = make_runtime(max_workers=1, capabilities={"cpu": 1})
    dag = handoff.new("d")
    dag.add_function(
        Function(
            "waits", (), lambda: handoff.get_result("d", "made", 10), cost={"cpu": 1}, max_retries=0
        )
    )
    dag.add_function(Function("made", (), lambda: 7, cost={"cpu": 1}))
    assert runtime.execute(dag, timeout=15).results["waits"] == 7


def test_a_nested_failure_is_the_cause(runtime: handoff.Runtime) -> None:
    def outer() -> Any:
        return handoff.execute(single(fails_until(9), max_retries=0))

    with pytest.raises(handoff.FunctionFailedError) as caught:
        runtime.execute(single(outer, max_retries=0), dag_id="outer")
    inner = caught.value.__cause__
    assert isinstance(inner, handoff.FunctionFailedError)
    assert isinstance(inner.__cause__, ValueError)


def test_a_coroutine_that_awaits_a_nested_run(make_runtime: Any) -> None:
    runtime = make_runtime(max_workers=1, capabilities={"cpu": 1})

    async def outer() -> Any:
        run = handoff.submit(single(lambda: 3))
        return (await run).results["f"]

    assert runtime.execute(single(outer), timeout=15).results["f"] == 3


def test_nested_in_synchronous(runtime: handoff.Runtime) -> None:
    dag = single(nested, extra_args=[3, {"cpu": 1}])
    assert runtime.execute(dag, synchronous=True).results["f"] == 3


def test_store_and_registry_calls_inside_functions(runtime: handoff.Runtime) -> None:
    def code() -> Any:
        handoff.store_value("shared", "x", 1)
        handoff.store_result("shared", "y", 2)
        handoff.register_node("virtual", {"gpu": 1})
        assert handoff.resources_available("virtual", {"gpu": 1})
        return (
            handoff.get_value("shared", "x"),
            handoff.get_result("shared", "y"),
            handoff.lookup_data_location("shared", "y") == handoff.node(),
            handoff.status().runs[0].state,
        )

    assert runtime.execute(single(code)).results["f"] == (1, 2, True, "running")


# Allocators and trackers of one's own.


class Misbehaving:
    """An allocator that does what it is told to do."""

    def __init__(self, answer: Callable[[Any, Any], Any]) -> None:
        self.answer = answer

    def allocate(self, requests: Any, nodes: Any) -> Any:
        return self.answer(requests, nodes)


def raises(*_: Any) -> Any:
    raise RuntimeError("allocator's fault")


def exits(*_: Any) -> Any:
    raise SystemExit(3)


BAD_ANSWERS: dict[str, Callable[[Any, Any], Any]] = {
    "raises": raises,
    "exits": exits,
    "none": lambda r, n: None,
    "list": lambda r, n: [1],
    "unknown node": lambda r, n: {q.id: "nowhere" for q in r},
    "not a name": lambda r, n: {q.id: 7 for q in r},
    "unhashable node": lambda r, n: {q.id: ["x"] for q in r},
    "unknown request": lambda r, n: {object(): next(iter(n))},
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_allocator_that_misbehaves_fails_its_run(
    runtime: handoff.Runtime, name: str, claims_at_zero: Any
) -> None:
    dag = single(lambda: 1, cost={"cpu": 1})
    with pytest.raises(handoff.AllocationError):
        runtime.execute(dag, allocation_strategy=Misbehaving(BAD_ANSWERS[name]), timeout=10)
    assert not runtime.status().restarts
    assert runtime.execute(dag).results["f"] == 1
    claims_at_zero(runtime)


def test_an_allocator_that_over_commits_is_told_so(
    runtime: handoff.Runtime, claims_at_zero: Any
) -> None:
    meter = Meter(1)
    dag = handoff.new()
    for i in range(6):
        dag.add_function(Function(i, (), meter, cost={"cpu": 1}))
    greedy = Misbehaving(lambda r, n: {q.id: next(iter(n)) for q in r})
    with pytest.raises(handoff.AllocationError, match="cpu"):
        runtime.execute(dag, allocation_strategy=greedy, timeout=15)
    assert meter.most <= 2
    claims_at_zero(runtime)


def test_an_allocator_of_ones_own(runtime: handoff.Runtime) -> None:
    seen: list[Any] = []

    def answer(requests: Any, nodes: Any) -> Any:
        seen.append(([(dict(q.cost), dict(q.inputs)) for q in requests], dict(nodes)))
        return {requests[0].id: next(iter(nodes))}

    dag = handoff.new()
    for i in range(3):
        dag.add_function(Function(i, (), lambda: 1, cost={"cpu": 1}))
    runtime.execute(dag, allocation_strategy=Misbehaving(answer), timeout=15)
    assert seen
    requests, nodes = seen[0]
    assert requests[0][0] == {"cpu": 1}
    assert nodes[runtime.node()].total == {"cpu": 2, "memory": 1000}


def test_an_allocator_of_the_runtimes_own(make_runtime: Any) -> None:
    calls: list[int] = []

    def answer(requests: Any, nodes: Any) -> Any:
        calls.append(len(requests))
        return {q.id: next(iter(nodes)) for q in requests}

    runtime = make_runtime(allocator=Misbehaving(answer), capabilities={"cpu": 1})
    runtime.execute(single(lambda: 1, cost={"cpu": 1}), timeout=10)
    assert calls
    before = len(calls)
    for strategy in ("first_available", "load_balanced", handoff.FirstAvailable()):
        dag = single(lambda: 1, cost={"cpu": 1})
        runtime.execute(dag, allocation_strategy=strategy, timeout=10)
    assert len(calls) == before


class OwnTracker:
    """One slot for everybody; counts what it gave and got back."""

    def __init__(self, **broken: Any) -> None:
        self.lock = threading.Lock()
        self.given: list[Any] = []
        self.back: list[Any] = []
        self.broken = broken
        self.nodes: dict[str, dict[str, float]] = {}

    def _maybe(self, name: str) -> None:
        if name in self.broken:
            raise self.broken[name]

    def register(self, node: str, capabilities: Any) -> None:
        self._maybe("register")
        self.nodes[node] = dict(capabilities)

    def capabilities(self) -> Any:
        self._maybe("capabilities")
        return self.nodes

    def available(self, node: str) -> Any:
        self._maybe("available")
        free = dict(self.nodes.get(node, {}))
        if len(self.given) > len(self.back):
            return dict.fromkeys(free, 0.0)
        return free

    def request(self, node: str, req: Any, owner: Any) -> Any:
        self._maybe("request")
        assert dict(req) == req.cost == {"cpu": 1}
        if len(self.given) > len(self.back):
            return None
        claim = object()
        self.given.append(claim)
        return claim

    def release(self, claim: Any) -> None:
        self.back.append(claim)
        self._maybe("release")


def test_a_tracker_of_ones_own(make_runtime: Any) -> None:
    tracker = OwnTracker()
    runtime = make_runtime(resource_tracker=tracker, capabilities={"cpu": 8})
    meter = Meter(1)
    dag = handoff.new()
    for i in range(4):
        dag.add_function(Function(i, (), meter, cost={"cpu": 1}))
    runtime.execute(dag, timeout=15)
    assert meter.most == 1
    wait_for(lambda: tracker.back == tracker.given)
    assert len(set(map(id, tracker.given))) == len(tracker.given)


@pytest.mark.parametrize("method", ["capabilities", "available", "request"])
@pytest.mark.parametrize("error", [RuntimeError("tracker's fault"), SystemExit(1)], ids=repr)
def test_a_tracker_of_ones_own_that_raises(
    make_runtime: Any, method: str, error: BaseException
) -> None:
    tracker = OwnTracker()
    runtime = make_runtime(resource_tracker=tracker, capabilities={"cpu": 8})
    tracker.broken[method] = error
    run = runtime.submit(single(lambda: 1, cost={"cpu": 1}), timeout=5)
    assert not isinstance(
        run.exception(10), (handoff.ExecutionTimeoutError, handoff.RuntimeFailedError)
    )
    tracker.broken.clear()
    assert runtime.execute(single(lambda: 1, cost={"cpu": 1}), timeout=10).results["f"] == 1
    assert runtime.execute(single(lambda: 2)).results["f"] == 2
    assert not runtime.status().restarts


@pytest.mark.parametrize("method", ["capabilities", "available"])
@pytest.mark.parametrize("answer", [True, None, "cpu", {"cpu": "many"}, {"here": 5}], ids=repr)
def test_a_tracker_of_ones_own_that_answers_rubbish(
    make_runtime: Any, method: str, answer: Any
) -> None:
    tracker = OwnTracker()
    runtime = make_runtime(
        name="here", resource_tracker=tracker, capabilities={"cpu": 8}, max_restarts=0
    )
    setattr(tracker, method, lambda *_: answer)
    calls = [runtime.node_info, runtime.discover_nodes, runtime.status]
    for call in [*calls, lambda: runtime.resources_available("here", {"cpu": 1})]:
        try:
            call()
        except handoff.ConfigurationError as error:
            assert "tracker" in str(error)  # noqa: PT017  some of them need not ask it
    delattr(tracker, method)
    assert runtime.execute(single(lambda: 1, cost={"cpu": 1}), timeout=10).results["f"] == 1
    assert not runtime.status().restarts


def test_a_tracker_of_ones_own_whose_release_raises(make_runtime: Any) -> None:
    tracker = OwnTracker(release=RuntimeError("no"))
    runtime = make_runtime(resource_tracker=tracker, capabilities={"cpu": 8})
    for i in range(5):
        dag = single(lambda: 1, cost={"cpu": 1})
        assert runtime.execute(dag, dag_id=i, timeout=10).results["f"] == 1
    wait_for(lambda: len(tracker.back) == len(tracker.given))
    assert not runtime.status().restarts


def test_a_tracker_that_refuses_to_register(leaks: Any) -> None:
    with pytest.raises(handoff.HandoffError):
        handoff.Runtime(resource_tracker=OwnTracker(register=RuntimeError("no"))).start()


# Pins.


def test_pins_and_collocation_on_one_node(runtime: handoff.Runtime) -> None:
    me = runtime.node()
    dag = handoff.new().add_function(Function("a", (), lambda: 1, node=me))
    dag.add_function(Function("b", ["a"], lambda a: a, node=Collocated("a"), cost={"cpu": 1}))
    dag.add_function(Function("c", (), lambda: 2, node=Collocated("b")))
    result = runtime.execute(dag)
    assert set(result.allocations.values()) == {me}


def test_a_registered_node_that_is_nobody_is_not_used(runtime: handoff.Runtime) -> None:
    """What is registered for another name may be asked about, but nothing can run there yet."""
    runtime.register_node("ghost", {"gpu": 4, "cpu": 64})
    for options in ({"cost": {"gpu": 1}}, {"cost": {"cpu": 32}}, {"node": "ghost"}):
        with pytest.raises((handoff.AllocationError, handoff.NodeDownError)):
            runtime.execute(single(lambda: 1, **options), timeout=5)
    assert runtime.execute(single(lambda: 1, cost={"cpu": 1})).results["f"] == 1


def test_many_runs_leave_nothing(runtime: handoff.Runtime, claims_at_zero: Any) -> None:
    for i in range(300):
        dag = handoff.new(i % 7).add_function(Function("a", (), lambda: 1, cost={"cpu": 1}))
        dag.add_function(Function("b", ["a"], fails_until(1 + i % 3)))
        runtime.execute(dag)
    claims_at_zero(runtime)
    status = runtime.status()
    assert status.runs
    assert not [run for run in status.runs if run.state == "running"]
    assert not status.restarts


@pytest.mark.parametrize("synchronous", [False, True])
def test_a_run_tells_the_same_wherever_it_runs(runtime: handoff.Runtime, synchronous: bool) -> None:
    dag = handoff.DAG("d")
    dag.add_function(handoff.Function("a", (), fails_until(2, ValueError)))
    dag.add_function(handoff.Function("b", ["a"], lambda a: a))
    dag.add_function(handoff.Function("bad", ["b"], lambda b: b / 0, max_retries=1))
    seen: list[handoff.events.Event] = []
    with runtime.subscribe(seen.append):
        with contextlib.suppress(handoff.FunctionFailedError):
            runtime.execute(dag, synchronous=synchronous)
        runtime.events.flush(10)
    told: list[Any] = []
    for event in seen:
        if isinstance(event, handoff.events.FunctionsFinished):
            told += [(id_, event.total) for id_ in event.function_ids]
        elif isinstance(event, handoff.events.AttemptFailed):
            told.append((event.function_id, event.attempt, event.error, event.retry_in))
        else:
            told.append((type(event).__name__, getattr(event, "state", None)))
    division = "ZeroDivisionError('division by zero')"
    assert told == [
        ("RunStarted", None),
        ("a", 1, "ValueError('attempt 1')", 0.0),
        ("a", 3),
        ("b", 3),
        ("bad", 1, division, 0.0),
        ("bad", 2, division, None),
        ("RunFinished", "failed"),
    ]

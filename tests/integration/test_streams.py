"""Pipelines on live runtimes: items and their order, state, batches, failures, demand."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import Argument, Collocated, Function
from handoff_actors.testing import crash
from tests.pipelines import IDENTITY, chain, claimed, line

# Items in, results out.


def test_results_come_in_the_order_of_pushes(runtime: handoff.Runtime) -> None:
    with runtime.stream(chain(lambda x: x + 1, lambda x: x * 2)) as pipeline:
        assert [pipeline.push(i) for i in range(5)] == [0, 1, 2, 3, 4]
        assert next(pipeline) == 2
        assert next(iter(pipeline)) == 4
        pipeline.close()
        assert list(pipeline) == [6, 8, 10]
        assert list(pipeline) == []


def test_order_holds_when_items_overtake(runtime: handoff.Runtime) -> None:
    def slow_if_even(x: int) -> int:
        time.sleep(0.004 if x % 2 == 0 else 0)
        return x

    with runtime.stream(chain(slow_if_even, IDENTITY, parallelism=4)) as pipeline:
        assert list(pipeline.map(range(60))) == list(range(60))


@pytest.mark.parametrize("value", [None, {}, {"x": 1}, ValueError("a value"), (), [1]])
def test_every_value_is_a_value(runtime: handoff.Runtime, value: Any) -> None:
    dag = chain(lambda x: [x])
    with runtime.stream(dag) as pipeline:
        pipeline.push(value)
        assert next(pipeline) == [value]


def test_several_inputs_sinks_joins_inlines_and_serialisers(runtime: handoff.Runtime) -> None:
    trail: list[tuple[str, str]] = []

    def ship(data: int, source: str, target: str, tag: str) -> tuple[str, int]:
        trail.append((source, target))
        return tag, data

    dag = line(
        Function("sum", ["a", "b"], lambda a, b: a + b),
        Function("twice", ["a"], lambda a: a * 2, type="inline"),
        Function("list", ["twice", "b", "a"], list, argument_inclusion="as_list"),
        Function(
            "both",
            [Argument("sum", (ship, ["t"]), lambda pair, _s, _t: pair), "twice", "sum"],
            lambda *args, **more: (args, more),
            extra_args=["e"],
            extra_kwargs={"k": 1},
            node=Collocated("sum"),
        ),
        Function("constant", (), lambda: "c"),
        inputs=("a", "b"),
    )
    with runtime.stream(dag) as pipeline:
        pipeline.push({"a": 1, "b": 10})
        pipeline.push({"b": 20, "a": 2})
        assert next(pipeline) == {
            "list": [2, 10, 1],
            "both": ((("t", 11), 2, 11, "e"), {"k": 1}),
            "constant": "c",
        }
        assert next(pipeline)["both"][0][0] == ("t", 22)
        assert trail[0] == (runtime.node(), runtime.node())
        for wrong, missing, unknown in (
            ({"a": 1}, ["b"], []),
            ({"a": 1, "b": 2, "c": 3}, [], ["c"]),
            (7, ["a", "b"], []),
        ):
            with pytest.raises(handoff.MissingInputError) as caught:
                pipeline.push(wrong)
            assert (caught.value.missing, caught.value.unknown) == (missing, unknown)


def test_coroutines_are_many_in_flight_and_keep_state_in_turn(runtime: handoff.Runtime) -> None:
    together = asyncio.Barrier(3)

    async def meet(x: int) -> int:
        await together.wait()
        return x

    async def count(state: int, x: int) -> tuple[tuple[int, int], int]:
        await asyncio.sleep(0)
        return (x, state), state + 1

    dag = line(Function("meet", ["x"], meet), Function("count", ["meet"], count, init=lambda: 0))
    with runtime.stream(dag) as pipeline:
        results = list(pipeline.map(range(9)))
    assert [x for x, _ in results] == list(range(9))
    assert sorted(state for _, state in results) == list(range(9))


def test_a_coroutine_with_state_is_at_one_item(runtime: handoff.Runtime) -> None:
    """Also when its worker has several, and lets others go on between them."""
    at_work = 0

    async def code(state: int, x: int) -> tuple[int, int]:
        nonlocal at_work
        at_work += 1
        assert at_work == 1
        time.sleep(0.0006)
        await asyncio.sleep(0)
        at_work -= 1
        assert state == x
        return x, x + 1

    dag = line(Function("count", ["x"], code, init=int))
    with runtime.stream(dag) as pipeline:
        assert list(pipeline.map(range(100))) == list(range(100))


def test_what_coroutines_do_to_their_task_and_loop_is_theirs(runtime: handoff.Runtime) -> None:
    """One that cancels itself fails alone; one that stops the loop costs nobody an output."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=-1)
    stopped = False

    async def code(x: int) -> int:
        nonlocal stopped
        variable.set(x)
        task = asyncio.current_task()
        assert task is not None
        if x % 10 == 3:
            task.cancel()
            await asyncio.sleep(60)
        if x % 10 == 4:
            task.cancel()
        if x % 10 == 5:
            await asyncio.sleep(0.001)
        if x == 40 and not stopped:
            stopped = True
            asyncio.get_running_loop().stop()
            await asyncio.sleep(0.001)
        return variable.get()

    with runtime.stream(chain(code)) as pipeline:
        results = list(pipeline.map(range(80)))
    assert len(results) == 80
    for x, result in enumerate(results):
        if x % 10 == 3 or isinstance(result, Exception):
            assert isinstance(result.__cause__, asyncio.CancelledError)
        else:
            assert result == x
    assert all(results[x] == x for x in range(30) if x % 10 != 3)


def test_a_coroutine_waits_for_no_other(runtime: handoff.Runtime) -> None:
    """However many wait, and in whatever order they are let go."""
    gates = [threading.Event() for _ in range(300)]
    begun: list[int] = []

    async def code(x: int) -> int:
        begun.append(x)
        if x % 3:
            while not gates[x].is_set():
                await asyncio.sleep(0.001)
        return x

    with runtime.stream(chain(code)) as pipeline:
        for x in range(300):
            pipeline.push(x)
        for gate in reversed(gates):
            gate.set()
        pipeline.close()
        assert list(pipeline) == list(range(300))
    assert sorted(begun) == list(range(300))


def test_current_tells_the_item_and_nested_runs_work(runtime: handoff.Runtime) -> None:
    def nested(x: int) -> tuple[Any, ...]:
        here = handoff.current()
        dag = handoff.new().add_function(Function("n", (), lambda: x * 10))
        return here.function_id, here.attempt, here.node, handoff.execute(dag).results["n"]

    with runtime.stream(chain(nested)) as pipeline:
        assert list(pipeline.map([1])) == [("0", 1, runtime.node(), 10)]


def test_a_worker_process_is_no_place_for_a_stream(runtime: handoff.Runtime) -> None:
    def nested() -> None:
        handoff.stream(handoff.new().add_function(Function("x", type="input")))

    dag = handoff.new().add_function(Function("f", (), nested, isolation="process", max_retries=0))
    with pytest.raises(handoff.FunctionFailedError) as caught:
        runtime.execute(dag)
    assert type(caught.value.__cause__) is handoff.HandoffError
    assert "isolation='thread'" in str(caught.value.__cause__)


def test_a_stream_in_a_function_on_a_thread(runtime: handoff.Runtime) -> None:
    def nested(x: int) -> list[int]:
        with handoff.stream(chain(lambda y: y * 2)) as pipeline:
            return list(pipeline.map(range(x)))

    with runtime.stream(chain(nested)) as pipeline:
        assert list(pipeline.map([1, 3])) == [[0], [0, 2, 4]]


def needs_a_cpu() -> handoff.DAG:
    return handoff.new().add_function(Function("n", (), lambda: 10, cost={"cpu": 1}))


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_stage_lends_what_it_holds_to_runs_it_waits_for(
    runtime: handoff.Runtime, claims_at_zero: Any, isolation: str
) -> None:
    """Also when the pipeline holds all cpus there are."""

    def nested(x: int) -> int:
        dag = handoff.new().add_function(Function("n", (), lambda: 10, cost={"cpu": 1}))
        return x + handoff.execute(dag).results["n"]

    dag = line(
        Function("a", ["x"], nested, cost={"cpu": 1}, isolation=isolation),
        Function("b", ["a"], nested, cost={"cpu": 1}, isolation=isolation),
    )
    with claimed(runtime, claims_at_zero), runtime.stream(dag) as pipeline:
        assert list(pipeline.map(range(10))) == [x + 20 for x in range(10)]
        held = runtime.status().claims
        assert sum(claim.amounts["cpu"] for claim in held) == 2
        crash("resource_tracker", runtime=runtime)
        assert list(pipeline.map(range(3))) == [20, 21, 22]


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_stage_lends_while_it_waits_for_a_value(
    runtime: handoff.Runtime, claims_at_zero: Any, isolation: str
) -> None:
    def waits(x: int) -> int:
        return x + handoff.get_result("other", "n", timeout=20.0)

    other = handoff.new("other")
    other.add_function(Function("n", (), lambda: 10, cost={"cpu": 1}))
    dag = chain(waits, cost={"cpu": 2}, isolation=isolation)
    with claimed(runtime, claims_at_zero), runtime.stream(dag) as pipeline:
        run = runtime.submit(other)
        assert list(pipeline.map([1])) == [11]
        assert run.result(10).results["n"] == 10


def test_the_workers_of_a_stage_lend_each_its_own(
    runtime: handoff.Runtime, claims_at_zero: Any
) -> None:
    at_work, most, lock = 0, 0, threading.Lock()

    def counted() -> int:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.001)
        with lock:
            at_work -= 1
        return 1

    def nested(x: int) -> int:
        dag = handoff.new().add_function(Function("n", (), counted, cost={"cpu": 1}))
        return x + handoff.execute(dag).results["n"]

    dag = line(Function("a", ["x"], nested, cost={"cpu": 1}, parallelism=2))
    with claimed(runtime, claims_at_zero):
        with runtime.stream(dag) as pipeline:
            assert list(pipeline.map(range(50))) == [x + 1 for x in range(50)]
        assert most <= 2
        with runtime.stream(dag) as pipeline:  # it ends while they wait
            next(pipeline.map(range(50)))


def test_coroutines_lend_what_their_worker_holds(
    runtime: handoff.Runtime, claims_at_zero: Any
) -> None:
    """With a cost they are one at a time, as the claim is for one."""
    at_work = 0

    async def nested(x: int) -> int:
        nonlocal at_work
        at_work += 1
        assert at_work == 1
        result = await handoff.aio.execute(needs_a_cpu())
        at_work -= 1
        return x + result.results["n"]

    with (
        claimed(runtime, claims_at_zero),
        runtime.stream(chain(nested, cost={"cpu": 2})) as pipeline,
    ):
        assert list(pipeline.map(range(20))) == [x + 10 for x in range(20)]


# State, batches, parallelism.


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_init_once_per_worker_and_state_threaded(runtime: handoff.Runtime, isolation: str) -> None:
    def make(first: int) -> list[int]:
        return [first]

    def code(state: list[int], x: int) -> tuple[int, list[int]]:
        return state[0] + x, [state[0] + 1]

    dag = line(Function("s", ["x"], code, init=(make, [100]), isolation=isolation))
    with runtime.stream(dag) as pipeline:
        assert list(pipeline.map([0] * 5)) == [100, 101, 102, 103, 104]


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("batch", [None, 3])
def test_state_goes_from_item_to_item_in_the_order_of_pushes(
    runtime: handoff.Runtime, isolation: str, batch: int | None
) -> None:
    """Also behind a stage where items overtake each other, or fail."""

    def overtake(x: int) -> int:
        time.sleep(0.003 if x % 3 == 0 else 0)
        if x % 10 == 9:
            raise ValueError
        return x

    def one(seen: list[int], x: int) -> tuple[list[int], list[int]]:
        return [*seen, x], [*seen, x]

    def many(seen: list[int], rows: list[tuple[int]]) -> tuple[list[list[int]], list[int]]:
        results = [[*seen, *[x for (x,) in rows[: i + 1]]] for i in range(len(rows))]
        return results, results[-1]

    dag = line(
        Function("overtake", ["x"], overtake, parallelism=4),
        Function(
            "s",
            ["overtake"],
            many if batch else one,
            init=list,
            batch_size=batch,
            isolation=isolation,
        ),
    )
    with runtime.stream(dag) as pipeline:
        results = list(pipeline.map(range(60)))
    good = [x for x in range(60) if x % 10 != 9]
    assert [r for r in results if isinstance(r, list)] == [good[: i + 1] for i in range(len(good))]


def test_parallel_workers_have_a_state_and_a_thread_each(runtime: handoff.Runtime) -> None:
    meet = threading.Barrier(3)

    def code(state: int, x: int) -> tuple[tuple[int, bool], int]:
        meet.wait(10)
        return (state, threading.get_ident() == state), state

    dag = line(Function("s", ["x"], code, init=threading.get_ident, parallelism=3))
    with runtime.stream(dag) as pipeline:
        states = list(pipeline.map(range(9)))
    assert len({state for state, _ in states}) == 3
    assert all(same for _, same in states)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_batches_have_their_size_and_the_rest_is_flushed(
    runtime: handoff.Runtime, isolation: str
) -> None:
    def code(rows: list[tuple[int]]) -> list[tuple[int, int]]:
        return [(x, len(rows)) for (x,) in rows]

    dag = line(Function("b", ["x"], code, batch_size=4, isolation=isolation))
    with runtime.stream(dag) as pipeline:
        sizes = [size for _, size in pipeline.map(range(10))]
        assert sizes == [4] * 8 + [2] * 2  # flushed at the end of a map
        for i in range(3):
            pipeline.push(i)
        pipeline.close()
        assert list(pipeline) == [(0, 3), (1, 3), (2, 3)]  # and on close
    with runtime.stream(dag, max_pending=3) as pipeline:
        for i in range(3):
            pipeline.push(i)
        assert next(pipeline) == (0, 3)  # and when it is full


def test_a_batch_waits_no_longer_than_its_timeout(runtime: handoff.Runtime) -> None:
    dag = line(
        Function("b", ["x"], lambda rows: [len(rows)] * len(rows), batch_size=9, batch_timeout=0.05)
    )
    with runtime.stream(dag) as pipeline:
        begun = time.monotonic()
        pipeline.push(1)
        pipeline.push(2)
        assert next(pipeline) == 2
        assert 0.04 < time.monotonic() - begun < 5


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_breaches_of_contract_are_errors_of_their_items(
    runtime: handoff.Runtime, isolation: str
) -> None:
    short = line(Function("f", ["x"], lambda rows: rows[1:], batch_size=2, isolation=isolation))
    with runtime.stream(short) as pipeline:
        results = list(pipeline.map(range(2)))
        assert [type(r) for r in results] == [handoff.ItemFailedError] * 2
        assert "batch of 2" in str(results[0])
        assert isinstance(results[0].__cause__, TypeError)

    def forgets(state: int, x: int) -> Any:
        return x if x == 1 else ((x, state), state + 1)

    stateless = line(Function("f", ["x"], forgets, init=lambda: 0, isolation=isolation))
    with runtime.stream(stateless) as pipeline:
        first, broken, last = pipeline.map(range(3))
        assert (first, last) == ((0, 0), (2, 1))  # the state is as it was before
        assert "(result, state)" in str(broken)


# Failures of items.


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_failed_item_fails_alone_in_its_place(
    runtime: handoff.Runtime, tmp_path: Any, isolation: str
) -> None:
    """And is not tried again."""
    seen: list[int] = []
    begun = tmp_path / "begun"

    def picky(x: int) -> int:
        with begun.open("a") as file:
            file.write(f"{x} ")
        if x == 2:
            raise (SystemExit if isolation == "thread" else KeyError)("two")
        return x

    dag = line(
        Function("picky", ["x"], picky, isolation=isolation, max_retries=5),
        Function("next", ["picky"], lambda x: seen.append(x) or x),
        Function("other", ["x"], lambda x: -x),
    )
    with runtime.stream(dag) as pipeline:
        results = list(pipeline.map(range(5)))
    assert [r for i, r in enumerate(results) if i != 2] == [
        {"next": i, "other": -i} for i in range(5) if i != 2
    ]
    error = results[2]
    assert isinstance(error, handoff.ItemFailedError)
    assert (error.function_id, error.node) == ("picky", runtime.node())
    assert isinstance(error.__cause__, (SystemExit, KeyError))
    assert seen == [0, 1, 3, 4]
    assert begun.read_text() == "0 1 2 3 4 "


def test_errors_whose_text_cannot_be_had(runtime: handoff.Runtime) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise SystemExit

    def code(_x: int) -> None:
        raise Odd

    with runtime.stream(chain(code)) as pipeline:
        (error,) = pipeline.map([1])
        assert isinstance(error.__cause__, Odd)


def test_done_items_wait_for_no_slow_one(runtime: handoff.Runtime) -> None:
    """Also when they were in the hands of the same worker; and others take what waits behind it."""
    gate = threading.Event()
    meet = threading.Barrier(3)

    def code(x: int) -> int:
        if x == 500:
            gate.wait(20)
        if x > 997:
            meet.wait(20)
        return x

    with runtime.stream(chain(code, parallelism=3)) as pipeline:
        mapped = pipeline.map(range(1001))
        assert list(itertools.islice(mapped, 500)) == list(range(500))
        gate.set()
        assert list(mapped) == list(range(500, 1001))


def test_batches_wait_behind_no_slow_one(runtime: handoff.Runtime) -> None:
    """A worker takes several at a time; what waits in its hands goes to another."""
    following = threading.Event()
    sizes: set[int] = set()

    def code(rows: list[tuple[int]]) -> list[int]:
        xs = [x for (x,) in rows]
        sizes.add(len(xs))
        if xs[0] == 1500:
            assert following.wait(20)
        if xs[0] == 1504:
            following.set()
        return xs

    dag = line(
        Function("gather", ["x"], lambda rows: [x for (x,) in rows], batch_size=1000),
        Function("b", ["gather"], code, batch_size=4, parallelism=2),
    )
    with runtime.stream(dag) as pipeline:
        for first in (0, 1000):  # at first it learns that the code is quick
            assert list(pipeline.map(range(first, first + 1000))) == [*range(first, first + 1000)]
    assert sizes == {4}


def test_an_item_that_waits_too_long_for_its_arguments_is_given_up(
    runtime: handoff.Runtime,
) -> None:
    release = threading.Event()

    def slow(x: int) -> int:
        if x == 1:
            release.wait(20)
        return x

    dag = line(
        Function("slow", ["x"], slow, parallelism=2),
        Function("quick", ["x"], IDENTITY),
        Function("join", ["slow", "quick"], lambda a, b: (a, b)),
    )
    with runtime.stream(dag, join_timeout=0.1) as pipeline:
        first, second, third = itertools.islice(pipeline.map(range(3)), 3)
        release.set()
        assert (first, third) == ((0, 0), (2, 2))
        assert isinstance(second, handoff.ItemFailedError)
        assert second.function_id == "join"
        assert "'slow' did not come" in str(second)
        assert list(pipeline.map([5])) == [(5, 5)]


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_function_that_overruns_costs_its_item(runtime: handoff.Runtime, isolation: str) -> None:
    def code(x: int) -> int:
        end = time.monotonic() + (60 if x == 1 else 0)
        while time.monotonic() < end and not handoff.current().cancelled():
            time.sleep(0.005)
        return x

    dag = line(Function("f", ["x"], code, timeout=0.2, isolation=isolation))
    with runtime.stream(dag) as pipeline:
        first, second, third = pipeline.map(range(3))
    assert (first, third) == (0, 2)
    assert isinstance(second.__cause__, handoff.FunctionTimeoutError)


def test_a_coroutine_that_overruns_costs_its_item(runtime: handoff.Runtime) -> None:
    async def code(x: int) -> int:
        await asyncio.sleep(60 if x == 1 else 0)
        return x

    with runtime.stream(chain(code, timeout=0.1)) as pipeline:
        first, second, third = pipeline.map(range(3))
    assert (first, third) == (0, 2)
    assert isinstance(second.__cause__, handoff.FunctionTimeoutError)


def test_what_may_never_run_twice_runs_once(runtime: handoff.Runtime, tmp_path: Any) -> None:
    """An item that was in a process that died fails, and no other was there with it."""
    begun = tmp_path / "begun"

    def code(x: int) -> int:
        with begun.open("a") as file:
            file.write(f"{x} ")
        if x == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    with runtime.stream(chain(code, isolation="process", max_crashes=0)) as pipeline:
        results = list(pipeline.map(range(5)))
    assert isinstance(results.pop(2).__cause__, handoff.FunctionCrashedError)
    assert results == [0, 1, 3, 4]
    assert begun.read_text() == "0 1 2 3 4 "


def test_what_cannot_cross_to_a_process(runtime: handoff.Runtime) -> None:
    lock = threading.Lock()

    def locked(_x: int) -> Any:
        return lock

    with pytest.raises(handoff.SerializationError) as caught:
        runtime.stream(chain(locked, isolation="process"))
    assert caught.value.function_id == "0"
    dag = line(
        Function("b", ["x"], lambda rows: [1] * len(rows), batch_size=3, isolation="process")
    )
    with runtime.stream(dag) as pipeline:
        good, bad, other = pipeline.map([1, (i for i in ()), 2])
        assert (good, other) == (1, 1)
        assert isinstance(bad.__cause__, handoff.SerializationError)


# Demand.


def test_push_waits_for_room(runtime: handoff.Runtime, spawn: Any) -> None:
    with runtime.stream(chain(IDENTITY), max_pending=2) as pipeline:
        pipeline.push(0)
        pipeline.push(1)
        with pytest.raises(handoff.PipelineFullError):
            pipeline.push_nowait(2)
        with pytest.raises(TimeoutError):
            pipeline.push(2, timeout=0.02)
        pushed = spawn(lambda: pipeline.push(2))
        assert next(pipeline) == 0
        assert pushed.result(10) == 2
        with pytest.raises(handoff.PipelineFullError):
            pipeline.push_nowait(3)
        assert [next(pipeline), next(pipeline)] == [1, 2]


def test_map_is_lazy_and_leaves_others_alone(runtime: handoff.Runtime) -> None:
    pulled = 0

    def source() -> Iterator[int]:
        nonlocal pulled
        while True:
            pulled += 1
            yield pulled

    with runtime.stream(chain(IDENTITY), max_pending=10) as pipeline:
        pipeline.push(-1)
        mapped = pipeline.map(source())
        assert pulled == 0
        assert [next(mapped) for _ in range(25)] == list(range(1, 26))
        assert pulled <= 25 + 10
        mapped.close()
        assert next(pipeline) == -1
        assert list(pipeline.map([7, 8])) == [7, 8]

        def broken() -> Iterator[int]:
            yield 1
            raise KeyError("source")

        with pytest.raises(KeyError):
            list(pipeline.map(broken()))
        assert list(pipeline.map([9])) == [9]


def test_maps_of_several_threads_keep_their_items(runtime: handoff.Runtime, together: Any) -> None:
    dag = chain(lambda x: x, lambda x: x, parallelism=2)
    with runtime.stream(dag, max_pending=20) as pipeline:
        ranges = [range(i * 1000, i * 1000 + 300) for i in range(4)]
        got = together([lambda r=r: list(pipeline.map(r)) for r in ranges])
    assert got == [list(r) for r in ranges]


def test_a_consumer_that_sleeps_bounds_what_is_made(
    runtime: handoff.Runtime, eventually: Any
) -> None:
    made: list[int] = []
    dag = chain(lambda x: made.append(x) or x, IDENTITY, IDENTITY)
    with runtime.stream(dag, max_pending=50) as pipeline:
        mapped = pipeline.map(itertools.count())
        next(mapped)
        eventually(lambda: pipeline.statistics()["2"].processed == len(made))
        assert len(made) <= 51


@pytest.mark.parametrize(("most", "least"), [(1, None), (3, 0), (4, 3)])
def test_demand_bounds_how_far_a_stage_is_ahead(
    runtime: handoff.Runtime, most: int, least: int | None, eventually: Any
) -> None:
    begun: list[int] = []
    gate = threading.Semaphore(0)
    dag = chain(lambda x: begun.append(x) or x, lambda x: gate.acquire() and x)
    with runtime.stream(dag, max_demand=most, min_demand=least) as pipeline:
        for i in range(20):
            pipeline.push(i)
        eventually(lambda: len(begun) == most)
        for taken in range(20):
            assert len(begun) <= taken + most
            gate.release()
            assert next(pipeline) == taken


def test_progress_is_told(runtime: handoff.Runtime) -> None:
    told: list[Any] = []
    with runtime.stream(chain(IDENTITY)) as pipeline:
        list(pipeline.map(range(100), progress=told.append))
        assert (told[-1].total, told[-1].finished, told[-1].state) == (100, 100, "succeeded")
        with pytest.raises(handoff.ConfigurationError):
            pipeline.map([1], progress=7)


# Asyncio.


def test_the_face_for_asyncio(default: Any) -> None:
    async def main() -> None:
        await handoff.aio.start()
        async with await handoff.aio.stream(chain(lambda x: x * 2), max_pending=5) as pipeline:

            async def produce() -> None:
                for i in range(50):
                    await pipeline.apush(i)
                for _ in range(5):
                    await pipeline.apush(-1)
                with pytest.raises(handoff.PipelineFullError):
                    await pipeline.apush(-1, timeout=0.01)
                pipeline.close()

            producer = asyncio.create_task(produce())
            got = []
            async for result in pipeline:
                got.append(result)
                if len(got) == 50:
                    await producer
            assert got[:50] == [i * 2 for i in range(50)]
            assert got[50:] == [-2] * 5

    asyncio.run(asyncio.wait_for(main(), 20))

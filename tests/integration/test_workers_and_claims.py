"""Who runs what when: workers, claims, order, pins, many runs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import Collocated, Function
from tests.functions import Gate, Meter, fails_until, single

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

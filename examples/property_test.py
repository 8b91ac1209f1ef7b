"""Testing your own DAG: a tutorial in property-based tests, with pytest and Hypothesis.

    pip install '.[test]'
    pytest examples/property_test.py

The DAG under test totals orders per customer. Three things are worth testing of any DAG: that it
computes what it should, whatever comes in; that it copes when functions fail or their processes
die; and that nothing is lost when the runtime itself is hit. The runtime is started once, as that
is the expensive part; runs are cheap enough for hundreds of examples.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import handoff_actors as handoff
from handoff_actors import testing

# 1. The DAG under test: plain functions, and how they are joined.

Order = tuple[str, int]


def shard(orders: list[Order], number: int, of: int) -> list[Order]:
    """The orders of every ``of``-th customer."""
    return [order for order in orders if len(order[0]) % of == number]


def totals(orders: list[Order]) -> dict[str, int]:
    """What each customer has ordered in all."""
    found: collections.Counter[str] = collections.Counter()
    for customer, amount in orders:
        found[customer] += amount
    return dict(found)


def merge(parts: list[dict[str, int]]) -> dict[str, int]:
    """All totals."""
    return {customer: total for part in parts for customer, total in part.items()}


def build(shards: int = 3) -> handoff.DAG:
    """The DAG."""
    dag = handoff.new()
    dag.add_function(handoff.Function("orders", type="input"))
    for i in range(shards):
        dag.add_function(handoff.Function(f"shard {i}", ["orders"], shard, extra_args=[i, shards]))
        dag.add_function(handoff.Function(f"totals {i}", [f"shard {i}"], totals))
    parts = [f"totals {i}" for i in range(shards)]
    dag.add_function(handoff.Function("merge", parts, merge, argument_inclusion="as_list"))
    return dag


# 2. One runtime for all tests of this file, named in the test's arguments.


@pytest.fixture(scope="module")
def runtime() -> Iterator[handoff.Runtime]:
    """A runtime, stopped at the end."""
    with handoff.Runtime(max_restarts=1000) as runtime:
        yield runtime


any_orders = st.lists(st.tuples(st.text("ab", max_size=6), st.integers(0, 100)))
on_one_runtime = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# 3. It computes what it should: the plain functions, called in a plain way, are the oracle.


@on_one_runtime
@given(orders=any_orders, shards=st.integers(1, 5))
def test_totals_are_those_of_all_orders(
    runtime: handoff.Runtime, orders: list[Order], shards: int
) -> None:
    result = runtime.execute(build(shards), inputs={"orders": orders})
    assert result.results["merge"] == totals(orders)


# 4. It copes with failures: each function fails so many times before it works.


@on_one_runtime
@given(orders=any_orders, failures=st.integers(0, 3))
def test_retries_do_not_change_the_result(
    runtime: handoff.Runtime, orders: list[Order], failures: int
) -> None:
    def flaky(orders: list[Order]) -> dict[str, int]:
        if handoff.current().attempt <= failures:
            raise ConnectionError("try again")
        return totals(orders)

    dag = handoff.new()
    dag.add_function(handoff.Function("orders", type="input"))
    dag.add_function(handoff.Function("totals", ["orders"], flaky, max_retries=3))
    assert runtime.execute(dag, inputs={"orders": orders}).results["totals"] == totals(orders)


def test_a_process_that_dies_costs_nothing(runtime: handoff.Runtime) -> None:
    def dies_once(orders: list[Order]) -> dict[str, int]:
        if handoff.current().attempt == 1:
            os.abort()
        return totals(orders)

    dag = handoff.new()
    dag.add_function(handoff.Function("orders", type="input"))
    dag.add_function(handoff.Function("totals", ["orders"], dies_once, isolation="process"))
    inputs: dict[Any, Any] = {"orders": [("a", 1), ("a", 2)]}
    assert runtime.execute(dag, inputs=inputs).results["totals"] == {"a": 3}


# 5. Nothing is lost when the runtime is hit: any of its actors may crash in the middle of a run.


@on_one_runtime
@given(
    orders=any_orders,
    actor=st.sampled_from(["resource_tracker", "result_store", "distributed_executor"]),
)
def test_crashes_of_the_runtime_are_not_seen(
    runtime: handoff.Runtime, orders: list[Order], actor: str
) -> None:
    run = runtime.submit(build(), inputs={"orders": orders})
    testing.crash(actor, runtime=runtime)
    assert run.result(timeout=20).results["merge"] == totals(orders)

"""Functions that run DAGs, and wait for what others make."""

from __future__ import annotations

from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import Function
from tests.functions import fails_until, single


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

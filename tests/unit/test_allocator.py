from __future__ import annotations

import time

import pytest

from handoff_actors.errors import AllocationError, ConfigurationError
from handoff_actors.resources.allocator import (
    Allocator,
    FirstAvailable,
    LoadBalanced,
    Request,
    by_name,
    check_allocation,
    place_free,
)
from handoff_actors.resources.capabilities import NodeCapacity

BOTH = pytest.mark.parametrize("allocator", [FirstAvailable(), LoadBalanced()], ids=repr)


def nodes(**cpus: float | tuple[float, float]) -> dict[str, NodeCapacity]:
    """cpu: free, or (free, total)."""
    capacities = {}
    for name, cpu in cpus.items():
        free, total = cpu if isinstance(cpu, tuple) else (cpu, cpu)
        capacities[name] = NodeCapacity({"cpu": free}, {"cpu": total})
    return capacities


def ones(count: int, cpu: float = 1, **inputs: int) -> list[Request]:
    return [Request(i, {"cpu": cpu}, inputs) for i in range(count)]


def test_first_available_fills_node_after_node():
    answer = FirstAvailable().allocate(ones(5), nodes(a=2, b=2))
    assert answer == {0: "a", 1: "a", 2: "b", 3: "b"}


def test_load_balanced_spreads():
    answer = LoadBalanced().allocate(ones(5), nodes(a=2, b=2))
    assert answer == {0: "a", 1: "b", 2: "a", 3: "b"}


def test_load_balanced_looks_at_shares_not_at_amounts():
    answer = LoadBalanced().allocate(ones(6), nodes(small=2, large=4))
    assert list(answer.values()) == ["large", "small", "large", "large", "small", "large"]


def test_load_balanced_counts_the_fullest_resource_and_what_is_in_use():
    full = NodeCapacity({"cpu": 8, "memory": 20}, {"cpu": 8, "memory": 100})
    idle = NodeCapacity({"cpu": 4, "memory": 80}, {"cpu": 8, "memory": 100})
    request = Request("r", {"cpu": 1, "memory": 1})
    assert LoadBalanced().allocate([request], {"full": full, "idle": idle}) == {"r": "idle"}
    assert FirstAvailable().allocate([request], {"full": full, "idle": idle}) == {"r": "full"}


def test_load_balanced_breaks_a_tie_by_input_bytes_then_by_order():
    three = nodes(a=2, b=2, c=2)
    request = Request("r", {"cpu": 1}, {"b": 10, "c": 20, "gone": 99})
    assert LoadBalanced().allocate([request], three) == {"r": "c"}
    request = Request("r", {"cpu": 1}, {"c": 10, "b": 10})
    assert LoadBalanced().allocate([request], three) == {"r": "b"}
    loaded = nodes(a=2, b=2, c=(1, 2))
    request = Request("r", {"cpu": 1}, {"c": 20})
    assert LoadBalanced().allocate([request], loaded) == {"r": "a"}, "bytes only break a tie"


@BOTH
def test_what_does_not_fit_is_left_out_and_smaller_ones_are_not(allocator):
    requests = [Request("big", {"cpu": 3}), Request("gpu", {"gpu": 1}), Request("one", {"cpu": 1})]
    assert allocator.allocate(requests, nodes(a=2)) == {"one": "a"}
    assert allocator.allocate(requests, {}) == {}
    assert allocator.allocate([], nodes(a=2)) == {}


@BOTH
def test_shapes_of_cost_share_what_is_free(allocator):
    requests = [Request(i, {"cpu": 1 + i % 2}) for i in range(4)]
    assert allocator.allocate(requests, nodes(a=3)) == {0: "a", 1: "a"}


@BOTH
def test_amounts_are_exact(allocator):
    assert len(allocator.allocate(ones(4, cpu=0.1), nodes(a=0.3))) == 3


@BOTH
def test_nothing_goes_where_less_than_nothing_is_free(allocator):
    lowered = {"a": NodeCapacity({"cpu": -1, "memory": 5}, {"cpu": 1, "memory": 5})}
    assert allocator.allocate(ones(1), lowered) == {}
    assert allocator.allocate([Request("m", {"memory": 1})], lowered) == {"m": "a"}


@BOTH
def test_a_free_request_and_a_zero_cost_go_somewhere(allocator):
    requests = [Request("free"), Request("zero", {"cpu": 0, "gpu": 0})]
    full = {"a": NodeCapacity({"cpu": 0}, {"cpu": 0})}
    assert allocator.allocate(requests, full) == {"free": "a", "zero": "a"}


@BOTH
def test_many_requests_on_many_nodes_take_no_time_for_each_pair(allocator):
    many = nodes(**{f"n{i}": 3 for i in range(1000)})
    requests = ones(5000)
    begin = time.process_time()
    answer = allocator.allocate(requests, many)
    assert len(answer) == 3000
    assert time.process_time() - begin < 2, "each pair would take a hundred times as long"


def test_strategies_have_names():
    assert isinstance(by_name(None), FirstAvailable)
    assert isinstance(by_name("first_available"), FirstAvailable)
    assert isinstance(by_name("load_balanced"), LoadBalanced)
    mine = LoadBalanced()
    assert by_name(mine) is mine
    assert isinstance(mine, Allocator)


@pytest.mark.parametrize("strategy", ["fastest", "", 3, object(), LoadBalanced])
def test_an_unknown_strategy_is_refused_with_what_there_is(strategy):
    with pytest.raises(ConfigurationError, match=r"'first_available', 'load_balanced'|instance"):
        by_name(strategy)


def test_what_is_free_goes_to_its_inputs_or_stays_here():
    names = ["here", "b", "c"]
    requests = [
        Request("none"),
        Request("b", inputs={"b": 1}),
        Request("most", inputs={"b": 1, "c": 2, "gone": 9}),
        Request("tie", inputs={"b": 5, "here": 5}),
        Request("tie between others", inputs={"c": 5, "b": 5}),
    ]
    assert place_free(requests, names) == {
        "none": "here", "b": "b", "most": "c", "tie": "here", "tie between others": "b",
    }  # fmt: skip
    assert place_free(requests, []) == {}


def refused(answer, requests=None, capacities=None) -> AllocationError:
    with pytest.raises(AllocationError) as caught:
        check_allocation(answer, requests or ones(3), capacities or nodes(a=2))
    return caught.value


def test_a_right_answer_passes():
    assert check_allocation({0: "a", 2: "a"}, ones(3), nodes(a=2)) == {0: "a", 2: "a"}
    assert check_allocation({}, ones(3), nodes(a=2)) == {}


@pytest.mark.parametrize("answer", [None, "a", [(0, "a")], 3])
def test_an_answer_that_is_no_mapping_is_refused(answer):
    assert "a mapping" in str(refused(answer))


def test_an_unknown_request_is_refused():
    error = refused({"x": "a"})
    assert error.function_id == "x"
    assert "not asked for" in str(error)


@pytest.mark.parametrize("node", ["b", None, 3, ["a"]])
def test_an_unknown_node_is_refused(node):
    error = refused({1: node})
    assert error.function_id == 1
    assert "not among its nodes" in str(error)


def test_more_than_is_free_is_refused_with_the_amounts():
    error = refused({0: "a", 1: "a", 2: "a"})
    assert (error.function_id, error.resource, error.asked, error.most) == (2, "cpu", 1.0, 0.0)
    error = refused({"g": "a"}, [Request("g", {"gpu": 1})])
    assert (error.resource, error.asked, error.most) == ("gpu", 1.0, 0.0)

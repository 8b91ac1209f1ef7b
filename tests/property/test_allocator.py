"""Both strategies against a plain reading of what they promise."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from handoff_actors.resources.allocator import (
    FirstAvailable,
    LoadBalanced,
    Request,
    check_allocation,
    place_free,
)
from handoff_actors.resources.capabilities import MICRO, NodeCapacity

NAMES = ["here", "b", "c", "d"]
amounts = st.integers(0, 8).map(lambda n: n / 4)


@st.composite
def capacity(draw) -> NodeCapacity:
    total = draw(st.dictionaries(st.sampled_from(["cpu", "memory"]), amounts))
    free = {
        name: draw(st.integers(-4, int(t * 4)).map(lambda n: n / 4)) for name, t in total.items()
    }
    return NodeCapacity(free, total)


capacities = st.lists(st.sampled_from(NAMES), unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: capacity() for name in names})
)
costs = st.dictionaries(st.sampled_from(["cpu", "memory", "gpu"]), amounts, max_size=2)
inputs = st.dictionaries(st.sampled_from([*NAMES, "gone"]), st.integers(0, 3))
requests = st.lists(st.tuples(costs, inputs), max_size=12).map(
    lambda pairs: [Request(i, cost, here) for i, (cost, here) in enumerate(pairs)]
)


def micro(amounts):
    return {name: round(amount * MICRO) for name, amount in amounts.items()}


def naive(requests, nodes, choose):
    """One request after another; every node is looked at each time."""
    free = {name: micro(node.free) for name, node in nodes.items()}
    total = {name: micro(node.total) for name, node in nodes.items()}
    placed = {}
    for request in requests:
        cost = {name: amount for name, amount in micro(request.cost).items() if amount}
        fitting = [
            name for name in nodes if all(a <= free[name].get(r, 0) for r, a in cost.items())
        ]
        if fitting:
            name = choose(request, cost, fitting, free, total)
            placed[request.id] = name
            for resource, amount in cost.items():
                free[name][resource] -= amount
    return placed


def least_used(request, cost, fitting, free, total):
    def rank(name):
        shares = [
            (t - free[name].get(r, 0) + cost.get(r, 0)) / t for r, t in total[name].items() if t
        ]
        return (max(shares, default=0.0), -request.inputs.get(name, 0), fitting.index(name))

    return min(fitting, key=rank)


@given(requests, capacities)
def test_first_available_is_the_first_that_fits(requests, nodes):
    expected = naive(requests, nodes, lambda _r, _c, fitting, _f, _t: fitting[0])
    assert FirstAvailable().allocate(requests, nodes) == expected


@given(requests, capacities)
def test_load_balanced_is_the_least_used(requests, nodes):
    assert LoadBalanced().allocate(requests, nodes) == naive(requests, nodes, least_used)


@given(requests, capacities)
def test_their_answers_pass_the_check_and_leave_out_nothing_that_fits(requests, nodes):
    for allocator in (FirstAvailable(), LoadBalanced()):
        answer = allocator.allocate(requests, nodes)
        check_allocation(answer, requests, nodes)
        left = [request for request in requests if request.id not in answer]
        assert not any(
            allocator.allocate([request], {name: node})
            for request in left
            for name, node in _after(requests, nodes, answer).items()
        )


def _after(requests, nodes, answer):
    free = {name: dict(node.free) for name, node in nodes.items()}
    for request in requests:
        if request.id in answer:
            for resource, amount in request.cost.items():
                if amount:
                    free[answer[request.id]][resource] -= amount
    return {name: NodeCapacity(free[name], node.total) for name, node in nodes.items()}


@given(requests, st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
def test_free_requests_go_to_most_bytes(requests, names):
    for request in requests:
        chosen = place_free([request], names)[request.id]
        best = max(request.inputs.get(name, 0) for name in names)
        assert chosen == next(n for n in names if request.inputs.get(n, 0) == best)

"""Allocators and trackers of the user's own, good and bad."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import Function
from tests.functions import Meter, single, wait_for


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

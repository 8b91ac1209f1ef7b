"""Runs over several nodes, with the nodes in one process: what goes where, and comes back."""

from __future__ import annotations

import threading

import pytest

import handoff_actors as handoff
from handoff_actors import DAG, AllocationError, Argument, Collocated, Function
from tests.gates import Gate, until, where


def test_a_pinned_function_runs_on_its_node(nodes):
    a, _b = nodes("a", "b")
    dag = DAG("d")
    dag.add_function(Function("x", code=where, node="b"))
    dag.add_function(Function("y", ["x"], lambda x: (x, where()), node="a"))
    dag.add_function(Function("z", ["y"], lambda y: (*y, where()), node="b"))
    result = a.execute(dag)
    assert result.results["z"] == ("b", "a", "b")
    assert result.allocations == {"x": "b", "y": "a", "z": "b"}


def test_values_go_from_node_to_node_and_come_home(nodes):
    numpy = pytest.importorskip("numpy")
    a, _b, _c = nodes("a", "b", "c")
    dag = DAG("d")
    dag.add_function(Function("big", code=lambda: numpy.arange(1_000_000), node="b"))
    dag.add_function(Function("sum", ["big"], lambda x: int(x.sum()), node="c"))
    dag.add_function(Function("half", ["big"], lambda x: x[::2].copy(), node="a"))
    dag.add_function(Function("text", ["half"], lambda x: {"n": len(x)}, node="c"))
    result = a.execute(dag)
    assert result.results["sum"] == 499999500000
    assert result.results["text"] == {"n": 500_000}
    assert (result.results["big"] == numpy.arange(1_000_000)).all()
    assert dict(result.results)["half"].shape == (500_000,)


def test_costs_are_placed_by_the_strategy(nodes):
    a, _b = nodes("a", "b")
    for strategy, there in (("first_available", 1), ("load_balanced", 2)):
        meet = threading.Barrier(3 if there == 1 else 4)
        dag = DAG(strategy)
        for i in range(meet.parties):
            dag.add_function(Function(i, code=_Meet(meet), cost={"cpu": 1}))
        result = a.execute(dag, allocation_strategy=strategy)
        assert sorted(result.results.values()).count("b") == there


_barriers: dict[int, threading.Barrier] = {}


class _Meet:
    """Waits for the others, on whatever node of this process."""

    def __init__(self, barrier):
        self.key = id(barrier)
        _barriers[self.key] = barrier

    def __call__(self):
        _barriers[self.key].wait(10.0)
        return where()


def test_a_chain_of_many_is_one_piece_of_work_on_another_node(nodes):
    a, _b = nodes("a", "b")
    dag = DAG("d")
    dag.add_function(Function(0, code=lambda: 1, node="b"))
    for i in range(1, 200):
        dag.add_function(Function(i, [i - 1], lambda x: x + 1, node="b"))
    result = a.execute(dag)
    assert result.results[199] == 200
    assert set(result.allocations.values()) == {"b"}


def test_wide_with_costs_uses_both(nodes):
    a, _b = nodes("a", "b")
    dag = DAG("d")
    for i in range(2000):
        dag.add_function(Function(i, code=lambda: 1, cost={"cpu": 1}))
    dag.add_function(Function("sum", range(2000), lambda *x: sum(x)))
    result = a.execute(dag, allocation_strategy="load_balanced")
    assert result.results["sum"] == 2000
    assert set(result.allocations.values()) == {"a", "b"}


def test_serializers_run_where_the_value_is(nodes):
    a, *_ = nodes("a", "b", "c")
    dag = DAG("d")

    def pack(data, source, target, *extra):
        return [data, source, target, where_am_i(), *extra]

    def unpack(data, source, target, *extra):
        return [*data, source, target, *extra]

    where_am_i = _thread_node
    argument = Argument("x", (pack, ["p"]), (unpack, ["u"]))
    dag.add_function(Function("x", code=lambda: 7, node="b"))
    dag.add_function(Function("i", [argument], lambda x: x, type="inline"))
    dag.add_function(Function("here", [argument], lambda x: x, node="a"))
    dag.add_function(Function("there", [argument], lambda x: x, node="c"))
    dag.add_function(Function("same", [argument], lambda x: x, node="b"))
    dag.add_function(Function("inlined", ["i"], lambda x: x, node="c"))
    results = a.execute(dag).results
    assert results["here"] == [7, "b", "a", "", "p", "b", "a", "u"]
    assert results["there"] == [7, "b", "c", "", "p", "b", "c", "u"]
    assert results["same"] == [7, "b", "b", "", "p", "b", "b", "u"]
    assert results["inlined"] == [7, "b", "c", "", "p", "b", "c", "u"]


def _thread_node():
    return ""


def test_a_group_is_placed_as_one(nodes):
    a, _b = nodes("a", "b", capabilities={"cpu": 1})
    dag = DAG("d")
    dag.add_function(Function("busy", code=lambda: where(), cost={"cpu": 1}))
    dag.add_function(Function("x", code=where, cost={"cpu": 1}))
    dag.add_function(Function("y", ["x"], lambda x: (x, where()), node=Collocated("x")))
    dag.add_function(Function("z", code=where, node=Collocated("y")))
    result = a.execute(dag)
    assert len({result.allocations[i] for i in "xyz"}) == 1


def test_what_no_node_can_ever_run_is_refused(nodes):
    a, _b = nodes("a", "b")
    with pytest.raises(AllocationError, match="nowhere"):
        a.execute(DAG().add_function(Function("x", code=where, node="nowhere")))
    with pytest.raises(AllocationError, match="cpu=3"):
        a.execute(DAG().add_function(Function("x", code=where, cost={"cpu": 3})))


def test_exceptions_come_home_with_the_node(nodes):
    a, _b = nodes("a", "b")

    def fail():
        raise KeyError("no")

    dag = DAG().add_function(Function("x", code=fail, node="b", max_retries=1))
    with pytest.raises(handoff.FunctionFailedError) as caught:
        a.execute(dag)
    assert isinstance(caught.value.__cause__, KeyError)
    assert (caught.value.node, caught.value.attempts) == ("b", 2)


class Alternate:
    """An allocator of one's own: fills nodes in turn, and never this one."""

    def __init__(self):
        self.asked = []

    def allocate(self, requests, nodes):
        self.asked.append(([r.id for r in requests], {n: dict(c.total) for n, c in nodes.items()}))
        others = list(nodes)[1:]
        placed, used = {}, dict.fromkeys(others, 0)
        for request in requests:
            for name in others:
                if used[name] + 1 <= nodes[name].free["cpu"]:
                    used[name] += 1
                    placed[request.id] = name
                    break
        return placed


def test_an_allocator_of_one_s_own_decides(nodes):
    a, *_ = nodes("a", "b", "c")
    own = Alternate()
    dag = DAG("own")
    for i in range(20):
        dag.add_function(Function(i, code=where, cost={"cpu": 1}))
    result = a.execute(dag, allocation_strategy=own)
    assert set(result.results.values()) == {"b", "c"}
    assert own.asked[0][1] == {"a": {"cpu": 2}, "b": {"cpu": 2}, "c": {"cpu": 2}}

    class Wrong:
        def allocate(self, requests, nodes):
            return {r.id: "nowhere" for r in requests}

    with pytest.raises(AllocationError, match="nowhere"):
        a.execute(dag, allocation_strategy=Wrong())


@pytest.mark.parametrize("pin", ["a", "b"])
def test_what_other_runs_of_this_node_hold_counts_at_once(nodes, pin):
    a, _b = nodes("a", "b")
    other = {"a": "b", "b": "a"}[pin]
    dag = DAG("d").add_function(Function("x", code=where, cost={"cpu": 1}))
    for i in range(5):
        gate = Gate()
        busy = DAG(i).add_function(Function("f", code=gate, node=pin, cost={"cpu": 1}))
        run = a.submit(busy)
        gate.wait()
        assert a.execute(dag, allocation_strategy="load_balanced").results["x"] == other
        gate.opened.set()
        assert run.result(20).results["f"] == pin
        assert a.execute(dag).results["x"] == "a"


def test_a_cancelled_run_is_cancelled_on_every_node(nodes, claims_at_zero):
    a, b = nodes("a", "b")
    gate, seen = Gate(), []

    def waits():
        seen.append(1)
        gate.entered.release()
        until(handoff.current().cancelled)

    dag = DAG("cancel")
    for i in range(4):
        dag.add_function(Function(i, code=_Held(waits), node="b", cost={"cpu": 1}))
    run = a.submit(dag)
    gate.wait()
    gate.wait()
    assert run.cancel()
    with pytest.raises(handoff.RunCancelledError):
        run.result(10.0)
    claims_at_zero(b)
    assert len(seen) == 2


_held = {}


class _Held:
    """Code that is the same object on all nodes of this process."""

    def __init__(self, code):
        _held[id(code)] = code
        self.key = id(code)

    def __call__(self):
        return _held[self.key]()

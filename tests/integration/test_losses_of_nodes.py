"""Nodes that die, freeze, are cut off and return under a run, with the nodes in one process."""

from __future__ import annotations

import time

import pytest

import handoff_actors as handoff
from handoff_actors import DAG, Function
from tests.gates import Gate, count, until, where


def test_what_ran_on_a_node_that_dies_runs_elsewhere(nodes, net):
    a, _b, _c = nodes("a", "b", "c", capabilities={"cpu": 1})
    gate = Gate()
    dag = DAG("d")
    for i in range(3):
        dag.add_function(Function(i, code=gate, cost={"cpu": 1}))
    run = a.submit(dag, allocation_strategy="load_balanced")
    for _ in range(3):
        gate.wait()
    assert sorted(gate.calls) == ["a", "b", "c"]
    net.kill("b")
    gate.opened.set()
    result = run.result(20.0)
    assert "b" not in set(result.results.values())
    assert sorted(result.results.values()) == sorted(result.allocations.values())


def test_a_lost_result_that_is_still_needed_is_made_again(nodes, net):
    a, _b, _c = nodes("a", "b", "c")
    gate, made = Gate(), Gate()
    dag = DAG("d")
    big = b"x" * 100_000
    dag.add_function(Function("x", code=count, extra_args=[made], cost={"b": 1}))
    dag.add_function(Function("y", ["x"], lambda x: (x, big), cost={"b": 1}))
    dag.add_function(Function("gate", code=gate, node="a"))
    dag.add_function(Function("z", ["y", "gate"], lambda y, g: (len(y[1]), where()), node="c"))
    for name in "bc":
        {"b": _b, "c": _c}[name].register_local_node({"cpu": 2, "b": 1})
    until(lambda: a._hub.offered()["b"].get("b"))
    run = a.submit(dag, keep=["z"])
    gate.wait()
    until(lambda: run.progress().finished == 2)
    home = set(made.calls)
    net.kill(home.pop()) if home != {"c"} else None
    gate.opened.set()
    assert run.result(20.0).results["z"] == (100_000, "c")


def test_a_chain_whose_middle_dies_is_made_again_from_its_inputs(nodes, net):
    a, b, _c = nodes("a", "b", "c", node_return_timeout=20.0)
    gate, first = Gate(), Gate()
    dag = DAG("d")
    dag.add_function(Function("in", type="input"))
    dag.add_function(Function("1", ["in"], lambda x: b"1" * x, node="b"))
    dag.add_function(Function("2", ["1"], lambda x: x + b"2", node="b"))
    dag.add_function(Function("3", ["2"], lambda x: x + b"3", node="b"))
    dag.add_function(Function("gate", ["1"], lambda x: gate(), node="a"))
    dag.add_function(Function("end", ["3", "gate"], lambda x, g: x[-2:], node="c"))
    run = a.submit(dag, inputs={"in": 200_000}, keep="sinks")
    gate.wait()
    until(lambda: run.progress().finished == 3)
    net.kill("b")
    gate.opened.set()
    until(lambda: run.progress().finished < 3)
    assert not first.calls
    net.node("b", b._serve_cluster)
    result = run.result(20.0)
    assert dict(result.results) == {"end": b"23"}


def test_pinned_work_waits_for_its_node_and_no_longer_than_it_may(nodes, net):
    a, b = nodes("a", "b", node_return_timeout=1.0)
    gate = Gate()
    dag = DAG("d").add_function(Function("x", code=gate, node="b"))
    run = a.submit(dag)
    gate.wait()
    net.kill("b")
    gate.opened.set()
    net.node("b", b._serve_cluster)
    assert run.result(20.0).results["x"] == "b"
    net.kill("b")
    began = time.monotonic()
    with pytest.raises(handoff.NodeDownError, match="'b'") as caught:
        a.execute(DAG("e").add_function(Function("x", code=gate, node="b")))
    assert caught.value.node == "b"
    assert 0.9 < time.monotonic() - began < 5.0


def test_a_node_that_is_suspect_gets_nothing_new(nodes, net):
    a, _b = nodes("a", "b")
    gate = Gate()
    gate.opened.set()
    net.suspect("b")
    run = a.submit(DAG("d").add_function(Function("x", code=gate, node="b")))
    other = a.execute(DAG("e").add_function(Function("x", code=where)))
    assert other.results["x"] == "a"
    assert not gate.calls
    net.back("b")
    assert run.result(20.0).results["x"] == "b"


def test_a_partition_that_heals_leaves_no_double_result_and_no_claim(nodes, net, claims_at_zero):
    a, b = nodes("a", "b", node_return_timeout=20.0)
    gate = Gate()
    dag = DAG("d")
    dag.add_function(Function("x", code=gate, node="b", cost={"cpu": 1}))
    dag.add_function(Function("y", ["x"], lambda x: [x], node="a"))
    run = a.submit(dag)
    gate.wait()
    net.cut("a", "b")
    net.heal("a", "b")
    gate.wait()
    gate.opened.set()
    assert run.result(20.0).results == {"x": "b", "y": ["b"]}
    assert gate.calls == ["b", "b"]
    claims_at_zero(a)
    claims_at_zero(b)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", range(3))
def test_a_runner_that_dies_between_placing_an_attempt_and_sending_it_sends_it(
    nodes, net, monkeypatch, when, nth, claims_at_zero
):
    from handoff_actors.execution.nodes.messages import WORK
    from tests.cluster_in_process import MemoryPeer

    a, b, _c = nodes("a", "b", "c")
    posted, post = [], MemoryPeer.post

    def fails(peer, service, message):
        if service == WORK and peer.near.node == "a":
            posted.append(peer.name)
            if len(posted) == nth + 1:
                if when == "after":
                    post(peer, service, message)
                raise MemoryError
        post(peer, service, message)

    monkeypatch.setattr(MemoryPeer, "post", fails)
    dag = DAG("d")
    for i in range(40):
        args = [i - 4] if i >= 4 else []
        node = ("b", "c", "a")[i % 3]
        dag.add_function(Function(i, args, lambda *x: sum(x) + 1, node=node))
    with a.execute(dag, timeout=20.0) as result:
        assert dict(result.results.items()) == {i: i // 4 + 1 for i in range(40)}
    assert len(posted) > nth
    assert a.status().restarts == {"run:d": 1}
    for runtime in (a, b):
        claims_at_zero(runtime)


def test_values_go_by_way_of_the_orchestrator_where_nodes_cannot_reach_each_other(nodes, net):
    a, _b, _c = nodes("a", "b", "c")
    net.cut("b", "c")
    dag = DAG("d")
    dag.add_function(Function("x", code=lambda: b"x" * 1_000_000, node="b"))
    dag.add_function(Function("y", ["x"], len, node="c"))
    assert a.execute(dag).results["y"] == 1_000_000


def test_a_node_frees_what_it_held_for_an_orchestrator_that_is_gone(nodes, net, claims_at_zero):
    a, b = nodes("a", "b")
    gate = Gate()
    dag = DAG("d")
    for i in range(4):
        dag.add_function(Function(i, code=gate, node="b", cost={"cpu": 1}))
    run = a.submit(dag)
    gate.wait()
    gate.wait()
    status = b.status()
    assert [claim.dag_id for claim in status.claims] == ["d", "d"]
    assert [(g.dag_id, g.orchestrator, g.state) for g in status.guests] == [("d", "a", "running")]
    assert "'d' for a: running" in str(status)
    assert {at.node for at in status.running} == {"b"}
    net.kill("a")
    until(lambda: not b._hub.guests)
    gate.opened.set()
    claims_at_zero(b)
    assert len(gate.calls) == 2
    run.cancel()


def test_a_function_that_may_run_once_fails_its_run_when_its_node_dies(nodes, net):
    a, _b = nodes("a", "b")
    gate = Gate()
    dag = DAG("d").add_function(Function("x", code=gate, node="b", max_crashes=0))
    run = a.submit(dag)
    gate.wait()
    net.kill("b")
    with pytest.raises(handoff.FunctionCrashedError, match="max_crashes=0") as caught:
        run.result(20.0)
    assert [c.node for c in caught.value.attempts] == ["b"]
    gate.opened.set()


def test_a_run_that_has_ended_makes_lost_results_again_when_they_are_asked_for(nodes, net):
    a, b = nodes("a", "b")
    made = Gate()
    dag = DAG("d")
    dag.add_function(Function("x", code=count, extra_args=[made], cost={"b": 1}))
    dag.add_function(Function("y", ["x"], lambda x: b"y" * 100_000, cost={"b": 1}))
    dag.add_function(Function("z", ["y"], lambda y: len(y)))
    b.register_local_node({"cpu": 2, "b": 1})
    until(lambda: a._hub.offered()["b"].get("b"))
    result = a.execute(dag)
    assert result.allocations["y"] == "b"
    net.kill("b")
    a.register_local_node({"cpu": 2, "b": 1})
    assert result.results["y"] == b"y" * 100_000
    assert result.allocations["y"] == "a"
    assert made.calls == ["b"], "what is at hand is not made again"


def test_a_guest_whose_strand_cannot_be_kept_alive_costs_its_run_no_more_than_a_lost_node(
    nodes, net, claims_at_zero
):
    a, b, _c = nodes("a", "b", "c", max_restarts=1)
    gate = Gate()
    dag = DAG("d")
    for i in range(4):
        dag.add_function(Function(i, code=gate, node="b", cost={"cpu": 1}))
    dag.add_function(Function("all", range(4), lambda *x: list(x), node="c"))
    run = a.submit(dag)
    gate.wait()
    gate.wait()
    (guest,) = b._hub.guests.values()
    for _ in range(2):
        handoff.testing.crash(guest.name, runtime=b)
    until(lambda: guest not in b._hub.guests.values())
    gate.opened.set()
    result = run.result(20.0)
    assert result.results["all"] == ["b"] * 4
    assert len(gate.calls) == 6
    for runtime in (a, b):
        claims_at_zero(runtime)


@pytest.mark.parametrize("keep", ["all", "sinks"])
def test_what_waits_for_its_node_while_its_input_is_lost_waits_for_the_input_too(
    nodes, net, keep, claims_at_zero
):
    a, b, c = nodes("a", "b", "c", node_return_timeout=20.0)
    c.register_local_node({"cpu": 2, "c": 1})
    until(lambda: a._hub.offered()["c"].get("c"))
    gate = Gate()
    dag = DAG("d")
    dag.add_function(Function("x", code=lambda: (gate(), b"x" * 100_000), cost={"c": 1}))
    dag.add_function(Function("y", ["x"], lambda x: (x[0], len(x[1]), where()), node="b"))
    run = a.submit(dag, keep=keep)
    gate.wait()
    net.kill("b")
    gate.opened.set()
    until(lambda: run.progress().finished == 1)
    net.kill("c")  # with the result of x, which y does not have yet
    net.node("b", b._serve_cluster)
    net.node("c", c._serve_cluster)
    result = run.result(20.0)
    assert result.results["y"] == ("c", 100_000, "b")
    assert gate.calls == ["c", "c"]
    for runtime in (a, b, c):
        claims_at_zero(runtime)

"""The faults of nodes: killed, frozen, cut off; and runs that survive them."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import Function, testing
from handoff_actors.testing import At, Fault, FaultPlan


def add(*args: int) -> int:
    return sum(args) + 1


def slow(*args: int) -> int:
    time.sleep(0.02)
    return sum(args) + 1


def wide(n: int = 40, code: Any = slow) -> handoff.DAG:
    dag = handoff.new()
    for i in range(n):
        dag.add_function(Function(i, [i - 4] if i >= 4 else [], code, cost={"cpu": 1}))
    return dag


def test_a_killed_node_comes_back_under_its_name(handoff_cluster: Any, eventually: Any) -> None:
    assert handoff.nodes() == ["node-1", "node-2"]
    run = handoff.submit(wide())
    pid = testing.kill_node("node-1")
    assert dict(run.result(30).results) == testing.sequential(wide())
    eventually(lambda: handoff.node_info("node-1").state == "up", 20.0)
    assert handoff.node_info("node-1").pid != pid


@pytest.mark.handoff(nodes=1, heartbeat_timeout=1.0)
def test_a_frozen_node_is_done_without_and_thawed(handoff_cluster: Any, eventually: Any) -> None:
    run = handoff.submit(wide())
    testing.freeze_node("node-1")
    try:
        assert dict(run.result(30).results) == testing.sequential(wide())
        eventually(lambda: handoff.node_info("node-1").state == "down", 20.0)
    finally:
        testing.thaw_node("node-1")
    eventually(lambda: handoff.nodes() == ["node-1"], 20.0)


def test_a_cut_link_and_its_healing(handoff_cluster: Any, eventually: Any) -> None:
    me = handoff.node()
    pid = handoff.node_info("node-1").pid
    run = handoff.submit(wide())
    testing.cut(me, "node-1")
    assert handoff.nodes() == ["node-2"]
    assert dict(run.result(30).results) == testing.sequential(wide())
    assert not threading.Event().wait(0.5)
    assert handoff.nodes() == ["node-2"], "and it stays cut"
    testing.heal("node-1", me)
    eventually(lambda: handoff.nodes() == ["node-1", "node-2"])
    assert handoff.node_info("node-1").pid == pid, "the node has lived on"
    testing.cut("node-1", "node-2")
    assert dict(handoff.execute(wide()).results) == testing.sequential(wide())
    testing.heal("node-1", "node-2")


def test_a_plan_kills_and_cuts_nodes(handoff_cluster: Any) -> None:
    dag = wide(24)
    plan = FaultPlan([
        At("before", 5, Fault("kill_node", "node-1")),
        At("after", 11, Fault("cut", handoff.node(), "node-2")),
        At("before", 20, Fault("heal", handoff.node(), "node-2")),
    ])  # fmt: skip
    assert dict(plan.execute(dag).results) == testing.sequential(wide(24))
    assert sorted(map(repr, plan.happened)) == sorted(map(repr, plan.points))


def test_what_cannot_be_done_to_a_node_is_refused(handoff_cluster: Any) -> None:
    me = handoff.node()
    for call in (lambda: testing.kill_node("nobody"), lambda: testing.kill_node(me),
                 lambda: testing.cut(me, me), lambda: testing.cut("nobody", me)):  # fmt: skip
        with pytest.raises(handoff.ConfigurationError):
            call()

"""The pure cores in a simulated cluster, under every fault: the invariants hold, by any seed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import handoff_actors as handoff
from handoff_actors import testing
from handoff_actors.testing import SimulatedCluster
from handoff_actors.testing.workflows import from_wfformat, layered, random_workflow

LIVES = int(os.environ.get("HANDOFF_LIVES", "30"))
RECORDED = sorted(Path("/work/shared/data/workflows").glob("*.json"))
CALM: dict[str, Any] = {"churn": 0.002, "freezes": 0.002, "loss": 0.0003, "failures": 0.01}
CAPACITY = {"cpu": 2_000_000}


def capacity(cluster: SimulatedCluster) -> dict[str, int]:
    return {"cpu": sum(node.total["cpu"] for node in cluster.nodes.values())}


@settings(max_examples=2 * LIVES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 60),
    nodes=st.integers(1, 12),
    strategy=st.sampled_from(["first_available", "load_balanced"]),
    keep=st.sampled_from(["all", "sinks"]),
    harsh=st.sampled_from([0.0, 1.0, 10.0]),
)
def test_any_workflow_under_any_fate(
    seed: int, n: int, nodes: int, strategy: str, keep: str, harsh: float
) -> None:
    work = random_workflow(
        n, seed=seed, costs=[{"cpu": 1}, {"cpu": 0.5}, {"cpu": 2}, {}], seconds=(0.01, 3)
    )
    fate = {name: part * harsh for name, part in CALM.items()}
    cluster = SimulatedCluster(
        nodes, seed=seed, strategy=strategy, crashes=0.005 * harsh, downtime=(0.1, 8), **fate
    )
    run = cluster.submit(work.dag, seconds=work.seconds, sizes=work.sizes, keep=keep)
    cluster.run()
    cluster.check()
    assert run.state == "succeeded" or harsh
    assert run.attempts >= n or run.state == "failed"
    if not harsh:
        assert run.attempts == n
        assert run.makespan >= run.lower_bound(capacity(cluster))
    again = SimulatedCluster.replay(cluster.log())
    assert (again.digest, again.now) == (cluster.digest, cluster.now)
    assert again.history == cluster.history
    cluster.settle()
    cluster.check_idle()


class Fates(RuleBasedStateMachine):
    """A cluster to which anything may happen between any two events."""

    @initialize(seed=st.integers(0, 10_000), nodes=st.integers(1, 6), noise=st.booleans())
    def begin(self, seed: int, nodes: int, noise: bool) -> None:
        self.cluster = SimulatedCluster(
            nodes, seed=seed, downtime=(0.1, 7), **(CALM if noise else {})
        )
        self.ended: dict[int, str] = {}

    @rule(n=st.integers(1, 20), seed=st.integers(0, 1000), keep=st.sampled_from(["all", "sinks"]))
    def submit(self, n: int, seed: int, keep: str) -> None:
        work = random_workflow(n, seed=seed, seconds=(0.01, 1), costs=[{"cpu": 1}, {"cpu": 2}, {}])
        self.cluster.submit(work.dag, seconds=work.seconds, sizes=work.sizes, keep=keep)

    @rule(count=st.integers(1, 40))
    def go_on(self, count: int) -> None:
        for _ in range(count):
            self.cluster.step()

    @rule(data=st.data(), downtime=st.sampled_from([0.0001, 0.5, 8.0]))
    def kill(self, data: Any, downtime: float) -> None:
        self.cluster.kill(data.draw(st.sampled_from(list(self.cluster.nodes))), downtime)

    @rule(data=st.data())
    def cut(self, data: Any) -> None:
        self.cluster.cut(data.draw(st.sampled_from(list(self.cluster.nodes))))

    @rule(data=st.data(), seconds=st.sampled_from([0.01, 1.0, 2.5, 7.0]))
    def freeze(self, data: Any, seconds: float) -> None:
        self.cluster.freeze(data.draw(st.sampled_from(list(self.cluster.nodes))), seconds)

    @precondition(lambda self: hasattr(self, "cluster"))
    @invariant()
    def it_holds(self) -> None:
        self.cluster.check()
        for run in self.cluster.runs:
            if run.state != "running":
                assert self.ended.setdefault(run.number, run.state) == run.state

    def teardown(self) -> None:
        if not hasattr(self, "cluster"):
            return
        self.cluster.run()
        assert SimulatedCluster.replay(self.cluster.log()).digest == self.cluster.digest
        self.cluster.settle()
        self.cluster.run(until=self.cluster.now + 20)
        self.cluster.check()
        self.cluster.check_idle()


TestFates = Fates.TestCase
TestFates.settings = settings(
    max_examples=LIVES, stateful_step_count=30, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip


def test_the_same_seed_gives_the_same_history_and_another_seed_another() -> None:
    work = layered(10, 10)

    def history(seed: int) -> tuple[str, float]:
        cluster = SimulatedCluster(8, seed=seed, **CALM)
        cluster.submit(work.dag, seconds=work.seconds)
        cluster.run()
        return cluster.digest, cluster.now

    assert history(1) == history(1)
    assert history(1) != history(2)


def test_a_changed_decision_shows_in_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    work = layered(10, 5)
    cluster = SimulatedCluster(8, seed=3)
    cluster.submit(work.dag, seconds=work.seconds)
    cluster.run()
    told = json.loads(cluster.log())
    told["options"]["strategy"] = "load_balanced"
    assert SimulatedCluster.replay(json.dumps(told)).digest != cluster.digest


def test_what_a_node_takes_with_it_is_made_again() -> None:
    dag = handoff.new()
    dag.add_function(handoff.Function("a", (), testing.sequential, cost={"cpu": 2}, extra_args=[1]))
    dag.add_function(handoff.Function("b", ["a"], lambda a: a, cost={"cpu": 2}))
    cluster = SimulatedCluster(1, churn=0.0)
    run = cluster.submit(dag, seconds=1.0)
    cluster.run(until=1.5)
    assert run.attempts == 2
    cluster.kill("n0", downtime=1.0)
    cluster.run()
    assert run.state == "succeeded"
    assert run.attempts == 4, "the value of a went with the node, so it is made again"
    assert cluster.lost == 1


def test_a_frozen_node_is_given_up_and_comes_back() -> None:
    work = layered(4, 3, seconds=(1.0, 1.0))
    cluster = SimulatedCluster(2, seed=5)
    run = cluster.submit(work.dag, seconds=work.seconds)
    cluster.run(until=0.5)
    cluster.freeze("n0", 30.0)
    cluster.run()
    kinds = [entry[1] for entry in cluster.history]
    assert run.state == "succeeded"
    assert kinds.index("suspect") < kinds.index("given up")
    assert run.makespan < 20
    cluster.run(until=60)
    assert [entry[1:] for entry in cluster.history][-1] == ("joins", "n0")
    cluster.check_idle()
    short = SimulatedCluster(2, seed=5)
    run = short.submit(work.dag, seconds=work.seconds)
    short.run(until=0.5)
    short.freeze("n0", 3.0)
    short.run()
    kinds = [entry[1] for entry in short.history]
    assert "suspect" in kinds
    assert "given up" not in kinds, "a silence is not a death"
    assert run.attempts == 12


@pytest.mark.skipif(not RECORDED, reason="the recorded workflows are not here")
@pytest.mark.parametrize("strategy", ["first_available", "load_balanced"])
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name.split("-")[0])
def test_recorded_workflows(path: Path, strategy: str) -> None:
    work = from_wfformat(path)
    cluster = SimulatedCluster(4, strategy=strategy)
    run = cluster.submit(work.dag, seconds=work.seconds, sizes=work.sizes)
    cluster.run()
    bound = run.lower_bound(capacity(cluster))
    assert run.state == "succeeded"
    assert bound <= run.makespan <= 2 * bound + 5, "no list schedule is worse than twice the best"


def test_what_is_no_workflow_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    for path in (tmp_path / "x.json", tmp_path / "missing.json"):
        with pytest.raises(handoff.ConfigurationError):
            from_wfformat(path)
    with pytest.raises(handoff.ConfigurationError):
        SimulatedCluster(2, strategy="random")


def test_a_replay_settles_and_lets_time_pass_as_it_was_told() -> None:
    dag = handoff.new()
    for i in range(60):
        dag.add_function(handoff.Function(i, [i - 7] if i >= 7 else [], int, cost={"cpu": 1}))
    cluster = SimulatedCluster(6, seed=5, churn=0.05, freezes=0.05)
    cluster.run(until=0.5)
    cluster.submit(dag, max_retries=20)
    cluster.run()
    cluster.settle()
    cluster.run(until=cluster.now + 100.0)
    cluster.kill("n1", 1.0)
    cluster.run(until=cluster.now + 2.0)
    assert SimulatedCluster.replay(cluster.log()).digest == cluster.digest


@pytest.mark.parametrize("seed", range(8))
def test_a_link_that_ended_before_it_was_offered_is_no_link(seed: int) -> None:
    cluster = SimulatedCluster(1, seed=seed)
    cluster.freeze("n0", 0.01)  # it notices later than the orchestrator that its link has ended
    cluster.cut("n0")
    run = cluster.submit(handoff.new().add_function(handoff.Function("f", code=int)))
    cluster.run(events=1000)
    assert run.state == "succeeded"

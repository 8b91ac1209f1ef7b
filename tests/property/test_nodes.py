"""A live cluster: whatever nodes do meanwhile, a run gives what the sequential evaluation gives."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import handoff_actors as handoff
from handoff_actors import DAG, Collocated, Function
from tests.cluster_in_process import Net
from tests.gates import until

NODES = ("b", "c")


class Add:
    """Adds, after a while; the result is large enough to stay where it is, if it is to."""

    def __init__(self, me, seconds, size):
        self.me, self.seconds, self.size = me, seconds, size

    def __call__(self, *args):
        time.sleep(self.seconds)
        return self.me + sum(len(a) if isinstance(a, bytes) else a for a in args), b"x" * self.size

    def of(self, *args):
        return self.me + sum(args), b"x" * self.size


class First:
    """Takes the number of each result."""

    def __init__(self, code):
        self.code = code

    def __call__(self, *args):
        return self.code(*[a[0] for a in args])


@st.composite
def dags(draw):
    """Small DAGs with pins, groups, costs and large results."""
    dag = DAG("any")
    for i in range(draw(st.integers(1, 12))):
        args = draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else []
        kind = draw(st.sampled_from(["free", "cost", "cost", "pin", "group"]))
        fields = {}
        if kind == "cost":
            fields["cost"] = {"cpu": 1}
        elif kind == "pin":
            fields["node"] = draw(st.sampled_from(["a", *NODES]))
        elif kind == "group" and i:
            fields["node"] = Collocated(draw(st.integers(0, i - 1)))
        seconds = draw(st.sampled_from([0.0, 0.0, 0.002, 0.01]))
        code = First(Add(i, seconds, draw(st.sampled_from([0, 10, 50_000]))))
        dag.add_function(Function(i, args, code, **fields))
    return dag


def sequential(dag):
    values = {}
    for i, function in dag.functions.items():
        values[i] = function.code.code.of(*[values[a][0] for a in function.args])
    return values


mischief = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.001, 0.005, 0.01]),
        st.sampled_from(["kill", "kill", "suspect", "cut b c", "part", "late", "crash"]),
        st.sampled_from(NODES),
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def cluster():
    net = Net()
    runtimes = {}
    for name in ("a", *NODES):
        runtimes[name] = handoff.Runtime(
            name=name, capabilities={"cpu": 2}, shutdown_timeout=2.0, max_restarts=1000
        ).start()
        net.node(name, runtimes[name]._serve_cluster)
    yield net, runtimes
    for runtime in runtimes.values():
        runtime.stop()
    net.close()


def restored(net, runtimes):
    """All nodes are up and see each other."""
    for name in NODES:
        if name not in net.nodes:
            net.node(name, runtimes[name]._serve_cluster)
        net.back(name)
    if "c" not in net.nodes["b"].linked:
        net.heal("b", "c")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    dag=dags(),
    doings=mischief,
    keep=st.sampled_from(["all", "sinks"]),
    strategy=st.sampled_from(["first_available", "load_balanced"]),
)
def test_any_run_gives_the_sequential_results(cluster, dag, doings, keep, strategy):
    net, runtimes = cluster
    a = runtimes["a"]
    restored(net, runtimes)
    run = a.submit(dag, keep=keep, allocation_strategy=strategy, timeout=30.0)
    for delay, what, name in doings:
        time.sleep(delay)
        if what == "kill" and name in net.nodes:
            net.kill(name)
            net.node(name, runtimes[name]._serve_cluster)
        elif what == "suspect" and name in net.nodes:
            net.suspect(name)
            time.sleep(delay)
            net.back(name)
        elif what == "cut b c" and "c" in net.nodes["b"].linked:
            net.cut("b", "c")
        elif what == "part" and name in net.nodes["a"].linked:
            # What it runs ends in vain: nobody hears of it, or it is superseded by then.
            net.cut("a", name)
            time.sleep(delay)
            net.heal("a", name)
        elif what == "late" and name in net.nodes["a"].linked:
            net.hold(name, "a")
            time.sleep(delay)
            net.release(name, "a")
        elif what == "crash":
            ref = a.whereis(run._data.name)
            if ref is not None:
                handoff.testing.crash(run._data.name, runtime=a)
    with run.result(40.0) as result:
        right = sequential(dag)
        found = dict(result.results.items())
        assert found == {i: right[i] for i in found}
        if keep == "all":
            assert len(found) == len(dag)
    for runtime in runtimes.values():
        until(lambda r=runtime: not r.status().claims, 10.0)

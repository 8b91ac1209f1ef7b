"""Runs over several nodes, with the nodes in one process: what goes where, and comes back."""

from __future__ import annotations

import pytest

import handoff_actors as handoff
from handoff_actors import DAG, Function
from tests.cluster_in_process import Net


@pytest.fixture
def net(leaks):
    made = Net()
    yield made
    made.close()


@pytest.fixture
def nodes(net, make_runtime):
    """Makes nodes of a cluster, by name: ``nodes("a", "b")``; capabilities may be given."""

    def make(*names, **options):
        runtimes = []
        for name in names:
            fields = {"capabilities": {"cpu": 2}, **options}
            runtime = make_runtime(name=name, **fields)
            net.node(name, runtime._serve_cluster)
            runtimes.append(runtime)
        return runtimes

    return make


def where():
    return handoff.current().node


def test_a_pinned_function_runs_on_its_node(nodes):
    a, _b = nodes("a", "b")
    dag = DAG("d")
    dag.add_function(Function("x", code=where, node="b"))
    dag.add_function(Function("y", ["x"], lambda x: (x, where()), node="a"))
    dag.add_function(Function("z", ["y"], lambda y: (*y, where()), node="b"))
    result = a.execute(dag)
    assert result.results["z"] == ("b", "a", "b")
    assert result.allocations == {"x": "b", "y": "a", "z": "b"}

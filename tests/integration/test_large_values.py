"""Large values between node processes: whole, private, and the system's again in the end."""

from __future__ import annotations

import os
import signal

import pytest

from handoff_actors import DAG, Function
from tests.gates import until

numpy = pytest.importorskip("numpy")

COUNT = 5_000_000  # so large that the C library keeps none of it for itself
SIZE = 8 * COUNT


def make(first):
    return numpy.arange(first, first + COUNT, dtype=numpy.float64)


def change(array):
    """It is this node's own: nobody else sees what is done to it."""
    total = float(array.sum())
    array[:] = -1.0
    return total


def total(array):
    return float(array.sum())


def held(pid):
    """Bytes of a process that the system cannot have back when it needs them."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    kilobytes = {name: int(lines[name].split()[0]) for name in ("Anonymous", "LazyFree")}
    return (kilobytes["Anonymous"] - kilobytes["LazyFree"]) * 1024


def handed_on(first):
    dag = DAG("large")
    dag.add_function(Function("make", code=make, extra_args=(first,), node="n1"))
    dag.add_function(Function("change", ["make"], change, node="n2"))
    dag.add_function(Function("total", ["make"], total, node="n1"))
    return dag


@pytest.fixture
def cluster(make_runtime):
    runtime = make_runtime(name="home", capabilities={"cpu": 2}, heartbeat_timeout=2.0)
    runtime.start_nodes(2, names=["n1", "n2"], capabilities={"cpu": 2})
    return runtime


def expected(first):
    return float(numpy.arange(first, first + COUNT, dtype=numpy.float64).sum())


def test_each_node_has_its_own_and_none_sees_an_older_one(cluster):
    kept = []
    for first in range(6):
        with cluster.execute(handed_on(first)) as result:
            values = dict(result.results)
            assert values["change"] == values["total"] == expected(first)
            kept.append(values["make"])
    # These are views of rooms here, and no later value was ever read into one of them.
    for first, array in enumerate(kept):
        assert float(array.sum()) == expected(first)
    rooms = cluster.cluster().rooms
    assert rooms.idle < 6 * SIZE
    del kept, values, array
    until(lambda: not rooms._lent)


def test_memory_is_the_system_s_again_when_the_run_is_released(cluster):
    pids = [os.getpid(), *(cluster.node_info(name).pid for name in ("n1", "n2"))]
    before = [held(pid) for pid in pids]
    for first in range(3):
        result = cluster.execute(handed_on(first))
        assert held(pids[2]) > before[2] + SIZE // 2
        result.release()
    del result
    until(lambda: all(held(pid) < was + SIZE // 2 for pid, was in zip(pids, before, strict=True)))


@pytest.mark.parametrize("victim", ["n1", "n2"])
def test_a_death_of_either_side_frees_the_other_one(cluster, victim):
    other = {"n1": "n2", "n2": "n1"}[victim]
    pid, survivor = (cluster.node_info(name).pid for name in (victim, other))
    before = held(survivor)
    result = cluster.execute(handed_on(0))
    array = result.results["make"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: cluster.node_info(victim).pid not in (pid, None) and victim in cluster.nodes())
    assert float(array.sum()) == expected(0)  # what came is ours
    with cluster.execute(handed_on(1)) as again:
        assert again.results["change"] == expected(1)
    result.release()
    until(lambda: held(survivor) < before + SIZE // 2)

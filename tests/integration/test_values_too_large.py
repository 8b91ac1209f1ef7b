"""A value that does not fit into the memory of the node that wants it, as the system limits it."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import handoff_actors as handoff
from handoff_actors import DAG, Function
from handoff_actors.cluster.memory import memory_left
from handoff_actors.control_groups import groups
from tests.gates import until

SIZE = 300_000_000
ROOM = 100_000_000


@pytest.fixture
def cluster(make_runtime):
    runtime = make_runtime(name="home", capabilities={"cpu": 1})
    runtime.start_nodes(2, names=["n1", "n2"], capabilities={"cpu": 2})
    return runtime


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of our own, for memory."""
    for parent in groups(Path("/"), "memory"):
        made = parent / f"handoff-test-{os.getpid()}"
        try:
            made.mkdir()
        except OSError:
            continue
        if any((made / name).exists() for name in ("memory.max", "memory.limit_in_bytes")):
            break
        made.rmdir()
    else:
        pytest.skip("no control group for memory can be made here")
    yield made
    until(lambda: not (made / "cgroup.procs").read_text().split())
    made.rmdir()


def limit_of_the_process(extra: int | None) -> None:
    """Let this process have so much more memory than it has."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if extra is None:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, most))


def large(name: str) -> DAG:
    dag = DAG(name)
    dag.add_function(Function("x", code=bytearray, extra_args=[SIZE], node="n1"))
    dag.add_function(Function("y", ["x"], len, node="n2"))
    return dag


def check(cluster: handoff.Runtime, folder: Path, lift) -> None:
    """The run fails and says why; nobody else notices; without the limit it goes."""

    def waits() -> tuple[str, int]:
        Path(folder, "begun").touch()
        while not Path(folder, "go").exists():
            time.sleep(0.005)
        return handoff.current().node, handoff.current().attempt

    pid = cluster.node_info("n2").pid
    other = cluster.submit(DAG("other").add_function(Function("w", code=waits, node="n2")))
    until(lambda: (folder / "begun").exists())
    with pytest.raises(handoff.FunctionFailedError, match="'y'") as caught:
        cluster.execute(large("large"), timeout=30.0)
    cause = caught.value.__cause__
    assert isinstance(cause, MemoryError)
    for part in (
        "argument 1 of function 'y'",
        "300 MB",
        "on node n1",
        "left on node n2",
        "MB of memor",
    ):
        assert part in str(cause), cause
    assert caught.value.attempts == 1
    small = DAG("small").add_function(Function("x", code=bytes, extra_args=[2_000_000], node="n1"))
    small.add_function(Function("y", ["x"], len, node="n2"))
    assert cluster.execute(small, timeout=20.0).results["y"] == 2_000_000
    (folder / "go").touch()
    assert other.result(20.0).results["w"] == ("n2", 1)
    lift()
    assert cluster.execute(large("now"), timeout=30.0).results["y"] == SIZE
    assert cluster.node_info("n2").pid == pid
    assert not cluster.status().restarts


def test_a_node_that_may_not_have_so_much_memory_refuses_the_value(cluster, tmp_path) -> None:
    def limit(extra: int | None) -> None:
        dag = DAG(f"limit {extra}")
        dag.add_function(Function("f", code=limit_of_the_process, extra_args=[extra], node="n2"))
        cluster.execute(dag)

    limit(ROOM)
    check(cluster, tmp_path, lambda: limit(None))


def test_a_node_whose_control_group_may_not_have_so_much_refuses_the_value(
    group, cluster, tmp_path
) -> None:
    name = "memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes"
    (group / name).write_text(str(ROOM))
    (group / "cgroup.procs").write_text(str(cluster.node_info("n2").pid))
    left = DAG("left").add_function(Function("f", code=memory_left, node="n2"))
    until(lambda: cluster.execute(left).results["f"] < ROOM)  # it looks once a second
    check(cluster, tmp_path, lambda: (group / name).write_text(str(SIZE * 4)))
    cluster.stop()


def test_a_result_that_does_not_fit_here_is_refused_where_it_is_asked_for(
    cluster, monkeypatch
) -> None:
    from handoff_actors.cluster import memory

    result = cluster.execute(large("here"))
    assert result.results["y"] == SIZE
    monkeypatch.setattr(memory, "memory_left", lambda: ROOM)
    with pytest.raises(MemoryError, match=r"'x'.*300 MB, on node n1.*left on node home"):
        result.results["x"]
    monkeypatch.undo()
    assert len(result.results["x"]) == SIZE

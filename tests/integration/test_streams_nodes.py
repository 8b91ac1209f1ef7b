"""Pipelines over nodes: real node processes, which are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import Argument, Collocated, Function
from tests.programs import Program

OFFERED = {"cpu": 2.0}


@pytest.fixture(scope="module")
def cluster() -> Iterator[handoff.Runtime]:
    """A runtime with the nodes ``one`` and ``two``."""
    with handoff.Runtime(capabilities={"cpu": 1}, node_return_timeout=20.0) as runtime:
        runtime.start_nodes(2, capabilities=OFFERED, names=["one", "two"])
        yield runtime


@pytest.fixture
def runtime(cluster: handoff.Runtime, eventually: Callable[..., None]) -> Iterator[handoff.Runtime]:
    """The same; afterwards all nodes are up, and no claim is held anywhere."""
    yield cluster
    eventually(lambda: all(cluster.node_info(n).state == "up" for n in ("one", "two")))
    for name in (cluster.node(), "one", "two"):
        eventually(lambda name=name: free(cluster, name) == cluster.node_info(name).capabilities)
    assert cluster.pipelines == {}


def free(runtime: handoff.Runtime, node: str) -> dict[str, float]:
    return dict(runtime.node_info(node).available)


def line(*functions: Function) -> handoff.DAG:
    dag = handoff.DAG("far").add_function(Function("x", type="input"))
    for function in functions:
        dag.add_function(function)
    return dag


def here(x: Any) -> tuple[Any, str]:
    return x, handoff.current().node


class OddError(Exception):
    """A user's own."""


def test_stages_are_where_they_are_pinned_and_items_come_in_order(
    runtime: handoff.Runtime,
) -> None:
    dag = line(
        Function("a", ["x"], here, node="one"),
        Function("b", ["a"], here, node="two", parallelism=2),
        Function("c", ["b"], here),
        Function("d", ["b", "x"], lambda b, x: (b[0][0], x), node=Collocated("a")),
    )
    with runtime.stream(dag, max_pending=500) as pipeline:
        results = list(pipeline.map(range(3000)))
        found = pipeline.statistics()
    for x, result in enumerate(results):
        assert result == {"c": (((x, "one"), "two"), runtime.node()), "d": (x, x)}
    assert [found[i].node for i in "abcd"] == ["one", "two", runtime.node(), "one"]


def test_stages_are_on_the_nodes_that_are_named(runtime: handoff.Runtime) -> None:
    dag = line(
        Function("free", ["x"], here),
        Function("costly", ["free"], here, cost={"cpu": 1}),
        Function("pinned", ["costly"], here, node=runtime.node()),
    )
    with runtime.stream(dag, nodes=["two"]) as pipeline:
        assert pipeline.statistics()["free"].node == "two"
        assert next(pipeline.map([1])) == (((1, "two"), "two"), runtime.node())
    with runtime.stream(dag, nodes=["one", "two"]) as pipeline:
        first = next(pipeline.map([1]))[0][1]
        os.kill(runtime.node_info(first).pid, signal.SIGKILL)
        assert next(pipeline.map([2]))[0][1] in ("one", "two")


@pytest.mark.parametrize(
    ("nodes", "error"),
    [
        ([], handoff.ConfigurationError),
        ("one", handoff.ConfigurationError),
        (3, handoff.ConfigurationError),
        (["one", "never seen"], handoff.AllocationError),
        ([["one"]], handoff.AllocationError),
    ],
)
def test_nodes_that_cannot_be(runtime: handoff.Runtime, nodes: Any, error: type) -> None:
    with pytest.raises(error):
        runtime.stream(line(Function("a", ["x"], here)), nodes=nodes)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_state_batches_coroutines_and_failures_there(
    runtime: handoff.Runtime, isolation: str
) -> None:
    def count(state: int, x: int) -> tuple[tuple[int, int], int]:
        if x == 7:
            raise OddError(x)
        return (x, state), state + 1

    async def later(pair: Any) -> Any:
        await asyncio.sleep(0)
        return pair

    def batch(rows: list[tuple[Any]]) -> list[Any]:
        return [(*pair, len(rows)) for (pair,) in rows]

    where: dict[str, Any] = {"node": "one", "isolation": isolation}
    dag = line(
        Function("count", ["x"], count, init=(int, ["5"]), **where),
        Function("later", ["count"], later, **where),
        Function("batch", ["later"], batch, batch_size=4, **where),
    )
    with runtime.stream(dag) as pipeline:
        results = list(pipeline.map(range(21)))
    error = results.pop(7)
    assert isinstance(error, handoff.ItemFailedError)
    assert (error.function_id, error.node) == ("count", "one")
    assert isinstance(error.__cause__, OddError)
    assert error.__cause__.args == (7,)
    assert [(x, state) for x, state, _ in results] == [
        (x, 5 + i) for i, x in enumerate(x for x in range(21) if x != 7)
    ]
    assert {size for *_, size in results} == {4}


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("state", [False, True])
def test_an_inline_that_fails_there_fails_its_item_alone(
    runtime: handoff.Runtime, isolation: str, state: bool
) -> None:
    """Not the batch in which it would have been."""

    def batch(*args: Any) -> Any:
        results = [(x, len(args[-1])) for (x,) in args[-1]]
        return (results, args[0]) if state else results

    where: dict[str, Any] = {"node": "one", "isolation": isolation}
    dag = line(
        Function("odd", ["x"], lambda x: x // (x % 3), type="inline"),
        Function("b", ["odd"], batch, batch_size=4, init=int if state else None, **where),
    )
    with runtime.stream(dag) as pipeline:
        results = list(pipeline.map(range(1, 9)))
    assert [isinstance(r.__cause__, ZeroDivisionError) for r in results[2::3]] == [True, True]
    assert [r[0] for i, r in enumerate(results) if i % 3 != 2] == [1, 1, 4, 2, 7, 4]


def test_only_what_a_serialiser_returns_crosses(runtime: handoff.Runtime) -> None:
    def pack(data: Any, source: str, target: str, tag: str) -> tuple[Any, ...]:
        return tag, source, target, data[0]

    def unpack(data: Any, source: str, target: str) -> tuple[Any, ...]:
        return (*data, source, target)

    dag = line(
        Function("lock", ["x"], lambda x: (x, threading.Lock())),  # it could not cross
        Function("far", [Argument("lock", (pack, ["t"]), unpack)], here, node="two"),
    )
    with runtime.stream(dag) as pipeline:
        me = runtime.node()
        assert list(pipeline.map([3])) == [(("t", me, "two", 3, me, "two"), "two")]
    whole = line(
        Function("odd", ["x"], lambda x: (i for i in ()) if x == 1 else x),
        Function("far", ["odd"], lambda x: (i for i in ()) if x == 2 else x, node="two"),
    )
    with runtime.stream(whole) as pipeline:
        results = list(pipeline.map(range(4)))
    assert [results[0], results[3]] == [0, 3]
    for error in results[1:3]:
        assert isinstance(error.__cause__, handoff.SerializationError)


def test_claims_are_held_where_the_stages_are(
    runtime: handoff.Runtime, eventually: Callable[..., None]
) -> None:
    dag = line(
        Function("a", ["x"], here, cost={"cpu": 1}, parallelism=2),  # fits on the others only
        Function("b", ["a"], here, cost={"cpu": 0.5}, node="two"),
        Function("c", ["b"], here, cost={"cpu": 0.5}),
    )
    with runtime.stream(dag) as pipeline:
        assert list(pipeline.map([1])) == [(((1, "one"), "two"), runtime.node())]
        assert free(runtime, "one") == {"cpu": 0}
        assert free(runtime, "two") == {"cpu": 1.5}
        assert free(runtime, runtime.node()) == {"cpu": 0.5}
        with pytest.raises(handoff.AllocationError):
            runtime.stream(
                line(Function("a", ["x"], here, cost={"cpu": 1}, node="one")), timeout=0.2
            )
    eventually(lambda: free(runtime, "one") == OFFERED)
    for cost, node in (({"cpu": 3}, None), ({"cpu": 1.5}, runtime.node()), (None, "three")):
        with pytest.raises(handoff.AllocationError):
            runtime.stream(line(Function("a", ["x"], here, cost=cost, node=node)))


class Last:
    """An allocator that fills the last node first."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[Any], list[str]]] = []

    def allocate(self, requests: Any, nodes: Any) -> dict[Any, str]:
        self.asked.append(([(r.id, dict(r.cost)) for r in requests], list(nodes)))
        return {r.id: list(nodes)[-1] for r in requests if r.id != "late"}


def test_an_allocator_of_ones_own_places_stages() -> None:
    """What it leaves out waits where it could ever be; what costs nothing is here."""
    allocator = Last()
    with handoff.Runtime(allocator=allocator, capabilities={"cpu": 2}) as runtime:
        runtime.start_nodes(1, capabilities={"cpu": 2}, names=["last"])
        dag = line(
            Function("a", ["x"], here, cost={"cpu": 0.5}, parallelism=2),
            Function("b", ["a"], here, cost={"cpu": 1}, node=Collocated("a")),
            Function("late", ["b"], here, cost={"cpu": 1}),
            Function("free", ["late"], here),
        )
        with runtime.stream(dag) as pipeline:
            me = runtime.node()
            assert list(pipeline.map([1])) == [((((1, "last"), "last"), me), me)]
        assert allocator.asked == [([("a", {"cpu": 2}), ("late", {"cpu": 1})], [me, "last"])]


def test_stages_there_lend_what_their_node_has_claimed(runtime: handoff.Runtime) -> None:
    """Though the first of them has claimed for both."""

    def nested(x: int) -> int:
        dag = handoff.new().add_function(
            Function("n", (), lambda: 10, cost={"cpu": 1}, node=handoff.current().node)
        )
        return x + handoff.execute(dag).results["n"]

    dag = line(
        Function("a", ["x"], nested, cost={"cpu": 1}, node="one"),
        Function("b", ["a"], nested, cost={"cpu": 1}, node="one", isolation="process"),
    )
    with runtime.stream(dag) as pipeline:
        assert free(runtime, "one") == {"cpu": 0}
        assert list(pipeline.map(range(5))) == [x + 20 for x in range(5)]


def test_an_init_that_raises_there(runtime: handoff.Runtime) -> None:
    def init() -> None:
        raise OddError("no model")

    dag = line(Function("a", ["x"], lambda s, x: (x, s), init=init, node="one"))
    with pytest.raises(handoff.PipelineError) as caught:
        runtime.stream(dag)
    assert isinstance(caught.value.__cause__, OddError)


@pytest.mark.parametrize("pinned", [True, False])
def test_a_node_that_is_killed_loses_no_item(runtime: handoff.Runtime, pinned: bool) -> None:
    def count(state: int, x: int) -> tuple[tuple[int, int, str], int]:
        time.sleep(0.0002)
        return (x, state, handoff.current().node), state + 1

    where: dict[str, Any] = {"node": "one"} if pinned else {"cost": {"cpu": 2}}
    dag = line(Function("a", ["x"], count, init=int, **where), Function("b", ["a"], lambda a: a))
    with runtime.stream(dag) as pipeline:
        results = []
        for result in pipeline.map(range(2000)):
            results.append(result)
            if len(results) == 700:
                os.kill(runtime.node_info(result[2]).pid, signal.SIGKILL)
    assert [x for x, _, _ in results] == list(range(2000))
    states = [state for _, state, _ in results]
    assert states.count(0) == 2  # ``init`` ran once more
    assert {node for *_, node in results} == ({"one"} if pinned else {"one", "two"})


def test_a_pipeline_begins_when_its_nodes_have_returned(
    runtime: handoff.Runtime, eventually: Callable[..., None]
) -> None:
    os.kill(runtime.node_info("two").pid, signal.SIGKILL)
    eventually(lambda: runtime.node_info("two").state == "down")
    dag = line(
        Function("a", ["x"], here, node="two", cost={"cpu": 1}),
        Function("b", ["a"], here, node="two", cost={"cpu": 1}),
    )
    with runtime.stream(dag) as pipeline:
        assert list(pipeline.map([1])) == [((1, "two"), "two")]
        assert free(runtime, "two") == {"cpu": 0}


def test_a_pipeline_does_not_wait_for_ever_for_its_node() -> None:
    with handoff.Runtime(listen="127.0.0.1:0", node_return_timeout=0.1) as runtime:
        other = handoff.Runtime(name="other", authkey=runtime.authkey).start()
        other.connect(str(runtime.address))
        pipeline = runtime.stream(line(Function("a", ["x"], here, node="other")))
        assert list(pipeline.map([1])) == [(1, "other")]
        other.stop()
        with pytest.raises(handoff.PipelineError) as caught:
            list(pipeline.map([2]))
        assert isinstance(caught.value.__cause__, handoff.NodeDownError)
        with pytest.raises(handoff.NodeDownError):
            runtime.stream(line(Function("a", ["x"], here, node="other")))
        with pytest.raises(handoff.AllocationError):
            runtime.stream(line(Function("a", ["x"], here, node="unknown")))


def test_what_may_never_run_twice_fails_with_its_node(runtime: handoff.Runtime) -> None:
    def wait(x: int) -> int:
        if x == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    dag = line(Function("a", ["x"], wait, node="two", max_crashes=0))
    with runtime.stream(dag) as pipeline:
        assert list(pipeline.map([0])) == [0]
        (lost,) = pipeline.map([1])
        assert isinstance(lost, handoff.ItemFailedError)
        assert isinstance(lost.__cause__, handoff.NodeDownError)
        assert list(pipeline.map([2])) == [2]


def test_a_node_frees_what_it_hosts_for_a_process_that_is_killed(
    runtime: handoff.Runtime, eventually: Callable[..., None]
) -> None:
    program = Program(
        [sys.executable, "-c", OWNER, str(runtime.address)], {"HANDOFF_AUTHKEY": runtime.authkey}
    )
    try:
        program.wait_for("first: 1")
        assert free(runtime, "one") == {"cpu": 0}
        os.kill(program.pid, signal.SIGKILL)
        eventually(lambda: free(runtime, "one") == OFFERED)
    finally:
        program.close()


OWNER = """
import sys
import handoff_actors as handoff

runtime = handoff.start(name="owner")
runtime.connect(sys.argv[1])
dag = handoff.new().add_function(handoff.Function("x", type="input"))
dag.add_function(handoff.Function("a", ["x"], abs, node="one", cost={"cpu": 2}))
pipeline = handoff.stream(dag)
pipeline.push(-1)
print("first:", next(pipeline), flush=True)
input()
"""


def test_a_node_frees_what_it_hosts_for_one_that_is_gone(
    runtime: handoff.Runtime, eventually: Callable[..., None]
) -> None:
    with handoff.Runtime(name="other", authkey=runtime.authkey) as other:
        other.connect(str(runtime.address))
        pipeline = other.stream(line(Function("a", ["x"], here, node="one", cost={"cpu": 2})))
        assert list(pipeline.map([1])) == [(1, "one")]
        assert free(runtime, "one") == {"cpu": 0}
    eventually(lambda: free(runtime, "one") == OFFERED)

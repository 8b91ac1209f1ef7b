"""The lives of pipelines: how they begin, crash and end, and what every end gives back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import Function, events
from handoff_actors.testing import crash
from tests.pipelines import COSTLY, IDENTITY, chain, claimed, line

# The ends of a pipeline, and what it gives back.


def test_claims_are_cost_times_parallelism_for_its_life(
    runtime: handoff.Runtime, claims_at_zero: Any
) -> None:
    dag = line(
        Function("a", ["x"], IDENTITY, cost={"cpu": 0.5, "memory": 10}, parallelism=3),
        Function("b", ["a"], IDENTITY, cost={"cpu": 0.5}),
    )
    with claimed(runtime, claims_at_zero):
        pipeline = runtime.stream(dag)
        (claim,) = runtime.status().claims
        assert (dict(claim.amounts), claim.dag_id) == ({"cpu": 2, "memory": 30}, "pipeline:line")
        pipeline.push(1)
        pipeline.close()
        assert list(pipeline) == [1]
        assert runtime.status().claims == []  # who has seen the end finds them free


@pytest.mark.parametrize("end", ["stop", "exit", "exit by an error", "collected", "unread"])
def test_claims_come_back_however_it_ends(
    runtime: handoff.Runtime, claims_at_zero: Any, end: str
) -> None:
    with claimed(runtime, claims_at_zero):
        pipeline = runtime.stream(chain(IDENTITY, **COSTLY))
        list(pipeline.map(range(3)))
        assert runtime.status().claims
        if end == "stop":
            pipeline.stop()
            pipeline.stop()
        elif end == "exit":
            with pipeline:
                pass
        elif end == "exit by an error":
            with pytest.raises(KeyError), pipeline:
                raise KeyError
        elif end == "unread":
            with pipeline:
                pipeline.push(1)
        else:
            del pipeline
            gc.collect()


def test_whoever_iterates_keeps_it(runtime: handoff.Runtime, claims_at_zero: Any) -> None:
    with claimed(runtime, claims_at_zero):
        mapped = runtime.stream(chain(IDENTITY, **COSTLY)).map(range(3000))
        assert next(mapped) == 0
        gc.collect()
        assert list(mapped) == list(range(1, 3000))
        del mapped
        gc.collect()


def test_claims_that_cannot_be_had(runtime: handoff.Runtime, claims_at_zero: Any) -> None:
    with pytest.raises(handoff.AllocationError) as caught:
        runtime.stream(chain(IDENTITY, cost={"cpu": 1}, parallelism=3))
    assert (caught.value.resource, caught.value.asked, caught.value.most) == ("cpu", 3, 2)
    with claimed(runtime, claims_at_zero):
        first = runtime.stream(chain(IDENTITY, cost={"cpu": 2}))
        with pytest.raises(handoff.AllocationError, match=r"within 0.1 s"):
            runtime.stream(chain(IDENTITY, cost={"cpu": 1}), timeout=0.1)
        first.stop()
        with runtime.stream(chain(IDENTITY, cost={"cpu": 2}), timeout=10) as second:
            assert list(second.map([1])) == [1]


def test_two_of_one_dag_have_names_of_their_own(runtime: handoff.Runtime) -> None:
    dag = chain(IDENTITY)
    with runtime.stream(dag) as one, runtime.stream(dag) as two:
        assert (one.name, two.name) == ("pipeline:line", "pipeline:line#2")
        assert list(one.map([1])) + list(two.map([2])) == [1, 2]


def test_stop_ends_whoever_waits(runtime: handoff.Runtime, spawn: Any, eventually: Any) -> None:
    gate = threading.Event()
    pipeline = runtime.stream(chain(lambda x: gate.wait(20) and x), max_pending=1)
    pipeline.push(1)
    waiting = [spawn(lambda: pipeline.push(2)), spawn(lambda: list(pipeline))]
    eventually(lambda: pipeline._line.pushers and pipeline._line.main.waiting)
    begun = time.monotonic()
    pipeline.stop()
    for future in waiting:
        with pytest.raises(handoff.PipelineStoppedError):
            future.result(10)
    assert time.monotonic() - begun < 3
    with pytest.raises(handoff.PipelineStoppedError):
        pipeline.push(3)
    gate.set()


def test_close_refuses_pushes_and_drains_to_whoever_iterates(
    runtime: handoff.Runtime, spawn: Any
) -> None:
    with runtime.stream(chain(lambda x: time.sleep(0.005) or x)) as pipeline:
        for i in range(20):
            pipeline.push(i)
        reading = spawn(lambda: list(pipeline))
        while not pipeline._readers:
            time.sleep(0.001)
        pipeline.close()
        with pytest.raises(handoff.PipelineStoppedError):
            pipeline.push(1)
        with pytest.raises(handoff.PipelineStoppedError):
            pipeline.map([1])
    assert reading.result(10) == list(range(20))


def test_a_runtime_that_stops_ends_its_pipelines(
    make_runtime: Callable[..., handoff.Runtime], spawn: Any, eventually: Any
) -> None:
    runtime = make_runtime()
    pipeline = runtime.stream(chain(IDENTITY))
    reading = spawn(lambda: list(pipeline))
    eventually(lambda: pipeline._line.main.waiting)
    runtime.stop()
    assert reading.result(10) == []
    with pytest.raises(handoff.PipelineStoppedError, match="runtime"):
        pipeline.push(1)


def test_a_thread_that_does_not_end_keeps_the_claims_until_it_does(
    runtime: handoff.Runtime, claims_at_zero: Any, eventually: Any
) -> None:
    gate, begun = threading.Event(), threading.Event()

    def stubborn(x: int) -> int:
        begun.set()
        gate.wait(20)
        return x

    with claimed(runtime, claims_at_zero):
        pipeline = runtime.stream(chain(stubborn, **COSTLY))
        pipeline.push(1)
        assert begun.wait(10)
        pipeline.stop()
        assert runtime.status().claims
        gate.set()


# Who holds it.


def test_it_outlives_the_thread_that_made_it(runtime: handoff.Runtime, spawn: Any) -> None:
    """Its owner is the process."""
    made: list[handoff.Pipeline] = []
    thread = threading.Thread(target=lambda: made.append(runtime.stream(chain(IDENTITY))))
    thread.start()
    thread.join(10)
    (pipeline,) = made
    assert spawn(lambda: list(pipeline.map([1, 2]))).result(10) == [1, 2]
    pipeline.stop()


class Counting:
    """A tracker with one slot that counts what it gave and got back."""

    def __init__(self) -> None:
        self.nodes: dict[str, Any] = {}
        self.given: list[object] = []
        self.back: list[object] = []

    def register(self, node: str, capabilities: Any) -> None:
        self.nodes[node] = capabilities

    def capabilities(self) -> Any:
        return self.nodes

    def available(self, node: str) -> Any:
        return self.nodes.get(node, {})

    def request(self, _node: str, _request: Any, _owner: Any) -> Any:
        if len(self.given) > len(self.back):
            return None
        self.given.append(object())
        return self.given[-1]

    def release(self, claim: object) -> None:
        self.back.append(claim)


@pytest.mark.parametrize("end", ["drained", "stop", "crash", "collected", "runtime", "init"])
def test_a_claim_is_given_back_exactly_once(
    make_runtime: Callable[..., handoff.Runtime], eventually: Any, end: str
) -> None:
    tracker = Counting()
    runtime = make_runtime(resource_tracker=tracker, capabilities={"cpu": 1})
    if end == "init":
        with pytest.raises(handoff.PipelineError):
            runtime.stream(chain(lambda s, x: (x, s), init=lambda: 1 / 0, **COSTLY))
    else:
        pipeline = runtime.stream(chain(IDENTITY, **COSTLY))
        assert list(pipeline.map([1])) == [1]
        assert (len(tracker.given), tracker.back) == (1, [])
    if end == "drained":
        pipeline.close()
        assert list(pipeline) == []
    elif end == "stop":
        pipeline.stop()
        pipeline.stop()
    elif end == "crash":
        for _ in range(5):
            with contextlib.suppress(handoff.ConfigurationError):
                crash(pipeline.name, runtime=runtime)
    elif end == "collected":
        del pipeline
        gc.collect()
    elif end == "runtime":
        runtime.stop()
    eventually(lambda: tracker.back, 5.0)
    if end != "runtime":
        with runtime.stream(chain(IDENTITY, **COSTLY)) as another:
            assert list(another.map([2])) == [2]
        runtime.stop()
    assert tracker.back == tracker.given


# The root cause.


def test_whoever_waits_learns_why_workers_cannot_begin(
    make_runtime: Callable[..., handoff.Runtime], tmp_path: Any, spawn: Any, eventually: Any
) -> None:
    """Blocked pushes, an iteration, and both of asyncio; and whoever comes later."""
    broken = tmp_path / "broken"

    def init() -> int:
        if broken.exists():
            raise KeyError("no model")
        return os.getpid()

    def code(pid: int, x: str) -> tuple[str, int]:
        if x == "die":
            os.kill(pid, signal.SIGKILL)
        return x, pid

    runtime = make_runtime()
    dag = chain(code, init=init, isolation="process", max_crashes=100)
    pipeline = runtime.stream(dag, max_pending=1)
    assert list(pipeline.map(["a"])) == ["a"]

    async def awaited() -> None:
        await pipeline.apush("later")

    async def read() -> list[Any]:
        return [result async for result in pipeline]

    broken.touch()
    pipeline.push("die")
    waiting = [
        spawn(lambda: pipeline.push("later")),
        spawn(lambda: pipeline.push("later")),
        spawn(lambda: asyncio.run(awaited())),
        spawn(lambda: next(pipeline)),
        spawn(lambda: asyncio.run(read())),
        spawn(lambda: pipeline.push("too late")),
    ]
    for future in waiting:
        with pytest.raises(handoff.PipelineStoppedError, match="no model") as caught:
            future.result(20)
        assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(handoff.PipelineStoppedError, match="no model"):
        pipeline.map([1])


def test_a_push_that_is_cancelled_takes_nobodys_room(
    runtime: handoff.Runtime, eventually: Any
) -> None:
    async def main() -> None:
        with runtime.stream(chain(IDENTITY), max_pending=1) as pipeline:
            pipeline.push(0)
            tasks = [asyncio.create_task(pipeline.apush(i)) for i in (1, 2)]
            while len(pipeline._line.pushers) < 2:
                await asyncio.sleep(0.001)
            tasks[0].cancel()
            assert next(pipeline) == 0
            assert await asyncio.wait_for(tasks[1], 10) == 1
            assert next(pipeline) == 2
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]

    asyncio.run(main())


# Bad beginnings.


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_an_init_that_raises_is_raised_by_stream(
    runtime: handoff.Runtime, claims_at_zero: Any, isolation: str
) -> None:
    def init() -> None:
        raise KeyError("no model")

    with claimed(runtime, claims_at_zero):
        with pytest.raises(handoff.PipelineError) as caught:
            runtime.stream(
                chain(lambda s, x: (x, s), init=init, isolation=isolation, cost={"cpu": 1})
            )
        assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    "options",
    [
        {"max_pending": 0},
        {"max_demand": 0},
        {"min_demand": 1},
        {"max_demand": 2, "min_demand": 2},
        {"join_timeout": 0},
        {"timeout": -1},
        {"timeout": "1"},
    ],
)
def test_options_that_cannot_be_used(runtime: handoff.Runtime, options: dict[str, Any]) -> None:
    with pytest.raises(handoff.ConfigurationError):
        runtime.stream(chain(IDENTITY), **options)


def test_dags_that_cannot_be_streamed(runtime: handoff.Runtime) -> None:
    no_input = handoff.new().add_function(Function("f", (), lambda: 1))
    no_function = handoff.new().add_function(Function("x", type="input"))
    for dag in (no_input, no_function, "dag"):
        with pytest.raises(handoff.InvalidDAGError):
            runtime.stream(dag)  # type: ignore[arg-type]
    with pytest.raises(handoff.AllocationError):
        runtime.stream(chain(IDENTITY, node="elsewhere"))


# Crashes.


@pytest.mark.parametrize("which", ["pipeline:line", "pipeline:line/0", "resource_tracker"])
def test_crashes_of_actors_cost_nothing(
    runtime: handoff.Runtime, claims_at_zero: Any, which: str, eventually: Any
) -> None:
    with claimed(runtime, claims_at_zero):
        dag = line(
            Function("0", ["x"], IDENTITY, cost={"cpu": 1}),
            Function("1", ["0"], lambda rows: rows, batch_size=7, batch_timeout=0.05),
        )
        with runtime.stream(dag) as pipeline:
            got = []
            for i, result in enumerate(pipeline.map(range(2000))):
                got.append(result)
                if i in (200, 900):
                    crash(which, runtime=runtime)
            assert got == [(i,) for i in range(2000)]
            eventually(lambda: runtime.status().restarts.get(which) == 2)
            assert list(pipeline.map([1])) == [(1,)]


def test_a_coordinator_that_crashes_too_often_ends_its_pipeline_alone(
    runtime: handoff.Runtime, claims_at_zero: Any, spawn: Any, eventually: Any
) -> None:
    boom = RuntimeError("boom")
    with claimed(runtime, claims_at_zero):
        other = runtime.stream(chain(IDENTITY))
        gate = threading.Event()
        pipeline = runtime.stream(chain(lambda x: gate.wait(20) and x, **COSTLY), max_pending=1)
        pipeline.push(1)
        waiting = [spawn(lambda: pipeline.push(2)), spawn(lambda: next(pipeline))]
        eventually(lambda: pipeline._line.pushers and pipeline._line.main.waiting)
        for _ in range(5):
            with contextlib.suppress(handoff.ConfigurationError):
                crash(pipeline.name, boom, runtime=runtime)
        for future in waiting:
            with pytest.raises(handoff.PipelineError) as caught:
                future.result(10)
            assert caught.value.__cause__ is boom
        gate.set()
        assert list(other.map([1])) == [1]
        other.stop()


def test_a_runtime_that_gives_up_tells_its_pipelines(
    make_runtime: Callable[..., handoff.Runtime], spawn: Any, eventually: Any
) -> None:
    runtime = make_runtime(max_restarts=0)
    pipeline = runtime.stream(chain(IDENTITY))
    reading = spawn(lambda: next(pipeline))
    eventually(lambda: pipeline._line.main.waiting)
    crash("result_store", runtime=runtime)
    with pytest.raises(handoff.RuntimeFailedError):
        reading.result(10)
    with pytest.raises(handoff.RuntimeFailedError):
        pipeline.push(1)


def test_what_happens_is_told(runtime: handoff.Runtime, eventually: Any) -> None:
    """Its start and end, its restarts, and the items that fail."""
    told: list[Any] = []

    def code(x: int) -> int:
        if x == 2:
            raise ValueError("two")
        if x == 3 and handoff.current().attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    kinds = (
        events.PipelineStarted,
        events.PipelineEnded,
        events.StageRestarted,
        events.ItemFailed,
    )
    with runtime.subscribe(told.append, kinds):
        with runtime.stream(chain(code, isolation="process")) as pipeline:
            assert list(pipeline.map(range(2))) == [0, 1]
            for x in (2, 3, 4):
                list(pipeline.map([x]))
            pipeline.close()
            assert list(pipeline) == []
        failing = runtime.stream(chain(IDENTITY))
        failing.stop()
        with pytest.raises(handoff.PipelineError):
            runtime.stream(chain(lambda s, x: (x, s), init=lambda: 1 / 0))
        eventually(lambda: len(told) == 7)
    start, failed, restarted, end, *others = told
    assert (start.pipeline, start.stages) == ("line", 1)
    assert (failed.function_id, failed.item, failed.error) == ("0", 2, "ValueError: two")
    assert (restarted.function_id, restarted.node) == ("0", runtime.node())
    assert "SIGKILL" in restarted.reason
    assert (end.state, end.error) == ("drained", None)
    assert [getattr(event, "state", "started") for event in others] == [
        "started",
        "stopped",
        "failed",
    ]
    assert "ZeroDivisionError" in others[-1].error
    assert not any(isinstance(event, events.ItemFailed) for event in runtime.events.recent)


def test_statistics(runtime: handoff.Runtime) -> None:
    def code(x: int) -> int:
        if x % 10 == 0:
            raise ValueError
        return x

    with runtime.stream(chain(IDENTITY, code)) as pipeline:
        list(pipeline.map(range(100)))
        found = pipeline.statistics()
        assert (found.pushed, found.taken, found.pending, found.state) == (100, 100, 0, "running")
        assert list(found) == ["0", "1"]
        last = found["1"]
        assert (last.queue, last.in_flight, last.processed, last.failed) == (0, 0, 90, 10)
        assert last.rate > 0
        assert 0 <= last.busy <= 1
        assert "90 processed" in str(found)

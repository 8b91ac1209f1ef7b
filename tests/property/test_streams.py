"""Any DAG as a stream: its outputs are, in push order, those of the per-item evaluation.

Drawn are the DAG with all kinds of functions, which items fail where, batches, demand, workers, how
it is fed and read, and faults: crashes of its actors and kills of its worker processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import handoff_actors as handoff
from handoff_actors import Function
from handoff_actors.testing import crash


class FaultError(Exception):
    """``args``: the function, the item."""


def compute(name: int, fails: frozenset[int], *values: Any) -> Any:
    """The number of the item comes first in every value, so code knows which one it has."""
    seq = values[0][0] if values else None
    if seq is not None and seq % 7 in fails:
        raise FaultError(name, seq)
    return (seq, name, *[v[1:] for v in values])


@dataclasses.dataclass(frozen=True)
class Spec:
    args: tuple[int, ...]
    kind: str
    fails: frozenset[int]
    state: bool
    batch: int | None
    timeout: float | None
    parallelism: int
    process: bool
    where: str | None = None
    """The node it is pinned to; ``"anywhere"``: it has a cost."""


class Code:
    """The code of a function as drawn; picklable."""

    def __init__(self, name: int, spec: Spec) -> None:
        self.name, self.fails, self.spec = name, spec.fails, spec

    def __call__(self, *args: Any) -> Any:
        spec, state = self.spec, [-1]
        if spec.state:
            state, *args = args  # type: ignore[assignment]
        rows = args[0] if spec.batch else [args]
        numbers = [row[0][0] for row in rows]
        if spec.state and spec.parallelism == 1:
            ordered = [*state, *numbers]
            assert ordered == sorted(set(ordered)), "state goes from item to item in their order"
        if spec.batch:
            assert len(rows) <= spec.batch
            result: Any = [compute(self.name, frozenset(), *row) for row in rows]
        else:
            result = compute(self.name, self.fails, *args)
        return (result, numbers[-1:]) if spec.state else result


class AsyncCode(Code):
    """The same as a coroutine function."""

    async def __call__(self, *args: Any) -> Any:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().__call__(*args)


def begin() -> list[int]:
    """The number of the last item."""
    return [-1]


@st.composite
def specs(
    draw: Any, processes: bool, places: tuple[str | None, ...] = (None,)
) -> tuple[int, list[Spec]]:
    """Inputs are numbered -1, -2, ...; functions 0, 1, ..."""
    inputs = draw(st.integers(1, 2))
    found: list[Spec] = []
    for i in range(draw(st.integers(1, 6))):
        below = [*range(-inputs, 0), *range(i)]
        args = tuple(draw(st.lists(st.sampled_from(below), min_size=1, max_size=3)))
        kind = draw(st.sampled_from(["sync", "sync", "sync", "async", "inline"]))
        inline = kind == "inline"
        state, batch = not inline and draw(st.booleans()), None
        if not inline and draw(st.integers(0, 3)) == 0:
            batch = draw(st.integers(1, 4))
        timeout = draw(st.none() | st.just(0.003)) if batch else None
        # A batch that raises fails as a whole, so which items fail would depend on their company.
        fails = draw(st.frozensets(st.integers(0, 6), max_size=2)) if not batch else frozenset()
        process = processes and not inline and draw(st.booleans())
        workers = 1 if inline else draw(st.integers(1, 2 if process else 3))
        where = None if inline else draw(st.sampled_from(places))
        found.append(Spec(args, kind, fails, state, batch, timeout, workers, process, where))
    return inputs, found


def build(inputs: int, found: list[Spec]) -> handoff.DAG:
    dag = handoff.new()
    for i in range(-inputs, 0):
        dag.add_function(Function(i, type="input"))
    for i, spec in enumerate(found):
        code = AsyncCode(i, spec) if spec.kind == "async" else Code(i, spec)
        more: dict[str, Any] = {}
        if spec.kind == "inline":
            more["type"] = "inline"
        else:
            more = {
                "init": begin if spec.state else None,
                "batch_size": spec.batch,
                "batch_timeout": spec.timeout,
                "parallelism": spec.parallelism,
                "isolation": "process" if spec.process else "thread",
                "max_crashes": 50,
                "node": None if spec.where == "anywhere" else spec.where,
                "cost": {"cpu": 0.1} if spec.where == "anywhere" else None,
            }
        dag.add_function(Function(i, spec.args, code, **more))
    return dag


def evaluate(inputs: int, found: list[Spec], seq: int) -> tuple[Any, set[int]]:
    """What item ``seq`` comes to, or None and the functions of which one is to blame."""
    values: dict[int, Any] = {i: (seq, "in", i) for i in range(-inputs, 0)}
    inlines: dict[int, FaultError] = {}
    blamed: set[int] = set()
    dead: set[int] = set()
    for i, spec in enumerate(found):
        if any(a in dead for a in spec.args):
            dead.add(i)
            continue
        if any(a in inlines for a in spec.args):
            # An inline fails in whoever takes it.
            if spec.kind == "inline":
                inlines[i] = FaultError(i)
            else:
                blamed.add(i)
                dead.add(i)
            continue
        try:
            values[i] = compute(i, spec.fails, *[values[a] for a in spec.args])
        except FaultError as error:
            if spec.kind == "inline":
                inlines[i] = error
            else:
                blamed.add(i)
                dead.add(i)
    if blamed:
        return None, blamed
    regular = [i for i, spec in enumerate(found) if spec.kind != "inline"]
    sinks = [i for i in regular if not reaches_regular(found, i)]
    if len(sinks) == 1:
        return values[sinks[0]], set()
    return {i: values[i] for i in sinks}, set()


def reaches_regular(found: list[Spec], i: int) -> bool:
    """Whether a regular function needs ``i``, perhaps through inlines."""
    for j in range(i + 1, len(found)):
        if i in found[j].args and (found[j].kind != "inline" or reaches_regular(found, j)):
            return True
    return False


def check(inputs: int, found: list[Spec], results: list[Any]) -> None:
    for seq, result in enumerate(results):
        wanted, blamed = evaluate(inputs, found, seq)
        if blamed:
            assert isinstance(result, handoff.ItemFailedError), (seq, result, blamed)
            assert result.function_id in blamed
            assert isinstance(result.__cause__, FaultError)
        else:
            assert result == wanted, (seq, result, wanted)


def rows(inputs: int, count: int) -> list[Any]:
    whole = [{i: (seq, "in", i) for i in range(-inputs, 0)} for seq in range(count)]
    return whole if inputs > 1 else [row[-1] for row in whole]


@pytest.fixture(scope="module")
def runtime() -> Iterator[handoff.Runtime]:
    with handoff.Runtime(max_restarts=100, max_seconds=1.0) as made:
        yield made


OPTIONS = st.fixed_dictionaries(
    {"max_pending": st.integers(1, 40), "max_demand": st.none() | st.integers(1, 5)}
)


def run(
    runtime: handoff.Runtime, inputs: int, found: list[Spec], count: int, options: Any, how: str
) -> list[Any]:
    """Feed and read a pipeline in one of the ways there are."""
    items = rows(inputs, count)
    with runtime.stream(build(inputs, found), **options) as pipeline:
        if how == "map":
            return list(pipeline.map(iter(items)))
        if how == "maps":
            half = count // 2
            first, second = pipeline.map(items[:half]), pipeline.map(items[half:])
            return [*first, *second]

        def feed() -> None:
            for item in items:
                pipeline.push(item)
            pipeline.close()

        feeder = threading.Thread(target=feed)
        feeder.start()
        if how == "push":
            results = list(pipeline)
        else:

            async def read() -> list[Any]:
                return [result async for result in pipeline]

            results = asyncio.run(read())
        feeder.join(20)
        return results


@given(
    specs(False).filter(lambda drawn: any(s.kind != "inline" for s in drawn[1])),
    st.integers(0, 60),
    OPTIONS,
    st.sampled_from(["map", "maps", "push", "async"]),
    st.booleans(),
)
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_outputs_are_those_of_the_per_item_evaluation(
    runtime: handoff.Runtime,
    drawn: tuple[int, list[Spec]],
    count: int,
    options: dict[str, Any],
    how: str,
    crashes: bool,
) -> None:
    inputs, found = drawn
    with crashing(runtime) if crashes else contextlib.nullcontext():
        results = run(runtime, inputs, found, count, options, how)
    assert len(results) == count
    check(inputs, found, results)
    assert runtime.pipelines == {}


@contextlib.contextmanager
def meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """On a thread of its own ``work(over)`` goes on until ``over`` is set."""
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def crashing(runtime: handoff.Runtime) -> contextlib.AbstractContextManager[None]:
    """Meanwhile the actors of pipelines crash, one after another."""

    def work(over: threading.Event) -> None:
        while not over.wait(0.0005):
            for name in list(runtime.pipelines):
                with contextlib.suppress(handoff.HandoffError):
                    crash(name, runtime=runtime)
                    crash(f"{name}/0", runtime=runtime)

    return meanwhile(work)


def killing(runtime: handoff.Runtime) -> contextlib.AbstractContextManager[None]:
    """Meanwhile worker processes are killed, one after another."""

    def work(over: threading.Event) -> None:
        for _ in range(4):  # one that dies whenever it begins is another matter
            if over.wait(0.02):
                return
            for pid, _, at_work in runtime.workers.processes.victims()[:1]:
                if at_work:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    return meanwhile(work)


@given(
    specs(True).filter(lambda drawn: any(s.process for s in drawn[1])),
    st.integers(1, 200),
    OPTIONS,
    st.sampled_from(["map", "push"]),
    st.booleans(),
)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_also_in_processes_that_are_killed(
    runtime: handoff.Runtime,
    drawn: tuple[int, list[Spec]],
    count: int,
    options: dict[str, Any],
    how: str,
    kills: bool,
) -> None:
    inputs, found = drawn
    with killing(runtime) if kills else contextlib.nullcontext():
        results = run(runtime, inputs, found, count, options, how)
    assert len(results) == count
    check(inputs, found, results)
    assert runtime.pipelines == {}


NODES = ("one", "two")


@pytest.fixture(scope="module")
def cluster() -> Iterator[handoff.Runtime]:
    with handoff.Runtime(capabilities={"cpu": 2}, node_return_timeout=30.0) as made:
        made.start_nodes(2, capabilities={"cpu": 2}, names=list(NODES))
        yield made


def killing_nodes(
    runtime: handoff.Runtime, kills: list[tuple[str, float]]
) -> contextlib.AbstractContextManager[None]:
    """Meanwhile nodes are killed, each after so many seconds; their supervisor restarts them."""

    def work(over: threading.Event) -> None:
        for name, seconds in kills:
            if over.wait(seconds):
                return
            pid = runtime.node_info(name).pid
            if pid is not None and runtime.node_info(name).state == "up":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    return meanwhile(work)


@given(
    specs(True, (None, "one", "two", "anywhere")).filter(
        lambda drawn: any(s.where for s in drawn[1])
    ),
    st.integers(1, 300),
    OPTIONS,
    st.sampled_from(["map", "push"]),
    st.lists(st.tuples(st.sampled_from(NODES), st.floats(0.0, 0.05)), min_size=1, max_size=2),
)
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_also_over_nodes_that_are_killed(
    cluster: handoff.Runtime,
    eventually: Callable[..., None],
    drawn: tuple[int, list[Spec]],
    count: int,
    options: dict[str, Any],
    how: str,
    kills: list[tuple[str, float]],
) -> None:
    inputs, found = drawn
    eventually(lambda: all(cluster.node_info(n).state == "up" for n in NODES))
    with killing_nodes(cluster, kills):
        results = run(cluster, inputs, found, count, options, how)
    assert len(results) == count
    check(inputs, found, results)
    assert cluster.pipelines == {}
    for name in (cluster.node(), *NODES):
        eventually(lambda name=name: unclaimed(cluster, name))


def unclaimed(runtime: handoff.Runtime, name: str) -> bool:
    info = runtime.node_info(name)
    return info.state == "up" and info.available == info.capabilities


def test_the_oracle_can_fail() -> None:
    """What compares must notice a wrong value, a wrong order and a missing error."""
    found = [Spec((-1,), "sync", frozenset({1}), False, None, None, 1, False)]
    right = [compute(0, frozenset(), (seq, "in", -1)) for seq in range(3)]
    with pytest.raises(AssertionError):
        check(1, found, right)
    error = handoff.ItemFailedError("x", function_id=0, node="n")
    error.__cause__ = FaultError(0, 1)
    check(1, found, [right[0], error, right[2]])
    with pytest.raises(AssertionError):
        check(1, found, [right[2], error, right[0]])


def test_a_poison_item_pays_alone(runtime: handoff.Runtime) -> None:
    """Whatever was in the process with it comes to its result."""

    def code(x: int) -> int:
        if x == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    dag = handoff.new().add_function(Function("x", type="input"))
    dag.add_function(Function("f", ["x"], code, isolation="process", max_crashes=1))
    begun = time.monotonic()
    with runtime.stream(dag) as pipeline:
        results = list(pipeline.map(range(300)))
    poison = results.pop(13)
    assert results == [x for x in range(300) if x != 13]
    assert isinstance(poison.__cause__, handoff.FunctionCrashedError)
    assert [attempt.exit_code for attempt in poison.__cause__.attempts] == [-9, -9]
    assert time.monotonic() - begun < 20

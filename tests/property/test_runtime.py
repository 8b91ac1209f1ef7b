"""Whole runtimes: any DAG gives what the sequential evaluation gives; any life keeps its promises.

The first half draws DAGs and compares with a plain loop, on threads and on processes. The second is
a state machine over one live runtime: runs, cancels, crashes, kills and restarts in any order.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import handoff_actors as handoff
from handoff_actors import Collocated, Function, events
from handoff_actors.testing import crash
from tests.lives import LiveRun, RuntimeLife

OFFERED = {"cpu": 2.0, "memory": 100.0}
LIVES = int(os.environ.get("HANDOFF_LIVES", "25"))
"""Lives of thirty steps; 670 are the 20,000 steps that are run by hand."""


class FaultError(Exception):
    """What a function that is to fail raises."""


def compute(name: int, fails: int, *args: Any) -> int:
    """A value in which all arguments and their order show; fails in its first attempts."""
    if handoff.current().attempt <= fails:
        raise FaultError(name)
    return mix(name, *args)


def mix(name: int, *args: Any) -> int:
    total = name + 1
    for arg in args:
        total = total * 31 + (len(arg) + sum(arg) * 7 if isinstance(arg, list) else arg)
    return total % 100_003


async def compute_async(name: int, fails: int, *args: Any) -> int:
    await asyncio.sleep(0)
    return compute(name, fails, *args)


class Metered:
    """Runs code, and notes when more of a resource is in use than there is."""

    def __init__(self, offered: dict[str, float]) -> None:
        self.lock = threading.Lock()
        self.offered = offered
        self.used = dict.fromkeys(offered, 0.0)
        self.wrong: list[Any] = []

    def __call__(self, cost: dict[str, float] | None, code: Callable[[], Any]) -> Any:
        self.change(cost, 1)
        try:
            if cost:
                time.sleep(0.0005)  # what should not run beside it has the time to come
            return code()
        finally:
            self.change(cost, -1)

    def change(self, cost: dict[str, float] | None, sign: int) -> None:
        with self.lock:
            for name, amount in (cost or {}).items():
                self.used[name] += sign * amount
                if self.used[name] > self.offered[name] + 1e-6:
                    self.wrong.append((name, self.used[name]))


@dataclasses.dataclass
class Spec:
    """One function of a drawn DAG."""

    type: str
    args: list[int]
    cost: dict[str, float] | None
    retries: int | None
    fails: int
    as_list: bool
    kind: str
    collocated: int | None
    delay: float


@dataclasses.dataclass
class Case:
    """A drawn DAG with the options of its run."""

    specs: list[Spec]
    keep: Any
    max_concurrency: int | None
    max_retries: int
    strategy: str | None
    inputs: dict[int, int]

    def regular(self) -> list[int]:
        return [i for i, spec in enumerate(self.specs) if spec.type == "regular"]

    def values(self) -> dict[int, int]:
        """The sequential evaluation, as if nothing failed."""
        values: dict[int, int] = {}
        for i, spec in enumerate(self.specs):
            if spec.type == "input":
                values[i] = self.inputs[i]
                continue
            args: list[Any] = [values[a] for a in spec.args]
            values[i] = mix(i, *([args] if spec.as_list else args))
        return values

    def attempts(self, i: int) -> int:
        own = self.specs[i].retries
        return 1 + (self.max_retries if own is None else own)

    def doomed(self) -> set[int]:
        """Those that fail in all their attempts, and that are reached."""
        lost: set[int] = set()
        first: set[int] = set()
        for i, spec in enumerate(self.specs):
            if any(a in lost for a in spec.args):
                lost.add(i)
            elif spec.type == "regular" and spec.fails >= self.attempts(i):
                lost.add(i)
                first.add(i)
        return first

    def kept(self) -> set[int]:
        if self.keep == "all":
            return set(self.regular())
        if self.keep == "sinks":
            return self.sinks()
        return set(self.keep)

    def sinks(self) -> set[int]:
        """Regular functions that no regular function takes, directly or through inlines."""
        taken: set[int] = set()
        for spec in self.specs:
            if spec.type == "regular":
                todo = list(spec.args)
                while todo:
                    i = todo.pop()
                    taken.add(i)
                    if self.specs[i].type == "inline":
                        todo.extend(self.specs[i].args)
        return set(self.regular()) - taken

    def dag(self, meter: Metered | None, **options: Any) -> handoff.DAG:
        dag = handoff.new()
        for i, spec in enumerate(self.specs):
            if spec.type == "input":
                dag.add_function(Function(i, type="input"))
                continue
            inclusion = "as_list" if spec.as_list else "variadic"
            if spec.type == "inline":
                dag.add_function(Function(i, spec.args, named(mix, i), type="inline",
                                          argument_inclusion=inclusion))  # fmt: skip
                continue
            code = named(compute_async if spec.kind == "coroutine" else compute, i, spec.fails)
            if meter is not None and spec.kind != "coroutine":
                code = metered(meter, spec.cost, code)
            dag.add_function(
                Function(
                    i,
                    spec.args,
                    code,
                    cost=spec.cost,
                    max_retries=spec.retries,
                    retry_delay=spec.delay,
                    argument_inclusion=inclusion,
                    node=None if spec.collocated is None else Collocated(spec.collocated),
                    timeout=30.0 if spec.kind == "timed" else None,
                    **options,
                )
            )
        return dag

    def run(self, runtime: handoff.Runtime, dag: handoff.DAG, **options: Any) -> handoff.Run:
        return runtime.submit(
            dag,
            inputs=self.inputs or None,
            keep=self.keep,
            max_concurrency=self.max_concurrency,
            max_retries=self.max_retries,
            allocation_strategy=self.strategy,
            **options,
        )

    def check(self, runtime: handoff.Runtime, dag: handoff.DAG, run: handoff.Run) -> None:
        doomed = self.doomed()
        values = self.values()
        if doomed:
            with pytest.raises(handoff.FunctionFailedError) as caught:
                run.result(30)
            failed: Any = caught.value.function_id
            assert failed in doomed
            assert caught.value.attempts == self.attempts(failed)
            assert isinstance(caught.value.__cause__, FaultError)
            assert caught.value.__cause__.args == (failed,)
            assert run.progress().state == "failed"
            return
        result = run.result(30)
        assert dict(result.results) == {i: values[i] for i in self.kept()}
        assert set(result.allocations) == set(self.regular())
        assert set(result.allocations.values()) <= {runtime.node()}
        assert run.progress() == handoff.Progress(
            len(self.regular()), len(self.regular()), "succeeded"
        )


def named(code: Callable[..., Any], *bound: Any) -> Callable[..., Any]:
    if asyncio.iscoroutinefunction(code):

        async def call_async(*args: Any) -> Any:
            return await code(*bound, *args)

        return call_async

    def call(*args: Any) -> Any:
        return code(*bound, *args)

    return call


def metered(
    meter: Metered, cost: dict[str, float] | None, code: Callable[..., Any]
) -> Callable[..., Any]:
    return lambda *args: meter(cost, lambda: code(*args))


@st.composite
def cases(draw: Any, most: int = 14, kinds: tuple[str, ...] = ("thread",)) -> Case:
    specs: list[Spec] = []
    for i in range(draw(st.integers(1, most))):
        type_ = draw(st.sampled_from(["regular"] * 6 + ["inline", "input"]))
        args = [] if type_ == "input" or not i else draw(
            st.lists(st.integers(max(0, i - 6), i - 1), max_size=4))  # fmt: skip
        regular = type_ == "regular"
        pins = [j for j in range(i) if specs[j].type == "regular"]
        specs.append(
            Spec(
                type_,
                args,
                draw(st.sampled_from(
                    [None, None, {"cpu": 1.0}, {"cpu": 0.5, "memory": 60.0}, {"cpu": 2.0},
                     {"memory": 100.0}])) if regular else None,
                draw(st.sampled_from([None, None, 0, 1, 2])) if regular else None,
                draw(st.sampled_from([0, 0, 0, 0, 0, 0, 1, 1, 2, 3])) if regular else 0,
                draw(st.booleans()) if type_ != "input" and draw(st.booleans()) else False,
                draw(st.sampled_from(kinds)) if regular else "thread",
                draw(st.sampled_from(pins)) if regular and pins and draw(st.integers(0, 5)) == 0
                else None,
                draw(st.sampled_from([0.0, 0.0, 0.001])) if regular else 0.0,
            )
        )  # fmt: skip
    regular_ids = [i for i, spec in enumerate(specs) if spec.type == "regular"]
    keep = draw(
        st.one_of(
            st.just("all"),
            st.just("sinks"),
            st.lists(st.sampled_from(regular_ids), unique=True) if regular_ids else st.just([]),
        )
    )
    return Case(
        specs,
        keep,
        draw(st.sampled_from([None, None, 1, 2])),
        draw(st.integers(0, 3)),
        draw(st.sampled_from([None, "first_available", "load_balanced"])),
        {i: draw(st.integers(0, 99)) for i, spec in enumerate(specs) if spec.type == "input"},
    )


@pytest.fixture(scope="module")
def runtime() -> Iterator[handoff.Runtime]:
    with handoff.Runtime(capabilities=OFFERED, max_retained_runs=4) as made:
        yield made


COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


def nothing_held(runtime: handoff.Runtime) -> None:
    end = time.monotonic() + 10
    while runtime.status().claims:
        assert time.monotonic() < end, runtime.status().claims
        time.sleep(0.001)
    assert runtime.resources_available(runtime.node(), OFFERED)
    assert not runtime.status().restarts


@settings(max_examples=150, **COMMON)  # type: ignore[arg-type]
@given(case=cases(kinds=("thread", "thread", "timed", "coroutine")))
def test_any_dag_on_threads(runtime: handoff.Runtime, case: Case) -> None:
    meter = Metered(OFFERED)
    dag = case.dag(meter)
    case.check(runtime, dag, case.run(runtime, dag))
    nothing_held(runtime)
    assert not meter.wrong


@settings(max_examples=60, **COMMON)  # type: ignore[arg-type]
@given(case=cases(kinds=("thread", "coroutine")))
def test_any_dag_synchronously(runtime: handoff.Runtime, case: Case) -> None:
    dag = case.dag(None)
    case.check(runtime, dag, case.run(runtime, dag, synchronous=True))
    nothing_held(runtime)


@settings(max_examples=40, **COMMON)  # type: ignore[arg-type]
@given(several=st.lists(cases(most=8, kinds=("thread", "timed", "coroutine")), min_size=2,
                        max_size=4))  # fmt: skip
def test_any_dags_at_once(runtime: handoff.Runtime, several: list[Case]) -> None:
    meter = Metered(OFFERED)
    dags = [case.dag(meter) for case in several]
    runs = [case.run(runtime, dag) for case, dag in zip(several, dags, strict=True)]
    for case, dag, run in zip(several, dags, runs, strict=True):
        case.check(runtime, dag, run)
    nothing_held(runtime)
    assert not meter.wrong


@settings(max_examples=20, **COMMON)  # type: ignore[arg-type]
@given(case=cases(most=10, kinds=("thread", "timed", "coroutine")))
def test_any_dag_on_processes(runtime: handoff.Runtime, case: Case) -> None:
    dag = case.dag(None, isolation="process")
    case.check(runtime, dag, case.run(runtime, dag))
    nothing_held(runtime)


@settings(max_examples=30, **COMMON)  # type: ignore[arg-type]
@given(case=cases(kinds=("thread", "coroutine")))
def test_as_completed_yields_each_once_and_in_order(runtime: handoff.Runtime, case: Case) -> None:
    dag = case.dag(None)
    seen: list[Any] = []
    with contextlib.suppress(handoff.FunctionFailedError):
        for pair in case.run(runtime, dag).as_completed(30):
            seen.append(pair)
    ids = [i for i, _ in seen]
    assert len(ids) == len(set(ids))
    assert all(value == case.values()[i] for i, value in seen)
    if not case.doomed() and case.keep == "all":
        assert set(ids) == set(case.regular())
        for i in ids:
            before = ids[: ids.index(i)]
            assert all(a in before for a in case.specs[i].args if a in ids)


# A life.

NAMES = [
    "result_store",
    "resource_tracker",
    "data_location_registry",
    "worker_supervisor",
    "execution_supervisor",
    "pipeline_supervisor",
    "distributed_executor",
    "distributed_result_store",
]


@dataclasses.dataclass
class Live(LiveRun):
    """A run that the machine started."""

    gate: threading.Event
    n: int
    calls: dict[int, int]
    process: bool


class Life(RuntimeLife):
    """One runtime, and whatever may happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.meter = Metered({"cpu": 2.0})

    @initialize()
    def begin(self) -> None:
        self.runtime = handoff.Runtime(
            capabilities={"cpu": 2}, max_restarts=1_000_000, max_retained_runs=5,
            shutdown_timeout=2.0,
        ).start()  # fmt: skip
        self.watch()

    def watch(self) -> None:
        """Know which workers are up: those that are being started are not to be killed."""
        self.workers: list[int] = []
        self.runtime.subscribe(lambda e: self.workers.append(e.pid), [events.WorkerStarted])

    def open(self) -> list[Live]:
        return [live for live in self.runs if not live.gate.is_set()]

    @rule(
        n=st.integers(1, 8),
        cost=st.sampled_from([None, 0.5, 1.0, 2.0]),
        chain=st.booleans(),
        gated=st.booleans(),
        timeout=st.sampled_from([None, None, 30.0]),
    )
    def submit(
        self, n: int, cost: float | None, chain: bool, gated: bool, timeout: float | None
    ) -> None:
        gate = threading.Event()
        if not gated:
            gate.set()
        calls: dict[int, int] = {}
        amounts = None if cost is None else {"cpu": cost}

        def code(i: int, *args: int) -> int:
            calls[i] = calls.get(i, 0) + 1
            if i == n // 2:
                gate.wait(30)
            return i + sum(args)

        dag = handoff.new(("run", next(self.numbers)))
        for i in range(n):
            dag.add_function(
                Function(i, [i - 1] if chain and i else [],
                         metered(self.meter, amounts, named(code, i)), cost=amounts,
                         timeout=timeout))  # fmt: skip
        try:
            run = self.runtime.submit(dag)
        except handoff.AllocationError:
            assert cost == 2.0, "only that may not fit"
            return
        self.runs.append(Live(dag.id, run, gate, n, calls, False))

    @rule(n=st.integers(1, 3))
    def submit_processes(self, n: int) -> None:
        dag = handoff.new(("processes", next(self.numbers)))
        for i in range(n):
            dag.add_function(
                Function(i, [i - 1] if i else [], named(mix, i), isolation="process",
                         max_crashes=1000, cost={"cpu": 0.5}))  # fmt: skip
        gate = threading.Event()
        gate.set()
        self.runs.append(Live(dag.id, self.runtime.submit(dag), gate, n, {}, True))

    @precondition(lambda self: self.open())
    @rule(data=st.data())
    def let_go(self, data: Any) -> None:
        data.draw(st.sampled_from(self.open())).gate.set()

    @rule(name=st.sampled_from(NAMES))
    def crash_actor(self, name: str) -> None:
        crash(name, runtime=self.runtime)

    @rule()
    def kill_workers(self) -> None:
        for child in psutil.Process().children():
            if child.pid in self.workers:
                child.kill()

    @rule(cpu=st.sampled_from([1.0, 2.0]))
    def register(self, cpu: float) -> None:
        self.runtime.register_local_node({"cpu": cpu})
        assert self.runtime.discover_nodes()[self.runtime.node()] == {"cpu": cpu}

    @rule(key=st.integers(0, 3), value=st.integers())
    def store(self, key: int, value: int) -> None:
        self.runtime.store_value("mine", key, value)
        self.stored[key] = value

    @rule()
    def read(self) -> None:
        assert self.runtime.synchronize("mine", range(4)) == self.stored

    # What a rule draws from must not depend on timing, so these two may pick a run that goes on.

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def clear(self, data: Any) -> None:
        live = data.draw(st.sampled_from(self.runs))
        if not live.run.done():
            return
        if live.run.exception() is None:
            self.runtime.clear(live.dag_id)
            live.released = not live.run.result().results
        else:
            with contextlib.suppress(handoff.AlreadyRunningError):
                self.runtime.clear(live.dag_id)  # a cancelled one may still be at work

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        live = data.draw(st.sampled_from(self.runs))
        if not live.run.done():
            return
        self.check_outcome(live)
        if live.run.exception() is None:
            live.run.result().release()
            live.released = True

    @rule()
    def stop_and_start(self) -> None:
        for live in self.runs:
            live.gate.set()
        self.runtime.stop()
        self.all_were_told()
        for live in self.runs:
            self.check_outcome(live)
        self.runs.clear()
        self.stored.clear()
        self.runtime.start()
        self.watch()

    def check_outcome(self, live: Live) -> None:
        error = live.run.exception(8)
        if error is None:
            assert not live.cancelled
            results = live.run.result().results
            assert len(results) == (0 if live.released else live.n)
            assert live.process or live.calls == dict.fromkeys(range(live.n), 1)
        else:
            assert isinstance(error, (handoff.RunCancelledError, handoff.AllocationError))
            assert live.cancelled or isinstance(error, handoff.AllocationError)
            assert all(count == 1 for count in live.calls.values())

    @invariant()
    def nothing_is_over_committed(self) -> None:
        assert not self.meter.wrong

    @invariant()
    def it_answers(self) -> None:
        if not hasattr(self, "runtime"):
            return
        status = self.runtime.status()
        held: dict[str, float] = {}
        for claim in status.claims:
            for name, amount in claim.amounts.items():
                held[name] = held.get(name, 0.0) + amount
        assert held.get("cpu", 0.0) <= 2.0 + 1e-6

    def teardown(self) -> None:
        if not hasattr(self, "runtime"):
            return
        for live in self.runs:
            live.gate.set()
        try:
            for live in self.runs:
                self.check_outcome(live)
            end = time.monotonic() + 10
            while self.runtime.status().claims:
                assert time.monotonic() < end, self.runtime.status().claims
                time.sleep(0.001)
        finally:
            self.runtime.stop()
        self.nothing_is_left()


def test_a_life() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Life,
        settings=settings(max_examples=LIVES, stateful_step_count=30, **COMMON),  # type: ignore[arg-type]
    )

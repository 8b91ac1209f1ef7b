"""The flow of a pipeline as a state machine: whatever stages do, each item comes out once.

The machine draws a DAG and limits, then pushes, takes, finishes, fails, gives back, evicts and
reads in any order; a model knows what each item must come to. At the end everything must drain.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from handoff_actors.pipeline.flow import Flow
from handoff_actors.pipeline.intake import Limits, StageShape
from handoff_actors.pipeline.order import Outlet


class ItemError(Exception):
    """``args``: the stage, the item."""


class EvictedError(Exception):
    """``args``: the stage, what was missing."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    shapes: tuple[StageShape, ...]
    inputs: int
    limits: Limits
    failing: frozenset[tuple[int, int]]
    """(stage, item modulo 7)"""


@st.composite
def flows(draw: Any, timed: bool = False) -> Drawn:
    n, inputs = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    shapes = []
    for i in range(n):
        below = [*range(i), *range(n, n + inputs)]
        values = tuple(draw(st.lists(st.sampled_from(below), max_size=3, unique=True)))
        batch = draw(st.none() | st.integers(1, 5))
        timeout = draw(st.none() | st.just(2.0)) if timed and batch else None
        shapes.append(StageShape(f"s{i}", values, batch, timeout, draw(st.booleans())))
    most = draw(st.none() | st.integers(1, 5))
    least = 0 if most is None else draw(st.integers(0, most - 1))
    join_timeout = draw(st.none() | st.just(5.0)) if timed else None
    limits = Limits(draw(st.integers(1, 12)), most, least, join_timeout)
    failing = draw(st.frozensets(st.tuples(st.integers(0, n - 1), st.integers(0, 6)), max_size=4))
    return Drawn(tuple(shapes), inputs, limits, failing)


def compute(drawn: Drawn, stage: int, seq: int, values: Any) -> Any:
    """What the code of a stage gives; raises as the drawn failures say."""
    if (stage, seq % 7) in drawn.failing:
        raise ItemError(stage, seq)
    return (stage, values)


def expected(drawn: Drawn, seq: int, row: tuple[Any, ...]) -> Any:
    """The per-item evaluation: a value, or the error of the first stage that fails."""
    n = len(drawn.shapes)
    values: dict[int, Any] = {n + j: value for j, value in enumerate(row)}
    errors: dict[int, ItemError] = {}
    for i, shape in enumerate(drawn.shapes):
        bad = [errors[v] for v in shape.values if v in errors]
        if bad:
            errors[i] = min(bad, key=lambda e: e.args[0])
            continue
        parts = tuple(values[v] for v in shape.values)
        try:
            values[i] = compute(drawn, i, seq, parts[0] if len(parts) == 1 else parts)
        except ItemError as error:
            errors[i] = error
    read = {v for shape in drawn.shapes for v in shape.values}
    sinks = [i for i in range(n) if i not in read]
    bad = [errors[i] for i in sinks if i in errors]
    if bad:
        return min(bad, key=lambda e: e.args[0])
    if len(sinks) == 1:
        return values[sinks[0]]
    return {drawn.shapes[i].id: values[i] for i in sinks}


def same(got: Any, wanted: Any) -> bool:
    if isinstance(wanted, ItemError):
        return isinstance(got, ItemError) and got.args == wanted.args
    return bool(got == wanted)


class FlowMachine(RuleBasedStateMachine):
    timed = False

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.drawn = drawn = data.draw(flows(self.timed))
        self.flow = Flow(
            drawn.shapes,
            drawn.inputs,
            drawn.limits,
            lambda i, seq, missing: EvictedError(i, seq, missing),
        )
        self.outlets = [self.flow.main]
        self.wanted: dict[Outlet, list[Any]] = {self.outlets[0]: []}
        self.read: dict[Outlet, list[Any]] = {self.outlets[0]: []}
        self.running: list[tuple[int, list[Any]]] = []
        self.begun: set[tuple[int, int]] = set()
        self.last: dict[int, int] = {}  # of each stage the highest number it has begun
        self.again: set[tuple[int, int]] = set()
        self.now = 0.0

    def tag(self) -> Any:
        return self.flow.pushed

    @rule(count=st.integers(1, 6), which=st.integers(0, 3), chunked=st.booleans())
    def push(self, count: int, which: int, chunked: bool) -> None:
        flow = self.flow
        count = min(count, flow.room)
        outlet = self.outlets[which % len(self.outlets)]
        if count <= 0 or flow.closed:
            return
        first = flow.pushed + len(flow._inbox)
        rows = [tuple((first + k, j) for j in range(self.drawn.inputs)) for k in range(count)]
        for row, k in zip(rows, range(count), strict=True):
            self.wanted[outlet].append((first + k, expected(self.drawn, first + k, row)))
        shaped = [row[0] for row in rows] if self.drawn.inputs == 1 else rows
        if chunked:
            assert flow.push(shaped, outlet, self.now) == first
        elif outlet is flow.main:
            for k, row in enumerate(shaped):
                assert flow.put(row) == first + k
        else:
            for k, row in enumerate(shaped):
                assert flow.push([row], outlet, self.now) == first + k

    @rule(stage=st.integers(0, 5), limit=st.integers(1, 8))
    def take(self, stage: int, limit: int) -> None:
        if stage >= len(self.drawn.shapes):
            return
        entries = self.flow.take(stage, limit)
        size = self.drawn.shapes[stage].batch_size
        assert len(entries) <= max(size or 0, limit)
        if entries:
            for seq, _ in entries:
                assert (stage, seq) not in self.begun, "an entry was handed out twice"
                self.begun.add((stage, seq))
                if self.drawn.shapes[stage].in_turn and (stage, seq) not in self.again:
                    assert seq > self.last.get(stage, -1), "an item came before its turn"
                self.last[stage] = max(seq, self.last.get(stage, -1))
            self.running.append((stage, entries))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 100), part=st.booleans())
    def finish(self, which: int, part: bool) -> None:
        stage, entries = self.running.pop(which % len(self.running))
        if part and len(entries) > 1:
            self.running.append((stage, entries[1:]))
            entries = entries[:1]
        done, failed = [], []
        for seq, values in entries:
            try:
                done.append((seq, compute(self.drawn, stage, seq, values)))
            except ItemError as error:
                failed.append((seq, error))
        self.flow.finished(stage, done, failed, self.now)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 100))
    def give_back(self, which: int) -> None:
        stage, entries = self.running.pop(which % len(self.running))
        self.begun.difference_update((stage, seq) for seq, _ in entries)
        self.again.update((stage, seq) for seq, _ in entries)
        self.flow.returned(stage, entries, self.now)

    @rule(which=st.integers(0, 3), count=st.integers(1, 5))
    def consume(self, which: int, count: int) -> None:
        outlet = self.outlets[which % len(self.outlets)]
        for _ in range(min(count, len(outlet.out))):
            self.read[outlet].append(outlet.out.popleft())

    @rule()
    def open_outlet(self) -> None:
        if len(self.outlets) < 3:
            outlet = self.flow.order.open()
            self.outlets.append(outlet)
            self.wanted[outlet], self.read[outlet] = [], []

    @rule(which=st.integers(1, 2))
    def close_outlet(self, which: int) -> None:
        if which < len(self.outlets):
            self.flow.order.close(self.outlets.pop(which))

    @rule()
    def flush(self) -> None:
        self.flow.flush()

    @rule(step=st.sampled_from([0.5, 1.0, 3.0]))
    def time_passes(self, step: float) -> None:
        if self.timed:
            self.now += step
            self.flow.tick(self.now)
            deadline = self.flow.deadline()
            assert deadline is None or deadline > self.now

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "flow"):
            assert 0 <= self.flow.pending <= self.drawn.limits.max_pending

    @invariant()
    def in_order(self) -> None:
        for outlet, read in getattr(self, "read", {}).items():
            got = [*read, *outlet.out]
            for value, (_, wanted) in zip(got, self.wanted[outlet], strict=False):
                assert same(value, wanted) or self.is_eviction(value), (value, wanted)

    def is_eviction(self, value: Any) -> bool:
        return self.timed and isinstance(value, EvictedError)

    @invariant()
    def demand_holds(self) -> None:
        most = self.drawn.limits.max_demand if hasattr(self, "drawn") else None
        if most is None or self.timed:
            return
        for stage, entries in self.running:
            for consumer in self.flow.stages[stage].consumers:
                assert all(seq < consumer.demand.upto for seq, _ in entries)

    def teardown(self) -> None:
        if not hasattr(self, "flow"):
            return
        self.flow.close()
        for _ in range(10_000):
            for outlet in self.outlets:
                while outlet.out:
                    self.read[outlet].append(outlet.out.popleft())
            if self.running:
                self.finish(0, False)
                continue
            for i in range(len(self.drawn.shapes)):
                self.take(i, 100)
            if not self.running:
                break
        if not self.flow.drained:
            raise AssertionError("it stands still, and not all has come out")
        for outlet in self.outlets:
            self.read[outlet].extend(outlet.out)
            outlet.out.clear()
            assert len(self.read[outlet]) == len(self.wanted[outlet])
        self.in_order()
        assert self.flow.pending == 0
        order = self.flow.order
        assert not order._done
        assert not order._parts
        assert not order._late
        for stage in self.flow.stages:
            assert not stage.ready
            assert stage.running == 0
            assert stage.join is None or not (len(stage.join) or stage.join._late)
            assert stage.turns is None or not stage.turns._held
            assert stage.demand is None or not stage.demand._ahead


class TimedFlowMachine(FlowMachine):
    timed = True


@pytest.mark.parametrize("machine", [FlowMachine, TimedFlowMachine])
def test_any_order_of_events(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=150, stateful_step_count=60, deadline=None)
    )


@given(flows(), st.integers(1, 40), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_workers_that_only_follow_awake_drain_it(drawn: Drawn, count: int, every: int) -> None:
    """What has something to do is told: nobody has to poll."""
    flow = Flow(drawn.shapes, drawn.inputs, drawn.limits, lambda i, *_: EvictedError(i))
    outlet = flow.main
    got: list[Any] = []
    wanted: list[Any] = []

    def work() -> None:
        while flow.awake:
            stage = flow.awake.pop()
            while entries := flow.take(stage, 3):
                done, failed = [], []
                for seq, values in entries:
                    try:
                        done.append((seq, compute(drawn, stage, seq, values)))
                    except ItemError as error:
                        failed.append((seq, error))
                flow.finished(stage, done, failed)
        while outlet.out:
            got.append(outlet.out.popleft())
        for intake in flow.stages:
            held = len(intake.ready) - intake.allowed()
            assert not held, "all is idle, and demand holds something back"

    for seq in range(count):
        if flow.room <= 0 or seq % every == 0:
            work()
        assert flow.room > 0, "full, and nothing comes out"
        row = tuple((seq, j) for j in range(drawn.inputs))
        wanted.append(expected(drawn, seq, row))
        flow.push([row[0]] if drawn.inputs == 1 else [row], outlet)
    flow.close()
    work()
    assert flow.drained
    assert len(got) == len(wanted)
    assert all(map(same, got, wanted))

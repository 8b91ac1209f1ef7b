"""The flow of items through a pipeline: demand, joins, order, batching, eviction. Pure.

It says which items a stage may work on next, where its results go, and what comes out in which
order. It holds no thread and no clock: whoever has workers calls ``take``, has the code run, and
calls ``finished``; time is an argument. Entries move in lists, so that an item costs little more
than its place in them.

Guarantees that every item that was pushed comes out once, in order, whatever its stages do with it,
in whatever order they finish; that at most ``max_pending`` are pushed and not taken out; and that
it never stands still while something could go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from handoff_actors.pipeline.intake import Intake, Limits, StageShape
from handoff_actors.pipeline.joins import Entry, Tomb
from handoff_actors.pipeline.order import Order, Outlet

Evicted = Callable[[int, int, tuple[int, ...]], BaseException]
"""Makes the error of an item that waited too long: of the stage, the item's number, and the indices
of the values that did not come."""


class Flow:
    """See the module.

    Args:
        shapes: the stages, producers before consumers.
        inputs: how many values of an item come from outside; their indices follow the stages'.
        limits: how much may be under way.
        evicted: see ``Evicted``.

    Attributes:
        pushed: how many items were pushed.
        awake: stages that may have something to ``take``; to be emptied by whoever looks.
        order: where results come out.
        main: the outlet of what is ``put``.
        closed: nothing more is pushed.
        timed: ``tick`` may have something to do, some time.
    """

    def __init__(
        self, shapes: Sequence[StageShape], inputs: int, limits: Limits, evicted: Evicted
    ) -> None:
        self.limits = limits
        self.pushed = 0
        self.awake: set[int] = set()
        self.closed = False
        self._evicted = evicted
        n = len(shapes)
        self.stages = stages = [Intake(i, shape, limits) for i, shape in enumerate(shapes)]
        self._readers: list[list[Intake]] = [[] for _ in range(inputs)]
        self._sources = [stages[i] for i, shape in enumerate(shapes) if not shape.values]
        for i, shape in enumerate(shapes):
            for value in shape.values:
                if value < n:
                    stages[value].consumers.append(stages[i])
                    stages[i].producers.append(value)
                else:
                    self._readers[value - n].append(stages[i])
        for stage in stages:
            stage.wired()
        sinks = [stage.index for stage in stages if not stage.consumers]
        self.order = Order(sinks, [shapes[i].id for i in sinks])
        self._batched = [stage for stage in stages if stage.batch is not None]
        self.main = self.order.open()
        self._inbox: list[Any] = []
        self._flush_upto = 0
        self._running = 0
        self.timed = limits.join_timeout is not None or any(s.timeout is not None for s in stages)

    # Items come in.

    @property
    def pending(self) -> int:
        """How many items are pushed and not taken out."""
        return self.pushed + len(self._inbox) - self.order.landed + self.order.unread()

    @property
    def room(self) -> int:
        """How many items may be pushed now."""
        return self.limits.max_pending - self.pending

    def put(self, row: Any) -> int:
        """An item comes in that comes out of ``main``; there must be room for it.

        The cheap way for one at a time: it is left lying until the next ``take`` or ``push``, so
        whoever puts has to see that there is one.
        """
        inbox = self._inbox
        inbox.append(row)
        return self.pushed + len(inbox) - 1

    def absorb(self, now: float = 0.0) -> None:
        """Take up what was ``put``."""
        if self._inbox:
            rows, self._inbox = self._inbox, []
            self.push(rows, self.main, now)

    def push(self, rows: Sequence[Any], outlet: Outlet, now: float = 0.0) -> int:
        """Items come in; there must be room for them.

        Args:
            rows: of each item its value, or, unless there is one input, a tuple of its values.
            outlet: where they come out.
            now: the time.

        Returns:
            The number of the first.
        """
        if self._inbox:
            self.absorb(now)
        first = self.pushed
        self.pushed = end = first + len(rows)
        self.order.expect(outlet, first, end)
        n, numbers = len(self.stages), range(first, end)
        if len(self._readers) == 1:
            columns: list[Any] = [rows]
        else:
            columns = list(zip(*rows, strict=True))
        for j, readers in enumerate(self._readers):
            if readers:
                entries = list(zip(numbers, columns[j], strict=True))
                for stage in readers:
                    self._arrive(stage, n + j, entries, (), now)
        for stage in self._sources:
            stage.arrived += len(rows)
            stage.put([(seq, ()) for seq in numbers], now)
            self.awake.add(stage.index)
        if self._batched:
            if end - self.order.landed >= self.limits.max_pending:
                # Full, and nothing of it can be taken out: what waits for more must go on.
                self._flush_upto = end
            self._settle()
        return first

    def flush(self) -> None:
        """Nothing more comes for a while: no batch waits for others than what was pushed."""
        self.absorb()
        self._flush_upto = self.pushed
        self._settle()

    def close(self) -> None:
        """Nothing more comes, ever."""
        self.closed = True
        self.flush()

    @property
    def drained(self) -> bool:
        """Whether all that was pushed has come out, though perhaps not been taken."""
        return self.order.landed == self.pushed and not self._inbox

    # Stages work.

    def take(self, i: int, limit: int) -> list[Entry]:
        """Entries that stage ``i`` works on from now on: up to ``limit``, or at least a batch.

        Of several batches all but the last are full.

        The caller sees to it that each comes back: to ``finished`` or to ``returned``.
        """
        if self._inbox:
            self.absorb()
        stage = self.stages[i]
        if not stage.ready:
            return []
        if stage.batch is not None:
            limit = stage.in_batches(limit)
            if not limit:
                return []
        taken = stage.pop(limit)
        if stage.forced:
            stage.forced = max(0, stage.forced - len(taken))
        stage.running += len(taken)
        self._running += len(taken)
        return taken

    def finished(
        self,
        i: int,
        entries: Sequence[Entry],
        failed: Sequence[tuple[int, BaseException]] = (),
        now: float = 0.0,
    ) -> None:
        """Entries that stage ``i`` had taken are done.

        Args:
            i: the stage.
            entries: items and their results.
            failed: items that failed, and what their output will be.
            now: the time.
        """
        stage = self.stages[i]
        count = len(entries) + len(failed)
        stage.running -= count
        self._running -= count
        stage.processed += len(entries)
        tombs: list[Entry] = []
        if failed:
            stage.failed += len(failed)
            tombs = [(seq, Tomb(i, error)) for seq, error in failed]
        self._spread(stage, entries, tombs, now)
        if self._batched:
            self._settle()

    def returned(self, i: int, entries: Sequence[Entry], now: float = 0.0) -> None:
        """Entries that stage ``i`` had taken come back as they were, to be taken again first."""
        stage = self.stages[i]
        stage.running -= len(entries)
        self._running -= len(entries)
        stage.put_back(entries, now)
        self.awake.add(i)
        if self._batched:
            if stage.batch is not None and stage.forced:
                stage.forced += len(entries)
            self._settle()

    def _spread(
        self, stage: Intake, entries: Sequence[Entry], tombs: Sequence[Entry], now: float
    ) -> None:
        """Items have the value of a stage, or have failed there or before."""
        todo = [(stage, entries, tombs)]
        while todo:
            stage, entries, tombs = todo.pop()
            if stage.demand is not None and stage.demand.finished([*entries, *tombs]):
                self.awake.update(stage.producers)
            if not stage.consumers:
                if entries:
                    self.order.land(stage.index, entries)
                if tombs:
                    self.order.land(stage.index, tombs)
                continue
            for consumer in stage.consumers:
                passed = self._arrive(consumer, stage.index, entries, tombs, now)
                if passed:
                    todo.append((consumer, (), passed))

    def _arrive(
        self,
        stage: Intake,
        value: int,
        entries: Sequence[Entry],
        tombs: Sequence[Entry],
        now: float,
    ) -> Sequence[Entry]:
        """Values come to a stage; returns the items that pass it as failed."""
        if stage.join is not None:
            entries, tombs = stage.join.arrive(value, entries, tombs, now)
        stage.arrived += len(entries) + len(tombs)
        if stage.turns is not None:
            entries = stage.turns.arrive(entries, tombs)
        if entries:
            stage.put(entries, now)
            self.awake.add(stage.index)
        return tombs

    # Batches that cannot be filled.

    def _settle(self) -> None:
        """See that no batch waits for what cannot come."""
        if self._flush_upto >= self.pushed:
            for stage in self._batched:
                if stage.ready and stage.arrived == self.pushed:
                    self._force(stage)
        if self._running:
            return
        stuck = False
        for stage in self.stages:
            if stage.ready:
                if stage.takeable():
                    return
                # Not all of it was asked for, or it would be takeable, or be part of a batch.
                stuck = stuck or stage.batch is None or stage.allowed() < len(stage.ready)
        for stage in self._batched:
            if stage.ready and (stuck or stage.lowest() < self._flush_upto):
                self._force(stage)

    def _force(self, stage: Intake) -> None:
        stage.forced = len(stage.ready)
        self.awake.add(stage.index)

    # Time passes.

    def deadline(self) -> float | None:
        """When ``tick`` has something to do next; None: not before something else happens."""
        times: list[float] = []
        for stage in self.stages:
            if self.limits.join_timeout is not None and stage.join is not None:
                oldest = stage.join.oldest()
                if oldest is not None:
                    times.append(oldest + self.limits.join_timeout)
            if stage.timeout is not None and stage.arrivals and not stage.forced:
                times.append(stage.arrivals[0][0] + stage.timeout)
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Evict what has waited too long for its values; let batches go that have waited."""
        for stage in self._batched:
            if stage.timeout is None or not stage.arrivals:
                continue
            if stage.arrivals[0][0] + stage.timeout <= now:
                self._force(stage)
        if self.limits.join_timeout is not None:
            before = now - self.limits.join_timeout
            for stage in self.stages:
                if stage.join is not None and (gone := stage.join.evict(before)):
                    self._evict(stage, gone, now)
        if self._batched:
            self._settle()

    def _evict(self, stage: Intake, gone: list[tuple[int, tuple[int, ...]]], now: float) -> None:
        tombs: dict[int, Tomb] = {}
        for seq, missing in gone:
            tombs[seq] = tomb = Tomb(stage.index, self._evicted(stage.index, seq, missing))
            self.order.complete(seq, tomb)
        stage.arrived += len(tombs)
        if stage.turns is not None and (entries := stage.turns.arrive((), tombs.items())):
            stage.put(entries, now)
            self.awake.add(stage.index)
        self._spread(stage, (), list(tombs.items()), now)
        # What waits somewhere for its turn is wanted no more: it goes on as failed.
        for other in self.stages:
            dropped = other.drop(tombs)
            if dropped:
                self._spread(other, (), [(seq, tombs[seq]) for seq in dropped], now)

"""What is ready for one stage, and how much of it goes at a time. Pure."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from handoff_actors.pipeline.demand import Demand
from handoff_actors.pipeline.joins import Entry, Join
from handoff_actors.pipeline.turns import Turns


@dataclass(frozen=True, slots=True)
class StageShape:
    """What the flow has to know of a stage.

    Attributes:
        id: of its function.
        values: the indices of the values it takes, each once: those below the number of stages are
            results of stages, the others inputs.
        batch_size: it takes so many items at a time; None: any number.
        batch_timeout: seconds after which it takes fewer.
        in_turn: it takes items in the order of their numbers.
    """

    id: Hashable
    values: tuple[int, ...]
    batch_size: int | None = None
    batch_timeout: float | None = None
    in_turn: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be under way.

    Attributes:
        max_pending: items that are pushed and not taken out.
        max_demand: unfinished items of a stage, see ``demand``; None: as many as are pending.
        min_demand: where it asks for more.
        join_timeout: seconds an item may wait for the rest of its values; None: any time.
    """

    max_pending: int = 1000
    max_demand: int | None = None
    min_demand: int = 0
    join_timeout: float | None = None


class Intake:
    """What one stage has to do.

    Attributes:
        batch: entries go so many at a time; None: any number.
        join: where entries wait for all their values; None if they need one, or none.
        turns: where entries wait for those with lower numbers; None: they need not.
        demand: what it asks of its producers; None: whatever they have.
        heap: demand bounds what may begin, so ``ready`` is a heap.
        ready: entries that have all they need.
        arrived: how many have been ready, or have passed by as failed.
        forced: entries that go even if they fill no batch.
        running: entries that were taken and have not come back.
        processed: that came back with a value.
        failed: that came back as failed.
    """

    __slots__ = (
        "arrivals",
        "arrived",
        "batch",
        "consumers",
        "demand",
        "failed",
        "forced",
        "heap",
        "index",
        "join",
        "processed",
        "producers",
        "ready",
        "running",
        "timeout",
        "turns",
    )  # fmt: skip

    def __init__(self, index: int, shape: StageShape, limits: Limits) -> None:
        self.index = index
        self.batch = shape.batch_size
        self.timeout = shape.batch_timeout
        self.join: Join | None = None
        if len(shape.values) > 1:
            self.join = Join(shape.values, limits.join_timeout is not None)
        self.turns = Turns() if shape.in_turn and shape.values else None
        self.demand: Demand | None = None
        if limits.max_demand is not None:
            self.demand = Demand(limits.max_demand, limits.min_demand)
        self.consumers: list[Intake] = []
        self.producers: list[int] = []
        self.heap = False
        self.ready: Any = deque()
        self.arrived = 0
        self.arrivals: deque[list[Any]] = deque()  # [time, count], where batches have a timeout
        self.forced = 0  # entries that go even if they fill no batch
        self.running = 0
        self.processed = 0
        self.failed = 0

    def wired(self) -> None:
        """All consumers are known."""
        if self.demand is not None and self.consumers:
            self.heap, self.ready = True, []

    def put(self, entries: Sequence[Entry], now: float) -> None:
        """Entries have all they need."""
        if self.heap:
            for entry in entries:
                heapq.heappush(self.ready, entry)
        else:
            self.ready.extend(entries)
        if self.timeout is not None and entries:
            self.arrivals.append([now, len(entries)])

    def put_back(self, entries: Sequence[Entry], now: float) -> None:
        """Entries come back, to be the next to go."""
        if self.heap:
            self.put(entries, now)
            return
        self.ready.extendleft(reversed(entries))
        if self.timeout is not None and entries:
            since = min(now, self.arrivals[0][0]) if self.arrivals else now
            self.arrivals.appendleft([since, len(entries)])

    def drop(self, numbers: Container[int]) -> list[int]:
        """Let go of the items with these numbers; returns those that were ready."""
        found = [seq for seq, _ in self.ready if seq in numbers]
        if found:
            left = [entry for entry in self.ready if entry[0] not in numbers]
            self.ready.clear()
            self.ready.extend(left)
            if self.heap:
                heapq.heapify(self.ready)
            if self.timeout is not None:
                self._leave(len(found))
            self.forced = min(self.forced, len(left))
        if self.turns is not None:
            found += self.turns.drop(numbers)
        return found

    def lowest(self) -> int:
        """The lowest number of the entries that are ready."""
        number: int = self.ready[0][0] if self.heap else min([seq for seq, _ in self.ready])
        return number

    def upto(self) -> float:
        """Items with lower numbers are asked for."""
        asked = [consumer.demand.upto for consumer in self.consumers if consumer.demand is not None]
        return min(asked, default=float("inf"))

    def allowed(self) -> int:
        """How many of the entries that are ready may begin."""
        if not self.heap:
            return len(self.ready)
        upto = self.upto()
        return sum([seq < upto for seq, _ in self.ready])

    def takeable(self) -> bool:
        """Whether there is something to take."""
        if not self.ready:
            return False
        if self.batch is not None:
            allowed = self.allowed()
            return allowed >= self.batch or (allowed > 0 and self.forced > 0)
        return not self.heap or self.ready[0][0] < self.upto()

    def in_batches(self, limit: int) -> int:
        """How many of up to ``limit`` entries may go as batches; one batch may exceed it."""
        assert self.batch is not None
        allowed, most = self.allowed(), max(1, limit // self.batch) * self.batch
        if self.forced > 0:
            return min(most, allowed)
        return min(most, allowed // self.batch * self.batch)

    def pop(self, count: int) -> list[Entry]:
        """Up to ``count`` entries that may begin."""
        ready = self.ready
        if self.heap:
            upto = self.upto()
            taken: list[Entry] = []
            while len(taken) < count and ready and ready[0][0] < upto:
                taken.append(heapq.heappop(ready))
        elif count >= len(ready):
            taken = list(ready)
            ready.clear()
        else:
            popleft = ready.popleft
            taken = [popleft() for _ in range(count)]
        if self.timeout is not None:
            self._leave(len(taken))
        return taken

    def _leave(self, count: int) -> None:
        arrivals = self.arrivals
        while count and arrivals:
            if arrivals[0][1] > count:
                arrivals[0][1] -= count
                return
            count -= arrivals.popleft()[1]

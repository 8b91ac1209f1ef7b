"""Results back into the order in which items were pushed. Pure.

Items have numbers. Those pushed through one *outlet* come out of it in their order, whatever
happens to those of others: an iteration over the pipeline is an outlet, each ``map`` has its own.
Guarantees that each item comes out exactly once, or is dropped with its outlet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from handoff_actors.pipeline.joins import Entry, Late, Tomb


class Outlet:
    """Where the results of some items come out, in the order of their numbers.

    Attributes:
        out: results, or the errors of items that failed. Whoever reads takes from the left, any
            time: an item counts as pending until then.
        closed: nobody will read any more; what comes is dropped.
        waiting: for the use of whoever reads: whom to tell when something is there.
    """

    __slots__ = ("closed", "out", "ranges", "waiting")

    def __init__(self) -> None:
        self.out: deque[Any] = deque()
        self.ranges: deque[list[int]] = deque()
        self.closed = False
        self.waiting: list[Any] = []

    @property
    def waits(self) -> bool:
        """Whether more is to come."""
        return bool(self.ranges)


class Order:
    """See the module.

    Args:
        sinks: the stages whose values make the result of an item: one alone gives its value,
            several give a mapping of ids to values.
        ids: of the sinks.

    Attributes:
        landed: how many items have come out.
        fresh: outlets with something new; to be emptied by whoever looks.
    """

    __slots__ = ("_done", "_ids", "_late", "_parts", "_sinks", "fresh", "landed", "outlets")

    def __init__(self, sinks: Sequence[int], ids: Sequence[Hashable]) -> None:
        self._sinks = tuple(sinks)
        self._ids = tuple(ids)
        self._done: dict[int, Any] = {}
        self._parts: dict[int, dict[int, Any]] = {}
        self._late = Late()  # items that came out early
        self.outlets: list[Outlet] = []
        self.landed = 0
        self.fresh: set[Outlet] = set()

    def open(self) -> Outlet:
        """A new outlet."""
        outlet = Outlet()
        self.outlets.append(outlet)
        return outlet

    def close(self, outlet: Outlet) -> None:
        """Nobody reads there any more."""
        outlet.closed = True
        outlet.out.clear()
        if not outlet.ranges:
            self._remove(outlet)

    def _remove(self, outlet: Outlet) -> None:
        if outlet in self.outlets:
            self.outlets.remove(outlet)

    def expect(self, outlet: Outlet, first: int, end: int) -> None:
        """The items from ``first`` to before ``end`` come out there."""
        ranges = outlet.ranges
        if ranges and ranges[-1][1] == first:
            ranges[-1][1] = end
        else:
            ranges.append([first, end])

    def unread(self) -> int:
        """How many results lie in outlets."""
        outlets = self.outlets
        if len(outlets) == 1:
            return len(outlets[0].out)
        return sum([len(outlet.out) for outlet in outlets])

    def land(self, sink: int, entries: Iterable[Entry]) -> None:
        """These items have the value of a sink, or a ``Tomb`` for it."""
        if self._late:
            entries = [entry for entry in entries if not self._late.swallows(entry[0])]
        if len(self._sinks) == 1:
            self._done.update(entries)
        else:
            self._gather(sink, entries)
        self._advance()

    def _gather(self, sink: int, entries: Iterable[Entry]) -> None:
        parts, whole = self._parts, len(self._sinks)
        for seq, value in entries:
            held = parts.get(seq)
            if held is None:
                held = parts[seq] = {}
            held[sink] = value
            if len(held) == whole:
                del parts[seq]
                self._done[seq] = self._result(held)

    def _result(self, held: dict[int, Any]) -> Any:
        tombs = [value for value in held.values() if value.__class__ is Tomb]
        if tombs:
            return min(tombs, key=lambda tomb: tomb.stage)
        return {id_: held[sink] for sink, id_ in zip(self._sinks, self._ids, strict=True)}

    def complete(self, seq: int, tomb: Tomb) -> None:
        """An item is failed at once, whatever is still to come of it; nothing if it is done."""
        if seq in self._done or seq in self._late or not self._expected(seq):
            return
        there = len(self._parts.pop(seq, ()))
        self._late[seq] = len(self._sinks) - there
        self._done[seq] = tomb
        self._advance()

    def _expected(self, seq: int) -> bool:
        return any(first <= seq < end for o in self.outlets for first, end in o.ranges)

    def _advance(self) -> None:
        pop = self._done.pop
        gone: list[Outlet] = []
        for outlet in self.outlets:
            ranges, append = outlet.ranges, outlet.out.append
            before = self.landed
            while ranges:
                current = ranges[0]
                seq, end = first, _ = current
                try:
                    while seq < end:
                        value = pop(seq)
                        seq += 1
                        if outlet.closed:
                            continue
                        append(value.error if value.__class__ is Tomb else value)
                except KeyError:
                    self.landed += seq - first
                    current[0] = seq
                    break
                self.landed += seq - first
                ranges.popleft()
            if self.landed != before:
                self.fresh.add(outlet)
            if outlet.closed and not ranges:
                gone.append(outlet)
        for outlet in gone:
            self._remove(outlet)

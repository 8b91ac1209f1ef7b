"""What a stage that takes several values holds until an item has all of them. Pure.

Guarantees that an item leaves once: with all its values, as failed when one of them is a failure
(but only when all have come), or evicted. What comes later for an evicted item is swallowed, and
forgotten with the last of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Entry = tuple[int, Any]
"""The number of an item, and a value of it."""

_MISSING: Any = object()


class Tomb:
    """Stands for the value of an item that failed: no code sees it, and it goes on in its place.

    Attributes:
        stage: where the item failed; of several failures of an item the first stage's counts.
        error: what the item's output will be.
    """

    __slots__ = ("error", "stage")

    def __init__(self, stage: int, error: BaseException) -> None:
        self.stage = stage
        self.error = error


class Late(dict[int, int]):
    """Items that have left early: how many of the values of each are still to come."""

    def swallows(self, seq: int) -> bool:
        """Whether a value that has come is of such an item; it is forgotten with the last one."""
        left = self.get(seq)
        if left is None:
            return False
        if left == 1:
            del self[seq]
        else:
            self[seq] = left - 1
        return True


class Join:
    """See the module.

    Args:
        values: the indices of the values an item needs, in the order in which they are handed over.
        timed: items may be evicted, so it is noted when their first value came.
    """

    __slots__ = ("_count", "_dead", "_late", "_parts", "_since", "_slots", "_timed", "values")

    def __init__(self, values: Sequence[int], timed: bool) -> None:
        self.values = tuple(values)
        self._count = len(values)
        self._slots = {value: slot for slot, value in enumerate(values, 1)}
        self._timed = timed
        self._parts: dict[int, list[Any]] = {}  # of each item: how many are missing, the values
        self._dead: dict[int, Tomb] = {}
        self._since: dict[int, float] = {}  # in the order of time
        self._late = Late()  # evicted items

    def __len__(self) -> int:
        return len(self._parts)

    def arrive(
        self, value: int, entries: Iterable[Entry], tombs: Iterable[Entry], now: float
    ) -> tuple[list[Entry], list[Entry]]:
        """Values have come.

        Args:
            value: which value of the items it is.
            entries: the items that have it.
            tombs: the items that failed before they had it.
            now: the time.

        Returns:
            The items that have all their values now, and those that have failed.
        """
        slot = self._slots[value]
        parts, blank, count = self._parts, [_MISSING] * self._count, self._count
        complete: list[Entry] = []
        dead: list[Entry] = []
        for seq, part in entries:
            held = parts.get(seq)
            if held is None:
                if self._late and self._late.swallows(seq):
                    continue
                held = parts[seq] = [count, *blank]
                if self._timed:
                    self._since[seq] = now
            held[slot] = part
            held[0] -= 1
            if not held[0]:
                self._leave(seq, complete, dead)
        for seq, tomb in tombs:
            held = parts.get(seq)
            if held is None:
                if self._late and self._late.swallows(seq):
                    continue
                held = parts[seq] = [count, *blank]
                if self._timed:
                    self._since[seq] = now
            earlier = self._dead.get(seq)
            if earlier is None or tomb.stage < earlier.stage:
                self._dead[seq] = tomb
            held[slot] = tomb
            held[0] -= 1
            if not held[0]:
                self._leave(seq, complete, dead)
        return complete, dead

    def _leave(self, seq: int, complete: list[Entry], dead: list[Entry]) -> None:
        held = self._parts.pop(seq)
        if self._timed:
            del self._since[seq]
        if self._dead and (tomb := self._dead.pop(seq, None)) is not None:
            dead.append((seq, tomb))
        else:
            complete.append((seq, tuple(held[1:])))

    def oldest(self) -> float | None:
        """When the item that waits longest got its first value; None if none waits."""
        return next(iter(self._since.values()), None)

    def evict(self, before: float) -> list[tuple[int, tuple[int, ...]]]:
        """Let go of the items whose first value came at ``before`` or earlier.

        Returns:
            Their numbers, each with the indices of the values that had not come.
        """
        evicted: list[tuple[int, tuple[int, ...]]] = []
        while self._since:
            seq, since = next(iter(self._since.items()))
            if since > before:
                break
            del self._since[seq]
            left, *held = self._parts.pop(seq)
            self._dead.pop(seq, None)
            self._late[seq] = left
            missing = [v for v, part in zip(self.values, held, strict=True) if part is _MISSING]
            evicted.append((seq, tuple(missing)))
        return evicted

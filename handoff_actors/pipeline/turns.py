"""Items in the order of their numbers at a stage, whichever come first. Pure.

One worker with a state handles items in the order in which they were pushed, also when they
overtake each other on the way to it. Guarantees that nothing is held back for an item that has
failed before, or was given up.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

from handoff_actors.pipeline.joins import Entry

_GONE: Any = object()
"""In the place of what an item brings: it passes by, or is wanted no more."""


class Turns:
    """See the module: holds what has come before its turn."""

    __slots__ = ("_held", "_next")

    def __init__(self) -> None:
        self._held: dict[int, Any] = {}
        self._next = 0

    def __len__(self) -> int:
        return sum([payload is not _GONE for payload in self._held.values()])

    def arrive(self, entries: Sequence[Entry], gone: Iterable[Entry]) -> Sequence[Entry]:
        """Items have come, and others will not.

        Args:
            entries: those that have come.
            gone: those that pass by as failed.

        Returns:
            The items whose turn it is, in their order.
        """
        held, number = self._held, self._next
        if not held and not gone:
            end = number + len(entries)
            if [seq for seq, _ in entries] == [*range(number, end)]:
                self._next = end
                return entries  # the way of most
        held.update(entries)
        held.update([(seq, _GONE) for seq, _ in gone])
        ready: list[Entry] = []
        while number in held:
            payload = held.pop(number)
            if payload is not _GONE:
                ready.append((number, payload))
            number += 1
        self._next = number
        return ready

    def drop(self, numbers: Container[int]) -> list[int]:
        """Let go of the items with these numbers; returns those that were held."""
        held = self._held
        found = [seq for seq, payload in held.items() if payload is not _GONE and seq in numbers]
        held.update(dict.fromkeys(found, _GONE))
        return found

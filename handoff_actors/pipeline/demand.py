"""How far ahead of a stage its producers may work. Pure.

A stage asks for items up to a number: at first the ``max_demand`` first ones, and whenever not more
than ``min_demand`` of those it asked for are unfinished, for as many again. Its producers begin no
item beyond. As the unfinished item with the lowest number may always begin, nothing can wait for
itself, however branches differ in speed and whatever order items end in.
"""

from __future__ import annotations

from collections.abc import Iterable

from handoff_actors.pipeline.joins import Entry


class Demand:
    """What one stage asks of its producers.

    Args:
        most: unfinished items it asks for at most.
        least: unfinished items at which it asks again.

    Attributes:
        upto: producers may begin items with numbers below this.
    """

    __slots__ = ("_ahead", "_first", "_least", "_most", "upto")

    def __init__(self, most: int, least: int) -> None:
        self._most = most
        self._least = least
        self._first = 0  # the lowest number that is not finished
        self._ahead: set[int] = set()
        self.upto = most

    def finished(self, entries: Iterable[Entry]) -> bool:
        """These items are done here, or have failed; whether more is asked for now."""
        ahead = self._ahead
        ahead.update([seq for seq, _ in entries])
        first = self._first
        while first in ahead:
            ahead.discard(first)
            first += 1
        self._first = first
        if self.upto - first > self._least:
            return False
        self.upto = first + self._most
        return True

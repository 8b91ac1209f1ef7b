"""State that outlives the actor that owns it (OTP's ETS table with an heir).

A supervisor keeps the ``Table``; each incarnation of the actor *takes* it and gets a handle that
carries the incarnation's number. Only the newest handle may commit: a commit by an older one, an
abandoned incarnation that is still running somewhere, raises ``StaleIncarnationError`` and changes
nothing. A commit replaces whole values under one lock and runs no code of anybody's but the hashing
of its keys, which is done before the first change: it is applied whole or not at all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from itertools import count
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from handoff_actors.errors import HandoffError

K = TypeVar("K")
V = TypeVar("V")

_births = count(2, 2)


def birth_number() -> int:
    """A number greater than any before, by two: what is between is left to ``Handle.fence``."""
    return next(_births)


class StaleIncarnationError(HandoffError):
    """A newer incarnation of the actor has taken the table over."""


class Table(Generic[K, V]):
    """A mapping that survives its owner."""

    __slots__ = ("_data", "_incarnation", "_lock", "view")

    def __init__(self, initial: Mapping[K, V] | None = None) -> None:
        self._data: dict[K, V] = dict(initial or {})
        self._incarnation = 0
        self._lock = threading.Lock()
        self.view: Mapping[K, V] = MappingProxyType(self._data)
        """A read-only view of the committed state, for any thread."""

    def take(self, incarnation: int | None = None) -> Handle[K, V]:
        """Become the owner: handles taken before can commit no more.

        Args:
            incarnation: the taker's ``birth_number``; None draws one now.

        Raises:
            StaleIncarnationError: one that was born later has taken it before.
        """
        number = birth_number() if incarnation is None else incarnation
        with self._lock:
            if number < self._incarnation:
                raise StaleIncarnationError(
                    f"incarnation {number} is superseded by {self._incarnation}"
                )
            self._incarnation = number
            return Handle(self, number)

    def fence(self, incarnation: int) -> None:
        """Let ``incarnation`` commit no more, though none has taken over yet."""
        with self._lock:
            if self._incarnation == incarnation:
                self._incarnation += 1

    def commit(self, incarnation: int, changes: Mapping[K, V], deletions: Iterable[K] = ()) -> None:
        """Apply changes and deletions as one step; called through a handle."""
        gone = [key for key in deletions if key in self._data] if deletions else ()
        with self._lock:
            if incarnation != self._incarnation:
                raise StaleIncarnationError(
                    f"incarnation {incarnation} is superseded by {self._incarnation}"
                )
            self._data.update(changes)
            for key in gone:
                self._data.pop(key, None)

    def is_current(self, incarnation: int) -> bool:
        """Whether the handle of this incarnation may still commit."""
        return incarnation == self._incarnation


class Handle(Generic[K, V]):
    """The right of one incarnation to change a table."""

    __slots__ = ("incarnation", "table", "view")

    def __init__(self, table: Table[K, V], incarnation: int) -> None:
        self.table = table
        self.incarnation = incarnation
        self.view: Mapping[K, V] = table.view

    def commit(self, changes: Mapping[K, V] | None = None, deletions: Iterable[K] = ()) -> None:
        """Apply ``changes`` and ``deletions`` (unknown keys are ignored) in one step.

        Raises:
            StaleIncarnationError: a newer incarnation has taken the table.
        """
        self.table.commit(self.incarnation, changes or {}, deletions)

    def fence(self) -> None:
        """Take the right back: whoever holds this handle has been abandoned."""
        self.table.fence(self.incarnation)


AnyTable = Table[Any, Any]

"""Monitors: exactly one ``Down`` for each, after every message the dead incarnation had sent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.reasons import Exit, Reason

_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Down:
    """The monitored incarnation has ended.

    Attributes:
        monitor: what ``monitor`` returned.
        ref: the actor.
        reason: why; ``Exit.NOPROC`` if it was not alive when the monitor was set.
    """

    monitor: int
    ref: Ref
    reason: Reason


class Monitors:
    """Those who want to know when one incarnation ends. Thread-safe."""

    __slots__ = ("_lock", "_watchers")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watchers: dict[int, Callable[[int, Reason], None]] | None = {}

    def add(self, number: int, callback: Callable[[int, Reason], None]) -> bool:
        """Register; False if the incarnation has ended."""
        with self._lock:
            if self._watchers is None:
                return False
            self._watchers[number] = callback
            return True

    def remove(self, number: int) -> bool:
        """Unregister; False if its ``Down`` was sent, or it is unknown."""
        with self._lock:
            return self._watchers is not None and self._watchers.pop(number, None) is not None

    def fire(self, reason: Reason) -> None:
        """The incarnation has ended: tell each watcher, once."""
        with self._lock:
            watchers, self._watchers = self._watchers, None
        for number, callback in (watchers or {}).items():
            callback(number, reason)


def monitor(target: Ref, watcher: Ref) -> int:
    """Have ``watcher`` get one ``Down`` when the present incarnation of ``target`` ends.

    Returns:
        A number for ``demonitor`` and to recognise the ``Down`` by. Two monitors give two.
    """
    number = next(_numbers)

    def tell(number: int, reason: Reason) -> None:
        watcher.cast(Down(number, target, reason))

    incarnation = target.incarnation
    if incarnation is None or not incarnation.monitors.add(number, tell):
        tell(number, Exit.NOPROC)
    return number


def demonitor(target: Ref, number: int) -> bool:
    """Take a monitor back; False if its ``Down`` is on its way already."""
    incarnation = target.incarnation
    return incarnation is not None and incarnation.monitors.remove(number)

"""How many workers of a kind may be at work, and whose turn it is when all are.

Queues of work that want a worker wait in line; each stands in it once, so that runs get workers in
turn, however much work each has.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol


class Seeker(Protocol):
    """A queue of work that may want a worker."""

    in_line: bool

    def wants_worker(self) -> bool:
        """Whether it would have something to do for one."""

    def launch(self) -> None:
        """A permit is yours: begin."""


class Permits:
    """A counted set of permits.

    Attributes:
        waiting: who stands in line; workers look at it to know that somebody wants their place.
    """

    __slots__ = ("_lock", "in_use", "limit", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_use = 0
        self.waiting: deque[Seeker] = deque()
        self._lock = threading.Lock()

    def take(self, seeker: Seeker) -> bool:
        """Take a permit; if there is none, stand in line and be launched in turn."""
        with self._lock:
            if self.in_use < self.limit:
                self.in_use += 1
                return True
            if not seeker.in_line:
                seeker.in_line = True
                self.waiting.append(seeker)
            return False

    def take_at_once(self) -> bool:
        """Take a permit if nobody has to wait for one."""
        with self._lock:
            if self.in_use >= self.limit:
                return False
            self.in_use += 1
            return True

    def give(self) -> None:
        """Give a permit back: to whoever is next in line."""
        with self._lock:
            seeker = self._next()
            if seeker is None:
                self.in_use -= 1
        if seeker is not None:
            seeker.launch()

    def _next(self) -> Seeker | None:
        if self.in_use > self.limit:
            return None
        while self.waiting:
            seeker = self.waiting.popleft()
            seeker.in_line = False
            if seeker.wants_worker():
                return seeker
        return None

    def take_back(self) -> None:
        """Take a permit that was lent to others, there being one or not."""
        with self._lock:
            self.in_use += 1


class Unlimited(Permits):
    """For workers of which there are always enough: event loops run any number of coroutines."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(1 << 30)

    def take(self, seeker: Seeker) -> bool:  # noqa: ARG002  as in Permits
        """There always is one."""
        return True

    def give(self) -> None:
        """Nobody waits for it."""

    def take_back(self) -> None:
        """There always is one."""

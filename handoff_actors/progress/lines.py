"""Progress for a log: plain lines, at intervals that grow, and what went wrong as it comes."""

from __future__ import annotations

import threading
import time
from typing import Any

from handoff_actors.execution.run import Progress
from handoff_actors.progress.ticker import ticker
from handoff_actors.progress.view import View

_FIRST = 2.0
_LONGEST = 60.0
"""Seconds until the first line, and between lines at most."""
_MOST_TOLD = 20
"""So many lines about what went wrong within an interval; then how many more there were."""


class Lines:
    """The lines of one run."""

    def __init__(self, view: View, stream: Any) -> None:
        self._view = view
        self._stream = stream
        self._lock = threading.Lock()
        self._interval = _FIRST
        self._next = time.monotonic() + _FIRST
        self._told = 0
        self._over = False
        ticker.add(self._tick)

    def __call__(self, progress: Progress) -> None:
        """The last line, when the run is over."""
        with self._lock:
            if self._over or progress.state == "running":
                return
            self._over = True
            self._say_more()
            self._write(self._view.end(progress.state))
        ticker.remove(self._tick)

    def tell(self, line: str) -> None:
        """A line of its own, unless there were very many."""
        with self._lock:
            self._told += 1
            if self._told <= _MOST_TOLD:
                self._write(line)

    def _tick(self) -> None:
        now = time.monotonic()
        with self._lock:
            if self._over or now < self._next:
                return
            self._interval = min(self._interval * 1.5, _LONGEST)
            self._next = now + self._interval
            self._say_more()
            shot = self._view.shot()
            self._write(
                f"{shot.finished:,}/{shot.total:,} ({shot.percent} %), {shot.pace()}; "
                f"{shot.counts()}"
            )

    def _say_more(self) -> None:
        if self._told > _MOST_TOLD:
            self._write(f"{self._told - _MOST_TOLD} more like these")
        self._told = 0

    def _write(self, line: str) -> None:
        try:
            self._stream.write(f"handoff {self._view.name}: {line}\n")
            self._stream.flush()
        except (OSError, ValueError):
            return  # the log was closed, or its disk is full; the run goes on

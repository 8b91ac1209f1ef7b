"""One thread that has displays drawn, for as long as there are any."""

from __future__ import annotations

import threading
from collections.abc import Callable

from handoff_actors.errors import describe
from handoff_actors.events import log


class Ticker:
    """Calls what was added every ``seconds``; calls never overlap."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._calls: tuple[Callable[[], None], ...] = ()
        self._ended: threading.Event | None = None

    def add(self, call: Callable[[], None]) -> None:
        """Call this from now on."""
        with self._lock:
            self._calls += (call,)
            if self._ended is None:
                self._ended = threading.Event()
                threading.Thread(
                    target=self._run, args=(self._ended,), name="handoff-progress", daemon=True
                ).start()

    def remove(self, call: Callable[[], None]) -> None:
        """Call this no more; the thread ends with the last one."""
        with self._lock:
            self._calls = tuple(c for c in self._calls if c != call)
            if not self._calls and self._ended is not None:
                self._ended.set()
                self._ended = None

    def _run(self, ended: threading.Event) -> None:
        while not ended.wait(self._seconds):
            for call in self._calls:
                try:
                    call()
                except BaseException as error:
                    # A display that cannot be drawn must not end the others, nor the run.
                    log.error("progress_raised", error=describe(error), exc_info=error)


ticker = Ticker(0.15)

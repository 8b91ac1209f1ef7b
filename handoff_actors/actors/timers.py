"""Timers: one thread a system, made when the first timer is set.

A timer's callback runs on that thread and must be short: it sends a message, or signals.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from handoff_actors.actors.calls import Ref
from handoff_actors.events import log


class Timer:
    """One timer; ``cancel()`` before it fires, or it has fired."""

    __slots__ = ("callback", "due")

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """It will not fire, if it has not yet. Whoever receives timer messages checks them."""
        self.callback = None


_FEW = 64
"""Timers among which cancelled ones do no harm."""


class Timers:
    """A heap of timers. Thread-safe."""

    def __init__(self, name: str) -> None:
        self._name = f"{name}-timers"
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        self._changed = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._closed = False
        self._limit = _FEW

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback()`` on the timer thread ``seconds`` from now."""
        timer = Timer(time.monotonic() + seconds, callback)
        with self._changed:
            if self._closed:
                return timer
            if len(self._heap) >= self._limit:
                self._drop_cancelled()
            heapq.heappush(self._heap, (timer.due, next(self._numbers), timer))
            if self._thread is None:
                self._start()
            elif self._heap[0][2] is timer:
                self._changed.notify()
        return timer

    def open(self) -> None:
        """Start the thread now, so that whatever else lacks threads later, timers fire.

        Raises:
            RuntimeError: the machine gives no thread.
        """
        with self._changed:
            if self._thread is None and not self._closed:
                self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        thread.start()
        self._thread = thread

    def send_after(self, seconds: float, ref: Ref, message: Any) -> Timer:
        """Cast ``message`` to ``ref`` ``seconds`` from now."""
        return self.call_later(seconds, lambda: ref.cast(message))

    def _drop_cancelled(self) -> None:
        """Forget timers that were cancelled long before they are due; the lock is held."""
        self._heap = [entry for entry in self._heap if entry[2].callback is not None]
        heapq.heapify(self._heap)
        self._limit = max(_FEW, 2 * len(self._heap))

    def close(self, timeout: float = 1.0) -> None:
        """Forget all timers and end the thread."""
        with self._changed:
            self._closed = True
            self._heap.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed:
                    if not self._heap:
                        self._changed.wait()
                        continue
                    wait = self._heap[0][0] - time.monotonic()
                    if wait <= 0:
                        break
                    if self._heap[0][2].callback is None:
                        heapq.heappop(self._heap)
                        continue
                    self._changed.wait(wait)
                if self._closed:
                    return
                timer = heapq.heappop(self._heap)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                try:
                    callback()
                except BaseException as error:  # the other timers go on
                    log.error("timer_raised", exc_info=error)

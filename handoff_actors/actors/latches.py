"""Waiting for a lock that somebody else releases, such that Ctrl-C is heard.

A signal that comes while the main thread waits for the interpreter's own lock, on its way into a
wait, is only looked at once the wait is over: Ctrl-C would be lost in a wait without end. So the
main thread looks up from its wait now and then; other threads have nothing to hear.
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import Final

_FIRST_LOOK: Final = 0.05
_LOOK: Final = 0.5


def passed(latch: threading.Lock, timeout: float | None = None) -> bool:
    """Acquire a latch; whether that was within ``timeout`` seconds, None being without end."""
    if timeout is not None and timeout <= _FIRST_LOOK:
        return latch.acquire(timeout=max(0.0, timeout))
    end = None if timeout is None else monotonic() + timeout
    if latch.acquire(timeout=_FIRST_LOOK):
        return True
    if threading.current_thread() is not threading.main_thread():
        return latch.acquire(timeout=-1 if end is None else max(0.0, end - monotonic()))
    while True:
        left = _LOOK if end is None else end - monotonic()
        if latch.acquire(timeout=max(0.0, min(left, _LOOK))):
            return True
        if end is not None and left <= _LOOK:
            return False

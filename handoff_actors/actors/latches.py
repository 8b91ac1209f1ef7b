"""Waiting such that Ctrl-C is heard, for a lock that somebody else releases and for anything else.

A signal that comes while the main thread waits for the interpreter's own lock, on its way into a
wait, is only looked at once the wait is over: Ctrl-C would be lost in a wait without end. So the
main thread looks up from its wait now and then; other threads have nothing to hear.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
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
    left = None if end is None else end - monotonic()
    return heard(lambda seconds: latch.acquire(timeout=seconds), left)


def heard(wait: Callable[[float], bool], timeout: float | None = None) -> bool:
    """Wait for up to ``timeout`` seconds, None being without end.

    Args:
        wait: waits for so many seconds, and says whether what it waits for has come.
        timeout: seconds for all of it.

    Returns:
        Whether it has come.
    """
    if threading.current_thread() is not threading.main_thread():
        return wait(threading.TIMEOUT_MAX if timeout is None else max(0.0, timeout))
    end = None if timeout is None else monotonic() + timeout
    look = _FIRST_LOOK
    while True:
        left = look if end is None else end - monotonic()
        if wait(max(0.0, min(left, look))):
            return True
        if end is not None and left <= look:
            return False
        look = _LOOK

"""What the measured functions do. Importable by worker processes."""

from __future__ import annotations

import hashlib
import os
import signal
import time


def nothing(*values: object) -> int:
    """A no-op with an int that is nobody else's object."""
    return 1000 + len(values)


class Hash:
    """Hashes a buffer of ``size`` bytes; the GIL is released meanwhile."""

    def __init__(self, size: int) -> None:
        self.buffer = bytes(size)

    def __call__(self, *values: object) -> int:
        return hashlib.sha256(self.buffer).digest()[0]


class Spin:
    """Counts to ``size`` in pure Python."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, *values: object) -> int:
        n = 0
        while n < self.size:
            n += 1
        return n


def collatz(start: int, stop: int) -> int:
    """CPU-bound pure Python: the longest Collatz sequence of a range."""
    longest = 0
    for first in range(start, stop):
        n, length = first, 1
        while n != 1:
            n = n // 2 if n % 2 == 0 else 3 * n + 1
            length += 1
        longest = max(longest, length)
    return longest


def nap(*values: object) -> float:
    """Two milliseconds that use no CPU; returns when it began, on the system's monotonic clock."""
    began = time.monotonic()
    time.sleep(0.002)
    return began


def victim(fifo: str) -> tuple[int, float]:
    """Attempt 1 tells its pid and waits to be killed; the next returns when it began."""
    import handoff_actors

    began = time.monotonic()
    attempt = handoff_actors.current().attempt
    if attempt == 1:
        with open(fifo, "w") as file:
            file.write(str(os.getpid()))
        signal.pause()
    return attempt, began


def nap_for(seconds: float) -> None:
    """Sleeps."""
    time.sleep(seconds)


def array(count: int) -> object:
    """So many floats of NumPy."""
    import numpy as np

    return np.ones(count)


def seen(values: object) -> int:
    """The size of an array, which is not looked at."""
    return int(getattr(values, "nbytes", 0))

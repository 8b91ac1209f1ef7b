"""Memory for values that come from other nodes, and whether there is so much.

Guarantees: memory is asked for only if this process may have it: the machine, every control group
it is in and its own limit count; what does not fit is a ``MemoryError`` that says how large the
value is and how much there is, before any of it was asked for.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import resource
import time
from collections.abc import Sequence
from pathlib import Path

from handoff_actors.control_groups import groups, memory_limit, memory_used

MAPPED = 1 << 20
"""Bytes from which a part of a value gets a mapping of its own."""
_RESERVE = 0.02  # the part of memory that a value must leave free


class TooLargeError(MemoryError):
    """A value is larger than the memory that is left."""


def check_memory(missing: Sequence[int], sizes: Sequence[int], node: str) -> None:
    """Whether there is memory for a value.

    Args:
        missing: how many bytes have to be had for each of its parts, its pickle first.
        sizes: of the parts in bytes.
        node: where the value is.

    Raises:
        TooLargeError: there is not.
    """
    if sum(missing) < MAPPED:
        return
    left = memory_left()
    # What is in the pickle itself is there once more when it has been read.
    if left is not None and sum(missing) + sizes[0] > left:
        raise TooLargeError(
            f"a value of {sum(sizes) / 1e6:,.0f} MB on node {node!r} does not fit into the "
            f"{left / 1e6:,.0f} MB of memory that are left here"
        )


def no_memory(sizes: Sequence[int], node: str, why: BaseException) -> MemoryError:
    """The error when the system gives no memory for a value, though there should be."""
    return MemoryError(
        f"a value of {sum(sizes) / 1e6:,.0f} MB on node {node!r} does not fit here: the system "
        f"gives this process no more memory ({why or 'out of memory'})"
    )


def memory_left() -> int | None:
    """Bytes that this process may still use, as far as the system tells; None if it does not."""
    found: list[int] = []
    with contextlib.suppress(OSError, KeyError, ValueError, IndexError):
        with open("/proc/meminfo", "rb") as file:
            lines = dict(line.split(b":", 1) for line in file)
        total, available = (
            int(lines[name].split()[0]) * 1024 for name in (b"MemTotal", b"MemAvailable")
        )
        found.append(available - int(_RESERVE * total))
    for group in _bounded_groups(int(time.monotonic())):
        limit = memory_limit(group)
        if limit is not None:
            found.append(limit - int(_RESERVE * limit) - memory_used(group))
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open("/proc/self/statm", "rb") as file:
                pages = int(file.read().split()[0])
            found.append(limit - pages * mmap.PAGESIZE)
    return max(0, min(found)) if found else None


@functools.lru_cache(maxsize=1)
def _bounded_groups(_second: int) -> tuple[Path, ...]:
    """The control groups of this process that have a limit; looked up once a second at most."""
    return tuple(g for g in groups(Path("/"), "memory") if memory_limit(g) is not None)

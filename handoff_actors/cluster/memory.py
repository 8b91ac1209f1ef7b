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
from typing import Any

from handoff_actors.control_groups import groups, memory_limit, memory_used

_MAPPED = 1 << 20  # bytes from which a part gets a mapping of its own
_RESERVE = 0.02  # the part of memory that a value must leave free

Buffer = Any


def room_for(sizes: Sequence[int], node: str) -> list[Buffer]:
    """Memory of our own for the parts of a value, its pickle first.

    Args:
        sizes: of the parts in bytes.
        node: where the value is.

    Raises:
        MemoryError: there is not so much.
    """
    size = sum(sizes)
    if size >= _MAPPED:
        left = memory_left()
        # What is in the pickle itself is there once more when it has been read.
        if left is not None and size + sizes[0] > left:
            raise MemoryError(
                f"a value of {size / 1e6:,.0f} MB on node {node!r} does not fit into the "
                f"{left / 1e6:,.0f} MB of memory that are left here"
            )
    try:
        return [_room(part) for part in sizes]
    except (MemoryError, OSError) as error:  # a mapping that cannot be had is an OSError
        raise MemoryError(
            f"a value of {size / 1e6:,.0f} MB on node {node!r} does not fit here: the system gives "
            f"this process no more memory ({error or 'out of memory'})"
        ) from error


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


def _room(size: int) -> Buffer:
    if size < _MAPPED:
        return bytearray(size)
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            room.madvise(mmap.MADV_HUGEPAGE)
    return room

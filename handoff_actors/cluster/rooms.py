"""Rooms: memory for large values that come from other nodes, used again while it is warm.

Memory that a process has not touched yet is dear: each page is a fault, and on a virtual machine
often one of the host's too, so that a copy into it takes several times as long as into memory that
was used before, and never the same time twice. So a room outlives the value that was read into it.

    room ──▶ a value's buffers are views of it ──▶ the last view is gone ──▶ idle ──▶ the next room
                                                                               └─ KEEP ─▶ unmapped

Guarantees: what somebody views is never written to; what is idle is the system's (MADV_FREE), which
takes it when it is short of memory, and after ``KEEP`` seconds gets it in any case; a process that
dies leaves nothing, as nothing of it has a name.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from handoff_actors.cluster.memory import MAPPED, TooLargeError, check_memory, no_memory

KEEP = 10.0
"""Seconds for which an idle room is kept."""

_GRAIN = 1 << 21  # rooms are multiples of it: of a huge page
_SPARE = 2  # how many times as large as what is wanted an idle room may be
_LOOK = 1.0  # seconds between looks for rooms that have been idle for long

Buffer = Any


class _Room:
    """A mapping of our own.

    Args:
        size: in bytes, at least.

    Attributes:
        since: when it became idle, monotonic seconds.
        view: of the owner of its views, while there are any.
    """

    __slots__ = ("memory", "since", "size", "view")

    def __init__(self, size: int) -> None:
        self.size = -(-size // _GRAIN) * _GRAIN
        self.memory = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.since = 0.0
        self.view: Any = None
        self._advise("MADV_HUGEPAGE")

    def _advise(self, name: str) -> None:
        advice = getattr(mmap, name, None)
        if advice is not None:
            with contextlib.suppress(OSError):
                self.memory.madvise(advice)

    def lend(self, size: int, left: Callable[[_Room], None]) -> memoryview:
        """Its memory; ``left`` is called when the last view of it is gone, on any thread."""
        # Whatever views the memory holds this array, and nothing else does.
        owner = (ctypes.c_char * self.size).from_buffer(self.memory)
        self.view = weakref.ref(owner, lambda _gone: left(self))
        return memoryview(owner).cast("B")[:size]

    def idle(self) -> None:
        """Nobody views it: let the system have its pages when it needs them."""
        self.view = None
        self.since = time.monotonic()
        self._advise("MADV_FREE")


class Rooms:
    """The rooms of one runtime.

    Args:
        call_later: calls something after so many seconds, on a thread that may take its time.
        keep: see ``KEEP``.
    """

    def __init__(
        self, call_later: Callable[[float, Callable[[], None]], Any], keep: float = KEEP
    ) -> None:
        self._call_later = call_later
        self._keep = keep
        self._lock = threading.Lock()
        self._lent: set[_Room] = set()
        self._idle: deque[_Room] = deque()
        self._looking = False
        self._closed = False

    def lend(self, sizes: Sequence[int], node: str) -> list[Buffer]:
        """Memory for the parts of a value, whose content may be anything.

        Args:
            sizes: of the parts in bytes.
            node: where the value is, for errors.

        Raises:
            MemoryError: there is not so much.
        """
        with self._lock:
            found = {k: self._take(size) for k, size in enumerate(sizes) if size >= MAPPED}
            missing = [0 if found.get(k) else size for k, size in enumerate(sizes)]
            try:
                self._make_sure_of(missing, sizes, node)
                parts: list[Any] = [
                    bytearray(size) if k not in found else found[k] or _Room(size)
                    for k, size in enumerate(sizes)
                ]
            except (MemoryError, OSError) as error:  # a mapping that cannot be had is an OSError
                self._idle.extend(room for room in found.values() if room is not None)
                if isinstance(error, TooLargeError):
                    raise
                raise no_memory(sizes, node, error) from error
            self._lent.update(part for part in parts if isinstance(part, _Room))
            if self._lent and not self._looking and not self._closed:
                self._looking = True
                self._call_later(_LOOK, self._look)
        return [
            part.lend(size, self._left) if isinstance(part, _Room) else part
            for part, size in zip(parts, sizes, strict=True)
        ]

    def _make_sure_of(self, missing: Sequence[int], sizes: Sequence[int], node: str) -> None:
        try:
            check_memory(missing, sizes, node)
        except TooLargeError:
            self._idle.clear()
            check_memory(missing, sizes, node)

    def _take(self, size: int) -> _Room | None:
        """The smallest idle room that is large enough, and not much too large."""
        fitting = [room for room in list(self._idle) if size <= room.size <= _SPARE * size]
        if not fitting:
            return None
        found = min(fitting, key=lambda room: room.size)
        self._idle.remove(found)
        return found

    def _left(self, room: _Room) -> None:
        """A room is idle; called by the collector, in the middle of anything: takes no lock."""
        room.idle()
        if not self._closed:
            self._idle.append(room)
        self._lent.discard(room)

    def _look(self) -> None:
        """Unmap what has been idle for long; as long as there are rooms."""
        before = time.monotonic() - self._keep
        old: list[_Room] = []
        with self._lock:
            while self._idle and self._idle[0].since < before:
                old.append(self._idle.popleft())
            self._looking = bool(self._idle or self._lent) and not self._closed
            if self._looking:
                self._call_later(_LOOK, self._look)

    @property
    def idle(self) -> int:
        """Bytes that are kept for what comes next."""
        return sum(room.size for room in list(self._idle))

    def close(self) -> None:
        """Unmap what is idle, and from now on each room when its last view is gone."""
        with self._lock:
            self._closed = True
            self._idle.clear()

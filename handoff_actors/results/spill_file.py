"""Values on disk: one file that has no name, so that the kernel frees it however the process ends.

Guarantees: what is read is what was written, or a ``SpillError`` says that it is not; the room of a
value is used again once nothing refers to it any more. Safe for threads: values are read and
written side by side, and what a finalizer does is put a number on a queue.
"""

from __future__ import annotations

import os
import tempfile
import threading
import zlib
from collections import deque
from collections.abc import Sequence
from pickle import PickleBuffer
from typing import Any, ClassVar

from handoff_actors.cluster.payload import Payload, loads
from handoff_actors.errors import SpillError
from handoff_actors.results.elsewhere import Elsewhere
from handoff_actors.results.extents import Extents

_AT_ONCE = 1 << 26
"""Bytes in one write, at most: the kernel takes no more than 2 GB."""


class SpillFile:
    """See the module.

    Args:
        directory: where; None is the system's for temporary files.

    Attributes:
        fd: its descriptor.

    Raises:
        OSError: no file can be made there.
    """

    def __init__(self, directory: str | None) -> None:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            self.fd = os.dup(file.fileno())
        self._lock = threading.Lock()
        self._extents = Extents()
        self._left: deque[tuple[int, int]] = deque()
        self._length = 0
        self._count = 0

    def used(self) -> tuple[int, int]:
        """How many values are referred to, and their bytes; what is not, is given back."""
        with self._lock:
            self._tidy()
            return self._count, self._extents.used

    def write(self, payload: Payload, what: str) -> Spilled:
        """Put a value into the file.

        Args:
            payload: the value.
            what: how errors call it.

        Raises:
            OSError: the disk is full, or broken; nothing of it is left in the file.
        """
        parts = [memoryview(payload.head), *(PickleBuffer(b).raw() for b in payload.buffers)]
        lengths = [part.nbytes for part in parts]
        total = sum(lengths)
        with self._lock:
            self._tidy()
            start = self._extents.take(total)
            self._count += 1
            self._length = max(self._length, start + total)
        at, check = start, 0
        try:
            for part in parts:
                check = zlib.crc32(part, check)
                while part.nbytes:
                    count = os.pwrite(self.fd, part[:_AT_ONCE], at)
                    part, at = part[count:], at + count
        except BaseException:
            self._left.append((start, total))
            raise
        return Spilled(self, start, lengths, check, what)

    def read(self, start: int, lengths: Sequence[int], check: int, what: str) -> Payload:
        """What was written there.

        Raises:
            SpillError: it is not what was written.
        """
        parts: list[bytearray] = []
        found = 0
        for length in lengths:
            part = bytearray(length)
            view, at = memoryview(part), start
            try:
                while view.nbytes:
                    count = os.preadv(self.fd, [view[:_AT_ONCE]], at)
                    if not count:
                        raise OSError("it ends too soon")
                    view, at = view[count:], at + count
            except (OSError, ValueError) as error:
                raise SpillError(
                    f"{what}, which was spilled to disk for lack of memory, cannot be read back: "
                    f"{error}"
                ) from error
            found = zlib.crc32(part, found)
            start += length
            parts.append(part)
        if found != check:
            raise SpillError(
                f"{what}, which was spilled to disk for lack of memory, cannot be read back: the "
                "disk does not have what was written"
            )
        return Payload(bytes(parts[0]), parts[1:])

    def leave(self, start: int, size: int) -> None:
        """A value is not referred to any more. For finalizers: takes no lock."""
        self._left.append((start, size))

    def __del__(self) -> None:
        if (fd := getattr(self, "fd", None)) is not None:
            os.close(fd)

    def _tidy(self) -> None:
        while self._left:
            self._extents.give(*self._left.popleft())
            self._count -= 1
        if self._extents.end < self._length:
            self._length = self._extents.end
            os.ftruncate(self.fd, self._length)


class Spilled(Elsewhere):
    """Stands for a value that is in a file; keeps the file, and its room there, until it is gone.

    Attributes:
        nbytes: how large it is, pickled.
    """

    __slots__ = ("_check", "_file", "_lengths", "_lock", "_start", "_what", "nbytes")
    on_disk: ClassVar[bool] = True

    def __init__(
        self, file: SpillFile, start: int, lengths: Sequence[int], check: int, what: str
    ) -> None:
        self._file = file
        self._start = start
        self._lengths = lengths
        self._check = check
        self._what = what
        self._lock = threading.Lock()
        self.nbytes = sum(lengths)

    @property
    def lock(self) -> threading.Lock:
        """Held by who reads it, so that many who want it at once read it once."""
        return self._lock

    def payload(self) -> Payload:
        """The value, pickled.

        Raises:
            SpillError: it cannot be read.
        """
        return self._file.read(self._start, self._lengths, self._check, self._what)

    def load(self) -> Any:
        """The value.

        Raises:
            SpillError: it cannot be read.
            SerializationError: it cannot be made of what was written.
        """
        return loads(self.payload(), self._what)

    def __del__(self) -> None:
        self._file.leave(self._start, self.nbytes)

    def __repr__(self) -> str:
        return f"<Spilled: {self.nbytes} bytes>"

"""Frames over stream sockets, and how values travel in them.

A frame is a head, which is one pickle of plain things, and buffers that follow it as they are.
``Slots`` puts values that are more than plain beside the head: each is pickled alone, so that one
which cannot be read spoils nothing but itself, and large buffers are never copied into the head.

Guarantees that a frame is given out whole or not at all, that reading never takes more than it was
given, and that a reader on a socket that does not block keeps its place between calls.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from handoff_actors.cluster.payload import Payload

PLAIN = frozenset({int, float, bool, complex, str, type(None)})
"""Exact types that go into the head of a frame as they are: reading them cannot fail."""

Slot = Any
"""Where a value is: its pickle itself, or (first buffer of the frame, number of its buffers)."""

_HEADER = struct.Struct("<QI")  # bytes of the head, number of buffers
_SMALL = 1 << 16
_LARGEST = 1 << 62  # bytes of a frame from a process of our own
_MOST_PARTS = 512  # that one system call takes; the system's limit is 1024
_INLINE = 1 << 13  # a pickle up to this size lies in the head

_encode = pickle.dumps
_decode = pickle.loads


class Slots:
    """The values of one frame that are more than plain.

    Attributes:
        slots: where each is; part of the head.
        buffers: what follows the head.
    """

    __slots__ = ("buffers", "slots")

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.buffers: list[Any] = []

    def clear(self) -> None:
        """Begin anew."""
        self.slots.clear()
        self.buffers.clear()

    def add(self, payload: Payload) -> int:
        """Put a value into the frame; the number of its slot."""
        head, buffers = payload.head, payload.buffers
        if not buffers and len(head) <= _INLINE:
            self.slots.append(head)
        else:
            self.slots.append((len(self.buffers), len(buffers)))
            self.buffers.append(head)
            self.buffers.extend(buffers)
        return len(self.slots) - 1


def payload_of(slot: Slot, buffers: Sequence[Any]) -> Payload:
    """The value in a slot of a frame that came with ``buffers``."""
    if slot.__class__ is bytes:
        return Payload(slot)
    first, count = slot
    return Payload(buffers[first], buffers[first + 1 : first + 1 + count])


def frame(message: Any, buffers: Sequence[Any] = ()) -> list[Any]:
    """The parts of a frame, to be sent in order.

    Args:
        message: plain things, the head.
        buffers: what follows it.
    """
    head = _encode(message, 5)
    if not buffers and len(head) <= _SMALL:
        return [_HEADER.pack(len(head), 0) + head]
    views = [_flat(buffer) for buffer in buffers]
    lengths = struct.pack(f"<{len(views)}Q", *map(len, views))
    parts: list[Any] = [_HEADER.pack(len(head), len(views)) + lengths, head]
    parts += [view for view in views if len(view)]
    return parts


class Sends(Protocol):
    """What parts are sent to: a socket, or something like it."""

    def sendmsg(self, parts: Any, /) -> int:
        """Send something of the parts; how many bytes."""


def push(sock: Sends, parts: list[Any]) -> bool:
    """Send what of ``parts`` the socket takes, and remove it; whether that is all.

    Raises:
        OSError: the other side is gone.
    """
    first = 0
    try:
        while first < len(parts):
            sent = sock.sendmsg(parts[first : first + _MOST_PARTS])
            while first < len(parts) and sent >= len(parts[first]):
                sent -= len(parts[first])
                first += 1
            if sent:
                parts[first] = memoryview(parts[first])[sent:]
    except BlockingIOError:
        del parts[:first]
        return False
    parts.clear()
    return True


def send_frame(
    sock: Sends,
    message: Any,
    buffers: Sequence[Any] = (),
    blocked: Callable[[], None] | None = None,
) -> None:
    """Send a frame.

    Args:
        sock: a stream socket.
        message: plain things, the head.
        buffers: what follows it.
        blocked: called when a socket that does not block has no room; returns when it may have.

    Raises:
        OSError: the other side is gone.
    """
    parts = frame(message, buffers)
    while not push(sock, parts):
        if blocked is None:
            raise BlockingIOError
        blocked()


def _flat(buffer: Any) -> memoryview:
    """The bytes of a buffer, whatever its shape and order."""
    return buffer.raw() if isinstance(buffer, pickle.PickleBuffer) else memoryview(buffer).cast("B")


class Receives(Protocol):
    """What frames are read from: a socket, or something like it."""

    def recv_into(self, view: memoryview, /) -> int:
        """Read something; 0 at the end."""

    def recvmsg_into(self, views: Sequence[memoryview], /) -> tuple[int, Any, Any, Any]:
        """Read something into several places."""


class FrameReader:
    """Reads frames from a stream socket, which may block or not.

    Args:
        sock: where from; nobody else reads it.
        limit: bytes that a frame may have.
    """

    __slots__ = ("_buffer", "_end", "_limit", "_parts", "_sock", "_start", "_targets", "_view")

    def __init__(self, sock: Receives, limit: int = _LARGEST) -> None:
        self._sock = sock
        self._limit = limit
        self._buffer = bytearray(_SMALL)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._targets: list[bytearray] | None = None  # of a frame that is being read
        self._parts: list[memoryview] = []  # what of them is still to be filled, last first

    def read(self) -> tuple[Any, list[bytearray]] | None:
        """The next frame: its message and its buffers.

        Returns:
            None when the socket does not block and no whole frame is there yet.

        Raises:
            EOFError: the other side closed.
            OSError: the connection broke.
        """
        while True:
            if self._targets is None and self._start < self._end:
                frame = self._next()
                if frame is not None:
                    return frame
            if self._targets is not None and not self._parts:
                targets, self._targets = self._targets, None
                return _decode(targets[0]), targets[1:]
            try:
                self._fill()
            except BlockingIOError:
                return None

    def buffered(self) -> tuple[Any, list[bytearray]] | None:
        """A frame that is here already; asks the system for nothing."""
        return self._next() if self._targets is None else None

    def _next(self) -> tuple[Any, list[bytearray]] | None:
        """A small frame that is there whole; of any other, prepare to read the rest."""
        start, end = self._start, self._end
        there = end - start
        if there < _HEADER.size:
            return None
        head_size, count = _HEADER.unpack_from(self._buffer, start)
        body = _HEADER.size + 8 * count
        if not count and there >= body + head_size:
            self._start = start + body + head_size
            return _decode(self._view[start + body : self._start]), []
        if body > self._limit:
            raise ConnectionError(f"a frame of {count} buffers")
        if there < body:
            self._make_room(body)
            return None
        sizes = struct.unpack_from(f"<{count}Q", self._buffer, start + _HEADER.size)
        if head_size + sum(sizes) > self._limit:
            raise ConnectionError(f"a frame of {head_size + sum(sizes)} bytes")
        start += body
        self._targets = [bytearray(size) for size in (head_size, *sizes)]
        self._parts = [memoryview(target) for target in reversed(self._targets) if target]
        while self._parts and start < end:
            part = self._parts.pop()
            taken = min(len(part), end - start)
            part[:taken] = self._view[start : start + taken]
            start += taken
            if taken < len(part):
                self._parts.append(part[taken:])
        self._start = start
        return None

    def _make_room(self, size: int) -> None:
        if size > len(self._buffer):
            larger = bytearray(size)
            there = self._end - self._start
            larger[:there] = self._view[self._start : self._end]
            self._buffer, self._view = larger, memoryview(larger)
            self._start, self._end = 0, there

    def _fill(self) -> None:
        parts = self._parts
        if parts:
            got = self._sock.recvmsg_into(parts[: -_MOST_PARTS - 1 : -1])[0]
            if not got:
                raise EOFError
            while parts and got >= len(parts[-1]):
                got -= len(parts.pop())
            if got:
                parts[-1] = parts[-1][got:]
            return
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._buffer):
            there = self._end - self._start
            self._buffer[:there] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, there
        got = self._sock.recv_into(self._view[self._end :])
        if not got:
            raise EOFError
        self._end += got

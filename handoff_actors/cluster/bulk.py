"""Large values from node to node, beside the link, so that nothing on it waits for them.

    give   at the node that has it: small ones go into the answer; a large one is pinned under a
           token, and the answer says how large its parts are and where in memory
    take   at the node that wants it, by the first way that works:
           1. process_vm_readv: one copy by the kernel, between processes of one machine
           2. a connection of its own, over the local socket or over TCP: no copy but the kernel's
           3. pieces over the link, where no connection can be made in that direction

Guarantees: what is pinned is let go when it was taken, when the taker gives up, and when either
process dies; memory is asked for only if the machine has it left (see ``memory``); what was read
from another process's memory was read while its link was up, from the process that made the link.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from handoff_actors.cluster.payload import Payload
from handoff_actors.cluster.stream import Stream
from handoff_actors.errors import NodeUnreachableError, ValueNotFoundError
from handoff_actors.events import log

if TYPE_CHECKING:
    from handoff_actors.cluster.link import Link

SMALL = 1 << 16
"""Bytes up to which a value goes into the answer itself."""
SERVICE = "handoff.bulk"

_PIECE = 1 << 26  # bytes that are copied between two looks at the clock
_OVER_LINK = 1 << 20  # bytes of a piece that goes over the link
_TRIES = 3  # to read the other process's memory
_IDLE = 2  # connections kept for the next value, each way
_REQUEST = struct.Struct("<Q")  # the token
_REPLY = struct.Struct("<B")

Buffer = Any


@dataclass(frozen=True, slots=True)
class Offer:
    """Where a large value is.

    Attributes:
        token: under which it is pinned.
        sizes: of its parts in bytes, its pickle first.
        addresses: of them in the memory of the node's process.
    """

    token: int
    sizes: tuple[int, ...]
    addresses: tuple[int, ...]


class Bulk:
    """Large values of one link, both ways.

    Args:
        link: the link.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._tokens = itertools.count(1)
        self._pinned: dict[int, Sequence[Buffer]] = {}
        self._lock = threading.Lock()
        self._idle: list[Stream] = []
        self._busy: set[Stream] = set()
        self._closed = False
        self._unreadable = 0  # how often in a row the other process's memory was not readable

    # The node that has it.

    def give(self, payload: Payload) -> Payload | Offer:
        """What to answer: the value, or where it is."""
        if payload.nbytes <= SMALL:
            return payload
        parts = [memoryview(payload.head), *(_flat(b) for b in payload.buffers)]
        token = next(self._tokens)
        with self._lock:
            if not self._closed:
                self._pinned[token] = parts
        if self._link.same_machine:
            _allow(self._link.pid)
            addresses = tuple(map(_address, parts))
        else:
            addresses = ()
        return Offer(token, tuple(p.nbytes for p in parts), addresses)

    def free(self, token: int) -> None:
        """It was taken, or nobody wants it any more."""
        with self._lock:
            self._pinned.pop(token, None)

    def pinned(self, token: int) -> Sequence[memoryview]:
        """The parts of a value.

        Raises:
            ValueNotFoundError: it was freed.
        """
        with self._lock:
            parts = self._pinned.get(token)
        if parts is None:
            raise ValueNotFoundError(
                f"value {token} is not pinned any more", dag_id=None, value_id=token
            )
        return parts

    def serve(self, stream: Stream) -> None:
        """Give values over a connection until it ends; on the thread that accepted it."""
        try:
            while self._begin(stream):
                stream.set_deadline(None)
                (token,) = _REQUEST.unpack(stream.read_exactly(_REQUEST.size))
                try:
                    parts = self.pinned(token)
                except ValueNotFoundError:
                    stream.send_all(_REPLY.pack(0))
                    continue
                stream.send_all(_REPLY.pack(1))
                for part in parts:
                    stream.set_deadline(30.0 + part.nbytes / 1e6)
                    stream.send_all(part)
                del parts
        except (OSError, EOFError):
            return
        finally:
            self._ended(stream)
            stream.shutdown()
            stream.close()

    def _begin(self, stream: Stream) -> bool:
        """A connection is in use; False if the link is gone, with which it ends."""
        with self._lock:
            if not self._closed:
                self._busy.add(stream)
            return not self._closed

    def _ended(self, stream: Stream) -> None:
        with self._lock:
            self._busy.discard(stream)

    def piece(self, token: int, part: int, start: int) -> bytes:
        """Some bytes of a value, for who cannot connect to this node."""
        return bytes(self.pinned(token)[part][start : start + _OVER_LINK])

    # The node that wants it.

    def take(self, found: Payload | Offer, deadline: float) -> Payload:
        """The value that was found; ``deadline`` is in monotonic seconds.

        Raises:
            NodeDownError, NodeUnreachableError, MemoryError: see ``Peer.fetch``.
        """
        if isinstance(found, Payload):
            return found
        try:
            parts = self._link.mesh.rooms.lend(found.sizes, self._link.name)
            self._fill(found, parts, deadline)
        finally:
            self._link.free(found.token)
        if self._link.state == "down":
            raise self._link.down_error()
        return Payload(bytes(parts[0]), parts[1:])

    def _fill(self, found: Offer, parts: list[Buffer], deadline: float) -> None:
        link = self._link
        if found.addresses and self._unreadable < _TRIES:
            if self._read_memory(found, parts, deadline):
                self._unreadable = 0
                # If it is alive now, the value was pinned while it was read.
                if not link.ping(max(0.001, deadline - time.monotonic())):
                    raise link.down_error() if link.state == "down" else _late(found, link)
                return
            self._unreadable += 1
        stream = self._stream(deadline)
        if stream is None:
            self._over_link(found, parts, deadline)
            return
        try:
            if not self._begin(stream):
                raise EOFError("the link is gone")
            stream.set_deadline(deadline - time.monotonic())
            stream.send_all(_REQUEST.pack(found.token))
            (there,) = _REPLY.unpack(stream.read_exactly(_REPLY.size))
            if there:
                for part in parts:
                    stream.read_into(memoryview(part))
        except (OSError, EOFError) as error:
            self._ended(stream)
            stream.close()
            if link.state == "down":
                raise link.down_error() from error
            raise _late(found, link) from error
        self._ended(stream)
        with self._lock:
            if not self._closed and len(self._idle) < _IDLE:
                self._idle.append(stream)
                stream = None
        if stream is not None:
            stream.close()
        if not there:
            raise ValueNotFoundError(
                f"node {link.name!r} has let go of the value", dag_id=None, value_id=found.token
            )

    def _stream(self, deadline: float) -> Stream | None:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._link.mesh.joining.dial_transfer(self._link, deadline - time.monotonic())

    def _over_link(self, found: Offer, parts: list[Buffer], deadline: float) -> None:
        for number, part in enumerate(parts):
            view = memoryview(part)
            for start in range(0, len(view), _OVER_LINK):
                request = (found.token, number, start)
                data = self._link.call(SERVICE, request, max(0.001, deadline - time.monotonic()))
                view[start : start + len(data)] = data

    def _read_memory(self, found: Offer, parts: list[Buffer], deadline: float) -> bool:
        """Read the other process's memory; False if this system does not let us."""
        link = self._link
        try:
            for address, part in zip(found.addresses, parts, strict=True):
                size = len(memoryview(part))
                mine = _address(memoryview(part))
                done = 0
                while done < size:
                    done += _read(link.pid, address + done, mine + done, min(_PIECE, size - done))
                    if link.state == "down":
                        raise link.down_error()
                    if time.monotonic() > deadline:
                        raise _late(found, link)
        except OSError as error:
            log.info("memory_not_readable", peer=link.name, error=str(error))
            return False
        return True

    def close(self) -> None:
        """The link is gone."""
        with self._lock:
            self._closed = True
            self._pinned.clear()
            idle, self._idle = self._idle, []
            # Whoever reads or writes one of these finds its end, and closes it.
            for stream in self._busy:
                stream.shutdown()
        for stream in idle:
            stream.close()


def _late(found: Offer, link: Link) -> NodeUnreachableError:
    return NodeUnreachableError(
        f"a value of {sum(found.sizes):,} bytes did not come from node {link.name!r} in time",
        node=link.name,
    )


# Other processes' memory.


def _flat(buffer: Any) -> memoryview:
    raw = getattr(buffer, "raw", None)
    return raw() if raw is not None else memoryview(buffer).cast("B")


class _Py_buffer(ctypes.Structure):  # noqa: N801  as C calls it
    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def _address(view: memoryview) -> int:
    """Where the bytes of a contiguous view are."""
    found = _Py_buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(found), 0)
    address = int(found.buf or 0)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(found))
    return address


class _Part(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


try:
    _libc: Any = ctypes.CDLL(None, use_errno=True)
    _readv: Any = _libc.process_vm_readv
    _readv.restype = ctypes.c_ssize_t
    _readv.argtypes = (
        ctypes.c_int,
        ctypes.POINTER(_Part),
        ctypes.c_ulong,
        ctypes.POINTER(_Part),
        ctypes.c_ulong,
        ctypes.c_ulong,
    )
except (OSError, AttributeError):
    _libc = _readv = None

_PR_SET_PTRACER = 0x59616D61


def _allow(pid: int) -> None:
    """Let that process read our memory, where the system asks for that (Yama)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0)


def _read(pid: int, address: int, to: int, size: int) -> int:
    """Copy from another process's memory; how many bytes.

    Raises:
        OSError: the system does not let us, or there is nothing.
    """
    if _readv is None:
        raise OSError("there is no process_vm_readv here")
    mine, theirs = _Part(to, size), _Part(address, size)
    done = int(_readv(pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0))
    if done <= 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done

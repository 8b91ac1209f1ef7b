"""A connected socket that knows when it last heard something, and until when it may wait.

Guarantees: it may be written by one thread while another one reads it; nothing that is blocking
waits beyond the deadline that was set.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any


class Stream:
    """A connected socket.

    Attributes:
        heard: when something last came, monotonic seconds.
        local: whether the other side is on this machine for sure.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.heard = time.monotonic()
        self.local = sock.family == socket.AF_UNIX
        self._deadline: float | None = None
        self._closing = threading.Lock()

    def set_deadline(self, seconds: float | None) -> None:
        """Let what is read and written blocking raise TimeoutError from then on."""
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self.sock.settimeout(seconds)

    def _limit(self) -> None:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the deadline has passed")
            self.sock.settimeout(left)

    def recv_into(self, view: memoryview) -> int:
        """Read something; 0 at the end."""
        self._limit()
        got = self.sock.recv_into(view)
        self.heard = time.monotonic()
        return got

    def recvmsg_into(self, views: Sequence[memoryview]) -> tuple[int, Any, Any, Any]:
        """Read something into several places."""
        self._limit()
        found = self.sock.recvmsg_into(views)
        self.heard = time.monotonic()
        return found

    def read_exactly(self, size: int) -> bytes:
        """So many bytes.

        Raises:
            EOFError: the stream ends before.
        """
        data = bytearray(size)
        self.read_into(memoryview(data))
        return bytes(data)

    def read_into(self, view: memoryview) -> None:
        """Fill ``view``.

        Raises:
            EOFError: the stream ends before.
        """
        while view:
            got = self.recv_into(view)
            if not got:
                raise EOFError("the connection was closed")
            view = view[got:]

    def sendmsg(self, parts: Sequence[Any]) -> int:
        """Send what can be sent without waiting; how many bytes that was.

        Raises:
            BlockingIOError: none.
        """
        return self.sock.sendmsg(parts, (), socket.MSG_DONTWAIT)

    def flush(self) -> None:
        """Send what ``sendmsg`` took but could not send yet.

        Raises:
            BlockingIOError: not all of it could be sent without waiting.
        """

    def wait_writable(self) -> None:
        """Wait until something can be sent, up to the deadline.

        Raises:
            TimeoutError: it has passed.
        """
        left = None if self._deadline is None else self._deadline - time.monotonic()
        poll = select.poll()
        poll.register(self.sock, select.POLLOUT)
        if (left is not None and left <= 0) or not poll.poll(None if left is None else left * 1e3):
            raise TimeoutError("the deadline has passed")

    def send_all(self, *parts: Any) -> None:
        """Send everything, however long the other side takes, up to the deadline."""
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                try:
                    view = view[self.sendmsg([view]) :]
                except BlockingIOError:
                    self.wait_writable()
        self.flush_all()

    def flush_all(self) -> None:
        """Send what is held back, however long the other side takes, up to the deadline."""
        while True:
            try:
                self.flush()
            except BlockingIOError:
                self.wait_writable()
            else:
                return

    def readable(self) -> bool:
        """Whether something has come that was not read yet."""
        try:
            poll = select.poll()
            poll.register(self.sock, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return False

    def peer_host(self) -> str | None:
        """The other side's host, as the system sees it."""
        try:
            return None if self.local else str(self.sock.getpeername()[0])
        except OSError:
            return None

    def shutdown(self) -> None:
        """Let whoever reads or writes it find its end."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        """Free it; nobody may be reading it any more."""
        with self._closing:
            self.sock.close()

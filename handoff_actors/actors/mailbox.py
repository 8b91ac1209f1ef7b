"""The mailbox: a queue that can be closed, and that outlives the actors that read it.

Two lanes: exits and other system messages overtake; everything else is first in, first out, so that
a ``Down`` never overtakes a result sent before it. A mailbox has at most one *host* (an incarnation
of an actor) and at most one thread draining it. While it has no host, messages wait for the next
one. ``close`` and ``put`` are decided under one lock: a message is either handled, or handed back
by ``close`` to be answered, or refused with ``MailboxClosedError``; none is lost in between.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Final, Protocol

from handoff_actors.errors import HandoffError


class MailboxClosedError(HandoffError):
    """The mailbox takes no more messages; ``reason`` is why its actor is gone for good."""

    reason: Any


class MailboxTakenError(HandoffError):
    """Another incarnation reads the mailbox already."""


class Host(Protocol):
    """What a mailbox needs of the incarnation that reads it."""

    message: Any
    """The message in hand: set by ``next`` before anybody could take the mailbox away."""

    def schedule(self, follow: bool = False) -> None:
        """Have some thread call ``drain``: this one after its current job, if ``follow``."""

    def drain(self) -> None:
        """Handle messages until ``Mailbox.next`` says there are none."""


class _Marker:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


IDLE: Final = _Marker("IDLE")
"""No message is left: the thread that drains must let go."""
SIGNAL: Final = _Marker("SIGNAL")
"""Somebody signalled since the last time."""


class Mailbox:
    """See the module. All methods may be called from any thread."""

    __slots__ = (
        "_active",
        "_closed",
        "_host",
        "_lock",
        "_queue",
        "_reason",
        "_signalled",
        "_urgent",
    )

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Most mailboxes of runs never get a message; a deque takes more than all the rest.
        self._queue: deque[Any] | None = None
        self._urgent: deque[Any] | None = None
        self._host: Host | None = None
        self._active = False
        self._signalled = False
        self._closed = False
        self._reason: Any = None

    def put(self, message: Any, follow: bool = False) -> None:
        """Queue ``message``; with ``follow`` this thread handles it after its current job.

        Raises:
            MailboxClosedError: the actor is gone for good.
        """
        host = self._append(message)
        if host is not None:
            host.schedule(follow)

    def put_here(self, message: Any) -> None:
        """Queue ``message``; the calling thread drains, if nobody else does.

        Raises:
            MailboxClosedError: the actor is gone for good.
        """
        host = self._append(message)
        if host is not None:
            host.drain()

    def _append(self, message: Any) -> Host | None:
        """Queue ``message``; the host, if it must be told that there is something to read."""
        with self._lock:
            if self._closed:
                raise MailboxClosedError("the mailbox is closed", reason=self._reason)
            if self._queue is None:
                self._queue = deque()
            self._queue.append(message)
            if self._active or self._host is None:
                return None
            self._active = True
            return self._host

    def put_urgent(self, message: Any, host: Host | None = None) -> bool:
        """Queue a system message ahead of all others, if ``host`` (any, when None) reads here."""
        with self._lock:
            current = self._host
            if current is None or (host is not None and host is not current):
                return False
            if self._urgent is None:
                self._urgent = deque()
            self._urgent.append(message)
            if self._active:
                return True
            self._active = True
        current.schedule()
        return True

    def put_back(self, message: Any) -> bool:
        """Queue ``message`` before all others, for the next incarnation; False when closed."""
        with self._lock:
            if self._closed:
                return False
            if self._queue is None:
                self._queue = deque()
            self._queue.appendleft(message)
            if self._active or self._host is None:
                return True
            self._active = True
            host = self._host
        host.schedule()
        return True

    def signal(self) -> None:
        """Say that there is something to see; the calling thread drains, if nobody else does."""
        with self._lock:
            self._signalled = True
            if self._active or self._host is None:
                return
            self._active = True
            host = self._host
        host.drain()

    def signal_elsewhere(self, follow: bool = False) -> None:
        """As ``signal``, but another thread drains; with ``follow`` this one after its job."""
        with self._lock:
            self._signalled = True
            if self._active or self._host is None:
                return
            self._active = True
            host = self._host
        host.schedule(follow)

    def next(self, host: Host) -> Any:
        """The next message for ``host``, ``SIGNAL``, or ``IDLE``: then the caller must stop."""
        with self._lock:
            if self._host is not host:
                return IDLE
            if self._urgent:
                return self._urgent.popleft()
            if self._signalled:
                self._signalled = False
                return SIGNAL
            if self._queue:
                message = host.message = self._queue.popleft()
                return message
            self._active = False
            return IDLE

    def attach(self, host: Host) -> None:
        """Make ``host`` the reader; nothing is scheduled for it before ``begin``.

        Raises:
            MailboxClosedError: the actor is gone for good.
            MailboxTakenError: another incarnation reads.
        """
        with self._lock:
            if self._closed:
                raise MailboxClosedError("the mailbox is closed", reason=self._reason)
            if self._host is not None:
                raise MailboxTakenError(f"{self._host!r} reads this mailbox already")
            self._host = host
            self._active = True
            self._urgent = None

    def begin(self, host: Host) -> None:
        """Schedule ``host`` for what has waited, if anything has."""
        with self._lock:
            if self._host is not host:
                return
            if not (self._queue or self._urgent or self._signalled):
                self._active = False
                return
        host.schedule()

    def detach(self, host: Host) -> bool:
        """``host`` reads no more; messages wait. False if it was not the reader."""
        with self._lock:
            if self._host is not host:
                return False
            self._host = None
            self._active = False
            return True

    def close(self, reason: Any) -> list[Any]:
        """Refuse messages from now on; returns those that were never handled."""
        with self._lock:
            if self._closed:
                return []
            self._closed = True
            self._reason = reason
            left, self._queue = self._queue, None
            return [] if left is None else list(left)

    @property
    def read(self) -> bool:
        """Whether anybody reads it now."""
        return self._host is not None

    @property
    def closed(self) -> bool:
        """Whether the actor is gone for good."""
        return self._closed

    def __len__(self) -> int:
        return 0 if self._queue is None else len(self._queue)

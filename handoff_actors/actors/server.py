"""Actor: what a writer of an actor fills in (OTP's GenServer).

    init       once per incarnation, before the starter is told that it is up
    handle     one message at a time; what it returns answers a call
    signalled  something that is watched has changed (see ``Ref.signal``)
    terminate  the last word of an incarnation; not when it was killed

All four run on a carrier thread, never two at once, and must not block for long; user code has no
place in them. What raises in ``handle`` kills the incarnation, except a ``HandoffError`` raised
while answering a call, which is the answer.

State that must survive belongs into a ``Table``. A handler first computes and then calls ``commit``
once, at its end: then a crash is either before it, and the next incarnation handles the message
again, or after it, and the caller is answered from what the commit recorded.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from handoff_actors.actors.calls import Ref, Reply
from handoff_actors.actors.reasons import Exit, Reason

if TYPE_CHECKING:
    from handoff_actors.actors.pykka_runtime import Incarnation
    from handoff_actors.actors.system import ActorSystem
    from handoff_actors.actors.table import AnyTable, Handle


class _Deferred:
    __slots__ = ()

    def __repr__(self) -> str:
        return "DEFERRED"


DEFERRED: Final = _Deferred()
"""Returned by ``handle``: the answer comes later, through ``asker``."""


class IgnoreStart(Exception):  # noqa: N818  it is no error: OTP's ``ignore``
    """Raised by ``init``: there is nothing to do, do not count this as a failure."""


class Crash:
    """A message whose handling takes ``seconds`` and raises ``error``: how fault tests reach in."""

    __slots__ = ("error", "seconds")

    def __init__(self, error: BaseException | None, seconds: float = 0.0) -> None:
        self.error = error
        self.seconds = seconds

    def act(self) -> None:
        """Do it, on the actor's thread."""
        if self.seconds:
            time.sleep(self.seconds)
        if self.error is not None:
            raise self.error


class Actor:
    """The base of all actors. Arguments are for ``__init__``; no work is done there."""

    ref: Ref
    """This actor's address; set before ``init``."""
    system: ActorSystem
    """Where it lives; set before ``init``."""

    _incarnation: Incarnation
    _table: Handle[Any, Any] | None = None

    def init(self) -> None:
        """Begin a life. Raise ``IgnoreStart`` for "not needed", anything else to fail."""

    def handle(self, message: Any) -> Any:
        """Handle one message; the returned value answers a call."""
        raise TypeError(f"{type(self).__name__} knows no message {message!r}")

    def signalled(self) -> None:
        """Look at what has changed."""

    def terminate(self, reason: Reason) -> None:
        """Say the last word."""

    def take(self, table: AnyTable) -> Mapping[Any, Any]:
        """Own ``table`` from now on; returns its read-only view. To be called in ``init``."""
        self._table = table.take(self._incarnation.number)
        return self._table.view

    def commit(
        self,
        changes: Mapping[Any, Any] | None = None,
        deletions: Iterable[Any] = (),
        reply: Any = None,
    ) -> Any:
        """Apply the effect of the message to the table, and record its answer with it.

        Returns:
            ``reply``, to be returned by the handler.
        """
        assert self._table is not None, "take() a table in init() first"
        self._table.commit(changes, deletions)
        self._incarnation.committed(reply)
        return reply

    def asker(self) -> Reply | None:
        """Where the answer to the present call goes; None while handling a cast."""
        return self._incarnation.asker()

    def stop(self, reason: Reason = Exit.NORMAL) -> None:
        """End after the present handler."""
        self._incarnation.stop_after(reason)

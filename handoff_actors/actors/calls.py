"""References to actors, and how to send: ``cast`` and forget, or ``call`` and wait for an answer.

A call is a message that carries a ``Reply``, a future that is answered exactly once: by the
handler, by whoever the handler passed it to, or with an error when the actor is gone. The message
of an actor that dies while handling it is handled once more by the next incarnation, unless its
effect was committed already; if that one dies too, the caller gets ``ActorCrashedError``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from handoff_actors.actors.latches import passed
from handoff_actors.actors.mailbox import Mailbox, MailboxClosedError
from handoff_actors.actors.reasons import Exit, Reason, reason_text
from handoff_actors.errors import ActorCrashedError, ActorTimeoutError, HandoffError, describe
from handoff_actors.events import log

if TYPE_CHECKING:
    from handoff_actors.actors.pykka_runtime import Incarnation

DEFAULT_TIMEOUT: Final = 5.0
"""Seconds a call waits, as OTP's does."""


class Reply:
    """A future for one answer, made for one waiter; lighter than the standard library's."""

    __slots__ = ("_latch", "_open", "_value", "error")

    def __init__(self) -> None:
        self._open = [True]
        self._latch = threading.Lock()
        self._latch.acquire()
        self._value: Any = None
        self.error: BaseException | None = None

    def set(self, value: Any) -> bool:
        """Answer; False if it was answered before (then nothing changes)."""
        try:
            self._open.pop()
        except IndexError:
            return False
        self._value = value
        self._latch.release()
        return True

    def fail(self, error: BaseException) -> bool:
        """Answer with an error; False if it was answered before."""
        try:
            self._open.pop()
        except IndexError:
            return False
        self.error = error
        self._latch.release()
        return True

    def lose(self) -> None:
        """Let no answer arrive any more, whoever gives one: what fault tests do."""
        self._open.clear()

    def wait(self, timeout: float | None) -> bool:
        """Wait up to ``timeout`` seconds; whether the answer is there."""
        if not passed(self._latch, timeout):
            return False
        self._latch.release()
        return True

    def result(self) -> Any:
        """The answer, once ``wait`` said it is there; raises the error if it is one."""
        if self.error is not None:
            raise self.error
        return self._value


class Call:
    """A request that wants an answer, as it travels in the mailbox."""

    __slots__ = ("deaths", "reply", "request")

    def __init__(self, request: Any, reply: Reply) -> None:
        self.request = request
        self.reply = reply
        self.deaths = 0


class Redelivered:
    """A cast under whose handling one incarnation has died already."""

    __slots__ = ("message",)

    def __init__(self, message: Any) -> None:
        self.message = message


class CurrentActor(threading.local):
    """Which incarnation the calling thread is draining, if any."""

    incarnation: Incarnation | None = None


current = CurrentActor()


class Ref:
    """The address of an actor: it names whichever incarnation is alive, now and later.

    Attributes:
        name: unique in its system, or None.
        mailbox: where its messages wait.
        incarnation: who reads them now; None between two lives and after the last.
        estate: what its incarnations leave to each other, if anything.
    """

    __slots__ = (
        "__weakref__",
        "_final_watchers",
        "_lock",
        "estate",
        "incarnation",
        "label",
        "mailbox",
        "name",
    )

    def __init__(self, name: str | None, label: str) -> None:
        self.name = name
        self.label = name or label
        self.mailbox = Mailbox()
        self.incarnation: Incarnation | None = None
        self.estate: Any = None
        self._lock = threading.Lock()
        self._final_watchers: list[Callable[[Reason], None]] | None = []

    def cast(self, message: Any, *, follow: bool = False) -> None:
        """Send and forget; to an actor that is gone it does nothing.

        A message that has a method ``undelivered(reason)`` is told through it.

        Args:
            message: preferably a frozen dataclass.
            follow: if this thread is carrying an actor, it handles the message itself after
                its present job: for the last thing a handler does, as it spares a thread switch.
        """
        try:
            self.mailbox.put(message, follow)
        except MailboxClosedError as closed:
            dropped(message, closed.reason)

    def call(self, request: Any, timeout: float | None = DEFAULT_TIMEOUT) -> Any:
        """Send ``request`` and wait for the answer.

        Args:
            request: preferably a frozen dataclass.
            timeout: seconds; a late answer is dropped.

        Raises:
            ActorTimeoutError: no answer in time. The request may still be handled.
            ActorCrashedError: the actor died of it twice, or is gone.
            HandoffError: whatever the actor answered with.
        """
        reply = self.send(request)
        if not reply.wait(timeout):
            raise ActorTimeoutError(
                f"{self.label} did not answer {describe(request)} within {timeout} s; it may be "
                "busy, or its machine overloaded",
                name=self.label,
                timeout=timeout,
            )
        return reply.result()

    def send(self, request: Any) -> Reply:
        """Send ``request``; the answer comes into the returned ``Reply``."""
        host = current.incarnation
        if host is not None:
            if host.ref is self:
                raise ActorCrashedError(
                    f"{self.label} called itself and would wait for ever",
                    name=self.label,
                    reason="calling_self",
                )
            host.system.carriers.release_deferred()
        reply = Reply()
        try:
            self.mailbox.put(Call(request, reply))
        except MailboxClosedError as closed:
            reply.fail(gone(self, closed.reason))
        return reply

    def signal(self) -> None:
        """Have the actor's ``signalled`` run, on this thread unless another one is at it."""
        self.mailbox.signal()

    @property
    def alive(self) -> bool:
        """Whether anybody reads the mailbox now."""
        return self.mailbox.read

    @property
    def gone(self) -> bool:
        """Whether no incarnation will ever read it again."""
        return self.mailbox.closed

    def when_gone(self, callback: Callable[[Reason], None]) -> None:
        """Call ``callback(reason)`` once the actor is gone for good; at once if it is already."""
        with self._lock:
            if self._final_watchers is not None:
                self._final_watchers.append(callback)
                return
        callback(Exit.NOPROC)

    def close(self, reason: Reason) -> None:
        """The actor is gone for good: what waits is answered with an error, then watchers learn.

        A cast that has a method ``undelivered(reason)`` is told through it.
        """
        for message in self.mailbox.close(reason):
            if isinstance(message, Call):
                message.reply.fail(gone(self, reason))
                continue
            dropped(message.message if isinstance(message, Redelivered) else message, reason)
        with self._lock:
            watchers, self._final_watchers = self._final_watchers, None
        for callback in watchers or ():
            _walled(callback, reason)

    def __repr__(self) -> str:
        state = "gone" if self.gone else "alive" if self.alive else "down"
        return f"<Ref {self.label} {state}>"


def dropped(cast: Any, reason: Reason) -> None:
    """Nobody will handle this cast any more: tell it, if it wants to know."""
    if (undelivered := getattr(cast, "undelivered", None)) is not None:
        _walled(undelivered, reason)


def _walled(callback: Callable[[Reason], object], reason: Reason) -> None:
    try:
        callback(reason)
    except BaseException as error:  # the others must learn it all the same
        log.error("close_callback_raised", exc_info=error)


def gone(ref: Ref, reason: Reason | None) -> HandoffError:
    """What a caller of an actor that is gone gets.

    An actor that ended because the runtime did may leave a `HandoffError` as its reason, which
    then is the better answer.
    """
    if isinstance(reason, HandoffError):
        return reason
    text = reason_text(reason) if reason is not None else "it has ended"
    error = ActorCrashedError(f"{ref.label} is gone: {text}", name=ref.label, reason=reason)
    if isinstance(reason, BaseException):
        error.__cause__ = reason
    return error

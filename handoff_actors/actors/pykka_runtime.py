"""The one place where Pykka is used: an actor's incarnation, its mailbox, and the one way to die.

Pykka's ``Actor`` asks a runtime for an inbox and for a loop. This runtime gives it a mailbox that
outlives it and a loop that is a *strand*: whichever carrier thread finds messages drains them, one
thread at a time. Pykka's own ``ask`` is not used, as its replies can be lost between a dying
actor's last look at its inbox and its end, and an exception that is no ``Exception`` would stop
every actor of the process; nor is its registry, by which other code in this process could stop the
tree.

``_finish`` is the only way to die of one's own, and ``kill`` the only way to be abandoned: give the
mailbox up, tell those who watch. It happens exactly once, as only the mailbox's present reader can
give it up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pykka

from handoff_actors.actors.calls import Call, Redelivered, Ref, Reply, current, dropped
from handoff_actors.actors.links import Monitors
from handoff_actors.actors.mailbox import IDLE, SIGNAL, Mailbox
from handoff_actors.actors.reasons import Exit, Reason, is_abnormal, reason_text
from handoff_actors.actors.server import DEFERRED, Actor, Crash
from handoff_actors.actors.table import StaleIncarnationError, birth_number
from handoff_actors.errors import ActorCrashedError, HandoffError
from handoff_actors.events import log

if TYPE_CHECKING:
    from handoff_actors.actors.system import ActorSystem


class Stop:
    """The system message that ends an incarnation."""

    __slots__ = ("reason",)

    def __init__(self, reason: Reason) -> None:
        self.reason = reason


class Incarnation(pykka.Actor):
    """One life of an actor.

    Args:
        system: where it lives.
        ref: its address; other incarnations had it before.
        behaviour: the ``Actor`` that handles the messages.
        on_end: called with the reason after the incarnation has ended, before its monitors.
        supervised: somebody may start another incarnation, so messages wait for it.
    """

    def __init__(
        self,
        system: ActorSystem,
        ref: Ref,
        behaviour: Actor,
        *,
        on_end: Callable[[Reason], None] | None = None,
        supervised: bool = False,
    ) -> None:
        self._mailbox = ref.mailbox
        self.number = birth_number()
        # What Pykka's constructor sets; its random URN would be a tenth of what a run costs.
        self.actor_urn = f"urn:handoff:{self.number}"
        self.actor_inbox = self._mailbox  # type: ignore[assignment]  # it is drained, not got from
        self.actor_stopped = threading.Event()
        self._actor_ref = pykka.ActorRef(self)
        self.system = system
        self.ref = ref
        self.behaviour = behaviour
        self.monitors = Monitors()
        self.ended = self.actor_stopped
        self.reason: Reason | None = None
        self._on_end = on_end
        self._supervised = supervised
        self.message: Any = None
        self._killed = False
        self._asker: Reply | None = None
        self._committed = False
        self._recorded: Any = None
        self._stop_reason: Reason | None = None
        behaviour.ref = ref
        behaviour.system = system
        behaviour._incarnation = self  # noqa: SLF001  the two are one thing, split to keep Pykka here

    # Pykka's runtime seams.

    def _create_actor_inbox(self) -> Mailbox:  # type: ignore[override]  # one per address, not per class
        return self._mailbox

    @staticmethod
    def _create_future() -> pykka.Future[Any]:
        return pykka.ThreadingFuture()

    def _start_actor_loop(self) -> None:
        try:
            self._mailbox.attach(self)
        except HandoffError as error:
            self.last_word(error)
            raise
        self.ref.incarnation = self
        self._mailbox.begin(self)

    def on_start(self) -> None:
        """Run the behaviour's ``init``; what it raises goes to the starter."""
        self.behaviour.init()

    def initialise(self) -> None:
        """Run ``init`` on this thread."""
        previous, current.incarnation = current.incarnation, self
        try:
            self.on_start()
        finally:
            current.incarnation = previous
            # What ``init`` committed is not the effect of the first message.
            self._committed, self._recorded = False, None

    def open(self) -> None:
        """Start to read the mailbox, once ``initialise`` has succeeded.

        Raises:
            MailboxClosedError: the actor is gone for good.
            MailboxTakenError: another incarnation reads.
        """
        self._start_actor_loop()

    # The strand.

    def schedule(self, follow: bool = False) -> None:
        """Have a carrier drain the mailbox."""
        if follow:
            self.system.carriers.defer(self.drain, brief=True)
        else:
            self.system.carriers.submit(self.drain)

    def drain(self) -> None:
        """Handle messages until none is left or this incarnation has ended."""
        mailbox = self._mailbox
        behaviour = self.behaviour
        previous, current.incarnation = current.incarnation, self
        try:
            while (message := mailbox.next(self)) is not IDLE:
                if message is SIGNAL:
                    try:
                        behaviour.signalled()
                    except BaseException as error:  # the wall
                        self.on_failure(type(error), error, error.__traceback__)
                    self._committed = False
                else:
                    self.on_receive(message)
                if self._stop_reason is not None:
                    self._finish(self._stop_reason)
        finally:
            current.incarnation = previous

    def on_receive(self, message: Any) -> None:
        """Handle one message, behind the wall."""
        try:
            kind = type(message)
            if kind is Call:
                self._asker = reply = message.reply
                try:
                    answer = self.behaviour.handle(message.request)
                except StaleIncarnationError:
                    raise
                except HandoffError as error:
                    reply.fail(error)
                else:
                    if answer is not DEFERRED:
                        reply.set(answer)
            elif kind is Stop:
                self.stop_after(message.reason)
            elif kind is Crash:
                self.message = None
                message.act()
            elif kind is Redelivered:
                self.behaviour.handle(message.message)
            else:
                self.behaviour.handle(message)
        except BaseException as error:  # the wall: whatever is raised, only we die
            self.on_failure(type(error), error, error.__traceback__)
        finally:
            # Clean before the next message is in hand, so that ``kill`` never sees a mixture.
            self.message = self._asker = self._recorded = None
            self._committed = False

    # Seen by the behaviour.

    def committed(self, reply: Any) -> None:
        """The present message has taken effect; its answer is known."""
        self._committed = True
        self._recorded = reply

    def asker(self) -> Reply | None:
        """The reply of the present call."""
        return self._asker

    def stop_after(self, reason: Reason) -> None:
        """End with ``reason`` once the present handler is done."""
        self._stop_reason = reason

    # The end.

    def on_failure(self, _type: Any, error: BaseException | None, _traceback: Any) -> None:
        """A handler raised: see to the message in hand, then die of it."""
        assert error is not None
        message = self.message
        if self._killed:
            pass  # whoever killed it has seen to the message
        elif isinstance(message, Call):
            if self._committed and self._recorded is not DEFERRED:
                message.reply.set(self._recorded)
            elif self._committed:
                pass  # whoever keeps the reply will answer it
            elif message.deaths or not self._supervised or not self._requeue(message):
                message.deaths += 1
                crashed = ActorCrashedError(
                    f"{self.ref.label} died while it handled the request: {reason_text(error)}",
                    name=self.ref.label,
                    reason=error,
                )
                crashed.__cause__ = error
                message.reply.fail(crashed)
        elif isinstance(message, Redelivered):
            if not self._committed:
                dropped(message.message, error)
        elif message is not None and not self._committed:
            self._mailbox.put_back(Redelivered(message))
        self._stop_reason = error

    def _requeue(self, call: Call) -> bool:
        call.deaths += 1
        return self._mailbox.put_back(call)

    def exit(self, reason: Reason) -> bool:
        """Ask it to end, ahead of all that waits; False if it is not alive."""
        return self._mailbox.put_urgent(Stop(reason), self)

    def kill(self) -> None:
        """Abandon it: whatever it is doing, it reads, commits and answers nothing any more."""
        if not self._mailbox.detach(self):
            return
        self._killed = True
        handle = self.behaviour._table  # noqa: SLF001  the two are one thing
        if handle is not None:
            handle.fence()
        message = self.message
        if isinstance(message, Call):
            if not self._committed:
                message.reply.fail(
                    ActorCrashedError(
                        f"{self.ref.label} was killed while it handled the request",
                        name=self.ref.label,
                        reason=Exit.KILLED,
                    )
                )
            elif self._recorded is not DEFERRED:
                message.reply.set(self._recorded)
        elif message is not None and not self._committed and not isinstance(message, Redelivered):
            self._mailbox.put_back(Redelivered(message))
        self._publish(Exit.KILLED)

    def _finish(self, reason: Reason) -> None:
        if self._killed:
            return
        reason = self.last_word(reason)
        if self._mailbox.detach(self):
            self._publish(reason)

    def last_word(self, reason: Reason) -> Reason:
        """Run ``terminate``, behind the wall.

        Returns:
            ``reason``, or what ``terminate`` raised if that tells more.
        """
        try:
            self.behaviour.terminate(reason)
        except BaseException as error:  # the end goes on whatever it raises
            log.error("terminate_raised", actor=self.ref.label, exc_info=error)
            return reason if is_abnormal(reason) else error
        return reason

    def _publish(self, reason: Reason) -> None:
        self.reason = reason
        ref = self.ref
        ref.incarnation = None
        if isinstance(reason, BaseException):
            log.error("actor_crashed", actor=ref.label, reason=reason_text(reason), exc_info=reason)
        if not self._supervised:
            self.system.names.unregister(ref)
            ref.close(reason)
        if self._on_end is not None:
            try:
                self._on_end(reason)
            except BaseException as error:  # monitors must fire all the same
                log.error("on_end_raised", actor=ref.label, exc_info=error)
        self.ended.set()
        self.monitors.fire(reason)

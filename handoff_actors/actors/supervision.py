"""What both supervisors share: starting a child, its end, and what follows.

When a supervisor crashes it leaves its children alone, and its next incarnation adopts them: their
ends are messages to the supervisor's own ``Ref``, so none is missed in between. When a supervisor
is gone for good, whatever it left is stopped and closed: no child is ever an orphan.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.children import LEGACY, Child, Legacy, bury, close, halt, halt_together
from handoff_actors.actors.reasons import Exit, Reason, is_abnormal, reason_text
from handoff_actors.actors.restart_policy import RestartIntensity, delay, must_restart, next_streak
from handoff_actors.actors.server import Actor, IgnoreStart
from handoff_actors.actors.specs import (
    ChildCounts,
    ChildInfo,
    ChildNotFoundError,
    StartFailedError,
    SupervisorFlags,
)
from handoff_actors.actors.table import StaleIncarnationError, Table
from handoff_actors.errors import ConfigurationError, describe
from handoff_actors.events import log

if TYPE_CHECKING:
    from handoff_actors.actors.pykka_runtime import Incarnation

_tickets = count(1)
_T = TypeVar("_T")

OnRestart = Callable[[str, Reason], object]
OnChildFailed = Callable[[Ref, Reason], object]
OnGiveUp = Callable[[Reason], Reason | None]


class ChildEnded:
    """To the supervisor: the child under ``key`` has ended; its record tells which incarnation."""

    __slots__ = ("key",)

    def __init__(self, key: Hashable) -> None:
        self.key = key


class TryAgain:
    """To the supervisor, by itself: go on with the restart of ``key``."""

    __slots__ = ("failed", "key", "ticket")

    def __init__(self, key: Hashable, ticket: int, failed: bool) -> None:
        self.key = key
        self.ticket = ticket
        self.failed = failed


class SupervisorBase(Actor, abc.ABC):
    """The common part of ``Supervisor`` and ``DynamicSupervisor``; see there for the arguments."""

    in_order = True
    """Whether children are stopped one after another, in reverse start order."""
    first_cause: Reason | None = None
    """After giving up: the oldest of the restarts that were too many."""

    def __init__(
        self,
        flags: SupervisorFlags | None,
        table: Table[Hashable, Any] | None,
        on_restart: OnRestart | None,
        on_child_failed: OnChildFailed | None,
        on_give_up: OnGiveUp | None,
    ) -> None:
        if flags is not None and not isinstance(flags, SupervisorFlags):
            raise ConfigurationError(
                f"{type(self).__name__}: flags must be SupervisorFlags, not {describe(flags)}"
            )
        if table is not None and not isinstance(table, Table):
            raise ConfigurationError(
                f"{type(self).__name__}: table must be a Table or None, not {describe(table)}"
            )
        self.flags = flags or SupervisorFlags()
        self._estate = table
        self._on_restart = on_restart
        self._on_child_failed = on_child_failed
        self._on_give_up = on_give_up
        self._records: Mapping[Hashable, Any] = {}
        self._restarts: list[tuple[float, Reason]] = []

    # What the two differ in.

    def begin_afresh(self) -> None:
        """Start the children of a supervisor that has none alive."""

    @abc.abstractmethod
    def start_group(self, child: Child) -> None:
        """Start ``child`` again, and whoever is started with it."""

    def halt_group(self, child: Child) -> None:
        """Stop whoever is restarted with ``child``."""

    # A supervisor's life.

    def init(self) -> None:
        """Start the children, or adopt those that a crashed incarnation left."""
        table = self._estate or self.ref.estate or Table()
        self._records = self.take(table)
        if self.ref.estate is not table:
            self.ref.estate = table
            self.ref.when_gone(partial(bury, self.system, table, self.in_order))
        legacy: Legacy = self._records.get(LEGACY, Legacy())
        if legacy.adopt:
            self._restarts = list(legacy.restarts)
            self._adopt()
        else:
            self.begin_afresh()
            self.save({LEGACY: Legacy(adopt=True)})

    def _adopt(self) -> None:
        for key, child in self.children():
            living = child.ref.incarnation
            if living is not None:
                if living is not child.incarnation or child.state != "running":
                    self.keep(key, child._replace(state="running", incarnation=living))
            elif child.state == "running":
                self.ref.cast(ChildEnded(key))
            elif child.state == "restarting":
                self._try_again(key, child, failed=False)

    def terminate(self, reason: Reason) -> None:
        """Stop the children, unless this is a crash: then the next incarnation adopts them."""
        if is_abnormal(reason):
            return
        children = [child for _, child in self.children()]
        if self.in_order:
            for child in reversed(children):
                halt(self.system, child)
        else:
            halt_together(self.system, children)
        self.after_halt()

    @abc.abstractmethod
    def after_halt(self) -> None:
        """All children were stopped in order."""

    # Records.

    def children(self) -> list[tuple[Hashable, Child]]:
        """All records, in start order."""
        return [(k, child) for k, child in self._records.items() if child.__class__ is Child]

    def find(self, key: Hashable) -> Child:
        """The record of a child.

        Raises:
            ChildNotFoundError: there is none.
        """
        try:
            child = self._records.get(key)
        except TypeError:
            child = None
        if child is None or child.__class__ is not Child:
            raise ChildNotFoundError(
                f"{self.ref.label} has no child {describe(key)}", name=self.ref.label, child_id=key
            )
        found: Child = child
        return found

    def save(self, changes: Mapping[Hashable, Any], deletions: Sequence[Hashable] = ()) -> None:
        """Change records; an effect by itself, not the answer to the message in hand."""
        assert self._table is not None
        self._table.commit(changes, deletions)

    def keep(self, key: Hashable, child: Child) -> Child:
        """Write one record."""
        self.save({key: child})
        return child

    def which_children(self) -> list[ChildInfo]:
        """What ``WhichChildren`` answers."""
        return [
            ChildInfo(
                id=child.spec.id,
                ref=None if child.state == "stopped" else child.ref,
                state=child.state,
                type=child.spec.type,
                restarts=child.restarts,
            )
            for _, child in self.children()
        ]

    def count_children(self) -> ChildCounts:
        """What ``CountChildren`` answers."""
        children = [child for _, child in self.children()]
        supervisors = sum(child.spec.type == "supervisor" for child in children)
        return ChildCounts(
            specs=len(children),
            active=sum(child.state == "running" for child in children),
            supervisors=supervisors,
            workers=len(children) - supervisors,
        )

    # Starting.

    def launch(self, key: Hashable, child: Child) -> Child | None:
        """Start an incarnation of ``child``, and record it.

        Returns:
            The record; None if the child's ``init`` says that there is nothing to do.

        Raises:
            StartFailedError: its ``start`` or ``init`` failed, or its name is taken.
        """
        spec, ref = child.spec, child.ref
        own = self.ref
        living = ref.incarnation
        if living is not None:
            # Our last incarnation died between its start and its record.
            return self.keep(key, _begun(child, living))
        try:
            if ref.name is not None:
                self.system.names.register(ref)
            behaviour = spec.start()
            if not isinstance(behaviour, Actor):
                raise TypeError(f"start returned {describe(behaviour)}, which is no Actor")
            incarnation = self.system.incarnate(
                ref,
                behaviour,
                on_end=lambda _reason: own.cast(ChildEnded(key), follow=True),
                supervised=True,
                timeout=spec.start_timeout,
            )
        except IgnoreStart:
            return None
        except BaseException as error:
            raise StartFailedError(
                f"{own.label} could not start {ref.label}: {reason_text(error)}",
                name=ref.label,
                child_id=spec.id,
            ) from error
        try:
            return self.keep(key, _begun(child, incarnation))
        except StaleIncarnationError:
            # We were abandoned meanwhile: what nobody has a record of must not live.
            incarnation.kill()
            raise

    # An end, and what follows.

    def ended(self, key: Hashable) -> None:
        """A child has ended: restart it, or let it go."""
        child: Child | None = self._records.get(key)
        if child is None or child.state != "running" or child.incarnation is None:
            return
        reason = child.incarnation.reason
        if reason is None:
            return  # the end of an earlier incarnation, which was seen to
        if must_restart(child.spec.restart, reason):
            self._restart(key, child, reason)
        else:
            self.dismiss(key, child, reason)

    def dismiss(self, key: Hashable, child: Child, reason: Reason) -> None:
        """The child is gone for good."""
        close(self.system, child.ref, reason)
        if child.spec.restart == "temporary" or not self.in_order:
            self.save({}, (key,))
        else:
            self.keep(key, child._replace(state="stopped", ticket=0))
        if is_abnormal(reason):
            self._hook(self._on_child_failed, child.ref, reason)

    def _restart(self, key: Hashable, child: Child, cause: Reason) -> None:
        now = time.monotonic()
        spec = child.spec
        history = child.history
        if spec.counted:
            if self._too_many(now, cause, child.incarnation):
                self.give_up()
                return
        elif spec.max_restarts is not None:
            intensity = RestartIntensity(spec.max_restarts, self.flags.max_seconds, history)
            if intensity.record(now):
                log.error("child_given_up", child=child.ref.label, reason=reason_text(cause))
                self.dismiss(key, child, cause)
                return
            history = intensity.history
        backoff = self.flags.backoff
        streak, wait = 0, 0.0
        if backoff is not None:
            alive_for = now - child.since if child.state == "running" else 0.0
            streak = next_streak(backoff, child.streak, alive_for)
            wait = delay(backoff, streak)
        child = self.keep(
            key, child._replace(state="restarting", history=history, streak=streak, cause=cause)
        )
        self.halt_group(child)
        if wait:
            child = self.keep(key, child._replace(ticket=next(_tickets)))
            again = TryAgain(key, child.ticket, failed=False)
            self.system.timers.send_after(wait, self.ref, again)
        else:
            self.start_group(child)

    def start_again(self, key: Hashable, child: Child) -> bool:
        """Start the next incarnation of a child; False if it failed and is tried once more."""
        try:
            started = self.launch(key, child._replace(restarts=child.restarts + 1))
        except StaleIncarnationError:
            raise
        except StartFailedError as error:
            log.warning("restart_failed", child=child.ref.label, reason=reason_text(error))
            cause = error.__cause__ if error.__cause__ is not None else error
            self._try_again(key, child._replace(cause=cause), failed=True)
            return False
        if started is None:
            self.dismiss(key, child, Exit.NORMAL)
        else:
            self._hook(self._on_restart, child.ref.label, child.cause)
        return True

    def _try_again(self, key: Hashable, child: Child, failed: bool) -> None:
        ticket = next(_tickets)
        self.keep(key, child._replace(state="restarting", ticket=ticket))
        self.ref.cast(TryAgain(key, ticket, failed))

    def try_again(self, message: TryAgain) -> None:
        """Go on with a restart, if it was not overtaken by something else."""
        child: Child | None = self._records.get(message.key)
        if child is None or child.state != "restarting" or child.ticket != message.ticket:
            return
        if message.failed:
            self._restart(message.key, child, child.cause)
        else:
            self.start_group(child)

    def _too_many(self, now: float, cause: Reason, incarnation: Incarnation | None) -> bool:
        # A supervisor that gave up says only "shutdown"; the crash below it is the true cause.
        below = getattr(incarnation and incarnation.behaviour, "first_cause", None)
        intensity = RestartIntensity(
            self.flags.max_restarts, self.flags.max_seconds, [at for at, _ in self._restarts]
        )
        exceeded = intensity.record(now)
        self._restarts.append((now, below or cause))
        self._restarts = self._restarts[-len(intensity.history) :]
        legacy: Legacy = self._records.get(LEGACY, Legacy())
        self.save({LEGACY: legacy._replace(restarts=tuple(self._restarts))})
        return exceeded

    def give_up(self) -> None:
        """Stop all children, then stop as if told to: the parent decides."""
        cause = self.first_cause = self._restarts[0][1]
        log.error(
            "supervisor_gave_up",
            supervisor=self.ref.label,
            restarts=len(self._restarts),
            reason=reason_text(cause),
        )
        final = self._hook(self._on_give_up, cause)
        legacy: Legacy = self._records.get(LEGACY, Legacy())
        self.save({LEGACY: legacy._replace(final=cause if final is None else final)})
        self.stop(Exit.SHUTDOWN)

    @staticmethod
    def _hook(hook: Callable[..., _T] | None, *args: Any) -> _T | None:
        if hook is None:
            return None
        try:
            return hook(*args)
        except BaseException as error:  # a hook must not kill a supervisor
            log.error("supervisor_hook_raised", exc_info=error)
            return None


def _begun(child: Child, incarnation: Incarnation) -> Child:
    return child._replace(
        state="running", incarnation=incarnation, since=time.monotonic(), ticket=0
    )

"""Records of children, and how children are stopped.

The records sit in a ``Table`` that outlives the supervisor. What tells whether a child lives is its
``Ref``; the record says how it was started and what it has been through.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.reasons import Exit, Reason, reason_text
from handoff_actors.actors.restart_policy import is_expected_stop
from handoff_actors.actors.specs import ChildSpec, ChildState
from handoff_actors.actors.table import Table
from handoff_actors.events import log

if TYPE_CHECKING:
    from handoff_actors.actors.pykka_runtime import Incarnation
    from handoff_actors.actors.system import ActorSystem


class Child(NamedTuple):
    """A supervisor's record of one child.

    Attributes:
        spec: how it was started.
        ref: its address over all its incarnations.
        state: as told to others.
        incarnation: the present one, or the last.
        restarts: how often another incarnation took over.
        history: its own restarts lately, of a child that is not counted.
        streak: restarts in a row, for the delay.
        since: when the present incarnation began, monotonic seconds.
        ticket: which ``TryAgain`` is meant for it; any other is stale.
        cause: why it is being restarted.
    """

    spec: ChildSpec
    ref: Ref
    state: ChildState = "running"
    incarnation: Incarnation | None = None
    restarts: int = 0
    history: tuple[float, ...] = ()
    streak: int = 0
    since: float = 0.0
    ticket: int = 0
    cause: Reason = Exit.NORMAL


class Legacy(NamedTuple):
    """What a supervisor leaves to its next incarnation beside its children.

    Attributes:
        adopt: the children are to be adopted; else they were stopped in order.
        restarts: when the restarts in the window were, and why; oldest first.
        final: the reason with which to close what is left, when there is a better one than the
            supervisor's own.
    """

    adopt: bool = False
    restarts: tuple[tuple[float, Reason], ...] = ()
    final: Reason | None = None


class _LegacyKey:
    __slots__ = ()

    def __repr__(self) -> str:
        return "<legacy>"


LEGACY = _LegacyKey()


def halt(system: ActorSystem, child: Child) -> None:
    """Stop the child's living incarnation within its shutdown time, or kill it."""
    incarnation = child.ref.incarnation or child.incarnation
    if incarnation is None or incarnation.ended.is_set():
        return
    shutdown = child.spec.shutdown
    if shutdown != 0 and incarnation.exit(Exit.SHUTDOWN):
        # What this thread has put off may be the very job that lets the child end.
        system.carriers.release_deferred()
        incarnation.ended.wait(shutdown)
    _make_sure(child, incarnation)


def halt_together(system: ActorSystem, children: Iterable[Child]) -> None:
    """Stop many at once; each has its shutdown time, counted from one common beginning."""
    signalled: list[tuple[float, Child, Incarnation]] = []
    for child in children:
        incarnation = child.ref.incarnation
        if incarnation is not None:
            shutdown = child.spec.shutdown
            limit = float("inf") if shutdown is None else shutdown
            if limit:
                incarnation.exit(Exit.SHUTDOWN)
            signalled.append((limit, child, incarnation))
    system.carriers.release_deferred()
    began = time.monotonic()
    for limit, child, incarnation in sorted(signalled, key=lambda entry: entry[0]):
        if limit == float("inf"):
            incarnation.ended.wait()
        else:
            incarnation.ended.wait(max(0.0, began + limit - time.monotonic()))
        _make_sure(child, incarnation)


def _make_sure(child: Child, incarnation: Incarnation) -> None:
    if not incarnation.ended.is_set():
        incarnation.kill()
        # Either we killed it, or it is just publishing its end on its own thread.
        incarnation.ended.wait(1.0)
    reason = incarnation.reason or Exit.KILLED
    if not is_expected_stop(child.spec.restart, child.spec.shutdown, reason):
        log.warning("child_stopped_badly", child=child.ref.label, reason=reason_text(reason))


def close(system: ActorSystem, ref: Ref, reason: Reason) -> None:
    """The child is gone for good: its name is free before anybody is told."""
    system.names.unregister(ref)
    ref.close(reason)


def bury(system: ActorSystem, table: Table[Hashable, Any], in_order: bool, reason: Reason) -> None:
    """The supervisor is gone for good: stop and close what it has left."""
    handle = table.take()
    legacy: Legacy = handle.view.get(LEGACY, Legacy())
    children = [child for child in handle.view.values() if child.__class__ is Child]
    children.reverse()
    if in_order:
        for child in children:
            halt(system, child)
    else:
        halt_together(system, children)
    final = reason if isinstance(reason, BaseException) else legacy.final or reason
    for child in children:
        close(system, child.ref, final)
    handle.commit(deletions=list(handle.view))

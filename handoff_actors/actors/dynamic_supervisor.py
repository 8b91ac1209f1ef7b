"""DynamicSupervisor: any number of children that come and go, each by itself.

Its children are known by their ``Ref``. A start and an end cost the same however many there are;
all are stopped at once. What holds for ``Supervisor`` when it crashes itself holds here too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.children import LEGACY, Child, Legacy, close, halt
from handoff_actors.actors.mailbox import MailboxClosedError
from handoff_actors.actors.reasons import Exit, Reason, reason_text
from handoff_actors.actors.specs import (
    ChildSpec,
    CountChildren,
    MaxChildrenError,
    StartChild,
    StartFailedError,
    SupervisorFlags,
    TerminateChild,
    WhichChildren,
)
from handoff_actors.actors.supervision import (
    ChildEnded,
    OnChildFailed,
    OnGiveUp,
    OnRestart,
    SupervisorBase,
    TryAgain,
)
from handoff_actors.actors.system import ActorSystem
from handoff_actors.actors.table import Table
from handoff_actors.errors import ConfigurationError, HandoffError, describe
from handoff_actors.events import log


def start_soon(
    system: ActorSystem,
    supervisor: Ref,
    spec: ChildSpec,
    ref: Ref | None = None,
    *,
    on_error: Callable[[BaseException], object] | None = None,
    follow: bool = False,
    here: bool = False,
    insist: bool = False,
) -> Ref:
    """Have a dynamic supervisor start a child, and do not wait for it.

    Args:
        system: where both live.
        supervisor: of a ``DynamicSupervisor``.
        spec: the child.
        ref: its address, which nobody reads; None makes one.
        on_error: told why it did not start; called on the supervisor's thread, must not block.
        follow: as in ``Ref.cast``.
        here: have it done on this thread before this returns, unless another one is at it.
        insist: as in ``StartChild``.

    Returns:
        The child's address. What is sent there waits until the child is up; if it cannot be
        started, the address is closed with the ``StartFailedError`` (or ``MaxChildrenError``).
    """
    if ref is None:
        ref = system.new_ref(spec.name, spec.label)
    message = StartChild(spec, ref, on_error, insist)
    try:
        if here:
            supervisor.mailbox.put_here(message)
        else:
            supervisor.mailbox.put(message, follow)
    except MailboxClosedError as closed:
        message.undelivered(closed.reason)
    return ref


class DynamicSupervisor(SupervisorBase):
    """Starts children on demand and restarts each by itself.

    It answers ``StartChild`` (with the child's ``Ref``; ids are not looked at),
    ``TerminateChild(ref)``, ``WhichChildren`` and ``CountChildren`` through ``ref.call``; see
    ``start_soon`` for a start that nobody waits for.

    Args:
        flags: intensity and delay; the strategy is always ``one_for_one``.
        max_children: how many there may be; None: any number.
        table: as for ``Supervisor``.
        on_restart: as for ``Supervisor``.
        on_child_failed: called with ref and reason when a child ended abnormally for good.
        on_give_up: as for ``Supervisor``.

    Raises:
        ConfigurationError: a value cannot be used.
    """

    in_order = False

    def __init__(
        self,
        flags: SupervisorFlags | None = None,
        *,
        max_children: int | None = None,
        table: Table[Hashable, Any] | None = None,
        on_restart: OnRestart | None = None,
        on_child_failed: OnChildFailed | None = None,
        on_give_up: OnGiveUp | None = None,
    ) -> None:
        super().__init__(flags, table, on_restart, on_child_failed, on_give_up)
        if self.flags.strategy != "one_for_one":
            raise ConfigurationError(
                f"DynamicSupervisor: strategy must be one_for_one, not {self.flags.strategy}"
            )
        if max_children is not None and (not isinstance(max_children, int) or max_children < 0):
            raise ConfigurationError(
                f"DynamicSupervisor: max_children must be an int >= 0 or None, "
                f"not {describe(max_children)}"
            )
        self._max_children = float("inf") if max_children is None else max_children

    def handle(self, message: Any) -> Any:
        """See the class."""
        handler = _HANDLERS.get(type(message))
        return super().handle(message) if handler is None else handler(self, message)

    def after_halt(self) -> None:
        """Nothing is kept of children that came and went."""
        legacy: Legacy = self._records.get(LEGACY, Legacy())
        children = self.children()
        for _, child in children:
            close(self.system, child.ref, legacy.final or Exit.SHUTDOWN)
        self.save({LEGACY: Legacy(adopt=False, final=legacy.final)}, [key for key, _ in children])

    def start_group(self, child: Child) -> None:
        """Start ``child`` again."""
        self.start_again(child.ref, child)

    # Requests.

    def _start_child(self, message: StartChild) -> Ref | None:
        try:
            return self._start(message)
        except HandoffError as error:
            if message.ref is not None:
                close(self.system, message.ref, error)
            if message.on_error is not None:
                self._hook(message.on_error, error)
            if self.asker() is not None:
                raise
            log.warning("child_not_started", supervisor=self.ref.label, error=str(error))
            return None

    def _start(self, message: StartChild) -> Ref | None:
        spec = message.spec
        if not isinstance(spec, ChildSpec):
            raise ConfigurationError(f"StartChild: spec must be a ChildSpec, not {describe(spec)}")
        if message.ref is not None and message.ref in self._records:
            return message.ref  # the incarnation before us died after it had started it
        if len(self._records) - (LEGACY in self._records) >= self._max_children:
            raise MaxChildrenError(
                f"{self.ref.label} has {self._max_children} children already, its max_children",
                name=self.ref.label,
                max_children=self._max_children,
            )
        ref = message.ref or self.system.new_ref(spec.name, spec.label)
        # If we die of this, the next incarnation goes on with the same child.
        object.__setattr__(message, "ref", ref)
        try:
            started = self.launch(ref, Child(spec, ref))
        except StartFailedError as error:
            if message.insist:
                log.warning("start_failed", child=ref.label, reason=reason_text(error))
                cause = error.__cause__ if error.__cause__ is not None else error
                self._try_again(ref, Child(spec, ref, cause=cause), failed=True)
                return ref
            close(self.system, ref, error)
            raise
        if started is not None:
            return ref
        close(self.system, ref, Exit.NORMAL)
        return None

    def _terminate_child(self, message: TerminateChild) -> None:
        child = self.find(message.id)
        halt(self.system, child)
        self._forget(child, Exit.SHUTDOWN)

    def _forget(self, child: Child, reason: Reason) -> None:
        close(self.system, child.ref, reason)
        self.save({}, (child.ref,))


_HANDLERS: Final[dict[type, Callable[[DynamicSupervisor, Any], Any]]] = {
    ChildEnded: lambda self, message: self.ended(message.key),
    StartChild: DynamicSupervisor._start_child,  # noqa: SLF001  this module's own
    TryAgain: SupervisorBase.try_again,
    TerminateChild: DynamicSupervisor._terminate_child,  # noqa: SLF001
    WhichChildren: lambda self, _: self.which_children(),
    CountChildren: lambda self, _: self.count_children(),
}

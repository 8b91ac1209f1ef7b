"""Supervisor: a few known children in a fixed order, restarted by OTP's rules.

It guarantees: children start in order, each once the one before is ready, and stop in reverse; a
child keeps its ``Ref`` and mailbox over all restarts; the supervisor's own crash costs no child
(its next incarnation adopts them), and once it is gone for good none of them is left.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.children import LEGACY, Child, Legacy, close, halt
from handoff_actors.actors.reasons import Exit
from handoff_actors.actors.restart_policy import affected
from handoff_actors.actors.specs import (
    ChildAlreadyPresentError,
    ChildAlreadyStartedError,
    ChildRestartingError,
    ChildRunningError,
    ChildSpec,
    CountChildren,
    DeleteChild,
    RestartChild,
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
from handoff_actors.actors.table import Table
from handoff_actors.errors import ConfigurationError, describe


class Supervisor(SupervisorBase):
    """Starts, restarts and stops its children.

    It answers ``StartChild``, ``TerminateChild``, ``RestartChild``, ``DeleteChild``,
    ``WhichChildren`` and ``CountChildren`` through ``ref.call``.

    Args:
        children: started in this order.
        flags: strategy, intensity, delay.
        table: where the records of the children are kept over this supervisor's own crashes; None
            keeps them with its ``Ref``, which is enough unless others want to look at them.
        on_restart: called with the child's label and the reason after each restart.
        on_child_failed: called with ref and reason when a child ended abnormally for good.
        on_give_up: called with the first cause before the children are stopped; what it returns,
            if not None, is the reason their ``Ref``s are closed with instead.

    Raises:
        ConfigurationError: two children have one id, or something is of the wrong type.
    """

    def __init__(
        self,
        children: Sequence[ChildSpec] = (),
        flags: SupervisorFlags | None = None,
        *,
        table: Table[Hashable, Any] | None = None,
        on_restart: OnRestart | None = None,
        on_child_failed: OnChildFailed | None = None,
        on_give_up: OnGiveUp | None = None,
    ) -> None:
        super().__init__(flags, table, on_restart, on_child_failed, on_give_up)
        self._specs = tuple(children)
        seen: set[Hashable] = set()
        for spec in self._specs:
            if not isinstance(spec, ChildSpec):
                raise ConfigurationError(
                    f"Supervisor: children must be ChildSpecs, not {describe(spec)}"
                )
            if spec.id in seen:
                raise ConfigurationError(f"Supervisor: two children have the id {spec.id!r}")
            seen.add(spec.id)

    def handle(self, message: Any) -> Any:
        """See the class."""
        handler = _HANDLERS.get(type(message))
        return super().handle(message) if handler is None else handler(self, message)

    # Beginning and end.

    def begin_afresh(self) -> None:
        """Start all children in order.

        Raises:
            StartFailedError: one of them could not be started; those before it were stopped.
        """
        old = dict(self.children())
        fresh: dict[Hashable, Child] = {}
        for spec in self._specs:
            child = self._new(spec)
            before = old.get(spec.id)
            if before is not None and before.ref.name == spec.name and not before.ref.gone:
                child = child._replace(ref=old.pop(spec.id).ref, restarts=before.restarts)
            fresh[spec.id] = child._replace(state="stopped")
        self.save({}, [id_ for id_, _ in self.children()])
        self.save(fresh)
        for child in old.values():
            halt(self.system, child)
            close(self.system, child.ref, Exit.SHUTDOWN)
        try:
            for id_, child in fresh.items():
                if child.ref.incarnation is not None:
                    living = child.ref.incarnation
                    self.keep(id_, child._replace(state="running", incarnation=living))
                elif self.launch(id_, child) is None:
                    self._ignored(child)
        except StartFailedError:
            self.save({})  # raises if we were abandoned meanwhile: then they are not ours to stop
            for _, child in reversed(self.children()):
                halt(self.system, child)
            self._save_stopped()
            raise

    def after_halt(self) -> None:
        """Keep the addresses of the children for the next incarnation, if there will be one."""
        legacy: Legacy = self._records.get(LEGACY, Legacy())
        self._save_stopped()
        self.save({LEGACY: Legacy(adopt=False, final=legacy.final)})

    def _save_stopped(self) -> None:
        self.save(
            {
                id_: child._replace(state="stopped", incarnation=None, ticket=0)
                for id_, child in self.children()
            }
        )

    # Requests.

    def _start_child(self, message: StartChild) -> Ref | None:
        spec = message.spec
        if not isinstance(spec, ChildSpec):
            raise ConfigurationError(f"StartChild: spec must be a ChildSpec, not {describe(spec)}")
        present: Child | None = self._records.get(spec.id)
        if present is not None:
            kind, text = (
                (ChildAlreadyPresentError, "is kept: restart or delete it")
                if present.state == "stopped"
                else (ChildAlreadyStartedError, "is there")
            )
            raise kind(
                f"a child {describe(spec.id)} of {self.ref.label} {text}",
                name=self.ref.label,
                child_id=spec.id,
            )
        return self._launch_new(self._new(spec))

    def _terminate_child(self, message: TerminateChild) -> None:
        child = self.find(message.id)
        if child.state != "stopped":
            self._drop(message.id, child)

    def _restart_child(self, message: RestartChild) -> Ref | None:
        child = self._stopped(message.id)
        return self._launch_new(self._new(child.spec)._replace(restarts=child.restarts))

    def _delete_child(self, message: DeleteChild) -> None:
        self._stopped(message.id)
        self.save({}, (message.id,))

    def _stopped(self, id_: Hashable) -> Child:
        child = self.find(id_)
        if child.state != "stopped":
            kind = ChildRunningError if child.state == "running" else ChildRestartingError
            raise kind(
                f"the child {describe(id_)} of {self.ref.label} is {child.state}: "
                "terminate it first",
                name=self.ref.label,
                child_id=id_,
            )
        return child

    # Children.

    def _new(self, spec: ChildSpec) -> Child:
        return Child(spec, self.system.new_ref(spec.name, spec.label))

    def _launch_new(self, child: Child) -> Ref | None:
        spec = child.spec
        try:
            started = self.launch(spec.id, child)
        except StartFailedError as error:
            close(self.system, child.ref, error)
            raise
        if started is not None:
            return started.ref
        self._ignored(child)
        return None

    def _ignored(self, child: Child) -> None:
        close(self.system, child.ref, Exit.NORMAL)
        if child.spec.restart == "temporary":
            self.save({}, (child.spec.id,))
        else:
            self.keep(child.spec.id, child._replace(state="stopped"))

    def _drop(self, id_: Hashable, child: Child) -> None:
        """Stop a child for good; its specification stays, unless it is temporary."""
        halt(self.system, child)
        close(self.system, child.ref, Exit.SHUTDOWN)
        if child.spec.restart == "temporary":
            self.save({}, (id_,))
        else:
            self.keep(id_, child._replace(state="stopped", incarnation=None, ticket=0))

    def halt_group(self, child: Child) -> None:
        """Stop the siblings that are restarted with ``child``, the last one first."""
        stop, _ = affected(self.flags.strategy, [id_ for id_, _ in self.children()], child.spec.id)
        for id_ in stop:
            sibling: Child = self._records[id_]
            if sibling.spec.restart == "temporary":
                self._drop(id_, sibling)
            elif sibling.state != "stopped":
                halt(self.system, sibling)
                self.keep(
                    id_,
                    sibling._replace(
                        state="restarting", incarnation=None, ticket=0, cause=Exit.SHUTDOWN
                    ),
                )

    def start_group(self, child: Child) -> None:
        """Start ``child`` and those that belong to it, in order, until one fails."""
        _, start = affected(self.flags.strategy, [id_ for id_, _ in self.children()], child.spec.id)
        for id_ in start:
            member: Child = self._records[id_]
            if member.state == "stopped":
                # As in OTP, a restart of the group brings back what had been stopped in it.
                member = member._replace(ref=self._new(member.spec).ref, cause=Exit.SHUTDOWN)
            if member.state != "running" and not self.start_again(id_, member):
                return


_HANDLERS: Final[dict[type, Callable[[Supervisor, Any], Any]]] = {
    ChildEnded: lambda self, message: self.ended(message.key),
    TryAgain: SupervisorBase.try_again,
    StartChild: Supervisor._start_child,  # noqa: SLF001  this module's own
    TerminateChild: Supervisor._terminate_child,  # noqa: SLF001
    RestartChild: Supervisor._restart_child,  # noqa: SLF001
    DeleteChild: Supervisor._delete_child,  # noqa: SLF001
    WhichChildren: lambda self, _: self.which_children(),
    CountChildren: lambda self, _: self.count_children(),
}

"""Coordinator: the actor ``pipeline:<id>``: claims, the start of the stages, deadlines, the end.

    claiming ──▶ starting ──▶ running ──▶ ending ──▶ ended

Items do not pass here. What it must not forget is in the line, so that its next incarnation goes on
in the same phase.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.dynamic_supervisor import start_soon
from handoff_actors.actors.reasons import Exit, Reason
from handoff_actors.actors.server import Actor
from handoff_actors.actors.specs import ChildSpec
from handoff_actors.errors import AllocationError, PipelineError
from handoff_actors.pipeline.crew import Crew
from handoff_actors.pipeline.line import Line
from handoff_actors.pipeline.stage import Stage
from handoff_actors.resources.claims import Claim, Granted, Infeasible, Release, Want
from handoff_actors.resources.tracker import Refused

GRACE = 0.5
"""Seconds that workers get to leave before the pipeline ends without them."""


class GraceOver:
    """Workers that are still there are in code that cannot be ended."""


class Coordinator(Actor):
    """See the module.

    Args:
        line: the pipeline.
        wanted: micro-units to claim, by node.
        supervisor: under which stages are started.
        max_restarts: of each of them, within the supervisor's time.
        on_end: called with the line when it has ended.
    """

    def __init__(
        self,
        line: Line,
        wanted: dict[str, dict[str, int]],
        supervisor: Ref,
        max_restarts: int,
        on_end: Callable[[Line], None],
    ) -> None:
        self.line = line
        self.wanted = wanted
        self.supervisor = supervisor
        self.max_restarts = max_restarts
        self.on_end = on_end

    def init(self) -> None:
        """Begin, or go on."""
        self.line.ref = self.ref
        self.grace: Any = None
        self._step()

    def handle(self, message: Any) -> Any:
        """What the tracker says."""
        line = self.line
        if isinstance(message, Granted):
            if line.over or any(c.node == message.claim.node for c in line.claims):
                self._refuse(message.claim)
            else:
                line.claims.append(message.claim)
        elif isinstance(message, Infeasible):
            line.end(
                AllocationError(
                    f"pipeline {line.id!r} needs {message.resource}={message.asked:g} on node "
                    f"{message.node}, which has {message.most:g} now",
                    function_id=None,
                    resource=message.resource,
                    asked=message.asked,
                    most=message.most,
                )
            )
        elif isinstance(message, Refused):
            line.end(message.error)
        elif isinstance(message, GraceOver):
            if line.phase == "ending":
                self._end()
            return None
        else:
            return super().handle(message)
        self._step()
        return None

    def signalled(self) -> None:
        """Something has changed in the line."""
        if self.line.flow.timed:
            self.line.tick()
        self._step()

    def _step(self) -> None:
        line = self.line
        if line.over and line.phase not in ("ending", "ended"):
            line.phase = "ending"
        if line.phase == "claiming":
            self._claim()
        if line.phase == "starting":
            self._start()
        if line.phase == "ending":
            if not line.alive:
                self._end()
            elif self.grace is None:
                self.grace = self.system.timers.send_after(GRACE, self.ref, GraceOver())
        if line.phase == "ended":
            self._release_last()

    def _claim(self) -> None:
        """All or nothing, node by node in the order of names: so no two pipelines block."""
        for step in self.line.steps:
            if step is None:
                if not self._claim_here():
                    return
            else:
                self._begin(step)
                if not step.complete:
                    return
        self.line.phase = "starting"

    def _claim_here(self) -> bool:
        """Ask for what this node is to give; whether it has."""
        line = self.line
        held = {claim.node for claim in line.claims}
        for node in sorted(self.wanted):
            if node not in held:
                self._want(node, 1)
                return False
        return True

    def _want(self, node: str, count: int) -> None:
        tracker = self.line.workers.tracker
        assert tracker is not None
        amounts = self.wanted[node]
        tracker.cast(Want(self.line.name, "pipeline", node, amounts, count, self.ref))

    def _start(self) -> None:
        line = self.line
        for crew in line.crews:
            self._begin(crew)
        if all(crew.complete for crew in line.crews):
            line.started()

    def _begin(self, crew: Crew) -> None:
        """Start the actor of a stage, which sees to its workers."""
        if crew.ref is None:
            crew.ref = start_soon(self.system, self.supervisor, self._spec(crew))
            crew.ref.when_gone(_Gone(self.line, crew.id))

    def _spec(self, crew: Crew) -> ChildSpec:
        return ChildSpec(
            crew.id,
            lambda: Stage(crew),
            restart="transient",
            name=f"{self.line.name}/{crew.id}",
            counted=False,
            max_restarts=self.max_restarts,
        )

    def _refuse(self, claim: Claim) -> None:
        """It came too late, or twice."""
        tracker = self.line.workers.tracker
        assert tracker is not None
        tracker.cast(Release(claim.id))

    def _end(self) -> None:
        """Workers have left, or will not: give back what was claimed, tell whoever waits."""
        line = self.line
        for crew in line.crews:
            crew.dismiss()
        held = {claim.node for claim in line.claims}
        for node in self.wanted.keys() - held:
            self._want(node, 0)
        if not line.alive:
            line.release()
        # Whoever is told may open a pipeline of the same id in the same instant.
        self.system.names.unregister(self.ref)
        self.on_end(line)
        line.finished()
        self._release_last()

    def _release_last(self) -> None:
        """Threads that could not be ended have kept the claims until now."""
        if not self.line.alive:
            self.line.release()
            self.stop(Exit.NORMAL)

    def terminate(self, reason: Reason) -> None:
        """The runtime stops."""
        if reason is Exit.SHUTDOWN:
            line = self.line
            line.stop("was stopped with its runtime")
            if line.alive:
                line.deserted.wait(GRACE)
            if not line.alive:
                line.release()
            line.bury(line.error())


class _Gone:
    """A stage's actor is gone for good: without it the pipeline cannot go on."""

    def __init__(self, line: Line, stage: Hashable) -> None:
        self.line = line
        self.stage = stage

    def __call__(self, reason: Reason) -> None:
        if isinstance(reason, BaseException):
            error = PipelineError(
                f"pipeline {self.line.id!r}: the actor of stage {self.stage!r} crashed too often"
            )
            error.__cause__ = reason
            self.line.end(error)

"""Stage: the actor that sees to the workers of one stage.

It has no work of its own while all goes well: items go from worker to worker. It hires workers at
the beginning and when some are missing, and gives up the pipeline when they cannot begin, time
after time. All it must not forget is in the crew.
"""

from __future__ import annotations

from time import monotonic

from handoff_actors.actors.reasons import Exit, Reason
from handoff_actors.actors.server import Actor
from handoff_actors.errors import FunctionCrashedError, NodeDownError, PipelineError, describe
from handoff_actors.pipeline.crew import Crew


class Stage(Actor):
    """See the module.

    Args:
        crew: the stage's.
    """

    def __init__(self, crew: Crew) -> None:
        self.crew = crew

    def init(self) -> None:
        """Begin, or go on with the workers that are there."""
        self.crew.ref = self.ref
        self.signalled()

    def signalled(self) -> None:
        """Some workers may be missing."""
        crew, line = self.crew, self.crew.line
        if line.over:
            self.stop(Exit.NORMAL)
            return
        failure, crew.failure = crew.failure, None
        # What raises at the start would raise again; a process may die of anything.
        hopeless = line.phase != "running" and not isinstance(failure, FunctionCrashedError)
        if failure is not None and (crew.intensity.record(monotonic()) or hopeless):
            line.end(self._hopeless(failure))
            self.stop(Exit.NORMAL)
            return
        crew.hire()

    def _hopeless(self, failure: BaseException) -> BaseException:
        crew, line = self.crew, self.crew.line
        if line.phase != "running" and isinstance(failure, NodeDownError):
            return failure  # as ``execute`` has it
        error = PipelineError(
            f"pipeline {line.id!r}: the workers of function {crew.id!r} cannot begin on node "
            f"{crew.node}: {describe(failure)}"
        )
        error.__cause__ = failure
        return error

    def terminate(self, reason: Reason) -> None:
        """The runtime stops."""
        if reason is Exit.SHUTDOWN:
            self.crew.line.stop("was stopped with its runtime")

"""WorkerSupervisor: the place of the workers in the supervision tree.

Workers live in the roster, which outlives this actor: its next incarnation adopts them and their
attempts as they are. Only an ordered shutdown ends them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from handoff_actors.actors.reasons import Exit, Reason
from handoff_actors.actors.server import Actor
from handoff_actors.execution.workers.roster import Workers


@dataclass(frozen=True, slots=True)
class Describe:
    """Counts of workers, for ``status()``."""


class WorkerSupervisor(Actor):
    """See the module.

    Args:
        workers: the roster.
        shutdown_timeout: seconds that workers get to end.
    """

    def __init__(self, workers: Workers, shutdown_timeout: float) -> None:
        self.workers = workers
        self.shutdown_timeout = shutdown_timeout

    def handle(self, message: Any) -> Any:
        """See the messages."""
        if isinstance(message, Describe):
            return self.workers.describe()
        return super().handle(message)

    def terminate(self, reason: Reason) -> None:
        """End the workers, if the runtime ends."""
        if reason is Exit.SHUTDOWN:
            self.workers.close(self.shutdown_timeout)

"""How an admitted run begins: with its runner, or without one if it is of a single function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handoff_actors.actors.calls import Ref, gone
from handoff_actors.actors.dynamic_supervisor import start_soon
from handoff_actors.actors.reasons import Exit, Reason
from handoff_actors.actors.specs import ChildSpec
from handoff_actors.actors.system import ActorSystem
from handoff_actors.errors import ExecutionTimeoutError
from handoff_actors.execution.failures import stopped_error
from handoff_actors.execution.run_data import RunData
from handoff_actors.execution.runner import Cancel, Runner
from handoff_actors.execution.solo import Solo, is_solo

if TYPE_CHECKING:
    from handoff_actors.execution.executor import Desk


class Starter:
    """Begins runs, for the executor.

    Args:
        desk: where the run will be answered.
        system: where its runner lives.
        supervisor: of the runners: a ``DynamicSupervisor``.
        max_restarts: how often a runner may crash within the supervisor's ``max_seconds``.
    """

    __slots__ = ("desk", "max_restarts", "supervisor", "system")

    def __init__(self, desk: Desk, system: ActorSystem, supervisor: Ref, max_restarts: int) -> None:
        self.desk = desk
        self.system = system
        self.supervisor = supervisor
        self.max_restarts = max_restarts

    def begin(self, data: RunData, name: str) -> None:
        """Begin a run; again, if an executor died while it did so.

        Args:
            data: the run.
            name: under which it can be addressed from now on.
        """
        workers, ref = self.desk.workers, data.ref
        if data.over:
            return
        data.name = ref.name = ref.label = name
        self.system.names.register(ref)
        timeout = data.options.timeout
        if timeout is not None and data.timer is None:
            expired = ExecutionTimeoutError(
                f"the run of DAG {data.dag_id!r} did not end within {timeout} s and was cancelled; "
                "what had finished stays readable",
                dag_id=data.dag_id,
                function_id=None,
                timeout=timeout,
            )
            data.timer = self.system.timers.send_after(timeout, ref, Cancel(expired))
        if data.solo is not None:
            workers.carriers.defer(data.solo.run)
        elif is_solo(data):
            solo = data.solo = Solo(data, workers, self.desk.finish, self.start_runner)
            ref.mailbox.attach(solo)
            workers.carriers.defer(solo.run)
            ref.mailbox.begin(solo)
        else:
            self.start_runner(data, here=False)
        data.begun = True

    def start_runner(self, data: RunData, *, here: bool = True) -> None:
        """Have the run's runner started: on this thread, if ``here`` and nobody hinders it."""
        desk, ref = self.desk, data.ref
        workers, finish = desk.workers, desk.finish
        spec = ChildSpec(
            data.name,
            lambda: Runner(data, workers, finish),
            restart="transient",
            name=data.name,
            counted=False,
            max_restarts=self.max_restarts,
        )
        start_soon(
            self.system,
            self.supervisor,
            spec,
            ref,
            on_error=lambda error: desk.fail(data, error),
            follow=not here,
            here=here,
            insist=True,
        )
        ref.when_gone(lambda reason: self._runner_gone(data, ref, reason))

    def _runner_gone(self, data: RunData, ref: Ref, reason: Reason) -> None:
        """The runner will not come back; if its run has no answer, this is it."""
        if data.state == "running":
            shut = reason is Exit.SHUTDOWN
            self.desk.fail(data, stopped_error(data.dag_id) if shut else gone(ref, reason))

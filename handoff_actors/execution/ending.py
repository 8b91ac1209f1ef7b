"""What is told while a run goes on, and what is done when it has its outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from handoff_actors.actors.calls import Ref
from handoff_actors.errors import describe
from handoff_actors.events import AttemptFailed, FunctionsFinished
from handoff_actors.execution.run_data import RunData
from handoff_actors.execution.run_state import Crashed, Raised, Step, TimedOut
from handoff_actors.execution.trail import FailedAttempt

if TYPE_CHECKING:
    from handoff_actors.execution.workers.roster import Workers


def announce(data: RunData, workers: Workers, tokens: Sequence[int]) -> None:
    """Tell those who wait for it that these attempts have succeeded; their values are committed."""
    if not (data.watched or data.listeners or workers.events.following):
        return
    n = data.plan.n
    indices = [token % n for token in tokens]
    if data.watched and not data.watched.isdisjoint(indices):
        workers.available(data, [i for i in indices if i in data.watched])
    for listener in data.listeners:
        for i in indices:
            listener.put(i)
    if workers.events.following:
        workers.events.publish(
            FunctionsFinished(
                dag_id=data.dag_id,
                function_ids=tuple(data.plan.ids[i] for i in indices),
                finished=data.finished,
                total=n,
            )
        )


def announce_failure(
    data: RunData, workers: Workers, event: Raised | TimedOut | Crashed, step: Step
) -> None:
    """Tell that an attempt did not succeed, and in ``step`` what is to be done about it."""
    n = data.plan.n
    again: float | None = None
    if step.retries:
        again = step.retries[0][0]
    elif step.ready:
        again = 0.0
    what = (
        describe(event.error)
        if isinstance(event, Raised)
        else event.crash.reason
        if isinstance(event, Crashed)
        else "it took longer than its timeout"
    )
    i = event.token % n
    data.trail.failed.append(
        FailedAttempt(
            i, event.token // n + 1, data.starts[i], data.ends[i], data.trail.by[i],
            event.crash.node if isinstance(event, Crashed) else event.node, what,
        )
    )  # fmt: skip
    workers.log.info(
        "attempt_failed",
        dag_id=data.dag_id,
        function_id=data.plan.ids[event.token % n],
        attempt=event.token // n + 1,
        error=what,
        retry_in=again,
    )
    workers.events.publish(
        AttemptFailed(
            dag_id=data.dag_id,
            function_id=data.plan.ids[event.token % n],
            attempt=event.token // n + 1,
            error=what,
            retry_in=again,
        )
    )


def conclude(data: RunData, state: str, error: BaseException | None) -> None:
    """Write down how the run ended."""
    run = data.run()
    if run is not None and run.cancelled():
        # Its caller has been told, in the instant before we knew how it ended.
        state, error = "cancelled", run.exception(0)
    data.error = error
    data.state = state  # from here on this is the outcome, whoever tells of it


def wind_up(data: RunData, ref: Ref, workers: Workers, on_end: Callable[[RunData], None]) -> None:
    """Let go of the workers of a run that has its outcome, free its name, then tell.

    Args:
        data: the run.
        ref: where it is addressed.
        workers: the runtime's.
        on_end: tells the future.
    """
    data.stopping = True
    for queue in data.queues:
        queue.stop()
    for queue in data.queues:
        queue.release_idle()
    if data.away is not None:
        data.away.end()
    # Whoever is told may start a run of the same dag_id in the same instant.
    workers.system.names.unregister(ref)
    # The worker that carries this has nothing left to do: the rest may follow on its thread.
    workers.carriers.set_busy(False)
    on_end(data)

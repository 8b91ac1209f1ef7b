"""What is told while a run goes on, and what is done when it has its outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from handoff_actors.actors.calls import Ref
from handoff_actors.events import FunctionsFinished
from handoff_actors.execution.run_data import RunData

if TYPE_CHECKING:
    from handoff_actors.execution.workers.roster import Workers


def announce(data: RunData, workers: Workers, tokens: Sequence[int]) -> None:
    """Tell those who wait for it that these attempts have succeeded; their values are committed."""
    if not (data.watched or data.listeners or workers.events.active):
        return
    n = data.plan.n
    indices = [token % n for token in tokens]
    if data.watched and not data.watched.isdisjoint(indices):
        workers.available(data, [i for i in indices if i in data.watched])
    for listener in data.listeners:
        for i in indices:
            listener.put(i)
    if workers.events.active:
        workers.events.publish(
            FunctionsFinished(
                dag_id=data.dag_id,
                function_ids=tuple(data.plan.ids[i] for i in indices),
                finished=data.finished,
                total=n,
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

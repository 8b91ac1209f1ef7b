"""What runs now: asked of the workers, which are told nothing for it and pay nothing."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from handoff_actors.execution.run_data import RunData


@dataclass(frozen=True, slots=True)
class RunningFunction:
    """A function that a worker is at.

    Attributes:
        dag_id: the run's.
        function_id: the function's.
        attempt: 1 for the first.
        node: the node it runs on.
        worker: ``"pid 123"`` for a process, ``"thread"`` or ``"coroutine"``.
    """

    dag_id: Hashable
    function_id: Hashable
    attempt: int
    node: str
    worker: str


def running(data: RunData) -> list[RunningFunction]:
    """What of a run is being run; what waits in a worker's batch is not."""
    found: list[RunningFunction] = []
    plan = data.plan
    if data.solo is not None and data.solo.at_work and not data.queues:
        found.append(RunningFunction(data.dag_id, plan.ids[0], 1, data.node, "thread"))
    for queue in list(data.queues):
        for lane in [*queue.lanes, *queue.apart]:
            worker = getattr(lane, "worker", None)
            pid = getattr(worker, "pid", None)
            tokens = list(lane.tokens())
            if pid is not None and not queue.kind.is_async:
                tokens = tokens[:1]
            where = "coroutine" if queue.kind.is_async else "thread"
            found += [
                RunningFunction(
                    data.dag_id,
                    plan.ids[token % plan.n],
                    token // plan.n + 1,
                    getattr(lane, "node", None) or data.node,
                    where if pid is None else f"pid {pid}",
                )
                for token in tokens
            ]
    return found

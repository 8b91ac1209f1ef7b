"""Results of a run that has ended, whose nodes are gone: they are made again when asked for.

What is lost is computed again from what is at hand, as deep as needed, by a run of just these
functions that nobody else hears of; its values take the places of the lost ones.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from handoff_actors.actors.calls import gone
from handoff_actors.actors.dynamic_supervisor import start_soon
from handoff_actors.actors.latches import heard
from handoff_actors.actors.reasons import Reason
from handoff_actors.actors.specs import ChildSpec
from handoff_actors.errors import FunctionCrashedError
from handoff_actors.execution.run import Run, while_lent
from handoff_actors.execution.run_data import FREED, MISSING, RunData
from handoff_actors.execution.runner import Runner

if TYPE_CHECKING:
    from handoff_actors.execution.nodes.hub import Hub


def remake(hub: Hub, data: RunData, wanted: Sequence[int]) -> None:
    """Make values of a run that has ended again; blocks.

    Raises:
        ExecutionError: a function failed this time, or may not run twice.
    """
    again = _closure(hub, data, wanted)
    for i in again:
        if not data.plan.functions[i].max_crashes:
            id_ = data.plan.ids[i]
            raise FunctionCrashedError(
                f"the result of function {id_!r} of DAG {data.dag_id!r} was lost with its node, "
                "and max_crashes=0 forbids to run it again",
                dag_id=data.dag_id,
                function_id=id_,
                attempts=(),
            )
    plan, n = data.plan, data.plan.n
    options = data.options._replace(keep=tuple(plan.ids[i] for i in wanted), timeout=None)
    run = Run(data.dag_id)
    inputs = {plan.ids[i]: data.values[i] for i in range(n, n + plan.n_inputs)}
    made = RunData(hub.new_key(), data.dag_id, plan, inputs, options, data.node, run)
    made.limit(hub.workers.budget)
    made.submitted = data.submitted
    made.values[:n] = [MISSING if i in again else data.peek(i) for i in range(n)]
    hub.send_abroad(made)
    assert made.away is not None
    made.away.preset = bytearray(i not in again for i in range(n))
    try:
        while_lent(lambda: _run(hub, made))
        if made.error is not None:
            raise made.error
        made.bring(wanted)
        assert data.away is not None
        for i in wanted:
            data.values[i] = made.values[i]
            data.away.made[i] = made.away.made.get(i, made.node)
            data.starts[i], data.ends[i] = made.starts[i], made.ends[i]
        data.trail.transfers += made.trail.transfers
    finally:
        made.release()


def _closure(hub: Hub, data: RunData, wanted: Sequence[int]) -> set[int]:
    """The functions that have to run; what they take of others is here afterwards."""
    n, peek = data.plan.n, data.peek
    again: set[int] = set()
    stack = list(wanted)
    while stack:
        fetched: set[int] = set()
        while stack:
            i = stack.pop()
            if i in again:
                continue
            again.add(i)
            for d in data.plan.deps[i]:
                if d < n and d not in again:
                    if peek(d) is FREED or peek(d) is MISSING:
                        stack.append(d)
                    else:
                        fetched.add(d)
        stack = list(hub.bring(data, fetched - again))
    return again


def _run(hub: Hub, data: RunData) -> None:
    over = threading.Event()
    workers = hub.workers
    data.name = f"remake:{data.dag_id}#{data.key}"
    spec = ChildSpec(
        data.name,
        lambda: Runner(data, workers, lambda _data: over.set()),
        restart="transient",
        name=data.name,
        counted=False,
        max_restarts=hub.max_restarts,
    )

    def ended(reason: Reason) -> None:
        if data.state == "running":
            data.state, data.error, data.stopping = "failed", gone(ref, reason), True
        over.set()

    def failed(error: BaseException) -> None:
        data.state, data.error = "failed", error
        over.set()

    ref = data.ref = start_soon(workers.system, hub.supervisor, spec, on_error=failed)
    ref.when_gone(ended)
    heard(over.wait)

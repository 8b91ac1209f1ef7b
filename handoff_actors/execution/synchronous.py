"""``synchronous=True``: one function after another, in topological order, on the calling thread.

The same run state decides, so retries and failures are the same; nothing is concurrent, so a
debugger stops where it is told to and a test sees the same order every time. Timeouts and isolation
need workers and do not apply.
"""

from __future__ import annotations

import heapq
import inspect
import time
from time import perf_counter as clock
from typing import Any

from handoff_actors.execution.context import Context
from handoff_actors.execution.ending import announce, announce_failure
from handoff_actors.execution.failures import failure_error, stopped_error
from handoff_actors.execution.invoke import invoke, invoke_async
from handoff_actors.execution.run_data import FREED, RunData
from handoff_actors.execution.run_state import Event, Raised, RunState, Start, Succeeded, keep_mask


class _Here:
    """The calling thread as a place: it lends nothing, as nothing else waits for it."""

    def __init__(self, data: RunData, runtime: Any) -> None:
        self.data = data
        self.runtime = runtime
        self.token = 0

    def context(self) -> Context:
        data, n = self.data, self.data.plan.n
        id_ = data.plan.ids[self.token % n]
        return Context(data.dag_id, id_, self.token // n + 1, data.node, lambda: data.stopping)

    def lend(self) -> None:
        return None

    def reclaim(self, loan: Any) -> None:  # noqa: ARG002  as in Place
        return None

    def home(self) -> Any:
        return self.runtime


def run_here(data: RunData, runtime: Any) -> None:
    """Run to the end; the outcome is in ``data``.

    Raises:
        KeyboardInterrupt: and nothing else; the run is failed with it.
    """
    plan = data.plan
    n = plan.n
    workers = runtime.workers
    state = RunState(
        plan,
        data.options.max_retries,
        keep_mask(plan, data.options.keep),
        done=data.succeeded() if data.restored else None,
    )
    here = _Here(data, runtime)
    ready: list[tuple[int, int]] = []
    event: Event = Start()
    while True:
        step = state.handle(event)
        if isinstance(event, Raised):
            announce_failure(data, workers, event, step)
        elif isinstance(event, Succeeded):
            announce(data, workers, event.tokens)
        for i in step.freed:
            data.values[i] = FREED
        if step.failure is not None:
            data.state, data.error = "failed", failure_error(data, step.failure)
            return
        if step.finished:
            data.state = "succeeded"
            return
        if data.stopping:
            data.state, data.error = "cancelled", stopped_error(data.dag_id)
            return
        for token in step.ready:
            heapq.heappush(ready, (token % n, token))
        for delay, token in step.retries:
            time.sleep(delay)
            heapq.heappush(ready, (token % n, token))
        i, token = heapq.heappop(ready)
        here.token = token
        data.trail.by[i] = data.trail.worker("the caller")
        data.starts[i] = clock()
        try:
            data.values[i] = _call(data, i, here)
        except KeyboardInterrupt as error:
            data.state, data.error = "failed", error
            raise
        except BaseException as error:
            event = Raised(token, error, data.node)
        else:
            event = Succeeded((token,))
            if data.checkpoint is not None:
                data.checkpoint.put([(i, data.values[i])])
            data.finished += 1
        data.ends[i] = clock()


def _call(data: RunData, i: int, here: _Here) -> Any:
    call = data.plan.call(i)
    if not call.is_async:
        return invoke(call, data.values, here, data.context)
    import asyncio

    coroutine = invoke_async(call, data.values, here)
    assert inspect.iscoroutine(coroutine)
    return data.context.copy().run(asyncio.run, coroutine)

"""Metrics and traces through OpenTelemetry's API.

A runtime does this by itself when OpenTelemetry was imported before its ``start()``, as programs
that set up its SDK have done; others pay nothing, and ``instrument(runtime)`` begins it later. What
is told live comes from ``subscribe``. Durations, queue times and spans of single functions are told
when their run ends: of 30 of a run and of a thousand more for each second that it took, evenly
chosen, and never of more than ``MOST_FUNCTIONS``, so that telling stays cheap beside ten thousand
functions that do nothing. The counters count all of them.

| metric | kind | attributes |
|---|---|---|
| ``handoff.runs`` | counter | ``state`` |
| ``handoff.run.duration`` | histogram, s | ``state`` |
| ``handoff.functions`` | counter of functions that finished | |
| ``handoff.function.duration`` | histogram, s | ``function.node`` |
| ``handoff.function.queue_time`` | histogram, s from ready to begun | ``function.node`` |
| ``handoff.attempts.failed`` | counter | ``last`` |
| ``handoff.workers.lost`` | counter | |
| ``handoff.actor.restarts`` | counter | ``actor`` |
| ``handoff.bytes.moved`` | counter, By | ``source``, ``target`` |
| ``handoff.runs.active``, ``handoff.functions.running`` | gauges | |
| ``handoff.claims`` | gauge of what is claimed | ``resource`` |

All have ``node``. A run is the span ``handoff.run``, a child of the span in which it was submitted;
spans made inside functions in threads are its children, and so is one span for each function, with
the worker that ran it unless the functions were shorter than finding that out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry import context as contexts
from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation

from handoff_actors._version import __version__
from handoff_actors.events import (
    ActorCrashed,
    AttemptFailed,
    Event,
    FunctionsFinished,
    Internal,
    ValuesMoved,
    WorkerLost,
)
from handoff_actors.execution.run_data import RunData
from handoff_actors.execution.running import running

if TYPE_CHECKING:
    from handoff_actors.execution.run import Run

Runtime = Any  # that of ``runtime``, which is above

MOST_FUNCTIONS = 5000
_FEWEST = 30
_A_SECOND = 1000
"""Of how many functions of a run durations and spans are told; see the module."""
_FINDING = 10e-6
"""Who ran a function is looked for where one took so many seconds of the run: that costs 0.2 µs for
each function, of those that nothing is told of too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended(Internal):
    """A run has its answer."""

    data: RunData
    span: Any
    state: str


class Telemetry:
    """What one runtime tells OpenTelemetry.

    Args:
        runtime: a running one.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._node = runtime.node()
        meter = metrics.get_meter("handoff_actors", __version__)
        self._tracer = trace.get_tracer("handoff_actors", __version__)
        self._runs = meter.create_counter("handoff.runs", description="runs that ended")
        self._run_time = meter.create_histogram("handoff.run.duration", "s")
        self._functions = meter.create_counter("handoff.functions")
        self._function_time = meter.create_histogram("handoff.function.duration", "s")
        self._queue_time = meter.create_histogram("handoff.function.queue_time", "s")
        self._failed = meter.create_counter("handoff.attempts.failed")
        self._lost = meter.create_counter("handoff.workers.lost")
        self._restarts = meter.create_counter("handoff.actor.restarts")
        self._bytes = meter.create_counter("handoff.bytes.moved", "By")
        meter.create_observable_gauge("handoff.runs.active", [self._see_runs])
        meter.create_observable_gauge("handoff.functions.running", [self._see_functions])
        meter.create_observable_gauge("handoff.claims", [self._see_claims])
        kinds = (_Ended, FunctionsFinished, AttemptFailed, ValuesMoved, WorkerLost, ActorCrashed)
        self._subscription = runtime.events.subscribe(self._tell, kinds)

    def close(self) -> None:
        """Tell no more."""
        self._subscription.cancel()

    def began(self, data: RunData, run: Run) -> None:
        """A run is about to be admitted; on its caller's thread."""
        span = self._tracer.start_span(
            "handoff.run",
            attributes={
                "handoff.dag_id": str(data.dag_id),
                "handoff.functions": data.plan.n,
                "handoff.node": self._node,
            },
        )
        if span.is_recording():
            data.context.run(contexts.attach, trace.set_span_in_context(span))
        events = self._runtime.events

        def ended(done: Any) -> None:
            error = done.exception()
            state = "succeeded" if error is None else "cancelled" if done.cancelled() else "failed"
            if error is not None and span.is_recording():
                span.record_exception(error)
                span.set_status(trace.StatusCode.ERROR, str(error))
            events.publish(_Ended(data=data, span=span, state=state))
            if not events.active:
                span.end()

        run.add_done_callback(ended)

    # On the thread of the events.

    def _tell(self, event: Event | Internal) -> None:
        here = {"node": self._node}
        if isinstance(event, FunctionsFinished):
            self._functions.add(len(event.function_ids), here)
        elif isinstance(event, AttemptFailed):
            self._failed.add(1, {**here, "last": event.retry_in is None})
        elif isinstance(event, ValuesMoved):
            ways = {"source": event.source, "target": event.target}
            self._bytes.add(event.nbytes, {**here, **ways})
        elif isinstance(event, WorkerLost):
            self._lost.add(1, {"node": event.node})
        elif isinstance(event, ActorCrashed):
            self._restarts.add(1, {**here, "actor": event.name.partition(":")[0]})
        elif isinstance(event, _Ended):
            self._ended(event, here)

    def _ended(self, event: _Ended, here: dict[str, str]) -> None:
        data, state = event.data, event.state
        seconds = max(0.0, time.perf_counter() - data.submitted)
        self._runs.add(1, {**here, "state": state})
        self._run_time.record(seconds, {**here, "state": state})
        chosen = [i for i in range(0, data.plan.n, _every(data.plan.n, seconds)) if data.ends[i]]
        for i in chosen:
            node = {"node": self._node, "function.node": self._place(data, i)}
            self._function_time.record(max(0.0, data.ends[i] - data.starts[i]), node)
            deps = [data.ends[d] for d in data.plan.deps[i] if d < data.plan.n]
            ready = max(deps, default=data.submitted)
            self._queue_time.record(max(0.0, data.starts[i] - ready), node)
        if event.span.is_recording():
            if seconds >= data.plan.n * _FINDING:
                data.trail.settle(data.starts, data.ends)
            self._spans(data, chosen, event.span)
        event.span.end()

    @staticmethod
    def _place(data: RunData, i: int) -> str:
        made = getattr(getattr(data, "away", None), "made", None) or {}
        return str(made.get(i, data.node))

    def _spans(self, data: RunData, chosen: Sequence[int], span: Any) -> None:
        """A child span for each function, with the times it had."""
        zero = time.time_ns() - time.perf_counter_ns()
        parent = trace.set_span_in_context(span)
        dag_id, trail = str(data.dag_id), data.trail
        for i in chosen:
            id_ = str(data.plan.ids[i])
            attributes = {
                "handoff.dag_id": dag_id,
                "handoff.function_id": id_,
                "handoff.node": self._place(data, i),
            }
            if trail.by[i]:
                attributes["handoff.worker"] = trail.crew[trail.by[i]]
            child = self._tracer.start_span(
                id_, parent, attributes=attributes, start_time=zero + int(data.starts[i] * 1e9)
            )
            child.end(zero + int(data.ends[i] * 1e9))

    # When metrics are collected.

    def _see_runs(self, _: CallbackOptions) -> Iterable[Observation]:
        entries = [e for e in self._entries() if not e.data.over]
        return [Observation(len(entries), {"node": self._node})]

    def _see_functions(self, _: CallbackOptions) -> Iterable[Observation]:
        count = sum(len(running(e.data)) for e in self._entries() if not e.data.over)
        return [Observation(count, {"node": self._node})]

    def _see_claims(self, _: CallbackOptions) -> Iterable[Observation]:
        if not self._runtime.running:
            return []
        info = self._runtime.node_info()
        return [
            Observation(
                amount - info.available.get(name, 0.0), {"node": self._node, "resource": name}
            )
            for name, amount in info.capabilities.items()
        ]

    def _entries(self) -> list[Any]:
        return self._runtime.entries() if self._runtime.running else []


def instrument(runtime: Runtime) -> None:
    """Begin to tell OpenTelemetry of a runtime that was started before it was imported.

    Args:
        runtime: what ``handoff.start()`` returned.
    """
    if runtime.telemetry is None:
        runtime.telemetry = Telemetry(runtime)


def _every(functions: int, seconds: float) -> int:
    """Each how many-th function is told of."""
    told = min(MOST_FUNCTIONS, _FEWEST + int(_A_SECOND * seconds))
    return max(1, -(-functions // told))

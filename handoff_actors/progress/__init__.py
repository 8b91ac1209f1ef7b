"""``progress=``: following a run on a terminal, in a log, in a notebook, or by a call.

Built on what any user has: events, and ``status()``. A run ends for its follower when its future is
settled, however that came about (that of a refused run is settled too), so that no subscription
outlives its run. Callables are called on the thread of the events, one call at a time, the last one
with the final state. Displays are drawn by a thread of their own, a few times a second, and are not
told of functions that finish: they look.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from handoff_actors.errors import ConfigurationError, describe
from handoff_actors.events import (
    AttemptFailed,
    Event,
    FunctionsFinished,
    NodeBack,
    NodeDown,
    NodeSuspect,
    NodeUp,
    RunFinished,
    ThreadAbandoned,
    WorkerLost,
)
from handoff_actors.execution.run import Progress, Run
from handoff_actors.execution.run_data import RunData

if TYPE_CHECKING:
    from handoff_actors.runtime import Runtime

Follower = Callable[[Progress], object]


class Display(Protocol):
    """What draws one run."""

    def __call__(self, progress: Progress) -> object:
        """The run is over; a callable of the user's is told before, too, how far it is."""

    def tell(self, line: str) -> None:
        """Something happened that a person wants to know: a retry, a crash."""


class _Call:
    """A display that is a callable of the user's: it gets no lines."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    def __call__(self, progress: Progress) -> object:
        return self._follower(progress)

    def tell(self, line: str) -> None:
        """Not for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settled(Event):
    """The future of the run ``key`` has its answer: ``state``."""

    key: int
    state: str


def show(runtime: Runtime, data: RunData, run: Run, progress: Any) -> None:
    """Follow a run until its future is settled; before its admission or after it.

    Args:
        runtime: which runs it.
        data: of the run.
        run: its future.
        progress: True shows it on stderr when that is a terminal, as lines when it is a file, in
            the cell of a notebook, and not at all in a pipe; a callable gets a ``Progress`` as
            functions finish.

    Raises:
        ConfigurationError: ``progress`` is neither.
    """
    display: Display
    if progress is True:
        from handoff_actors.progress.choice import choose
        from handoff_actors.progress.view import View

        found = choose(View(data))
        if found is None:
            return
        display = found
    elif callable(progress):
        display = _Call(progress)
    else:
        raise ConfigurationError(
            f"progress must be True or a callable with a Progress, not {describe(progress)}"
        )
    # The callback of the future must not keep the future, nor through it the results.
    events, key = runtime.events, data.key

    def follow(event: Event) -> None:
        if isinstance(event, _Settled):
            if event.key == key:
                end(event.state)
        elif isinstance(event, FunctionsFinished):
            if event.dag_id == data.dag_id:
                # Whatever the run is by now, what happened before its end is still to be told.
                display(Progress(data.plan.n, data.finished, "running"))
        elif isinstance(event, RunFinished):
            if event.dag_id == data.dag_id and data.over:
                # It comes before the future is settled, so who has the result can wait for us.
                end(event.state)
        elif getattr(event, "dag_id", data.dag_id) == data.dag_id:
            line = _line(event)
            if line:
                display.tell(line)

    over = False

    def end(state: str) -> None:
        nonlocal over
        if over:
            return
        over = True
        try:
            display(Progress(data.plan.n, data.finished, state))
        finally:
            # Not before: who waits for the events to be told waits for the display's end.
            subscription.cancel()

    following = (FunctionsFinished,) if isinstance(display, _Call) else ()
    kinds = (RunFinished, _Settled, *_TOLD, *following)
    subscription = runtime.subscribe(follow, kinds)
    run.add_done_callback(lambda done: events.publish(_Settled(key=key, state=_outcome(done))))


def _outcome(run: Any) -> str:
    if run.cancelled():
        return "cancelled"
    return "succeeded" if run.exception() is None else "failed"


def _line(event: Event) -> str:
    """An event in words, for a person who watches."""
    if isinstance(event, AttemptFailed):
        again = (
            "that was the last one"
            if event.retry_in is None
            else f"again in {event.retry_in:g} s"
            if event.retry_in
            else "again at once"
        )
        name = (
            event.function_id if isinstance(event.function_id, str) else describe(event.function_id)
        )
        return f"{name}: attempt {event.attempt} failed, {again}: {event.error}"
    if isinstance(event, WorkerLost):
        return f"worker process {event.pid} on {event.node} died: {event.reason}"
    if isinstance(event, ThreadAbandoned):
        return f"{describe(event.function_id)} overran its timeout; its thread was replaced"
    if isinstance(event, NodeDown):
        return f"node {event.node} is gone: {event.reason}"
    node = describe(getattr(event, "node", None)).strip("'")
    return f"node {node} {_NODES[type(event)]}" if type(event) in _NODES else ""


_NODES: dict[type[Event], str] = {
    NodeUp: "has joined",
    NodeSuspect: "is silent: it gets no new work",
    NodeBack: "is back",
}
_TOLD = (AttemptFailed, WorkerLost, ThreadAbandoned, NodeDown, *_NODES)

"""``progress=``: following a run while it goes on, as a bar on the terminal or by a callable.

Built on what any user has: events, and the run's own counters. A run ends for its follower when its
future is settled, however that came about (that of a refused run is settled too), so that no
subscription outlives its run. Callables are called on the thread of the events, one call at a time,
the last one with the final state.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from handoff_actors.errors import ConfigurationError, describe
from handoff_actors.events import Event, FunctionsFinished, RunFinished
from handoff_actors.execution.run import Progress, Run
from handoff_actors.execution.run_data import RunData

if TYPE_CHECKING:
    import rich.progress

    from handoff_actors.runtime import Runtime

Follower = Callable[[Progress], object]


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
        progress: True shows a bar on stderr when that is a terminal, and nothing otherwise; a
            callable gets a ``Progress`` as functions finish.

    Raises:
        ConfigurationError: ``progress`` is neither.
    """
    follower: Follower
    if progress is True:
        if not _terminal():
            return
        follower = _Bar(str(data.dag_id), data.plan.n)
    elif callable(progress):
        follower = progress
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
                follower(Progress(data.plan.n, data.finished, data.state))
        elif isinstance(event, RunFinished) and event.dag_id == data.dag_id and data.over:
            # It comes before the future is settled, so who has the result can wait for the bar.
            end(event.state)

    def end(state: str) -> None:
        subscription.cancel()
        follower(Progress(data.plan.n, data.finished, state))

    subscription = runtime.subscribe(follow, (FunctionsFinished, RunFinished, _Settled))
    run.add_done_callback(lambda done: events.publish(_Settled(key=key, state=_outcome(done))))


def _outcome(run: Any) -> str:
    if run.cancelled():
        return "cancelled"
    return "succeeded" if run.exception() is None else "failed"


def _terminal() -> bool:
    stream = sys.stderr
    return stream is not None and stream.isatty()


class _Bar:
    """One run's line; called with each ``Progress``."""

    def __init__(self, name: str, total: int) -> None:
        self._screen = _screen
        self._task = _screen.add(name, total)
        self._over = False

    def __call__(self, progress: Progress) -> None:
        if not self._over:
            self._over = progress.state != "running"
            self._screen.update(self._task, progress, self._over)


class _Screen:
    """The bars of all runs of the process; drawn while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._display: rich.progress.Progress | None = None
        self._bars = 0

    def add(self, name: str, total: int) -> Any:
        """A new bar; returns what ``update`` wants."""
        with self._lock:
            if self._display is None:
                self._display = _display()
                self._display.start()
            self._bars += 1
            return self._display.add_task(name, total=total, state="")

    def update(self, task: Any, progress: Progress, last: bool) -> None:
        """Move a bar; the display ends with the last one."""
        with self._lock:
            if self._display is None:
                return
            state = "" if progress.state in ("running", "succeeded") else progress.state
            self._display.update(task, completed=progress.finished, state=state)
            if last:
                self._display.stop_task(task)
                self._bars -= 1
                if not self._bars:
                    self._display.stop()
                    self._display = None


_screen = _Screen()


def _display() -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
        console=Console(stderr=True),
        # What is printed to a terminal goes above the bar; what goes into a file stays as it is.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )

"""Progress of the items of a stream: a bar on a terminal, or a call."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from handoff_actors.errors import ConfigurationError, describe
from handoff_actors.execution.run import Progress

if TYPE_CHECKING:
    import rich.progress

_EVERY = 0.1
"""Seconds between two words."""


def follow_items(name: str, total: int | None, progress: Any) -> Callable[[int, str], object]:
    """What is to be told how many items have come out of a stream.

    Args:
        name: of the stream.
        total: how many items there will be, if that is known.
        progress: True shows a bar on stderr when that is a terminal; a callable gets a
            ``Progress``, whose total is what has come so far when it is not known.

    Returns:
        To be called with the count and the state, the last time with another than ``"running"``.

    Raises:
        ConfigurationError: ``progress`` is neither True nor callable.
    """
    if progress is True:
        stream = sys.stderr
        shown = stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
        follower: Callable[[Progress], object] = (
            _Bar(name, total) if shown else lambda _progress: None
        )
    elif callable(progress):
        follower = progress
    else:
        raise ConfigurationError(
            f"progress must be True or a callable with a Progress, not {describe(progress)}"
        )
    told = 0.0

    def follow(count: int, state: str) -> None:
        nonlocal told
        now = time.monotonic()
        if state != "running" or now - told > _EVERY:
            told = now
            follower(Progress(count if total is None else total, count, state))

    return follow


class _Bar:
    """One line on the terminal, drawn from the first word to the last."""

    def __init__(self, name: str, total: int | None) -> None:
        self._name = name
        self._total = total
        self._shown: tuple[rich.progress.Progress, rich.progress.TaskID] | None = None

    def __call__(self, progress: Progress) -> None:
        """So many items have come out."""
        if self._shown is None:
            self._shown = self._begin()
        display, task = self._shown
        state = "" if progress.state in ("running", "succeeded") else progress.state
        display.update(task, completed=progress.finished, state=state)
        if progress.state != "running":
            display.stop()

    def _begin(self) -> tuple[rich.progress.Progress, rich.progress.TaskID]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        display = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}"),
            console=Console(stderr=True),
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        display.start()
        return display, display.add_task(self._name, total=self._total, state="")

"""Progress on a terminal: a bar, the states, what runs where; what went wrong stays above.

A run that is over before it was drawn once leaves its last line, and cost no more than that.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from handoff_actors.execution.run import Progress
from handoff_actors.execution.summary import seconds_text
from handoff_actors.progress.ticker import ticker
from handoff_actors.progress.view import Shot, View

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_ROWS = 6
"""So many running functions of a run are listed."""


class Bar:
    """One run on the screen."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.state = "running"
        screen.add(self)

    def __call__(self, progress: Progress) -> None:
        """Note the end."""
        if self.state == "running" and progress.state != "running":
            self.state = progress.state
            screen.remove(self)

    def tell(self, line: str) -> None:
        """Above the bars, and it stays there."""
        screen.tell(self, line)


class Screen:
    """All runs of the process that are shown; it is drawn while there are any."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._console: Console | None = None
        self._bars: list[Bar] = []

    @property
    def active(self) -> bool:
        """Whether something is shown."""
        return bool(self._bars)

    def add(self, bar: Bar) -> None:
        """Show one more run."""
        with self._lock:
            if not self._bars:
                self._console = _console()
                ticker.add(self._draw)
            self._bars.append(bar)

    def remove(self, bar: Bar) -> None:
        """A run is over: its last line stays; the display ends with the last run."""
        from rich.console import Group
        from rich.text import Text

        with self._lock:
            if self._console is None or bar not in self._bars:
                return
            self._bars.remove(bar)
            console, live = self._console, self._live
            if not self._bars:
                # It takes its bars away before anything else is printed: later it could not.
                ticker.remove(self._draw)
                if live is not None:
                    live.stop()
                self._live = self._console = None
            end = Text(f"  {bar.view.end(bar.state)}", style="dim")
            console.print(Group(_bar(bar, bar.view.shot()), end))
            if live is not None:
                self._draw()

    def tell(self, bar: Bar, line: str) -> None:
        """A line above the bars."""
        from rich.text import Text

        with self._lock:
            if self._console is not None:
                text = Text.assemble((f"{bar.view.name} ", "bold"), (line, "yellow"))
                self._console.print(text, soft_wrap=True)

    def _draw(self) -> None:
        from rich.console import Group

        with self._lock:
            if not self._bars or self._console is None:
                return
            if self._live is None:
                self._live = _live(self._console)
                self._live.start()
            drawn = [part for bar in self._bars for part in _drawn(bar, bar.view.shot())]
            self._live.update(Group(*drawn), refresh=True)


screen = Screen()


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _live(console: Console) -> Live:
    from rich.live import Live

    return Live(
        console=console,
        auto_refresh=False,
        transient=True,
        # What is printed to a terminal goes above the bar; what goes into a file stays as it is.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )


def _bar(bar: Bar, shot: Shot) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    style = {"failed": "red", "cancelled": "yellow"}.get(bar.state, "")
    ended = bar.state != "running"
    grid.add_row(
        Text(bar.view.name, style="bold", overflow="ellipsis", no_wrap=True),
        ProgressBar(
            total=max(1, shot.total),
            completed=shot.finished if shot.total else 1,
            width=36,
            finished_style="green",
            complete_style=style or "cyan",
        ),
        Text(f"{shot.finished:,}/{shot.total:,}"),
        Text(bar.state if ended else f"{shot.percent} %", style=style),
        Text("" if ended else shot.pace(), style="cyan"),
    )
    return grid


def _drawn(bar: Bar, shot: Shot) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [_bar(bar, shot), Text(f"  {shot.counts()}", style="dim")]
    if shot.rows:
        grid = Table.grid(padding=(0, 2))
        for row in shot.rows[:_ROWS]:
            again = f"attempt {row.attempt}" if row.attempt > 1 else ""
            grid.add_row(
                Text(f"  {row.where}", style="dim"),
                Text(row.name, overflow="ellipsis", no_wrap=True),
                Text(seconds_text(round(row.seconds, 1)) if row.seconds >= 0.1 else ""),
                Text(again, style="yellow"),
            )
        parts.append(grid)
    if len(shot.rows) > _ROWS:
        parts.append(Text(f"  and {len(shot.rows) - _ROWS} more", style="dim"))
    return parts

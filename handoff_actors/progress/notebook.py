"""Progress in a notebook: one output of the cell, drawn anew a few times a second."""

from __future__ import annotations

import html
import importlib
import threading
from typing import Any

from handoff_actors.execution.run import Progress
from handoff_actors.execution.summary import seconds_text
from handoff_actors.progress.ticker import ticker
from handoff_actors.progress.view import Shot, View

_ROWS = 6
_LINES = 8
"""So many running functions, and so many lines about what went wrong, are shown."""
_BAR = (
    "<div style='background:#e4e4e7;border-radius:4px;width:24em;height:.7em'>"
    "<div style='background:{color};border-radius:4px;height:100%;width:{percent}%'></div></div>"
)
_COLORS = {"failed": "#dc2626", "cancelled": "#ca8a04", "succeeded": "#16a34a"}


class Cell:
    """The output of one run."""

    def __init__(self, view: View) -> None:
        shown: Any = importlib.import_module("IPython.display")
        self._view = view
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._told = 0
        self._over = False
        self._html = shown.HTML
        self._handle = shown.display(self._html(self.drawn("running")), display_id=True)
        ticker.add(self._tick)

    def __call__(self, progress: Progress) -> None:
        """Draw the end."""
        if progress.state == "running":
            return
        with self._lock:
            if self._over:
                return
            self._over = True
            self._handle.update(self._html(self.drawn(progress.state)))
        ticker.remove(self._tick)

    def tell(self, line: str) -> None:
        """Keep the last lines."""
        with self._lock:
            self._told += 1
            self._lines = [*self._lines, line][-_LINES:]

    def _tick(self) -> None:
        with self._lock:
            if not self._over:
                self._handle.update(self._html(self.drawn("running")))

    def drawn(self, state: str) -> str:
        """The output as HTML."""
        shot = self._view.shot()
        color = _COLORS.get(state, "#2563eb")
        ended = state != "running"
        what = self._view.end(state) if ended else f"{shot.counts()}; {shot.pace()}"
        parts = [
            f"<div><b>{html.escape(self._view.name)}</b> {shot.finished:,}/{shot.total:,}</div>",
            _BAR.format(color=color, percent=shot.percent),
            f"<div>{html.escape(what)}</div>",
            "" if ended else _table(shot),
        ]
        if self._told > len(self._lines):
            parts.append(f"<div>{self._told - len(self._lines)} earlier ones, then</div>")
        parts += [f"<div style='color:#b45309'>{html.escape(line)}</div>" for line in self._lines]
        return f"<div style='font-family:monospace'>{''.join(parts)}</div>"


def _table(shot: Shot) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(row.where)}</td><td>{html.escape(row.name)}</td>"
        f"<td>{seconds_text(row.seconds)}</td></tr>"
        for row in shot.rows[:_ROWS]
    )
    return f"<table>{rows}</table>" if rows else ""

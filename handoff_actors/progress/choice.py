"""Which display fits: the terminal's, the log's, the notebook's, or none."""

from __future__ import annotations

import os
import stat
import sys
from typing import Any

from handoff_actors.progress.view import View


def choose(view: View) -> Any:
    """A display for a run; None where nobody would see it."""
    if in_notebook():
        from handoff_actors.progress.notebook import Cell

        return Cell(view)
    stream = sys.stderr
    if stream is None:
        return None
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        from handoff_actors.progress.terminal import Bar

        return Bar(view)
    if stream.isatty() or _is_log(stream):
        from handoff_actors.progress.lines import Lines

        return Lines(view, stream)
    return None


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def _is_log(stream: Any) -> bool:
    """Whether it is a file, or the socket of a journal; a pipe has a reader of its own."""
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISREG(mode) or stat.S_ISSOCK(mode)

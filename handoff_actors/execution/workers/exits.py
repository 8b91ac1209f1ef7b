"""How worker processes end, in words."""

from __future__ import annotations

import signal

from handoff_actors.errors import CrashedAttempt

_HINTS = {
    "SIGKILL": " (was the machine out of memory?)",
    "SIGSEGV": " (a fault in native code)",
    "SIGBUS": " (a fault in native code, or no room in shared memory)",
    "SIGABRT": " (native code gave up)",
}


class WorkerLost(Exception):  # noqa: N818  an event of the world, not a mistake
    """The process is dead; ``crash`` says how it died."""

    def __init__(self, crash: CrashedAttempt) -> None:
        super().__init__(f"process {crash.pid} {crash.reason}")
        self.crash = crash


def exit_reason(code: int | None, ours: bool = False) -> str:
    """The end of a process in words.

    Args:
        code: as ``subprocess`` gives it; negative is the number of a signal.
        ours: this library killed it.
    """
    if code is None:
        return "ended in an unknown way"
    if code >= 0:
        return f"exited with code {code} (does the function end its process?)"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if ours and name == "SIGKILL":
        return "was killed by this library (its run ended, or the function's timeout was over)"
    return f"was killed by {name}{_HINTS.get(name, '')}"

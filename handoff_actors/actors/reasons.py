"""Why an actor ended: one of three words, or the exception it died of. Pure."""

from __future__ import annotations

import enum
from typing import TypeAlias

from handoff_actors.errors import describe, text_of


class Exit(enum.Enum):
    """Reasons that are no exceptions."""

    NORMAL = "normal"
    """It had done its work."""
    SHUTDOWN = "shutdown"
    """Its supervisor asked it to stop."""
    KILLED = "killed"
    """It did not stop in time and was abandoned; or somebody killed it."""
    NOPROC = "noproc"
    """There was no such actor."""


Reason: TypeAlias = Exit | BaseException


def is_abnormal(reason: Reason) -> bool:
    """Whether a transient child is restarted for it and a crash is logged."""
    return reason not in (Exit.NORMAL, Exit.SHUTDOWN)


def reason_text(reason: Reason) -> str:
    """One line for people."""
    if isinstance(reason, Exit):
        return reason.value
    said = text_of(reason)
    text = f"{type(reason).__name__}: {said}" if said else describe(reason)
    return text.splitlines()[0][:300]

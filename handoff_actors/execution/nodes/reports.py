"""What comes from other nodes for a run, besides values, in the words of its run state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from handoff_actors.cluster.peers import Peer
from handoff_actors.cluster.remote_errors import load_exception
from handoff_actors.execution.run_state import Crashed, Raised, TimedOut, Withdrawn


@dataclass(frozen=True, slots=True)
class LostGuest:
    """A guest is gone, though its node is up.

    Attributes:
        peer: the connection to its node.
        reason: in words.
    """

    peer: Peer
    reason: str


class Report:
    """What a guest has reported, as it came: read where the user's code may run.

    Attributes:
        node: the guest's.
        said: see ``guest.pack_report``.
    """

    __slots__ = ("node", "said")

    def __init__(self, node: str, said: tuple[Any, ...]) -> None:
        self.node = node
        self.said = said

    def read(self) -> Any:
        """The event; None for what is none."""
        kind, *rest = self.said
        if kind == "raised":
            return Raised(rest[0], load_exception(rest[2]), self.node, rest[3])
        if kind == "timed_out":
            return TimedOut(rest[0], self.node)
        if kind == "crashed":
            return Crashed(rest[0], rest[2])
        if kind == "withdrawn":
            return Withdrawn(rest[0])
        return None

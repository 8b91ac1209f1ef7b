"""What a run leaves behind beside its values: who ran what, and what was tried in vain.

Written by the workers, read by the timeline and the displays. Guarantees that it costs a thread
nothing for each function: it notes when it begins a stretch of work, in which each function begins
in the instant in which the one before ended, and who looks finds from that who ran it.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """An attempt that did not count.

    Attributes:
        index: of the function in the plan.
        attempt: 1 for the first.
        start: ``time.perf_counter()`` when it began; 0.0 if that is not known.
        end: the same for its end.
        worker: the number of the worker in ``Trail.crew``.
        node: the node it ran on.
        error: what went wrong, in one line.
    """

    index: int
    attempt: int
    start: float
    end: float
    worker: int
    node: str
    error: str


@dataclass(frozen=True, slots=True)
class Transfer:
    """Values that went from node to node in one go.

    Attributes:
        index: of the (first) value's function or input in the plan.
        source: the node it came from.
        target: the node it went to.
        start: ``time.perf_counter()`` when it was asked for, or ready to be sent.
        end: the same for its arrival; of what was sent unasked, as far as the sender knows.
        nbytes: the size of all of them; numbers that travel within messages count nothing.
        values: how many there were.
    """

    index: int
    source: str
    target: str
    start: float
    end: float
    nbytes: int
    values: int = 1


_NOBODY: Final = array("H", [0])
_numbering: Final = threading.Lock()


class Trail:
    """See the module.

    Args:
        n: how many functions the run has.

    Attributes:
        by: per function the number of the worker that ran its last attempt; 0 is nobody yet, or a
            thread: see ``settle``.
        stretches: when a thread began one, and its number.
        crew: the names of the workers by number.
        failed: attempts that did not count.
        transfers: values that went between nodes.
        on_move: is told of each transfer as it is added.
    """

    __slots__ = ("_numbers", "by", "crew", "failed", "on_move", "stretches", "transfers")

    def __init__(self, n: int) -> None:
        self.by = _NOBODY * n
        self.crew: list[str] = [""]
        self.stretches: list[tuple[float, int]] = []
        self.failed: list[FailedAttempt] = []
        self.transfers: list[Transfer] = []
        self.on_move: Callable[[Transfer], object] | None = None
        self._numbers: dict[str, int] = {}

    def settle(self, starts: Sequence[float], ends: Sequence[float]) -> None:
        """Find out which threads ran what; what cannot be told stays nobody's.

        Args:
            starts: of the functions, by the clock of the stretches.
            ends: theirs.
        """
        at = dict(self.stretches)
        by = self.by
        for i in sorted([i for i, end in enumerate(ends) if end], key=starts.__getitem__):
            number = at.pop(starts[i], 0)
            if number:
                by[i] = number
                at.setdefault(ends[i], number)

    def moved(self, transfer: Transfer) -> None:
        """Values have come from another node, or were sent to one; any thread."""
        self.transfers.append(transfer)
        if self.on_move is not None:
            self.on_move(transfer)

    def worker(self, name: str) -> int:
        """The number of the worker of this name; beyond 65,535 of them they share the last one."""
        number = self._numbers.get(name)
        if number is None:
            with _numbering:
                number = self._numbers.setdefault(name, min(len(self.crew), 0xFFFF))
                if number == len(self.crew):
                    self.crew.append(name)
        return number

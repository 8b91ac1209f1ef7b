"""What one worker of a stage holds of its pipeline's claim, and lends while its code waits.

A pipeline claims at once for all its workers. When code of one of them waits for a nested run or a
value, what that worker costs is made a claim of its own and lent, until the wait is over: so a run
that needs what the pipeline holds gets it from whoever waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from handoff_actors.resources.claims import Claim

if TYPE_CHECKING:
    from handoff_actors.pipeline.line import Line


class Share:
    """See the module. Any thread may lend and reclaim; the last one that waits reclaims.

    Args:
        line: the pipeline.
        amounts: what one worker costs, in micro-units.
    """

    __slots__ = ("_amounts", "_claim", "_line", "_loans", "_lock")

    def __init__(self, line: Line, amounts: Mapping[str, int]) -> None:
        self._line = line
        self._amounts = amounts
        self._claim: Claim | None = None
        self._loans = 0
        self._lock = threading.Lock()

    def lend(self) -> bool:
        """The code waits: others have the worker's share meanwhile; whether there is one."""
        if not self._amounts:
            return False
        with self._lock:
            self._loans += 1
            if self._loans == 1:
                if self._claim is None:
                    self._claim = self._line.split(self._amounts)
                if self._claim is not None:
                    self._line.workers.suspend(self._claim)
        return True

    def reclaim(self, lent: object) -> None:
        """The wait is over; ``lent`` is what ``lend`` returned. Blocks until the share is back."""
        if not lent:
            return
        with self._lock:
            if self._loans > 1:
                self._loans -= 1
                return
            claim = self._claim
        if claim is not None:
            self._line.workers.resume(claim)
        with self._lock:
            self._loans -= 1
            if self._loans and claim is not None:
                self._line.workers.suspend(claim)  # another thread has begun to wait meanwhile

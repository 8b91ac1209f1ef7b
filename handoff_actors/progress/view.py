"""What a display knows of a run: counts, rate, time left, what runs and since when."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from handoff_actors.errors import describe
from handoff_actors.execution.run_data import RunData
from handoff_actors.execution.running import running
from handoff_actors.execution.summary import seconds_text

_NODES = 6
"""So many other nodes are named."""
_WINDOW = 5.0
"""Seconds over which the rate is taken."""


@dataclass(frozen=True, slots=True)
class Row:
    """A function that runs: its name, where, and for how many seconds it was seen to."""

    name: str
    where: str
    seconds: float
    attempt: int


@dataclass(frozen=True, slots=True)
class Shot:
    """The state of a run at one moment.

    Attributes:
        finished: functions that have.
        total: functions to run.
        running: at work now.
        ready: that wait for a worker.
        waiting: for other functions.
        failed: attempts that did not count.
        rate: functions per second lately.
        left: seconds, or None when nobody knows.
        elapsed: seconds.
        rows: what runs here, the longest first.
        there: how many are with each other node, at work or about to be.
    """

    finished: int
    total: int
    running: int
    ready: int
    waiting: int
    failed: int
    rate: float
    left: float | None
    elapsed: float
    rows: list[Row]
    there: dict[str, int] = field(default_factory=dict)

    @property
    def percent(self) -> int:
        """How much of it has finished."""
        return 100 * self.finished // self.total if self.total else 100

    def counts(self) -> str:
        """The states in words."""
        parts = [f"{self.running} running", f"{self.ready} ready", f"{self.waiting} waiting"]
        parts += [f"{count} at {node}" for node, count in list(self.there.items())[:_NODES]]
        if len(self.there) > _NODES:
            parts.append(f"{sum(list(self.there.values())[_NODES:])} at others")
        if self.failed:
            parts.append(f"{self.failed} attempt{'' if self.failed == 1 else 's'} failed")
        return ", ".join(parts)

    def pace(self) -> str:
        """Rate and time left in words."""
        if self.left is None:
            return f"{self.rate:,.1f}/s"
        return f"{self.rate:,.1f}/s, {left_text(self.left)} left"


class View:
    """Looks at a run; one thread at a time.

    Args:
        data: of the run.
    """

    def __init__(self, data: RunData) -> None:
        self._data = data
        self.name = data.dag_id if isinstance(data.dag_id, str) else describe(data.dag_id)
        self.total = data.plan.n
        self._began = time.monotonic()
        self._history: deque[tuple[float, int]] = deque([(self._began, 0)])
        self._seen: dict[tuple[Hashable, int, str], float] = {}

    def shot(self) -> Shot:
        """Look now."""
        data, now = self._data, time.monotonic()
        finished = data.finished
        at_work = running(data)
        here = {(at.function_id, at.attempt, at.worker): at for at in at_work}
        self._seen = {key: self._seen.get(key, now) for key in here}
        rows = [
            Row(
                key[0] if isinstance(key[0], str) else describe(key[0]),
                at.worker if at.node == data.node else f"{at.node}, {at.worker}",
                now - self._seen[key],
                at.attempt,
            )
            for key, at in here.items()
        ]
        rows.sort(key=lambda row: -row.seconds)
        ready = sum([len(queue.ready) for queue in list(data.queues)]) + len(data.retrying)
        busy = min(len(here), self.total - finished)
        there = self._there()
        left = max(0, self.total - finished - busy - sum(there.values()))
        rate = self._rate(now, finished)
        return Shot(
            finished,
            self.total,
            busy,
            min(ready, left),
            max(0, left - ready),
            len(data.trail.failed),
            rate,
            (self.total - finished) / rate if rate > 0 else None,
            now - self._began,
            rows,
            there,
        )

    def _there(self) -> dict[str, int]:
        """What other nodes have of it."""
        away = self._data.away
        if away is None:
            return {}
        counts = Counter(list(away.spread.where.values()))
        counts.pop(self._data.node, None)
        return dict(counts.most_common())

    def _rate(self, now: float, finished: int) -> float:
        history = self._history
        history.append((now, finished))
        while len(history) > 2 and now - history[1][0] > _WINDOW:
            history.popleft()
        before, count = history[0]
        return (finished - count) / (now - before) if now > before else 0.0

    def end(self, state: str) -> str:
        """The last line of a run."""
        took = seconds_text(time.monotonic() - self._began)
        return f"{state}: {self._data.finished:,}/{self.total:,} functions in {took}"


def left_text(seconds: float) -> str:
    """``4 s``, ``3 min 20 s``."""
    return f"{seconds:.0f} s" if seconds < 60 else seconds_text(seconds)

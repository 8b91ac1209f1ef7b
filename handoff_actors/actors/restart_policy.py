"""When a child is restarted, who with it, how soon, and when a supervisor gives up. Pure.

These are OTP's rules; the delay is an addition. Times are seconds of any monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

from handoff_actors.actors.reasons import Exit, Reason, is_abnormal
from handoff_actors.actors.specs import Backoff, Restart, Strategy

Id = TypeVar("Id", bound=Hashable)


class RestartIntensity:
    """How many restarts there were lately.

    Args:
        max_restarts: that many within the window are allowed.
        max_seconds: the window; a restart exactly that old still counts.
        history: the times of earlier restarts, oldest first.
    """

    __slots__ = ("_times", "max_restarts", "max_seconds")

    def __init__(
        self, max_restarts: int, max_seconds: float, history: Iterable[float] = ()
    ) -> None:
        self.max_restarts = max_restarts
        self.max_seconds = max_seconds
        self._times = deque(history)

    def record(self, now: float) -> bool:
        """Count one more restart attempt at ``now``; whether it is one too many."""
        times = self._times
        times.append(now)
        # A clock that steps back must not empty the window: only what is older is dropped.
        while now - times[0] > self.max_seconds:
            times.popleft()
        return len(times) > self.max_restarts

    @property
    def history(self) -> tuple[float, ...]:
        """The restarts within the window at the last ``record``, oldest first."""
        return tuple(self._times)


def must_restart(restart: Restart, reason: Reason) -> bool:
    """Whether a child that ended for ``reason`` is started again."""
    return restart == "permanent" or (restart == "transient" and is_abnormal(reason))


def affected(
    strategy: Strategy, ids_in_order: Sequence[Id], failed: Id
) -> tuple[tuple[Id, ...], tuple[Id, ...]]:
    """Who is stopped and who is started when ``failed`` is to be restarted.

    Args:
        strategy: the supervisor's.
        ids_in_order: all its children, in start order; ``failed`` among them.
        failed: the child that ended; it is not to be stopped any more.

    Returns:
        The ids to stop, in the order of stopping, and the ids to start, in order.
    """
    if strategy == "one_for_one":
        return (), (failed,)
    first = 0 if strategy == "one_for_all" else ids_in_order.index(failed)
    group = tuple(ids_in_order[first:])
    return tuple(id_ for id_ in reversed(group) if id_ != failed), group


def next_streak(backoff: Backoff, streak: int, alive_for: float) -> int:
    """The number of restarts in a row, this one included, after a life of ``alive_for`` seconds."""
    return 1 if alive_for >= backoff.healthy_after else streak + 1


def delay(backoff: Backoff, streak: int) -> float:
    """Seconds to wait before the ``streak``-th restart in a row (the first is 1)."""
    try:
        wait = backoff.initial * backoff.factor ** (streak - 1)
    except OverflowError:
        return backoff.maximum
    return min(backoff.maximum, wait)


def is_expected_stop(restart: Restart, shutdown: float | None, reason: Reason) -> bool:
    """Whether a child that was told to stop ended as it should; else it is worth a log line."""
    return (
        reason is Exit.SHUTDOWN
        or (reason is Exit.NORMAL and restart != "permanent")
        or (reason is Exit.KILLED and shutdown == 0)
    )

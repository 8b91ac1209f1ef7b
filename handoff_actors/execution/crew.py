"""The lanes of one queue: who serves it, who is set apart, who holds what.

A lane that serves has a permit; one that has a claim keeps it until it leaves. A lane is *set
apart* while its attempt waits for other functions (what it holds is lent to them), and for good
once its attempt was given up. Each of the two sets is what it says: whoever takes a lane out of
``lanes`` gives its permit up, and nobody else does, in whatever order time-outs, waits and deaths
come.
"""

from __future__ import annotations

import abc
import threading
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from handoff_actors.execution.run_data import RunData
from handoff_actors.execution.workers.permits import Permits
from handoff_actors.resources.claims import Claim

if TYPE_CHECKING:
    from handoff_actors.execution.workers.roster import Workers


class Lane(Protocol):
    """One worker that serves a queue.

    Attributes:
        claim: what it holds.
        loans: how many of its threads or coroutines wait, so that what it holds is lent.
    """

    claim: Claim | None
    loans: int

    def run(self) -> None:
        """Serve the queue; a job for a carrier thread."""

    def tokens(self) -> Iterable[int]:
        """The attempts it holds."""

    def given_up(self) -> bool:
        """Whether somebody else has its place now."""

    def stop(self) -> None:
        """The run is over: let go of what can be let go."""

    def is_brief(self) -> bool:
        """Whether it will have served the queue soon, as far as is known."""

    def holds_batch(self) -> bool:
        """Whether some of its attempts wait behind another."""

    def unblock(self) -> None:
        """Give back what waits behind a slow attempt."""


class Crew(abc.ABC):
    """See the module.

    Args:
        data: the run.
        workers: the runtime's.
        permits: of the kind of worker that the lanes are.

    Attributes:
        ready: attempts that wait for a lane.
        lanes: those that serve; each has a permit.
        apart: those that do not, for a while or never again, and have only their claims.
        parked: the latches of lanes that wait a moment for more work.
        in_line: whether it waits for a permit.
    """

    __slots__ = (
        "apart",
        "data",
        "in_line",
        "lanes",
        "lock",
        "parked",
        "permits",
        "ready",
        "workers",
    )

    def __init__(self, data: RunData, workers: Workers, permits: Permits) -> None:
        self.data = data
        self.workers = workers
        self.permits = permits
        self.ready: deque[int] = deque()
        self.lock = data.lock
        self.lanes: set[Lane] = set()
        self.apart: set[Lane] = set()
        self.parked: list[threading.Lock] = []
        self.in_line = False

    @abc.abstractmethod
    def grow(self, count: int) -> None:
        """Have up to ``count`` more lanes."""

    @abc.abstractmethod
    def release_claim(self, claim: Claim) -> None:
        """Give a claim back to the tracker."""

    def add(self, lane: Lane) -> None:
        """A lane serves; the lock is held."""
        self.lanes.add(lane)
        self.data.lanes += 1

    def unpark(self) -> bool:
        """Have a parked lane go on; False if there is none."""
        try:
            latch = self.parked.pop()
        except IndexError:
            return False
        latch.release()
        return True

    def linger(self, lane: Lane, seconds: float) -> bool:
        """A lane found nothing to do: wait a moment for more; False when it has left."""
        if (
            self.data.stopping
            or self.data.options.max_concurrency is not None
            or not self.company_at_work()
            or self.contended(lane)
        ):
            return not self.leave(lane)
        latch = threading.Lock()
        latch.acquire()
        self.parked.append(latch)
        woken = bool(self.ready) or latch.acquire(timeout=seconds)
        try:
            self.parked.remove(latch)
        except ValueError:
            woken = True
        if woken and not self.data.stopping:
            return True
        return not self.leave(lane)

    def leave(self, lane: Lane, force: bool = False) -> bool:
        """A lane ends; False if there is work after all, unless it must."""
        with self.lock:
            if self.ready and not force and not self.data.stopping:
                return False
            served = self.remove(lane)
            self.apart.discard(lane)
        # The thread is nearly free: what this sets off may follow on it.
        self.workers.carriers.set_busy(False)
        self.end_claim(lane)
        if served:
            self.permits.give()
            self._tell_of_room()
        if self.ready and not force and not self.lanes and not self.data.stopping:
            # It came while the claim was on its way back, when it looked as if one was asked for.
            self.grow(1)
        return True

    def give_way(self, lane: Lane) -> None:
        """A lane leaves as others wait for what it holds; the queue asks for another in turn."""
        self.leave(lane, force=True)
        if self.ready:
            self.grow(1)

    def remove(self, lane: Lane) -> bool:
        """A lane serves no more; whether it did. The lock is held."""
        if lane not in self.lanes:
            return False
        self.lanes.discard(lane)
        self.data.lanes -= 1
        return True

    def end_claim(self, lane: Lane) -> None:
        """A lane's claim goes back, if nobody has seen to that."""
        if lane.claim is None:
            return
        with self.lock:
            claim, lane.claim = lane.claim, None
        if claim is not None:
            self.release_claim(claim)

    def _tell_of_room(self) -> None:
        """Other classes of the run may wait for what ``max_concurrency`` lets in now."""
        if self.data.options.max_concurrency is not None and self.data.ref is not None:
            self.data.ref.mailbox.signal_elsewhere()

    def abandon(self, lane: Lane) -> None:
        """Somebody else takes the lane's place; it keeps its claim until ``give_way``."""
        with self.lock:
            served = self._set_apart(lane)
        if served:
            self.permits.give()
            self._tell_of_room()

    def _set_apart(self, lane: Lane) -> bool:
        served = self.remove(lane)
        self.apart.add(lane)
        return served

    def lend(self, lane: Lane) -> None:
        """An attempt waits for other functions: its lane's permit and claim are theirs meanwhile.

        A lane that was given up has only its claim to lend.
        """
        with self.lock:
            lane.loans += 1
            if lane.loans > 1:
                return
            served = self._set_apart(lane)
            claim = lane.claim
        if claim is not None:
            self.workers.suspend(claim)
        if served:
            self.permits.give()
            self._tell_of_room()
        if self.ready:
            self.grow(1)

    def reclaim(self, lane: Lane) -> None:
        """A wait is over; the last one blocks until the claim has its resources again."""
        with self.lock:
            if lane.loans > 1:
                lane.loans -= 1
                return
            claim = lane.claim
        if claim is not None:
            self.workers.resume(claim)
        with self.lock:
            lane.loans -= 1
            lent_again = lane.loans > 0
            serves = not lent_again and not lane.given_up() and lane in self.apart
            if serves:
                self.apart.discard(lane)
                self.add(lane)
        if lent_again and claim is not None:
            self.workers.suspend(claim)
        if serves:
            self.permits.take_back()

    def company_at_work(self) -> bool:
        """Whether another lane is at work, so that more may soon be ready."""
        return len(self.lanes) - len(self.parked) > 1

    def contended(self, lane: Lane) -> bool:
        """Whether another queue waits for what the lane holds."""
        if self.permits.waiting and not (len(self.permits.waiting) == 1 and self.in_line):
            return True
        return lane.claim is not None and self.workers.claims_contended(self.data.key)

    def release_idle(self) -> None:
        """The run is over: claims of lanes that run nothing go back before anybody is told."""
        for lane in list(self.lanes):
            if not any(True for _ in lane.tokens()):
                self.end_claim(lane)

    def has_room(self) -> bool:
        """Whether ``max_concurrency`` lets another lane of this run begin."""
        room = self.data.options.max_concurrency
        return room is None or self.data.lanes < room

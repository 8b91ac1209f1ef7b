"""The work of one class of functions of one run, and how many workers it is worth.

A queue holds ready attempts in one deque that all its workers share, so that nothing waits behind a
slow function. Its workers are *lanes*: a lane has a worker's permit and, when the class has a cost,
a claim, and runs attempts one after another on them. That is what makes short functions cheap: the
permit, the claim and the wake-up are paid per lane.

How many lanes? One, at first. A lane that has been busy for ``_PATIENCE`` while work waits asks for
another, up to the cores; what looks blocked (no attempt ended between two ticks) gets as many as
there is work, up to the permits. A lane leaves when nothing is left, and when somebody else waits
for its permit or claim.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from handoff_actors.execution.run_data import RunData
from handoff_actors.execution.workers.permits import Permits
from handoff_actors.graph.plan import LaneClass
from handoff_actors.resources.claims import Claim

if TYPE_CHECKING:
    from handoff_actors.execution.workers.roster import Workers

TICK = 0.002
"""Seconds between looks at a queue that has more work than lanes."""
_LONGEST_TICK = 0.05
PATIENCE = 300e-6
"""Seconds a lane works before it asks for company."""


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

    def holds_batch(self) -> bool:
        """Whether some of its attempts wait behind another."""

    def unblock(self) -> None:
        """Give back what waits behind a slow attempt."""


class Queue:
    """See the module.

    Args:
        data: the run.
        number: of the class in the plan.
        kind: what the class has in common.
        workers: the runtime's.
        lane: makes a lane for this queue and a claim.
        permits: of the kind of worker that the lanes are.

    Attributes:
        lanes: those that serve it; each has a permit.
        apart: those that do not, for a while or never again, and have only their claims.
        parked: the latches of lanes that wait a moment for more work.
        claims: granted, and not yet a lane's.
        wanted: how many claims the tracker was asked for, those held included.
    """

    __slots__ = (
        "apart",
        "claims",
        "company",
        "data",
        "ended",
        "in_line",
        "kind",
        "lanes",
        "lock",
        "make_lane",
        "mean",
        "needs_claim",
        "number",
        "parked",
        "permits",
        "ready",
        "seen",
        "tick",
        "ticking",
        "wanted",
        "workers",
    )

    def __init__(
        self,
        data: RunData,
        number: int,
        kind: LaneClass,
        workers: Workers,
        lane: Callable[[Queue, Claim | None], Lane],
        permits: Permits,
    ) -> None:
        self.data = data
        self.number = number
        self.kind = kind
        self.workers = workers
        self.make_lane = lane
        self.permits = permits
        self.ready: deque[int] = deque()
        self.lock = data.lock
        self.lanes: set[Lane] = set()
        self.apart: set[Lane] = set()
        self.parked: list[threading.Lock] = []
        self.claims: deque[Claim] = deque()
        self.wanted = 0
        self.needs_claim = bool(kind.cost) and not data.options.ignore_costs
        self.in_line = False
        self.mean = 0.0
        self.ended = 0
        self.seen = -1
        self.ticking = False
        self.tick = TICK
        self.company = workers.cores

    # For the runner.

    def adjust(self) -> None:
        """There may be new work: see that somebody does it."""
        waiting = len(self.ready)
        if not waiting:
            return
        parked = len(self.parked)
        active = len(self.lanes) - parked
        if active <= 0 or (parked and waiting > 1 and waiting * self.mean > 100e-6):
            self.grow(1)
        if waiting > (1 if active <= 0 else 0):
            self.arm()

    def grow(self, count: int) -> None:
        """Have up to ``count`` more lanes."""
        while count > 0 and self._unpark():
            count -= 1
        room = self.data.options.max_concurrency
        if room is not None:
            count = min(count, room - self.data.lanes)
        if count <= 0 or self.data.stopping:
            return
        # Claims that came while every worker was taken, or nothing was ready, go first.
        while count > 0 and (self.claims or not self.needs_claim):
            if not self.permits.take(self):
                return
            self.launch()
            count -= 1
        if count > 0:
            self.want_more(min(len(self.lanes) + count, self.permits.limit))

    def _unpark(self) -> bool:
        try:
            latch = self.parked.pop()
        except IndexError:
            return False
        latch.release()
        return True

    def want_more(self, lanes: int) -> None:
        """Ask for claims for so many lanes, unless that was asked already."""
        wanted = lanes + self._held(self.apart)
        if wanted > self.wanted:
            self.want(wanted)

    @staticmethod
    def _held(lanes: set[Lane]) -> int:
        return sum(lane.claim is not None for lane in list(lanes))

    def want(self, count: int) -> None:
        """Ask the tracker for so many claims, those held included."""
        # Said and noted as one: ``wanted`` is what the tracker has, or a request would get lost.
        with self.lock:
            self.wanted = count
            self.workers.want(self, count)

    def granted(self, claim: Claim) -> None:
        """The tracker gave a claim."""
        self.claims.append(claim)
        if not self.ready or self.data.stopping or not self.has_room():
            self._return_claims()
        elif self.permits.take(self):
            self.launch()

    def _return_claims(self) -> None:
        while self.claims:
            try:
                claim = self.claims.popleft()
            except IndexError:
                return
            self.release_claim(claim)

    def release_claim(self, claim: Claim) -> None:
        """Give a claim back to the tracker."""
        with self.lock:
            self.wanted = max(0, self.wanted - 1)
            self.workers.release(claim)

    def settle(self) -> None:
        """If nothing waits any more: take back what was asked of the tracker in vain."""
        if self.wanted and (self.data.stopping or not self.ready):
            self._return_claims()
            held = self._held(self.lanes) + self._held(self.apart)
            if self.wanted > held:
                self.want(held)

    def stop(self) -> None:
        """The run is over: nothing starts any more, parked lanes leave."""
        self.ready.clear()
        while self._unpark():
            pass
        for lane in [*self.lanes, *self.apart]:
            lane.stop()
        self.settle()

    def release_idle(self) -> None:
        """The run is over: claims of lanes that run nothing go back before anybody is told."""
        for lane in list(self.lanes):
            if not any(True for _ in lane.tokens()):
                self._end_claim(lane)

    def has_room(self) -> bool:
        """Whether ``max_concurrency`` lets another lane of this run begin."""
        room = self.data.options.max_concurrency
        return room is None or self.data.lanes < room

    # For the permits.

    def wants_worker(self) -> bool:
        """Whether a lane would find work."""
        if not self.ready or self.data.stopping or not self.has_room():
            return False
        return not self.needs_claim or bool(self.claims)

    def launch(self) -> None:
        """Start a lane; a permit is ours."""
        claim = None
        if self.needs_claim:
            try:
                claim = self.claims.popleft()
            except IndexError:
                self.permits.give()
                return
        lane = self.make_lane(self, claim)
        with self.lock:
            has_room = self.has_room()
            if has_room:
                self.add(lane)
        if has_room:
            self.workers.carriers.defer(lane.run)
            return
        self._end_claim(lane)
        self.permits.give()

    def add(self, lane: Lane) -> None:
        """A lane serves; the lock is held."""
        self.lanes.add(lane)
        self.data.lanes += 1

    # For lanes.

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
        self._end_claim(lane)
        if served:
            self.permits.give()
            self._tell_of_room()
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

    def _end_claim(self, lane: Lane) -> None:
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

    # The tick.

    def arm(self) -> None:
        """Look at the queue again in a moment."""
        if not self.ticking:
            self.ticking = True
            self.workers.timers.call_later(self.tick, self._tick)

    def _tick(self) -> None:
        self.ticking = False
        waiting = len(self.ready)
        if self.data.stopping or self.data.ref is None or self.data.ref.gone:
            return
        stuck = self.seen == self.ended
        self.seen = self.ended
        if stuck and self.data.done:
            # Outcomes that a lane has not told of, as it is busy with the next function.
            self.data.ref.mailbox.signal_elsewhere()
        if not waiting:
            batches = [lane for lane in list(self.lanes) if lane.holds_batch()]
            if stuck and (self.parked or len(self.lanes) < self.permits.limit):
                for lane in batches:
                    lane.unblock()
            if batches or (self.lanes and not stuck and self.data.links is not None):
                self.tick = min(self.tick * 1.5, _LONGEST_TICK)
                self.arm()
            return
        active = len(self.lanes) - len(self.parked)
        if stuck or active <= 0:
            self.tick = min(self.tick * 1.5, _LONGEST_TICK)
            self.grow(waiting)
        else:
            self.tick = TICK
            if active < self.company:
                self.grow(1)
        self.arm()

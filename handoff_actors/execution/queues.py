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

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from handoff_actors.execution.run_data import RunData
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
    """One worker that serves a queue."""

    claim: Claim | None
    lent: bool

    def given_up(self) -> bool:
        """Whether somebody else has its place now."""

    def run(self) -> None:
        """Serve the queue; a job for a carrier thread."""

    def tokens(self) -> Iterable[int]:
        """The attempts it holds."""

    def stop(self) -> None:
        """The run is over: let go of what can be let go."""

    def wake(self) -> None:
        """There is work again."""

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
        permits: Any,
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
        self.parked: list[Lane] = []
        self.claims: deque[Claim] = deque()
        self.wanted = 0
        self.apart = 0
        self.in_line = False
        self.mean = 0.0
        self.ended = 0
        self.seen = -1
        self.ticking = False
        self.tick = TICK
        self.company = workers.cores

    # For the runner.

    def tokens(self) -> Iterator[int]:
        """The attempts that wait here or that lanes hold."""
        yield from list(self.ready)
        for lane in list(self.lanes):
            yield from lane.tokens()

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
        while count > 0 and self.parked:
            try:
                lane = self.parked.pop()
            except IndexError:
                break
            lane.wake()
            count -= 1
        room = self.data.options.max_concurrency
        if room is not None:
            count = min(count, room - self.data.lanes)
        if count <= 0 or self.data.stopping:
            return
        if self.needs_claim:
            # Claims that came while every worker was taken, or nothing was ready, go first.
            while count > 0 and self.claims:
                if not self.permits.take(self):
                    return
                self.launch()
                count -= 1
            wanted = min(len(self.lanes) + count, self.permits.limit) + self.apart
            if count > 0 and wanted > self.wanted:
                self.want(wanted)
            return
        for _ in range(count):
            if not self.permits.take(self):
                return
            self.launch()

    def want(self, count: int) -> None:
        """Ask the tracker for so many claims, those held included."""
        # Said and noted as one: ``wanted`` is what the tracker has, or a request would get lost.
        with self.lock:
            self.wanted = count
            self.workers.want(self, count)

    def granted(self, claim: Claim) -> None:
        """The tracker gave a claim."""
        self.claims.append(claim)
        if not self.ready or self.data.stopping:
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
        if self.wanted and not self.ready:
            self._return_claims()
            held = sum(1 for lane in list(self.lanes) if lane.claim is not None) + self.apart
            if self.wanted > held:
                self.want(held)

    def stop(self) -> None:
        """The run is over: nothing starts any more, parked lanes leave."""
        self.ready.clear()
        self.grow(len(self.parked))
        for lane in list(self.lanes):
            lane.stop()
        self.settle()

    # For the permits.

    def wants_worker(self) -> bool:
        """Whether a lane would find work."""
        if not self.ready or self.data.stopping:
            return False
        room = self.data.options.max_concurrency
        if room is not None and self.data.lanes >= room:
            return False
        return not self.needs_claim or bool(self.claims)

    @property
    def needs_claim(self) -> bool:
        """Whether its lanes hold claims."""
        return bool(self.kind.cost) and not self.data.options.ignore_costs

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
            self.lanes.add(lane)
            self.data.lanes += 1
        self.workers.carriers.defer(lane.run)

    # For lanes.

    def leave(self, lane: Lane, force: bool = False) -> bool:
        """A lane found nothing to do and goes; False if there is work after all."""
        with self.lock:
            if self.ready and not force and not self.data.stopping:
                return False
            self.remove(lane)
        # The thread is nearly free: what this sets off may follow on it.
        self.workers.carriers.set_busy(False)
        if lane.claim is not None:
            claim, lane.claim = lane.claim, None
            self.release_claim(claim)
        self.permits.give()
        if self.data.options.max_concurrency is not None and self.data.ref is not None:
            self.data.ref.mailbox.signal_elsewhere()
        return True

    def give_way(self, lane: Lane) -> None:
        """A lane leaves as others wait for what it holds; the queue asks for another in turn."""
        self.leave(lane, force=True)
        if self.ready:
            self.grow(1)

    def remove(self, lane: Lane) -> None:
        """Forget a lane; the lock is held."""
        if lane in self.lanes:
            self.lanes.discard(lane)
            self.data.lanes -= 1

    def _set_apart(self, lane: Lane) -> None:
        self.remove(lane)
        if lane.claim is not None:
            self.apart += 1

    def abandon(self, lane: Lane) -> None:
        """Somebody else takes the lane's place; it keeps its claim until ``bury``."""
        with self.lock:
            has_permit = not lane.lent
            if has_permit:
                self._set_apart(lane)
        if has_permit:
            self.permits.give()

    def bury(self, lane: Lane) -> None:
        """A lane that was abandoned, or lent when its worker died, has ended."""
        claim, lane.claim = lane.claim, None
        if claim is not None:
            with self.lock:
                self.apart -= 1
            self.release_claim(claim)
        if self.ready:
            self.grow(1)

    def lend(self, lane: Lane) -> None:
        """A lane's attempt waits for other functions: its permit and claim are theirs meanwhile."""
        with self.lock:
            lane.lent = True
            self._set_apart(lane)
        if lane.claim is not None:
            self.workers.suspend(lane.claim)
        self.permits.give()
        if self.ready:
            self.grow(1)

    def reclaim(self, lane: Lane) -> None:
        """The wait is over; blocks until the claim has its resources again."""
        if lane.claim is not None:
            self.workers.resume(lane.claim)
        with self.lock:
            lane.lent = False
            if lane.given_up():
                return
            if lane.claim is not None:
                self.apart -= 1
            self.lanes.add(lane)
            self.data.lanes += 1
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
        if self.data.done:
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

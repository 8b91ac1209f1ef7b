"""The work of one class of functions of one run, and how many workers it is worth.

A queue holds ready attempts in one deque that all its workers share, so that nothing waits behind a
slow function. Its workers are *lanes*: a lane has a worker's permit and, when the class has a cost,
a claim, and runs attempts one after another on them. That is what makes short functions cheap: the
permit, the claim and the wake-up are paid per lane.

How many lanes? One, at first. A lane that has been busy for ``PATIENCE`` while work waits asks for
another, up to the cores; what looks blocked (no attempt ended between two ticks) gets as many as
there is work, up to the permits. A lane leaves when nothing is left, and when somebody else waits
for its permit or claim.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from handoff_actors.execution.crew import Crew, Lane
from handoff_actors.execution.run_data import RunData
from handoff_actors.execution.run_state import Raised
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


class Queue(Crew):
    """See the module.

    Args:
        data: the run.
        number: of the class in the plan.
        kind: what the class has in common.
        workers: the runtime's.
        lane: makes a lane for this queue and a claim.
        permits: of the kind of worker that the lanes are.

    Attributes:
        claims: granted, and not yet a lane's.
        newest: the id of the last claim granted; ids only grow.
        wanted: how many claims the tracker was asked for, those held included.
    """

    __slots__ = (
        "claims",
        "company",
        "ended",
        "kind",
        "make_lane",
        "mean",
        "needs_claim",
        "newest",
        "number",
        "seen",
        "tick",
        "ticking",
        "wanted",
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
        super().__init__(data, workers, permits)
        self.number = number
        self.kind = kind
        self.make_lane = lane
        self.claims: deque[Claim] = deque()
        self.wanted = 0
        self.newest = 0
        self.needs_claim = bool(kind.cost) and not data.options.ignore_costs
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
        while count > 0 and self.unpark():
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
        """The tracker gave a claim; one that crashed may have told of it twice."""
        if claim.id <= self.newest or claim in self.claims:
            return
        self.claims.append(claim)
        self.newest = claim.id
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
        while self.unpark():
            pass
        for lane in [*self.lanes, *self.apart]:
            lane.stop()
        self.settle()

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
            carry = functools.partial(self._carry, lane)
            self.workers.carriers.defer(carry, brief=lane.is_brief())
            return
        self.end_claim(lane)
        self.permits.give()

    def _carry(self, lane: Lane) -> None:
        """The wall around a lane: what is raised here is our bug, and costs this run only."""
        try:
            lane.run()
        except BaseException as error:
            data = self.data
            data.reports.extend(
                Raised(token, error, data.node, final=True) for token in lane.tokens()
            )
            self.give_way(lane)
            self.workers.log.error("lane_raised", dag_id=data.dag_id, exc_info=error)  # noqa: TRY400  ours has no exception()
            if data.ref is not None:
                data.ref.signal()

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

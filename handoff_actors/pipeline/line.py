"""Line: all that a pipeline consists of, in a plain object that outlives its actors.

Pushers, workers and consumers meet here, under one lock that is held for a step of the flow: a list
of items at a time. Whoever finds nothing to do leaves a *waker* and waits; the step that has
something for him calls it. Actors are told by signals, and only of what is rare: workers that are
gone, deadlines, the end.
"""

from __future__ import annotations

import contextvars
import functools
import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.timers import Timer
from handoff_actors.errors import PipelineStoppedError, text_of
from handoff_actors.events import PipelineEnded, PipelineStarted
from handoff_actors.graph.plan import Plan
from handoff_actors.pipeline.crew import Crew
from handoff_actors.pipeline.errors import closed, evicted, given_up, stopped
from handoff_actors.pipeline.flow import Flow
from handoff_actors.pipeline.intake import Limits, StageShape
from handoff_actors.pipeline.order import Outlet
from handoff_actors.resources.claims import Claim, Release, ReleaseMany, Split

if TYPE_CHECKING:
    from handoff_actors.execution.workers.roster import Workers

Waker = Callable[[], object]

LOOK = 2e-3
"""Seconds between looks at workers that have more than one item."""


class Line:
    """See the module.

    Args:
        id: what the pipeline is called.
        plan: its DAG.
        limits: how much may be under way.
        workers: the runtime's.
        isolation: of functions that do not say.
        restarts: how many failed beginnings of workers a stage survives, within so many seconds.

    Attributes:
        lock: held for each step of the flow.
        main: the outlet of what is pushed one by one.
        budget: so many items may be put without another look at the room there is.
        first: the crews that wait for items from outside.
        pushers: wakers of those who wait for room, in their order.
        phase: ``"claiming"``, ``"starting"``, ``"running"``, ``"ending"``, ``"ended"``.
        over: workers begin nothing any more.
        root: why it had to end; None while it has not, or when it ended well.
        forsaken: nobody holds the handle any more.
        settled: it runs, or never will.
        ended: claims are back and nothing runs, but threads in user code that cannot be ended.
        alive: how many workers there are.
        deserted: it is over, and the last of them has left.
        claims: what it holds here, split or not.
        released: they went back.
        lender: the pipeline that has claimed for this one too, if that is a stage beside it that
            is hosted for another node.
        steps: stages on other nodes, in the order in which they begin; None stands for the claim
            of this node.
        ref: the coordinator.
    """

    def __init__(
        self,
        id: Hashable,  # noqa: A002
        name: str,
        plan: Plan,
        limits: Limits,
        workers: Workers,
        isolation: str,
        restarts: tuple[int, float],
    ) -> None:
        self.id = id
        self.name = name
        self.plan = plan
        self.workers = workers
        self.node = workers.node
        self.context = contextvars.copy_context()
        self.lock = threading.Lock()
        shapes = [
            StageShape(
                plan.ids[i],
                plan.deps[i],
                f.batch_size,
                f.batch_timeout,
                f.init is not None and f.parallelism == 1,
            )
            for i, f in enumerate(plan.functions[: plan.n])
        ]
        self.flow = Flow(shapes, plan.n_inputs, limits, self._evicted)
        self.main = self.flow.main
        self.budget = 0
        self.pushers: deque[Waker] = deque()
        self.phase = "claiming"
        self.over = False
        self.root: BaseException | None = None
        self.forsaken = False
        self.settled = threading.Event()
        self.ended = threading.Event()
        self.on_ended: list[Waker] = []
        self.alive = 0
        self.deserted = threading.Event()
        self.claims: list[Claim] = []
        self.lender: Line | None = None
        self.released = False
        self.ref: Ref | None = None
        self.timer: Timer | None = None
        self.timer_due = 0.0
        self.watching = False
        self.began = monotonic()
        self.steps: list[Crew | None] = [None]
        self.crews = [Crew(self, i, isolation, restarts) for i in range(plan.n)]
        self.first = [
            crew
            for crew in self.crews
            if not plan.deps[crew.index] or any(d >= plan.n for d in plan.deps[crew.index])
        ]

    def _evicted(self, i: int, seq: int, missing: Sequence[int]) -> BaseException:
        ids = self.plan.ids
        timeout = self.flow.limits.join_timeout or 0.0
        names = [ids[value] for value in missing]
        error = evicted(self.id, ids[i], self.node, seq, timeout, names)
        self.crews[i].tell_failure(seq, error)
        return error

    def now(self) -> float:
        """The time for the flow, if it wants to know."""
        return monotonic() if self.flow.timed else 0.0

    # Claims.

    def split(self, amounts: Mapping[str, int]) -> Claim | None:
        """So much of what it has claimed as a claim of its own; None if it has not so much."""
        holder = self if self.claims else self.lender
        tracker = self.workers.tracker
        if holder is None or tracker is None:
            return None
        for claim in holder.claims[:1]:
            part: Claim | None = tracker.call(Split(claim.id, amounts), timeout=None)
            if part is None or part.id == claim.id:
                return part
            with holder.lock:
                if not holder.released:
                    holder.claims.append(part)
                    return part
            tracker.cast(Release(part.id))  # it ended in this moment
        return None

    def release(self) -> None:
        """Give back what it has claimed."""
        with self.lock:
            claims, self.claims, self.released = self.claims, [], True
        tracker = self.workers.tracker
        if claims and tracker is not None:
            tracker.cast(ReleaseMany(tuple([claim.id for claim in claims])))

    # Wakers.

    def rouse(self) -> list[Waker]:
        """Who has something to do after a step; to be called when the lock is free again."""
        flow = self.flow
        wakers: list[Waker] = []
        if flow.awake:
            for i in flow.awake:
                crew = self.crews[i]
                if crew.parked and flow.stages[i].takeable():
                    wakers.append(crew.parked.pop())
            flow.awake.clear()
        fresh = flow.order.fresh
        if fresh:
            for outlet in fresh:
                if outlet.waiting:
                    wakers += outlet.waiting
                    outlet.waiting.clear()
            fresh.clear()
            if flow.closed and flow.drained:
                wakers.append(self._drained)
            if self.pushers and flow.room > 0:
                wakers.append(self.pushers.popleft())
        if flow.timed:
            self._set_timer()
        return wakers

    def _set_timer(self) -> None:
        due = self.flow.deadline()
        if due is None or (self.timer is not None and self.timer_due <= due):
            return
        if self.timer is not None:
            self.timer.cancel()
        self.timer_due = due
        delay = max(0.0, due - monotonic())
        self.timer = self.workers.timers.call_later(delay, self._due)

    def _due(self) -> None:
        """On the timer thread."""
        self.timer = None
        if self.ref is not None:
            self.ref.mailbox.signal_elsewhere()

    def tick(self) -> None:
        """Do what is due."""
        with self.lock:
            now = monotonic()
            due = self.flow.deadline()
            if due is not None and due <= now:
                self.flow.tick(now)
            wakers = self.rouse()
        for wake in wakers:
            wake()

    def watch(self) -> None:
        """Workers have more than one item each: look after them for a while. The lock is held."""
        if not self.watching:
            self.watching = True
            self._look_again(LOOK)

    def _look_again(self, seconds: float) -> None:
        look = functools.partial(self._look, seconds)
        self.workers.timers.call_later(seconds, look)

    def _look(self, seconds: float) -> None:
        """On the timer thread."""
        active = False
        for crew in self.crews:
            for worker in crew.workers:
                if worker is not None and worker.look():
                    active = True
        if active and not self.over:
            self._look_again(seconds)
            return
        self.watching = False  # a worker that takes in this moment is watched from its next take on

    def made_room(self) -> None:
        """A consumer has taken something, and somebody waits for room."""
        with self.lock:
            waker = self.pushers.popleft() if self.pushers and self.flow.room > 0 else None
        if waker is not None:
            waker()

    # The end.

    def _drained(self) -> None:
        """All that was pushed has come out, and nothing more comes."""
        self.end(None)

    def stop(self, how: str) -> None:
        """End now."""
        self.end(stopped(self.id, how))

    def end(self, root: BaseException | None) -> None:
        """Workers begin nothing any more; the coordinator sees to the rest. The first one counts.

        Args:
            root: why it has to end; None: all is done.
        """
        with self.lock:
            if self.over:
                return
            self.over = True
            self.root = root
            self.flow.closed = True
            wakers: list[Waker] = [*self.pushers]
            self.pushers.clear()
            for crew in self.crews:
                wakers += crew.parked
                crew.parked.clear()
            for outlet in self.flow.order.outlets:
                wakers += outlet.waiting
                outlet.waiting.clear()
        for crew in self.crews:
            crew.stop()
        self.settled.set()
        for wake in wakers:
            wake()
        if self.ref is not None:
            self.ref.mailbox.signal_elsewhere()

    def started(self) -> None:
        """All workers have begun: tell who waits for that."""
        self.phase = "running"
        stages = len(self.crews)
        self.workers.events.publish(PipelineStarted(pipeline=self.id, stages=stages))
        self.settled.set()

    def finished(self) -> None:
        """Nothing runs any more and the claims are back: tell who waits for that."""
        self.phase = "ended"
        self._publish_end()
        with self.lock:
            self.ended.set()
            wakers, self.on_ended = self.on_ended, []
        self.settled.set()
        if self.timer is not None:
            self.timer.cancel()
        for wake in wakers:
            wake()

    def _publish_end(self) -> None:
        root, state, why = self.root, "drained", None
        if root is not None:
            state = "stopped" if type(root) is PipelineStoppedError else "failed"
            why = text_of(root)
        self.workers.events.publish(PipelineEnded(pipeline=self.id, state=state, error=why))

    def bury(self, root: BaseException) -> None:
        """The coordinator is gone for good: end without it."""
        self.end(root)
        if self.phase != "ended":
            for crew in self.crews:
                crew.dismiss()
            self.finished()

    def error(self) -> BaseException:
        """What somebody who wants something of a pipeline that has ended gets."""
        return given_up(self.id, self.root or closed(self.id))

    def forsake(self) -> None:
        """The handle was collected: on any thread, at any time, so no lock may be taken."""
        self.forsaken = True
        for crew in self.crews:
            try:
                wake = crew.parked.pop()
            except IndexError:
                continue
            wake()
            return

    def outlet_over(self, outlet: Outlet) -> bool:
        """Whether nothing more will come out there."""
        return self.over or (self.flow.closed and not outlet.waits)

"""Solo: the run of a single function, as long as nothing but its success happens.

All that is left to do when the only function has returned is to commit its value and to answer. A
queue, a lane and a supervised runner for that would be most of what such a run costs. So a ``Solo``
runs the function on a carrier and reads the run's mailbox meanwhile. It is no actor, and decides
nothing. At anything else (the code raises, waits for other functions, is cancelled; a message, a
crash that is sent to the run) it *hatches*: it becomes an ordinary lane of an ordinary queue, and
leaves the mailbox with all that is in it to a runner.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter as clock
from typing import TYPE_CHECKING, Any

from handoff_actors.actors.mailbox import IDLE, SIGNAL
from handoff_actors.actors.reasons import Exit
from handoff_actors.execution.context import Context, place
from handoff_actors.execution.ending import announce, conclude, wind_up
from handoff_actors.execution.invoke import invoke
from handoff_actors.execution.run_data import RunData
from handoff_actors.execution.run_state import Raised
from handoff_actors.execution.workers.thread import ThreadLane, thread_row

if TYPE_CHECKING:
    from handoff_actors.execution.workers.roster import Workers

_NEW, _AT_WORK, _LEFT = range(3)


class Solo:
    """See the module.

    Args:
        data: the run.
        workers: the runtime's.
        on_end: tells the future, once the run has its outcome.
        hatch: starts the runner; called when this reads the mailbox no more.
    """

    __slots__ = (
        "data", "hatch", "lane", "message", "on_end", "outcome", "phase", "ref", "thread",
        "workers",
    )  # fmt: skip

    def __init__(
        self,
        data: RunData,
        workers: Workers,
        on_end: Callable[[RunData], None],
        hatch: Callable[[RunData], None],
    ) -> None:
        self.data = data
        self.ref = data.ref
        self.workers = workers
        self.on_end = on_end
        self.hatch = hatch
        self.message: Any = None
        self.thread: int | None = None
        self.lane: ThreadLane | None = None
        self.outcome: tuple[int, Any] | None = None
        self.phase = _NEW

    @property
    def at_work(self) -> bool:
        """Whether its function is being run."""
        return self.phase == _AT_WORK

    # As the place of the attempt.

    def context(self) -> Context:
        """The attempt that runs here."""
        data = self.data
        return Context(
            data.dag_id,
            data.plan.ids[0],
            1,
            data.node,
            lambda: data.stopping or self.phase == _LEFT,
        )

    def home(self) -> Any:
        """The runtime."""
        return self.workers.runtime()

    def lend(self) -> Any:
        """Give the permit to others."""
        if threading.get_ident() != self.thread:
            return None
        self._hatched()
        assert self.lane is not None
        return self.lane.lend()

    def reclaim(self, loan: Any) -> None:
        """Get it back."""
        if self.lane is not None:
            self.lane.reclaim(loan)

    def _hatched(self) -> None:
        """From now on this is a lane of a queue, if it has begun; else its attempt waits there."""
        data = self.data
        with data.lock:
            if data.queues:
                return
            queues = self.workers.queues(data)
            if self.phase == _NEW:
                self.phase = _LEFT
                queues[0].ready.append(0)
            elif self.phase == _AT_WORK:
                lane = self.lane = ThreadLane(queues[0], None, self.workers)
                lane.thread, lane.token = self.thread, 0
                queues[0].add(lane)
            elif self.outcome is not None:
                data.done.append(self.outcome)
                self.outcome = None
            data.dispatched[0] = 1
            data.queues = queues

    def _leave_mailbox(self) -> bool:
        """Leave the rest to a runner; False if that was done before."""
        self._hatched()
        return self.ref.mailbox.detach(self)

    # As a job.

    def run(self) -> None:
        """Run the function."""
        data, workers = self.data, self.workers
        with data.lock:
            if self.phase != _NEW:
                return
            permitted = not data.stopping and workers.thread_permits.take_at_once()
            if permitted:
                self.phase = _AT_WORK
                self.thread = threading.get_ident()
        if not permitted:
            if self._leave_mailbox():
                self.hatch(data)
            return
        workers.carriers.set_busy(True)
        outcome = self._call()
        with data.lock:
            self.phase = _LEFT
            lane = self.lane
            if lane is None:
                self.outcome = outcome
        if lane is not None:
            lane.token = -1
            if outcome is not None:
                data.done.append(outcome)
        self.ref.mailbox.signal()
        workers.carriers.set_busy(False)
        if lane is None:
            workers.thread_permits.give()
        else:
            lane.queue.give_way(lane)

    def _call(self) -> tuple[int, Any] | None:
        """What the function returned; if it raised, that is among the run's reports."""
        data, plan = self.data, self.data.plan
        context = data.context.copy()
        data.trail.by[0] = data.trail.worker(thread_row())
        data.starts[0] = clock()
        try:
            args = plan.plain[0]
            if args is None:
                value = invoke(plan.calls[0], data.values, self, context)
            else:
                context.run(place.set, self)
                value = context.run(plan.codes[0], *[data.values[a] for a in args])
        except BaseException as error:
            data.ends[0] = clock()
            self._hatched()
            data.reports.append(Raised(0, error, data.node))
            return None
        data.ends[0] = clock()
        return 0, value

    # As the reader of the mailbox.

    def schedule(self, follow: bool = False) -> None:
        """Have a carrier look at it."""
        if follow:
            self.workers.carriers.defer(self.drain)
        else:
            self.workers.carriers.submit(self.drain)

    def drain(self) -> None:
        """End the run, or leave it to a runner."""
        mailbox = self.ref.mailbox
        while (message := mailbox.next(self)) is not IDLE:
            try:
                if message is SIGNAL and self._ended():
                    return
            except BaseException as error:  # what those who are told raise: the runner goes on
                self.workers.log.error("solo_raised", dag_id=self.data.dag_id, exc_info=error)  # noqa: TRY400  ours has no exception()
            left = self._leave_mailbox()
            if message is SIGNAL:
                mailbox.signal()
            else:
                mailbox.put_back(message)
            if left:
                self.hatch(self.data)

    def _ended(self) -> bool:
        """End the run if its function has returned, and nothing else has happened."""
        data = self.data
        if data.queues or data.stopping or self.outcome is None:
            return False
        data.values[0] = self.outcome[1]
        data.finished = 1
        announce(data, self.workers, (0,))
        self.outcome = None
        conclude(data, "succeeded", None)
        wind_up(data, self.ref, self.workers, self.on_end)
        self.ref.mailbox.detach(self)
        self.ref.close(Exit.NORMAL)
        return True


def is_solo(data: RunData) -> bool:
    """Whether the run is of a single function that any thread can run at once."""
    plan, options = data.plan, data.options
    if plan.n != 1 or not options.keep or options.allocator is not None:
        return False
    if data.away is not None or data.checkpoint is not None or data.restored:
        return False
    kind = plan.classes[0]
    if kind.is_async or kind.timed or kind.stateful or (kind.cost and not options.ignore_costs):
        return False
    return (kind.isolation or options.isolation) == "thread"

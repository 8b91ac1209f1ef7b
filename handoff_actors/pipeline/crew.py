"""The workers of one stage, and what they share: a plain object that outlives the stage's actor.

A worker takes a list of items, has the code run on them, and leaves results and failures, all in
one step of the flow: ``exchange``. How many it takes at a time follows from how long they take, so
that short ones cost little and long ones wait for nobody.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, MutableSequence, Sequence
from time import monotonic
from time import perf_counter as clock
from typing import TYPE_CHECKING, Any, Protocol

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.restart_policy import RestartIntensity
from handoff_actors.errors import CrashedAttempt, describe, text_of
from handoff_actors.events import ItemFailed, StageRestarted
from handoff_actors.execution.context import Context
from handoff_actors.pipeline.code import StageCode
from handoff_actors.pipeline.errors import item_failed
from handoff_actors.pipeline.joins import Entry
from handoff_actors.pipeline.share import Share
from handoff_actors.resources.capabilities import to_micro

if TYPE_CHECKING:
    from handoff_actors.pipeline.line import Line

PASS_ON = 500e-6
"""Seconds after which results are passed on, though there is more to do."""
TAKE = 2e-3
"""Seconds of work that a worker takes at a time."""
MOST = 4096
"""Items it takes at a time at most."""
_MOMENTS = 10
"""Samples kept for ``rate`` and ``busy``, one a second."""

Failures = list[tuple[int, BaseException]]
"""Items that failed, and what their output is."""


class Worker(Protocol):
    """One worker of a stage.

    Attributes:
        number: which of the stage's.
        ready: it has begun: its state is there.
        working_since: ``perf_counter()`` when it began what it is at; 0.0 while it waits.
    """

    number: int
    ready: bool
    working_since: float

    def run(self) -> None:
        """Work until the pipeline ends; a job for a carrier thread."""

    def stop(self) -> None:
        """The pipeline ends: let go of what can be let go."""

    def look(self) -> bool:
        """See that nothing waits behind a slow item; whether something might. On the timer thread.

        Called every now and then while a worker has more than one item.
        """


class Away(Protocol):
    """What a stage on another node needs."""

    def worker(self, crew: Crew, number: int) -> Worker:
        """Who stands for its workers."""


class WorkerFailed(Exception):  # noqa: N818  an event of the world, not a mistake
    """A worker cannot begin; the ``__cause__`` says why."""


class Crew:
    """See the module.

    Args:
        line: the pipeline.
        index: of the stage.
        isolation: of functions that do not say.
        restarts: how many failed beginnings it survives, within so many seconds.

    Attributes:
        parked: wakers of workers that have nothing to do.
        workers: by number; None where one is missing.
        failure: why a worker could not begin, the last time.
        mean: seconds one item takes, lately.
        busy: seconds that workers have worked.
        crashes: of items under which worker processes died.
        suspects: items that were among others when their process died: to be run alone.
        ref: the stage's actor.
        node: where its workers are.
        away: what it needs to be on another node; None: it is here.
        losses: of workers that have to begin anew, by number: why.
        shares: what each worker holds of the pipeline's claim.
    """

    def __init__(self, line: Line, index: int, isolation: str, restarts: tuple[int, float]) -> None:
        plan = line.plan
        self.line = line
        self.index = index
        self.function = function = plan.functions[index]
        self.id: Hashable = function.id
        self.call = plan.call(index)
        self.isolation = function.isolation or isolation
        self.parked: list[Callable[[], object]] = []
        self.workers: list[Worker | None] = [None] * function.parallelism
        amounts = to_micro(function.cost or {}, "the cost")
        self.losses: dict[int, str] = {}
        self.shares = [Share(line, amounts) for _ in self.workers]
        self.node = line.node
        self.away: Away | None = None
        self.intensity = RestartIntensity(*restarts)
        self.failure: BaseException | None = None
        self.mean = 0.0
        self.busy = 0.0
        self.crashes: dict[int, list[CrashedAttempt]] = {}
        self.suspects: set[int] = set()
        self.ref: Ref | None = None
        self.samples: deque[tuple[float, int, float]] = deque([(monotonic(), 0, 0.0)], _MOMENTS)
        self._lock = threading.Lock()

    @property
    def in_turn(self) -> bool:
        """Whether a worker of a coroutine function has one item after another, see there."""
        return self.call.init is not None or bool(self.function.cost)

    def code(self) -> StageCode:
        """The code, for one more worker."""
        return StageCode(self.call, self.line.plan.deps[self.index], self.line.node)

    # Items.

    def limit(self) -> int:
        """How many items a worker should take now."""
        mean = self.mean
        if not mean:
            return 1
        limit = max(1, min(MOST, int(TAKE / mean)))
        others = len(self.workers)
        if others > 1:
            ready = len(self.line.flow.stages[self.index].ready)
            limit = max(1, min(limit, -(-ready // others)))
        return limit

    def exchange(
        self,
        done: MutableSequence[Entry],
        failed: Failures,
        limit: int,
        waker: Callable[[], object] | None = None,
    ) -> list[Entry] | None:
        """Leave results, and take more.

        Args:
            done: items with their results; is emptied.
            failed: items with their errors; is emptied.
            limit: how many to take at most; 0 takes nothing.
            waker: kept, to be called when there is something, if there is nothing now.

        Returns:
            Items and payloads; None when the pipeline ends.
        """
        line = self.line
        flow = line.flow
        if line.forsaken:
            line.stop("was dropped without close()")
        with line.lock:
            if done or failed:
                flow.finished(self.index, list(done), list(failed), line.now())
                done.clear()
                failed.clear()
            taken: list[Entry] | None = None
            if not line.over:
                taken = flow.take(self.index, limit) if limit else []
                if taken:
                    if self.parked:
                        self._ask_company()
                    if len(taken) > 1:
                        line.watch()
                elif waker is not None and waker not in self.parked:
                    self.parked.append(waker)
            wakers = line.rouse()
        for wake in wakers:
            wake()
        return taken

    def _ask_company(self) -> None:
        """More is ready than one worker should have: wake another."""
        intake = self.line.flow.stages[self.index]
        if intake.ready and (not self.mean or self.mean * len(intake.ready) > PASS_ON):
            self.line.flow.awake.add(self.index)

    def rescue(
        self, done: deque[Entry], failed: Failures, let_go: Callable[[], list[Entry]]
    ) -> None:
        """Pass on what a worker has done, and what waits behind a slow item, while it is at that.

        Args:
            done: items with results; the worker appends meanwhile.
            failed: items with errors.
            let_go: has the worker give away the items that it has not begun.
        """
        line = self.line
        with line.lock:
            entries = [done.popleft() for _ in range(len(done))]
            errors = [failed.pop() for _ in range(len(failed))]
            if entries or errors:
                line.flow.finished(self.index, entries, errors, line.now())
            if self.parked and (back := let_go()):
                line.flow.returned(self.index, back, line.now())
            wakers = line.rouse()
        for wake in wakers:
            wake()

    def failure_of(self, seq: int, cause: BaseException) -> tuple[int, BaseException]:
        """An item that failed, and its output."""
        error = item_failed(self.line.id, self.id, self.node, seq, cause)
        self.tell_failure(seq, error.__cause__ or error)
        return seq, error

    def tell_failure(self, seq: int, error: BaseException) -> None:
        """Tell subscribers of an item that failed."""
        events = self.line.workers.events
        if events.active:
            why = f"{type(error).__name__}: {text_of(error)}"
            told = ItemFailed(
                pipeline=self.line.id, function_id=self.id, node=self.node, item=seq, error=why
            )
            events.publish(told)

    def give_back(self, entries: Sequence[Entry]) -> None:
        """Items that were taken and have no result are to be run again."""
        line = self.line
        with line.lock:
            line.flow.returned(self.index, entries, line.now())
            wakers = line.rouse()
        for wake in wakers:
            wake()

    def account(self, began: float, count: int, busy: bool = True) -> None:
        """So many items took from ``began`` until now, in which a worker was ``busy``."""
        took = clock() - began
        if busy:
            self.busy += took
        each = took / count
        self.mean += 0.3 * (each - self.mean) if self.mean else each - self.mean
        now = monotonic()
        if now - self.samples[-1][0] > 1.0:
            stage = self.line.flow.stages[self.index]
            self.samples.append((now, stage.processed + stage.failed, self.busy))

    def context(self, seq: int, cancelled: Callable[[], bool]) -> Context:
        """What ``current()`` gives for an item."""
        attempt = 1 + len(self.crashes.get(seq, ()))
        return Context(self.line.id, self.id, attempt, self.line.node, cancelled)

    # Workers.

    def hire(self) -> None:
        """Begin the workers that are missing."""
        line = self.line
        for number in range(len(self.workers)):
            with self._lock:
                if self.workers[number] is not None or line.over:
                    continue
                worker = self.workers[number] = self._make(number)
                with line.lock:
                    line.alive += 1
            line.workers.carriers.submit(worker.run)

    def send_away(self, node: str, away: Away) -> None:
        """The stage is on another node, where its workers are: here one worker stands for them."""
        self.node = node
        self.away = away
        self.workers = [None]

    def _make(self, number: int) -> Worker:
        if self.away is not None:
            return self.away.worker(self, number)
        if self.isolation == "process":
            from handoff_actors.pipeline.process import ProcessWorker

            return ProcessWorker(self, number)
        if self.call.is_async:
            from handoff_actors.pipeline.coroutine import CoroutineWorker

            return CoroutineWorker(self, number)
        from handoff_actors.pipeline.thread import ThreadWorker

        return ThreadWorker(self, number)

    def began(self, worker: Worker) -> None:
        """A worker has its state."""
        worker.ready = True
        line = self.line
        lost = self.losses.pop(worker.number, None)
        if lost is not None:
            told = StageRestarted(
                pipeline=line.id, function_id=self.id, node=self.node, reason=lost
            )
            line.workers.events.publish(told)
        if line.phase != "running" and line.ref is not None:
            line.ref.mailbox.signal_elsewhere()

    @property
    def complete(self) -> bool:
        """Whether all workers are there and have begun."""
        return all(worker is not None and worker.ready for worker in self.workers)

    def carry(
        self, worker: Worker, live: Callable[[], object], leave: Callable[[], object] | None = None
    ) -> None:
        """Have a worker live to its end, on this thread, behind the wall.

        Args:
            worker: one of these.
            live: works until the pipeline ends; what it raises costs this worker.
            leave: called when it has ended, however that was.
        """
        line = self.line
        line.workers.carriers.set_busy(True)
        failure: BaseException | None = None
        try:
            live()
        except WorkerFailed as failed:
            failure = failed.__cause__
        except BaseException as error:  # the wall: a bug of ours costs this worker
            line.workers.log.error("stage_worker_failed", pipeline=line.name, exc_info=error)  # noqa: TRY400  it is passed on
            failure = error
        if leave is not None:
            leave()
        line.workers.carriers.set_busy(False)
        self.left(worker, failure)

    def left(self, worker: Worker, failure: BaseException | None) -> None:
        """A worker has ended, whose place may have been given away before."""
        line = self.line
        with self._lock:
            if self.workers[worker.number] is worker:
                self.workers[worker.number] = None
                if failure is not None:
                    self.failure = failure
                    self.losses[worker.number] = describe(failure)
        with line.lock:
            line.alive -= 1
            last = line.over and not line.alive
        if last:
            line.deserted.set()
            if line.phase == "ended":
                line.release()  # a thread that was in user code: the coordinator may be gone
            if line.ref is not None:
                line.ref.mailbox.signal_elsewhere()
        elif not line.over and self.ref is not None:
            self.ref.mailbox.signal_elsewhere()

    def abandon(self, worker: Worker) -> None:
        """A worker will not come back for long, or never: its place is free for another."""
        with self._lock:
            if self.workers[worker.number] is worker:
                self.workers[worker.number] = None
                self.losses[worker.number] = "an item took longer than the function's timeout"
        if self.ref is not None:
            self.ref.mailbox.signal_elsewhere()

    def stop(self) -> None:
        """The pipeline ends: workers let go of what can be let go."""
        for worker in list(self.workers):
            if worker is not None:
                worker.stop()

    def dismiss(self) -> None:
        """The stage's actor is not needed any more; its name is free at once."""
        ref = self.ref
        if ref is None:
            return
        self.line.workers.system.names.unregister(ref)
        if (incarnation := ref.incarnation) is not None:
            from handoff_actors.actors.reasons import Exit

            incarnation.exit(Exit.NORMAL)

    def describe(self) -> Any:
        """See ``statistics``."""
        from handoff_actors.pipeline.statistics import stage_statistics

        return stage_statistics(self)

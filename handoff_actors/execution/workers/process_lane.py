"""A lane that runs functions in a worker process.

It is a job on a carrier thread that owns one process: it sends attempts in batches, which grow
while functions prove short, and puts the outcomes where a thread lane puts its own. A process that
dies takes with it only what it held. Attempts of a batch that waited behind a slow one are taken
back, so that another worker can have them; those that were in a batch when their process died run
singly from then on, so that the one who kills its worker is found, and alone pays for it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Hashable, Iterable
from time import perf_counter as clock
from typing import TYPE_CHECKING, Any

from handoff_actors.errors import CrashedAttempt, SerializationError
from handoff_actors.execution.queues import Queue
from handoff_actors.execution.run_state import Crashed, Raised, TimedOut, Withdrawn
from handoff_actors.resources.claims import Claim

if TYPE_CHECKING:
    from handoff_actors.execution.run import Run
    from handoff_actors.execution.workers.process import ProcessWorker
    from handoff_actors.execution.workers.roster import Workers

_BATCH_SECONDS = 1e-3
_LONGEST_BATCH = 256
_COROUTINES = 1000
_LINGER = 0.002
_LEARNING = 10.0
"""Seconds that loading the code may take before it counts against the function's timeout."""
_LOOK = 0.25
_COROUTINE_LOOK = 0.01
"""Seconds a lane waits for outcomes before it looks around."""


class ProcessLane:
    """See the module.

    Args:
        queue: what it serves.
        claim: what it holds.
        workers: the runtime's.
    """

    __slots__ = (
        "alone",
        "claim",
        "flying",
        "loans",
        "mean",
        "nested",
        "queue",
        "timed_out",
        "timer",
        "worker",
        "workers",
    )

    def __init__(self, queue: Queue, claim: Claim | None, workers: Workers) -> None:
        self.queue = queue
        self.claim = claim
        self.workers = workers
        self.worker: ProcessWorker | None = None
        self.flying: dict[int, float] = {}
        self.nested: dict[int, list[Run]] = {}
        self.mean = 0.0
        self.timer: Any = None
        self.timed_out = -1
        self.loans = 0
        self.alone = False  # what it holds is to be the only one in its process

    def tokens(self) -> Iterable[int]:
        """The attempts that are in the process."""
        return list(self.flying)

    def work(self) -> tuple[Hashable, tuple[Hashable, ...]]:
        """The run, and the functions of the attempts."""
        data = self.queue.data
        return data.dag_id, tuple(data.plan.ids[token % data.plan.n] for token in self.tokens())

    def stop(self) -> None:
        """The run is over: a process that is still at work for it is killed."""
        worker = self.worker
        if worker is not None and self.flying:
            worker.kill()

    def is_brief(self) -> bool:
        """It waits for its process."""
        return False

    def holds_batch(self) -> bool:
        """Whether attempts may wait behind another."""
        return len(self.flying) > 1

    def unblock(self) -> None:
        """Take back what waits behind a slow attempt."""
        self.workers.carriers.submit(self._take_back)

    def _take_back(self) -> None:
        worker = self.worker
        waiting = list(self.flying)[1:]
        if worker is None or not waiting:
            return
        # Whoever removes it from ``flying`` has it: the process may die in this moment.
        taken = worker.take_back(waiting, 1.0)
        back = [token for token in taken if self.flying.pop(token, None) is not None]
        if back:
            self.queue.data.report(Withdrawn(back))

    def given_up(self) -> bool:
        """Never: a process that takes too long is killed."""
        return False

    def lend(self) -> Any:
        """The process waits for other functions: its permit and claim are theirs meanwhile."""
        self.queue.lend(self)
        self.workers.carriers.submit(self._take_back)
        return self

    def reclaim(self, loan: Any) -> None:
        """Get them back, when none of its threads waits any more."""
        if loan is not None:
            self.queue.reclaim(self)

    def submitted(self, token: int, run: Run) -> None:
        """The code of an attempt has submitted a run: kept for it, and cancelled if it dies."""
        with self.queue.lock:
            alive = token in self.flying
            if alive:
                self.nested.setdefault(token, []).append(run)
        if not alive:
            run.cancel()

    def run(self) -> None:
        """Serve the queue until there is nothing to do for a while."""
        from handoff_actors.execution.workers.process import WorkerLost

        self.workers.carriers.set_busy(True)
        while True:
            if self.queue.data.stopping:
                self.queue.leave(self, force=True)
                return
            try:
                pool = self.workers.processes.pool()
                worker = self.worker = pool.acquire()
            except Exception as error:
                self._cannot_start(error)
                return
            lost = None
            try:
                self.workers.processes.begin(worker, self)
                self._serve(worker)
            except WorkerLost as error:
                lost = error
                with contextlib.suppress(WorkerLost):
                    while True:  # what it had sent before it died may not have been read
                        self._receive(worker)
            finally:
                self.workers.processes.end(worker)
                self.worker = None
                pool.release(worker)
            if lost is None:
                return
            self._lost(lost.crash)
            if self.loans:
                # What it asked for goes on, for nobody; its place is somebody else's.
                self.queue.give_way(self)
                return
            if self.queue.leave(self):
                return

    def _cannot_start(self, error: Exception) -> None:
        queue = self.queue
        try:
            token = queue.ready.popleft()
        except IndexError:
            queue.leave(self, force=True)
            return
        queue.give_way(self)
        queue.data.report(Raised(token, error, queue.data.node))

    def _serve(self, worker: ProcessWorker) -> None:
        queue, data = self.queue, self.queue.data
        while True:
            room = self._quota() - len(self.flying)
            if room > 0 and not (self.alone and self.flying):
                self._send(worker, room)
            if not self.flying:
                if queue.ready and not data.stopping:
                    if queue.contended(self):
                        queue.give_way(self)
                        return
                    continue
                if not queue.linger(self, _LINGER):
                    return
                continue
            if data.stopping:
                # Sent in the moment in which the run ended: ``stop`` did not see it.
                worker.kill()
            if not self._receive(worker):
                continue
            waiting = len(queue.ready)
            if waiting > 1 and len(queue.lanes) - len(queue.parked) < queue.company:
                queue.grow(1)
            if not self.flying and queue.ready and queue.contended(self):
                queue.give_way(self)
                return

    def _receive(self, worker: ProcessWorker) -> bool:
        """Wait for outcomes and put them where they belong; False if none came for a while."""
        queue, data = self.queue, self.queue.data
        # All it holds may have been taken back meanwhile, or more coroutines be ready.
        outcomes = worker.receive(_COROUTINE_LOOK if queue.kind.is_async else _LOOK)
        if not outcomes:
            return False
        n = data.plan.n
        by, me = data.trail.by, data.trail.worker(f"pid {worker.pid}")
        failed: list[Raised] = []
        for outcome in outcomes:
            token = outcome.token
            sent = self.flying.pop(token, None)
            self.nested.pop(token, None)
            if sent is None:
                continue
            i = token % n
            data.starts[i], data.ends[i], by[i] = outcome.started, outcome.ended, me
            took = outcome.ended - outcome.started
            self.mean += 0.3 * (took - self.mean) if self.mean else took
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
            if outcome.ok:
                data.done.append((token, outcome.value))
            else:
                final = isinstance(outcome.value, SerializationError)
                failed.append(Raised(token, outcome.value, data.node, final))
        queue.ended += len(outcomes)
        queue.mean = self.mean
        data.reports.extend(failed)
        assert data.ref is not None
        data.ref.signal()
        if data.budget is not None:
            data.budget.relieve()
        return True

    def _quota(self) -> int:
        """How many attempts the process may hold."""
        queue = self.queue
        limit: int = queue.permits.limit
        if queue.kind.timed:
            return 1
        if queue.kind.is_async:
            return _COROUTINES
        if not self.mean:
            return 1
        lanes = max(1, min(limit, queue.company))
        share = (len(queue.ready) + len(self.flying) + lanes - 1) // lanes
        return max(1, min(int(_BATCH_SECONDS / self.mean), share, _LONGEST_BATCH))

    def _send(self, worker: ProcessWorker, room: int) -> None:
        from handoff_actors.execution.workers.process import WorkerLost, WorkItem

        queue, data = self.queue, self.queue.data
        plan, n = data.plan, data.plan.n
        processes = self.workers.processes
        items: list[WorkItem] = []
        self.alone = False
        while room > 0 and not data.stopping:
            try:
                token = queue.ready.popleft()
            except IndexError:
                break
            i = token % n
            alone = i in data.suspects or plan.functions[i].max_crashes == 0
            if alone and (self.flying or items):
                queue.ready.appendleft(token)
                break
            try:
                key = processes.teach(worker, data, i)
            except SerializationError as error:
                data.report(Raised(token, error, data.node, final=True))
                continue
            try:
                values = processes.values(data, i)
            except Exception as error:  # it was on disk, and cannot be read back
                data.report(Raised(token, error, data.node))
                continue
            self.flying[token] = data.starts[i] = clock()
            items.append(WorkItem(token, key, plan.ids[i], token // n + 1, values))
            room -= 1
            if alone:
                self.alone = True
                break
        if not items:
            return
        if queue.kind.timed:
            self._set_timer(items[0].token)
        try:
            refused = worker.send(data.dag_id, items)
        except WorkerLost:
            self._unsent([item.token for item in items])
            raise
        for token, refusal in refused:
            self.flying.pop(token, None)
            data.report(Raised(token, refusal, data.node, final=True))
        if len(self.flying) > 1:
            queue.arm()

    def _unsent(self, tokens: list[int]) -> None:
        """The process was dead before it had them: that is charged to none, the first time.

        What is large may kill who is about to read it: so they run singly from now on.
        """
        data = self.queue.data
        n = data.plan.n
        spared = [t for t in tokens if t % n not in data.suspects]
        spared = [t for t in spared if self.flying.pop(t, None) is not None]
        data.suspects.update(t % n for t in spared)
        if spared and not data.stopping:
            data.report(Withdrawn(spared))

    def _set_timer(self, token: int) -> None:
        timeout = self.queue.data.plan.functions[token % self.queue.data.plan.n].timeout
        if timeout is not None:
            look = functools.partial(self._expired, token, timeout, clock() + timeout + _LEARNING)
            self.timer = self.workers.timers.call_later(timeout, look)

    def _expired(self, token: int, timeout: float, latest: float) -> None:
        """On the timer thread. The time runs from the call; before it, code may have to load."""
        worker, sent = self.worker, self.flying.get(token)
        if worker is None or sent is None:
            return
        now, began = clock(), worker.began
        left = timeout - (now - began) if began >= sent else timeout
        if left > 0 and now < latest:
            look = functools.partial(self._expired, token, timeout, latest)
            self.timer = self.workers.timers.call_later(left, look)
            return
        self.timed_out = token
        worker.kill()

    def _lost(self, crash: CrashedAttempt) -> None:
        """The process has died; what it held is somebody's to run again."""
        data = self.queue.data
        with self.queue.lock:
            flying = [t for t in list(self.flying) if self.flying.pop(t, None) is not None]
            orphans = [run for runs in self.nested.values() for run in runs]
            self.nested.clear()
        for run in orphans:
            run.cancel()
        self.mean = 0.0
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if not flying or data.stopping:
            return
        i = flying[0] % data.plan.n
        data.ends[i], data.trail.by[i] = clock(), data.trail.worker(f"pid {crash.pid}")
        if self.timed_out in flying:
            data.reports.append(TimedOut(self.timed_out, data.node))
            flying.remove(self.timed_out)
        elif len(flying) == 1:
            data.reports.append(Crashed(flying[0], crash))
            flying = []
        else:
            data.suspects.update(token % data.plan.n for token in flying)
        self.timed_out = -1
        if flying:
            data.reports.append(Withdrawn(flying))
        assert data.ref is not None
        data.ref.signal()

"""A lane that runs the tasks of a pool in a worker process.

It is a job on a thread of the runtime that owns one process and a permit. Tasks go in batches that
grow while they prove short; what waits behind a slow one is taken back when another lane could have
it. Each task tells that it begins and sends what ended before it, so that a process that dies costs
just the task it was at: those behind it have not begun, and run elsewhere.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Hashable, Sequence
from time import perf_counter as clock
from typing import TYPE_CHECKING, Any, Protocol

from handoff_actors.cluster.payload import dumps
from handoff_actors.errors import (
    CrashedAttempt,
    FunctionCrashedError,
    SerializationError,
    describe,
)
from handoff_actors.execution.tasks import Call, Task
from handoff_actors.execution.workers.exits import WorkerLost
from handoff_actors.execution.workers.packing import Outcome, WorkItem
from handoff_actors.graph import calls

if TYPE_CHECKING:
    from handoff_actors.execution.run import Run
    from handoff_actors.execution.workers.process import ProcessWorker
    from handoff_actors.execution.workers.roster import Workers

_BATCH_SECONDS = 1e-3
_LONGEST_BATCH = 256
_LOOK = 0.25
_TICK = 0.002
_LONGEST_TICK = 0.05
"""Seconds between looks at a batch that may wait behind a slow task."""
_LEAST_DEATHS = 3
"""How many processes may die that were about to run a task and had not begun it."""

_tokens = itertools.count(1)
"""No two attempts of any pool have the same, so that what a process said last is of one of them."""


class Tasks(Protocol):
    """The pool whose tasks a lane runs.

    Attributes:
        name: what its tasks are called.
        mean: seconds that a task takes; 0.0 while nobody knows.
        max_crashes: how many deaths of processes a task may cost.
    """

    name: str
    mean: float
    max_crashes: int

    def paid(self) -> None:
        """A lane that was begun for a task is about to take one, or never will."""

    def take(self) -> Task | None:
        """The next task, which is the caller's from now on."""

    def give_back(self, tasks: Sequence[Task]) -> None:
        """They are to be the next ones; another lane may have them."""

    def share(self, held: int) -> int:
        """How many tasks each lane would have, if all had as many; one has ``held``."""

    def has_room(self) -> bool:
        """Whether another lane could begin at once."""

    def more_soon(self) -> bool:
        """Wait a moment for another task; whether there is one."""

    def extend(self, by: int) -> None:
        """So many lanes more may run."""

    def ended(self, task: Task, error: BaseException | None, value: Any) -> None:
        """A task has its outcome."""


class TaskLane:
    """See the module.

    Args:
        workers: of the runtime.
        tasks: the pool.
        code: what processes run for each task.
        turn: seconds after which it is others' turn.
    """

    def __init__(self, workers: Workers, tasks: Tasks, code: Call, turn: float) -> None:
        self.in_line = False
        self._workers = workers
        self._tasks = tasks
        self._code = calls.Call("call", code, (0,))
        self._turn = turn
        self._worker: ProcessWorker | None = None
        self._flying: dict[int, Task] = {}
        self._nested: dict[int, list[Run]] = {}
        self._tick = _TICK
        self._lock = threading.Lock()
        self._loans = 0
        self._over = False
        self._owes = True
        self._alone = False  # what it has is read before it begins: so there is only one
        self._latch = threading.Lock()
        self._latch.acquire()

    # As what waits for a permit.

    def wants_worker(self) -> bool:
        """It waits for one, whatever came of its tasks meanwhile."""
        return True

    def launch(self) -> None:
        """A permit is ours."""
        self._latch.release()

    # As what the processes ask when the code of a task calls the library.

    def work(self) -> tuple[Hashable, tuple[Hashable, ...]]:
        """The pool, and its tasks that are in the process."""
        return self._tasks.name, ("call",) * len(self._flying)

    def lend(self) -> TaskLane:
        """A task waits for something else: another lane may run meanwhile."""
        with self._lock:
            self._loans += 1
            lends = self._loans == 1 and not self._over
        if lends:
            self._workers.process_permits.give()
            self._tasks.extend(1)
            self._workers.carriers.submit(self._take_back)
        return self

    def reclaim(self, _loan: Any) -> None:
        """The wait is over."""
        with self._lock:
            self._loans -= 1
            returned = not self._loans and not self._over
        if returned:
            self._tasks.extend(-1)
            self._workers.process_permits.take_back()

    def submitted(self, token: int, run: Run) -> None:
        """A task has submitted a run: it is cancelled if the process dies."""
        with self._lock:
            alive = token in self._flying
            if alive:
                self._nested.setdefault(token, []).append(run)
        if not alive:
            run.cancel()

    # The lane.

    def run(self) -> None:
        """Run tasks until there are none, or others want the place."""
        permits = self._workers.process_permits
        if not permits.take(self):
            self._latch.acquire()
        try:
            while self._live():
                pass
        except BaseException as error:  # ours: no future may be left without an outcome
            for token in list(self._flying):
                task = self._flying.pop(token, None)
                if task is not None:
                    self._tasks.ended(task, error, None)
            raise
        finally:
            self._pay()
            with self._lock:
                self._over = True
                lent = self._loans > 0
            if lent:
                self._tasks.extend(-1)
            else:
                permits.give()

    def _pay(self) -> None:
        owes, self._owes = self._owes, False
        if owes:
            self._tasks.paid()

    def _live(self) -> bool:
        """The life of one process; whether there should be another."""
        processes = self._workers.processes
        pool = processes.pool()
        worker = self._worker = pool.acquire()
        try:
            processes.adopt(worker, self)
            with processes.taught(worker, self._code) as key:
                self._serve(worker, key)
        except WorkerLost as lost:
            with contextlib.suppress(WorkerLost):
                while True:  # what it had sent before it died may not have been read
                    self._receive(worker)
            self._lost(worker, lost.crash)
            return self._tasks.share(0) > 0
        finally:
            self._worker = None
            processes.end(worker)
            pool.release(worker)
        return False

    def _serve(self, worker: ProcessWorker, key: int) -> None:
        tasks, flying = self._tasks, self._flying
        until = clock() + self._turn
        while True:
            late = clock() > until
            self._pay()
            self._alone = self._alone and bool(flying)
            if not late:
                self._send(worker, key)
            if not flying:
                if late or not tasks.more_soon():
                    return
                continue
            self._receive(worker)

    def _receive(self, worker: ProcessWorker) -> None:
        """Wait for outcomes; nothing of them lives on here."""
        outcomes = worker.receive(self._tick if len(self._flying) > 1 else _LOOK)
        if outcomes:
            self._tick = _TICK
            for outcome in outcomes:
                self._ended(outcome)
            return
        self._tick = min(1.5 * self._tick, _LONGEST_TICK)
        if len(self._flying) > 1 and self._tasks.has_room():
            self._take_back()

    def _send(self, worker: ProcessWorker, key: int) -> None:
        tasks, flying = self._tasks, self._flying
        items: list[WorkItem] = []
        room = self._quota() - len(flying)
        while room > 0 and not self._alone:
            task = self._next()
            if task is None:
                break
            given: Any = (task.fn, task.args, task.kwargs)
            try:
                payload = dumps(given, "argument of a task")
            except SerializationError as error:
                tasks.ended(task, error, None)
                continue
            if not payload.buffers:
                given = payload.head
            elif flying:
                tasks.give_back([task])
                break
            else:
                self._alone = True
            token = next(_tokens)
            flying[token] = task
            items.append(WorkItem(token, key, "call", 1 + len(task.crashes), (given,)))
            room -= 1
        if items:
            for token, refusal in worker.send(tasks.name, items):
                tasks.ended(flying.pop(token), refusal, None)

    def _next(self) -> Task | None:
        task = self._tasks.take()
        while task is not None and not task.begin():
            task = self._tasks.take()
        return task

    def _quota(self) -> int:
        """How many tasks the process may hold."""
        mean = self._tasks.mean
        if not mean:
            return 1
        share = self._tasks.share(len(self._flying))
        return max(1, min(int(_BATCH_SECONDS / mean), share, _LONGEST_BATCH))

    def _ended(self, outcome: Outcome) -> None:
        with self._lock:
            task = self._flying.pop(outcome.token, None)
            self._nested.pop(outcome.token, None)
        if task is None:
            return
        tasks, took = self._tasks, outcome.ended - outcome.started
        tasks.mean += 0.3 * (took - tasks.mean) if tasks.mean else took
        if outcome.ok:
            tasks.ended(task, None, outcome.value)
        else:
            tasks.ended(task, outcome.value, None)

    def _take_back(self) -> None:
        """What waits behind the task the process is at can be another lane's."""
        worker, waiting = self._worker, list(self._flying)[1:]
        if worker is None or not waiting:
            return
        # Whoever removes it from ``_flying`` has it: the process may die in this moment.
        taken = [self._flying.pop(token, None) for token in worker.take_back(waiting, 1.0)]
        back = [task for task in taken if task is not None]
        if back:
            self._tasks.mean = max(self._tasks.mean, _BATCH_SECONDS)
            self._tasks.give_back(back)

    def _lost(self, worker: ProcessWorker, crash: CrashedAttempt) -> None:
        """The process has died: one task has perhaps paid for it, the others go on."""
        with self._lock:
            tokens = list(self._flying)
            held = [(t, task) for t in tokens if (task := self._flying.pop(t, None)) is not None]
            orphans = [run for runs in self._nested.values() for run in runs]
            self._nested.clear()
        for run in orphans:
            run.cancel()
        if not held:
            return
        last = worker.last_begun
        victim = next((task for token, task in held if token == last), None)
        if victim is not None:
            victim.crashes.append(crash)
        else:
            # It was at none of them: what it was about to read may have killed it all the same.
            held[0][1].at_hand += 1
            if held[0][1].at_hand >= _LEAST_DEATHS:
                victim = held[0][1]
                victim.crashes.append(crash)
        back = [task for _, task in held]
        if victim is not None and len(victim.crashes) > self._tasks.max_crashes:
            back.remove(victim)
            self._tasks.ended(victim, self._crashed(victim), None)
        if back:
            self._tasks.give_back(back)

    def _crashed(self, task: Task) -> FunctionCrashedError:
        lines = "; ".join(f"on node {c.node}, pid {c.pid}: {c.reason}" for c in task.crashes)
        times = len(task.crashes)
        return FunctionCrashedError(
            f"{describe(task.fn)}, a task of {self._tasks.name}, lost its worker "
            f"{'once' if times == 1 else f'{times} times'}, and max_crashes="
            f"{self._tasks.max_crashes} allows no more: {lines}. Run it alone to see why; the "
            "pool goes on",
            dag_id=self._tasks.name,
            function_id="call",
            attempts=tuple(task.crashes),
        )

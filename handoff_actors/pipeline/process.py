"""A worker of a stage in a process of its own.

A carrier thread owns the process: it sends items in batches that grow while they prove short, and
leaves their results where a thread would. A process that dies is replaced, and ``init`` runs again.
What it had held alone is charged with the death; several at once are run singly from then on, so
that the one which kills its worker is found, and pays alone.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Hashable, Sequence
from time import perf_counter as clock
from typing import TYPE_CHECKING, Any, NamedTuple

from handoff_actors.cluster.payload import dumps
from handoff_actors.errors import CrashedAttempt, SerializationError
from handoff_actors.execution.workers.exits import WorkerLost
from handoff_actors.execution.workers.packing import Outcome, WorkItem
from handoff_actors.graph.calls import Call
from handoff_actors.pipeline.code import RemoteAsyncCode, RemoteCode
from handoff_actors.pipeline.crew import Crew, Failures, WorkerFailed
from handoff_actors.pipeline.errors import crashed, timed_out
from handoff_actors.pipeline.joins import Entry
from handoff_actors.pipeline.thread import sort_out

if TYPE_CHECKING:
    from handoff_actors.execution.workers.process import ProcessWorker as Process

_BATCH_SECONDS = 1e-3
_LONGEST_BATCH = 256
_COROUTINES = 1000
_LOOK = 0.25
_COROUTINE_LOOK = 0.01
"""Seconds a worker waits for outcomes before it looks around."""
_LEARNING = 10.0
"""Seconds that loading the code may take before it counts against the function's timeout."""
_BEGIN = 0
"""The token of ``init``."""


class _Flight(NamedTuple):
    """What one attempt in the process is of."""

    entries: Sequence[Entry]
    sent: float


class ProcessWorker:
    """See the module.

    Args:
        crew: whose worker it is.
        number: which of them.
    """

    def __init__(self, crew: Crew, number: int) -> None:
        self.crew = crew
        self.number = number
        self.ready = False
        self.working_since = 0.0
        self._share = crew.shares[number]
        function = crew.function
        self._batching = crew.call.batching
        self._is_async = crew.call.is_async
        self._timeout = function.timeout
        self._single = self._timeout is not None or function.max_crashes == 0
        self._flying: dict[int, _Flight] = {}
        self._token = _BEGIN
        self._backlog: deque[Sequence[Entry]] = deque()  # taken and not sent
        self._process: Process | None = None
        self._timer: Any = None
        self._timed_out = -1
        self._looked_at = -1
        self._latch = threading.Lock()
        self._latch.acquire()
        kind = RemoteAsyncCode if self._is_async else RemoteCode
        self._code = kind(crew.call, crew.line.plan.deps[crew.index], crew.line.node)
        sources = tuple(range(self._code.arity))
        self._taught = Call(crew.id, self._code, sources, is_async=self._is_async)

    # As what the pool of processes asks, when the code calls the library.

    def lend(self) -> bool:
        """The code waits for other functions: the worker's share of the claim is lent to them."""
        return self._share.lend()

    def reclaim(self, loan: object) -> None:
        """The wait is over."""
        self._share.reclaim(loan)

    def work(self) -> tuple[Hashable, tuple[Hashable, ...]]:
        """The pipeline, and the function if items are in the process."""
        return self.crew.line.id, (self.crew.id,) if self._flying else ()

    # As a worker.

    def stop(self) -> None:
        """The pipeline ends: a process that is still at work for it is killed."""
        process = self._process
        if process is not None and (self._flying or not self.ready):
            process.kill()

    def look(self) -> bool:
        """See ``Worker``."""
        first, before = next(iter(list(self._flying)), -1), self._looked_at
        self._looked_at = first
        if len(self._flying) < 2 or self._is_async:
            return False
        if first == before and self.crew.parked:
            self.crew.line.workers.carriers.submit(self._take_back)
        return True

    def _take_back(self) -> None:
        """Others have nothing to do: they can have what waits here."""
        process, waiting = self._process, list(self._flying)[1:]
        if process is None or not waiting:
            return
        # Whoever removes it from ``_flying`` has it: the process may die in this moment.
        back: list[Entry] = []
        for token in process.take_back(waiting, 1.0):
            flight = self._flying.pop(token, None)
            if flight is not None:
                back += flight.entries
        if back:
            self.crew.give_back(back)

    def run(self) -> None:
        """Work until the pipeline ends."""
        self.crew.carry(self, self._to_the_end, self._return_all)

    def _to_the_end(self) -> None:
        line = self.crew.line
        while not line.over and self._live():
            pass

    def _return_all(self) -> None:
        held = [entry for flight in self._flying.values() for entry in flight.entries]
        held += [entry for entries in self._backlog for entry in entries]
        self._flying.clear()
        self._backlog.clear()
        if held:
            self.crew.give_back(held)

    def _live(self) -> bool:
        """The life of one process; whether there should be another."""
        processes = self.crew.line.workers.processes
        try:
            pool = processes.pool()
            process = self._process = pool.acquire()
        except Exception as error:
            raise WorkerFailed from error
        try:
            processes.adopt(process, self)
            with processes.taught(process, self._taught) as key:
                self._begin(process, key)
                self._serve(process, key)
        except WorkerLost as lost:
            self._lost(lost.crash)
            return True
        finally:
            self.ready = False
            self._process = None
            processes.end(process)
            pool.release(process)
        return False

    def _begin(self, process: Process, key: int) -> None:
        """Have ``init`` run."""
        if self.crew.line.over:
            return
        begin = WorkItem(_BEGIN, key, self.crew.id, 1, self._code.to_begin())
        process.send(self.crew.line.id, [begin])
        while not (outcomes := process.receive(_LOOK)):
            if self.crew.line.over:
                process.kill()
        if not outcomes[0].ok:
            raise WorkerFailed from outcomes[0].value
        self.crew.began(self)

    def _serve(self, process: Process, key: int) -> None:
        crew = self.crew
        done: list[Entry] = []
        failed: Failures = []
        while True:
            idle = not self._flying and not self._backlog
            room = self._room()
            if done or failed or room or idle:
                taken = crew.exchange(done, failed, room, self._latch.release if idle else None)
                if taken is None:
                    if self._flying:
                        process.kill()
                    return
                if taken:
                    self._stack(taken)
                elif idle:
                    self._latch.acquire()
                    continue
            self._send(process, key, failed)
            if not self._flying:
                continue
            for outcome in process.receive(_COROUTINE_LOOK if self._is_async else _LOOK):
                self._ended(outcome, done, failed)
            if crew.line.over:
                process.kill()

    def _room(self) -> int:
        """How many more items the process may have now."""
        if self._backlog:
            return 0
        crew = self.crew
        if self._single:
            return 0 if self._flying else 1
        if self._is_async:
            return self._alone() if crew.in_turn else _COROUTINES - len(self._flying)
        if self._batching or not crew.mean:
            return self._alone()
        ready = len(crew.line.flow.stages[crew.index].ready)
        others = len(crew.workers)
        quota = min(int(_BATCH_SECONDS / crew.mean), _LONGEST_BATCH)
        if ready > others:
            # One that waits there saves the way, when there is enough for all.
            quota = max(2, min(quota, ready // others))
        return max(0, max(1, min(quota, -(-ready // others))) - len(self._flying))

    def _alone(self) -> int:
        return 0 if self._flying else 1

    def _stack(self, taken: list[Entry]) -> None:
        suspects = self.crew.suspects
        size = (self.crew.function.batch_size or 1) if self._batching else 1
        if suspects and any(seq in suspects for seq, _ in taken):
            size = 1
        self._backlog.extend(taken[i : i + size] for i in range(0, len(taken), size))

    def _send(self, process: Process, key: int, failed: Failures) -> None:
        crew = self.crew
        items: list[WorkItem] = []
        while self._backlog:
            entries = self._backlog[0]
            alone = self._single or any(seq in crew.suspects for seq, _ in entries)
            if alone and self._flying:
                break
            self._backlog.popleft()
            self._token += 1
            values = self._code.to_run([payload for _, payload in entries])
            attempt = 1 + len(crew.crashes.get(entries[0][0], ()))
            self._flying[self._token] = _Flight(entries, clock())
            items.append(WorkItem(self._token, key, crew.id, attempt, values))
            if alone:
                break
        if not items:
            return
        if not self.working_since:
            self.working_since = clock()
        if self._timeout is not None:
            self._set_timer(self._token)
        for token, refusal in process.send(crew.line.id, items):
            self._refused(self._flying.pop(token).entries, refusal, failed)

    def _refused(
        self, entries: Sequence[Entry], refusal: SerializationError, failed: Failures
    ) -> None:
        """A batch with something that cannot be sent: only its item fails, the others go again."""
        good: list[Entry] = []
        for seq, payload in entries:
            try:
                if len(entries) > 1:
                    dumps(payload, f"an argument of function {self.crew.id!r}")
                    good.append((seq, payload))
                    continue
                failed.append(self.crew.failure_of(seq, refusal))
            except SerializationError as error:
                failed.append(self.crew.failure_of(seq, error))
        if len(good) == len(entries):
            failed += [self.crew.failure_of(seq, refusal) for seq, _ in entries]
        elif good:
            self._backlog.appendleft(good)

    def _ended(self, outcome: Outcome, done: list[Entry], failed: Failures) -> None:
        flight = self._flying.pop(outcome.token, None)
        if flight is None:
            return
        crew = self.crew
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        entries = flight.entries
        if not outcome.ok:
            failed += [crew.failure_of(seq, outcome.value) for seq, _ in entries]
        elif self._batching:
            sort_out(crew, entries, outcome.value, done, failed, mixed=self._code.mixed)
        else:
            done.append((entries[0][0], outcome.value))
        if crew.crashes or crew.suspects:
            for seq, _ in entries:
                crew.crashes.pop(seq, None)
                crew.suspects.discard(seq)
        took = outcome.ended - outcome.started
        crew.account(clock() - took, len(entries))
        if not self._flying:
            self.working_since = 0.0

    # Deaths.

    def _set_timer(self, token: int) -> None:
        assert self._timeout is not None
        latest = clock() + self._timeout + _LEARNING
        look = functools.partial(self._expired, token, latest)
        self._timer = self.crew.line.workers.timers.call_later(self._timeout, look)

    def _expired(self, token: int, latest: float) -> None:
        """On the timer thread. The time runs from the call; before it, code may have to load."""
        process, flight = self._process, self._flying.get(token)
        if process is None or flight is None:
            return
        assert self._timeout is not None
        now, began = clock(), process.began
        left = self._timeout - (now - began) if began >= flight.sent else self._timeout
        if left > 0 and now < latest:
            look = functools.partial(self._expired, token, latest)
            self._timer = self.crew.line.workers.timers.call_later(left, look)
            return
        self._timed_out = token
        process.kill()

    def _lost(self, crash: CrashedAttempt) -> None:
        """The process has died; what it held is to be run again, or has failed."""
        crew, line = self.crew, self.crew.line
        began, self.working_since = self.ready, 0.0
        crew.losses[self.number] = f"process {crash.pid}: {crash.reason}"
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        late = self._flying.pop(self._timed_out, None)
        flights = [f for token in list(self._flying) if (f := self._flying.pop(token, None))]
        self._timed_out = -1
        failed: Failures = []
        if late is not None:
            assert self._timeout is not None
            cause = timed_out(line.id, crew.id, self._timeout)
            failed = [crew.failure_of(seq, cause) for seq, _ in late.entries]
        entries = [entry for flight in flights for entry in flight.entries]
        if len(entries) > 1 and crew.function.max_crashes:
            crew.suspects.update(seq for seq, _ in entries)
        elif late is None:
            for seq, _ in entries:
                crashes = crew.crashes.setdefault(seq, [])
                crashes.append(crash)
                if len(crashes) > crew.function.max_crashes:
                    del crew.crashes[seq]
                    crew.suspects.discard(seq)
                    error = crashed(line.id, crew.id, crew.function.max_crashes, crashes)
                    failed.append(crew.failure_of(seq, error))
        gone = {seq for seq, _ in failed}
        again = [entry for entry in entries if entry[0] not in gone]
        again += [entry for waiting in self._backlog for entry in waiting]
        self._backlog.clear()
        if again and not line.over:
            crew.give_back(again)
        if failed:
            crew.exchange([], failed, 0)
        if not began and not line.over:
            # It died in ``init``: that is nobody's but the stage's, which must not try for ever.
            raise WorkerFailed from crashed(line.id, crew.id, 0, [crash])

"""A worker of a stage on a thread of this process.

One carrier thread serves one worker for the pipeline's life, so that what ``init`` makes may belong
to a thread. A thread cannot be killed: when an item overruns the function's ``timeout``, its worker
is abandoned, and another begins in its place.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import deque
from collections.abc import MutableSequence, Sequence
from time import perf_counter as clock
from typing import Any

from handoff_actors.actors.timers import Timer
from handoff_actors.errors import HandoffError
from handoff_actors.execution.context import Context, place
from handoff_actors.pipeline.code import Failed, StageCode
from handoff_actors.pipeline.crew import PASS_ON, Crew, Failures, WorkerFailed
from handoff_actors.pipeline.errors import timed_out
from handoff_actors.pipeline.joins import Entry


class ThreadWorker:
    """See the module.

    Args:
        crew: whose worker it is.
        number: which of them.

    Attributes:
        at: what it is at; of a batch the first.
        batch: what it is at, where that is more than one.
        held: what was taken and has not begun: entries, or batches of them.
        done: items with results that were not passed on; not only by this thread, see ``look``.
        failed: the same of those that failed.
    """

    def __init__(self, crew: Crew, number: int) -> None:
        self.crew = crew
        self.number = number
        self.ready = False
        self.working_since = 0.0
        self._share = crew.shares[number]
        self.held: deque[Any] = deque()
        self.done: deque[Entry] = deque()
        self.failed: Failures = []
        self._looked_at: Entry | None = None
        self.at: Entry | None = None
        self.batch: Sequence[Entry] = ()
        self._latch = threading.Lock()
        self._latch.acquire()
        self._timeout = crew.function.timeout
        self._timer: Timer | None = None

    # As the place of the code.

    def context(self) -> Context:
        """The item that is here now; in a batch, its first."""
        at, line = self.at, self.crew.line
        return self.crew.context(
            -1 if at is None else at[0], lambda: line.over or self.at is not at
        )

    def home(self) -> Any:
        """The runtime."""
        runtime = self.crew.line.workers.runtime()
        if runtime is None:
            raise HandoffError("the runtime of this pipeline is gone")
        return runtime

    def lend(self) -> bool:
        """The code waits for other functions: the worker's share of the claim is lent to them."""
        return self._share.lend()

    def reclaim(self, loan: object) -> None:
        """The wait is over."""
        self._share.reclaim(loan)

    # As a worker.

    def stop(self) -> None:
        """The code sees ``cancelled()``; nothing more can be done to a thread."""

    def run(self) -> None:
        """Work until the pipeline ends."""
        self.crew.carry(self, self._live)

    def _live(self) -> None:
        try:
            self.crew.line.context.copy().run(self._serve)
        except WorkerFailed:
            raise  # it has taken nothing yet
        except BaseException:
            self.crew.give_back([*self.batch, *self._let_go()])
            raise

    def _serve(self) -> None:
        crew, latch = self.crew, self._latch
        place.set(self)
        code = crew.code()
        try:
            code.begin()
        except BaseException as error:
            raise WorkerFailed from error
        crew.began(self)
        work: Any
        if crew.call.batching:
            kind = self._batches if self._timeout is None else self._single_batch
            work = functools.partial(kind, code)
        elif self._timeout is not None:
            work = functools.partial(self._single, code.caller())
        else:
            work = functools.partial(self._many, code.caller())
        done, failed = self.done, self.failed
        while True:
            limit = 1 if self._timeout is not None else crew.limit()
            taken = crew.exchange(done, failed, limit, latch.release)
            if taken is None:
                return
            if not taken:
                latch.acquire()
                continue
            began = self.working_since = clock()
            if not work(taken, done, failed):
                return
            self.working_since = 0.0
            crew.account(began, len(taken))

    def _many(self, call: Any, taken: list[Entry], done: deque[Entry], failed: Failures) -> bool:
        held = self.held
        held.extend(taken)
        pop, append = held.popleft, done.append
        mark = clock()
        while True:
            try:
                entry = pop()
            except IndexError:
                break
            self.at = entry
            seq, payload = entry
            try:
                append((seq, call(payload)))
            except BaseException as error:
                failed.append(self.crew.failure_of(seq, own_error(error)))
            if clock() - mark > PASS_ON and held:
                if self.crew.exchange(done, failed, 0) is None:
                    held.clear()
                    return False
                mark = clock()
        self.at, self.batch = None, ()
        return True

    def look(self) -> bool:
        """See ``Worker``."""
        at, before = self.at, self._looked_at
        self._looked_at = at
        if not self.held and not self.done:
            return False
        if at is before:
            self.crew.rescue(self.done, self.failed, self._let_go)
        return True

    def _let_go(self) -> list[Entry]:
        """What was taken and has not begun; the worker takes from the left meanwhile."""
        held, found = self.held, []
        with contextlib.suppress(IndexError):
            while True:
                found.append(held.popleft())
        if self.crew.call.batching:
            return [entry for batch in found for entry in batch]
        return found

    def _single(self, call: Any, taken: list[Entry], done: deque[Entry], failed: Failures) -> bool:
        """One item with a time limit."""
        self.at, self.batch = taken[0], taken
        seq, payload = self.at
        gate = self._begin_timer(taken)
        try:
            value = call(payload)
        except BaseException as error:
            if not self._in_time(gate):
                return False
            failed.append(self.crew.failure_of(seq, own_error(error)))
        else:
            if not self._in_time(gate):
                return False
            done.append((seq, value))
        self.at, self.batch = None, ()
        return True

    def _batches(
        self, code: StageCode, taken: list[Entry], done: deque[Entry], failed: Failures
    ) -> bool:
        """Batches, of which only the last may not be full."""
        held, size = self.held, self.crew.function.batch_size or len(taken)
        held.extend([taken[start : start + size] for start in range(0, len(taken), size)])
        pop, extend = held.popleft, done.extend
        call, mixed = code.batch_caller(), code.mixed
        mark = clock()
        while True:
            try:
                batch = pop()
            except IndexError:
                break
            self.at, self.batch = batch[0], batch
            try:
                results = call(batch)
            except BaseException as error:
                own = own_error(error)
                failed += [self.crew.failure_of(seq, own) for seq, _ in batch]
            else:
                if mixed:
                    sort_out(self.crew, batch, results, done, failed, mixed=True)
                else:
                    extend(zip([seq for seq, _ in batch], results, strict=True))
            if clock() - mark > PASS_ON and held:
                self.at, self.batch = None, ()
                if self.crew.exchange(done, failed, 0) is None:
                    held.clear()
                    return False
                mark = clock()
        self.at, self.batch = None, ()
        return True

    def _single_batch(
        self, code: StageCode, taken: list[Entry], done: deque[Entry], failed: Failures
    ) -> bool:
        """One batch with a time limit."""
        self.at, self.batch = taken[0], taken
        gate = self._begin_timer(taken)
        try:
            results = code.many([payload for _, payload in taken])
        except BaseException as error:
            if not self._in_time(gate):
                return False
            own = own_error(error)
            failed += [self.crew.failure_of(seq, own) for seq, _ in taken]
        else:
            if not self._in_time(gate):
                return False
            sort_out(self.crew, taken, results, done, failed, mixed=code.mixed)
        self.at, self.batch = None, ()
        return True

    # Time limits.

    def _begin_timer(self, taken: list[Entry]) -> list[bool]:
        assert self._timeout is not None
        gate = [True]
        expired = functools.partial(self._expired, gate, taken)
        self._timer = self.crew.line.workers.timers.call_later(self._timeout, expired)
        return gate

    def _in_time(self, gate: list[bool]) -> bool:
        """Whether the item was not given up before it ended; only one of the two comes first."""
        try:
            gate.pop()
        except IndexError:
            return False
        if self._timer is not None:
            self._timer.cancel()
        return True

    def _expired(self, gate: list[bool], taken: list[Entry]) -> None:
        """On the timer thread: the item took too long."""
        try:
            gate.pop()
        except IndexError:
            return
        crew, timeout = self.crew, self._timeout
        assert timeout is not None
        self.at, self.batch = None, ()
        cause = timed_out(crew.line.id, crew.id, timeout)
        crew.abandon(self)
        crew.exchange([], [crew.failure_of(seq, cause) for seq, _ in taken], 0)


def own_error(error: BaseException) -> BaseException:
    """The error without our frames, which hold other items."""
    traceback = error.__traceback__
    if traceback is not None:
        error.__traceback__ = traceback.tb_next
    return error


def sort_out(
    crew: Crew,
    taken: Sequence[Entry],
    results: Sequence[Any],
    done: MutableSequence[Entry],
    failed: Failures,
    *,
    mixed: bool,
) -> None:
    """The results of a batch, to the items they are of; ``mixed``: some may be ``Failed``."""
    if not mixed or Failed not in set(map(type, results)):
        done.extend(zip([seq for seq, _ in taken], results, strict=True))
        return
    for (seq, _), result in zip(taken, results, strict=True):
        if result.__class__ is Failed:
            failed.append(crew.failure_of(seq, result.error))
        else:
            done.append((seq, result))

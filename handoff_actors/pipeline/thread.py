"""A worker of a stage on a thread of this process.

One carrier thread serves one worker for the pipeline's life, so that what ``init`` makes may belong
to a thread. A thread cannot be killed: when an item overruns the function's ``timeout``, its worker
is abandoned, and another begins in its place.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
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
        held: what was taken and is not done.
    """

    def __init__(self, crew: Crew, number: int) -> None:
        self.crew = crew
        self.number = number
        self.ready = False
        self.working_since = 0.0
        self.held: Sequence[Entry] = ()
        self.seq = -1
        self._latch = threading.Lock()
        self._latch.acquire()
        self._timeout = crew.function.timeout
        self._timer: Timer | None = None

    # As the place of the code.

    def context(self) -> Context:
        """The item that is here now; in a batch, its first."""
        seq, line = self.seq, self.crew.line
        return self.crew.context(seq, lambda: line.over or self.seq != seq)

    def home(self) -> Any:
        """The runtime."""
        runtime = self.crew.line.workers.runtime()
        if runtime is None:
            raise HandoffError("the runtime of this pipeline is gone")
        return runtime

    def lend(self) -> None:
        """A pipeline's claim is for its life: nothing is lent."""

    def reclaim(self, loan: None) -> None:
        """See ``lend``."""

    # As a worker.

    def stop(self) -> None:
        """The code sees ``cancelled()``; nothing more can be done to a thread."""

    def run(self) -> None:
        """Work until the pipeline ends."""
        line = self.crew.line
        line.workers.carriers.set_busy(True)
        failure: BaseException | None = None
        try:
            line.context.copy().run(self._serve)
        except WorkerFailed as failed:
            failure = failed.__cause__
        except BaseException as error:  # the wall: a bug of ours costs this worker
            line.workers.log.error("stage_worker_failed", pipeline=line.name, exc_info=error)  # noqa: TRY400  it is passed on
            failure = error
            if self.held:
                self.crew.give_back(self.held)
        line.workers.carriers.set_busy(False)
        self.crew.left(self, failure)

    def _serve(self) -> None:
        crew, latch = self.crew, self._latch
        place.set(self)
        code = crew.code()
        try:
            code.begin()
        except BaseException as error:
            raise WorkerFailed from error
        crew.began(self)
        if crew.call.batching:
            work: Any = functools.partial(self._batch, code)
        elif self._timeout is not None:
            work = functools.partial(self._single, code.caller())
        else:
            work = functools.partial(self._many, code.caller())
        done: list[Entry] = []
        failed: Failures = []
        while True:
            limit = 1 if self._timeout is not None else crew.limit()
            taken = crew.exchange(done, failed, limit, latch.release)
            self.held = ()
            if taken is None:
                return
            done, failed = [], []
            if not taken:
                latch.acquire()
                continue
            self.held = taken
            began = self.working_since = clock()
            if not work(taken, done, failed):
                return
            self.working_since = 0.0
            crew.account(began, len(taken))

    def _many(self, call: Any, taken: list[Entry], done: list[Entry], failed: Failures) -> bool:
        append = done.append
        mark = clock()
        left = len(taken)
        for seq, payload in taken:
            self.seq = seq
            try:
                append((seq, call(payload)))
            except BaseException as error:
                failed.append((seq, own_error(error)))
            left -= 1
            if left and clock() - mark > PASS_ON:
                self.held = taken[-left:]
                if self.crew.exchange(done, failed, 0) is None:
                    return False
                done.clear()
                failed.clear()
                mark = clock()
        self.seq = -1
        return True

    def _single(self, call: Any, taken: list[Entry], done: list[Entry], failed: Failures) -> bool:
        """One item with a time limit."""
        (seq, payload), *_ = taken
        self.seq = seq
        gate = self._begin_timer(taken)
        try:
            value = call(payload)
        except BaseException as error:
            if not self._in_time(gate):
                return False
            failed.append((seq, own_error(error)))
        else:
            if not self._in_time(gate):
                return False
            done.append((seq, value))
        self.seq = -1
        return True

    def _batch(
        self, code: StageCode, taken: list[Entry], done: list[Entry], failed: Failures
    ) -> bool:
        self.seq = taken[0][0]
        gate = self._begin_timer(taken)
        try:
            results = code.many([payload for _, payload in taken])
        except BaseException as error:
            if not self._in_time(gate):
                return False
            own = own_error(error)
            failed += [(seq, own) for seq, _ in taken]
        else:
            if not self._in_time(gate):
                return False
            sort_out(taken, results, done, failed)
        self.seq = -1
        return True

    # Time limits.

    def _begin_timer(self, taken: list[Entry]) -> list[bool]:
        if self._timeout is None:
            return []
        gate = [True]
        expired = functools.partial(self._expired, gate, taken)
        self._timer = self.crew.line.workers.timers.call_later(self._timeout, expired)
        return gate

    def _in_time(self, gate: list[bool]) -> bool:
        """Whether the item was not given up before it ended; only one of the two comes first."""
        if self._timeout is None:
            return True
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
        self.held = ()
        self.seq = -1
        failed: Failures = [(seq, timed_out(crew.line.id, crew.id, timeout)) for seq, _ in taken]
        crew.abandon(self)
        crew.exchange((), failed, 0)


def own_error(error: BaseException) -> BaseException:
    """The error without our frames, which hold other items."""
    traceback = error.__traceback__
    if traceback is not None:
        error.__traceback__ = traceback.tb_next
    return error


def sort_out(
    taken: Sequence[Entry], results: Sequence[Any], done: list[Entry], failed: Failures
) -> None:
    """The results of a batch, to the items they are of."""
    for (seq, _), result in zip(taken, results, strict=True):
        if result.__class__ is Failed:
            failed.append((seq, result.error))
        else:
            done.append((seq, result))

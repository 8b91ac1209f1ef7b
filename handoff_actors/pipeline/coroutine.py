"""A worker of a stage of coroutine functions: an event loop on a thread of this process.

It has many items in flight at once; but one after another with ``init``, as each needs the state
that the one before has left, and with a cost, as that is what one item at work takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Sequence
from time import perf_counter as clock
from typing import Any

from handoff_actors.execution.context import Context, place
from handoff_actors.pipeline.code import StageCode
from handoff_actors.pipeline.crew import Crew, Failures, WorkerFailed
from handoff_actors.pipeline.errors import timed_out
from handoff_actors.pipeline.joins import Entry
from handoff_actors.pipeline.thread import own_error, sort_out

_IN_FLIGHT = 1000
"""Items that one worker has in flight at most."""


class CoroutineWorker:
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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._done: list[Entry] = []
        self._failed: Failures = []

    def stop(self) -> None:
        """The pipeline ends: coroutines are cancelled."""
        self._wake()

    def look(self) -> bool:
        """Nothing waits behind anything on an event loop."""
        return False

    def _wake(self) -> None:
        """From any thread."""
        loop, woken = self._loop, self._woken
        if loop is not None and woken is not None:
            with contextlib.suppress(RuntimeError):  # it was closed in this moment
                loop.call_soon_threadsafe(woken.set)

    def run(self) -> None:
        """Work until the pipeline ends."""
        context = self.crew.line.context.copy()
        self.crew.carry(self, lambda: context.run(asyncio.run, self._serve()))

    async def _serve(self) -> None:
        crew = self.crew
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        try:
            code = crew.code()
            try:
                code.begin()
            except BaseException as error:
                raise WorkerFailed from error
            crew.began(self)
            await self._work(code)
        finally:
            self._loop = None
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self, code: StageCode) -> None:
        crew, woken = self.crew, self._woken
        assert woken is not None
        most = 1 if crew.in_turn or crew.call.batching else _IN_FLIGHT
        while True:
            woken.clear()
            room = most - len(self._tasks)
            taken = crew.exchange(self._done, self._failed, room, self._wake)
            if taken is None:
                return
            if taken:
                if not self.working_since:
                    self.working_since = clock()
                if crew.call.batching:
                    self._begin(self._batch(code, taken), taken)
                else:
                    for entry in taken:
                        self._begin(self._one(code, entry), [entry])
                if room > len(taken):
                    continue  # there may be more
            await woken.wait()

    def _begin(self, coroutine: Any, entries: Sequence[Entry]) -> None:
        context = contextvars.copy_context()
        here = _Place(self, entries[0][0])
        context.run(place.set, here)
        task = asyncio.get_running_loop().create_task(coroutine, context=context)
        self._tasks.add(task)
        began = clock()

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not self._tasks and self.working_since:
                self.crew.busy += clock() - self.working_since
                self.working_since = 0.0
            self.crew.account(began, len(entries), busy=False)
            if self._woken is not None:
                self._woken.set()

        task.add_done_callback(ended)

    async def _one(self, code: StageCode, entry: Entry) -> None:
        seq, payload = entry
        try:
            value = await self._timed(code.one_async(payload))
        except BaseException as error:  # the wall; a cancelled item's output is not wanted
            self._failed.append(self.crew.failure_of(seq, own_error(error)))
        else:
            self._done.append((seq, value))

    async def _batch(self, code: StageCode, taken: list[Entry]) -> None:
        try:
            results = await self._timed(code.many_async([payload for _, payload in taken]))
        except BaseException as error:  # the wall
            own = own_error(error)
            self._failed += [self.crew.failure_of(seq, own) for seq, _ in taken]
        else:
            sort_out(self.crew, taken, results, self._done, self._failed, mixed=code.mixed)

    async def _timed(self, coroutine: Any) -> Any:
        timeout = self.crew.function.timeout
        if timeout is None:
            return await coroutine
        try:
            async with asyncio.timeout(timeout) as limit:
                return await coroutine
        except TimeoutError:
            if not limit.expired():
                raise
            raise timed_out(self.crew.line.id, self.crew.id, timeout) from None


class _Place:
    """Where a coroutine runs."""

    __slots__ = ("_seq", "_share", "_worker")

    def __init__(self, worker: CoroutineWorker, seq: int) -> None:
        self._worker = worker
        self._seq = seq
        self._share = worker.crew.shares[worker.number]

    def context(self) -> Context:
        """The item that is here."""
        line = self._worker.crew.line
        return self._worker.crew.context(self._seq, lambda: line.over)

    def home(self) -> Any:
        """The runtime."""
        return self._worker.crew.line.workers.runtime()

    def lend(self) -> bool:
        """The code waits for other functions: the worker's share of the claim is lent to them."""
        return self._share.lend()

    def reclaim(self, loan: object) -> None:
        """The wait is over."""
        self._share.reclaim(loan)

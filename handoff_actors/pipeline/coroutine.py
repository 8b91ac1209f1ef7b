"""A worker of a stage of coroutine functions: an event loop on a thread of this process.

It has many items in flight at once; but one after another with ``init``, as each needs the state
that the one before has left, and with a cost, as that is what one item at work takes. Items go
through *lanes*, tasks that take one after another: one that waits has another lane behind it, so
that nothing waits for it, and items that never wait cost no task each.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from time import perf_counter as clock
from typing import Any

from handoff_actors.execution.context import Context, place
from handoff_actors.pipeline.code import StageCode
from handoff_actors.pipeline.crew import PASS_ON, Crew, Failures, WorkerFailed
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
        self._held: deque[Entry] = deque()  # taken, and in no lane yet
        self._flying: dict[int, Any] = {}  # taken, and not ended
        self._context = contextvars.Context()
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
        self._context = context = self.crew.line.context.copy()
        self.crew.carry(self, lambda: context.run(asyncio.run, self._serve()), self._return_all)

    def _return_all(self) -> None:
        """Whatever ended it, no item is lost."""
        self.crew.exchange(self._done, self._failed, 0)
        if self._flying:
            self.crew.give_back(list(self._flying.items()))
            self._flying.clear()

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
        call = self._timed(code.async_caller())
        while True:
            woken.clear()
            room = self._room()
            taken = crew.exchange(self._done, self._failed, room, self._wake)
            if taken is None:
                return
            if taken:
                if not self._flying:
                    self.working_since = clock()
                self._flying.update(taken)
                if crew.call.batching:
                    self._begin(self._batch(code, taken))
                elif crew.in_turn:
                    self._begin(self._lane(call, deque(taken)))
                else:
                    self._held.extend(taken)
                    self._begin(self._lane(call, self._held))
                if room > len(taken):
                    continue  # there may be more
            await woken.wait()

    def _room(self) -> int:
        """How many more items it may have now."""
        crew, flying = self.crew, len(self._flying)
        if not crew.in_turn and not crew.call.batching:
            return _IN_FLIGHT - flying
        if flying:
            return 0
        # Several would wait for their turn here, though other workers could have them.
        return 1 if crew.call.batching or len(crew.workers) > 1 else crew.limit()

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        context = self._context.copy()  # and not that of the code which may be running
        task = asyncio.get_running_loop().create_task(coroutine, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _ended(self, began: float, *numbers: int) -> None:
        """Items have ended that had begun then."""
        flying = self._flying
        for seq in numbers:
            del flying[seq]
        if not flying:
            self.crew.busy += clock() - self.working_since
            self.working_since = 0.0
        self.crew.account(began, len(numbers), busy=False)
        if self._woken is not None:
            self._woken.set()

    async def _lane(self, call: Callable[[Any], Awaitable[Any]], held: deque[Entry]) -> None:
        """Items one after another; while one of them waits, another lane goes on with the rest.

        Unless they go in turn: then it has those that are ``held`` for itself.
        """
        done = self._done
        here = _Place(self)
        place.set(here)
        task = asyncio.current_task()
        assert task is not None
        followed, mark = self.crew.in_turn, clock()
        while held:
            seq, payload = held.popleft()
            if held and not followed:
                # It runs when this one waits for the first time, and ends at once if all is done.
                followed = True
                self._begin(self._lane(call, held))
            here.seq = seq
            began = clock()
            try:
                value = await call(payload)
            except BaseException as error:  # the wall
                if self._loop is None:
                    raise  # the worker ends
                self._failed.append(self.crew.failure_of(seq, own_error(error)))
            else:
                done.append((seq, value))
            self._ended(began, seq)
            if task.cancelling():
                # By the code itself: that may yet come out of the next one's first wait.
                if self._loop is not None:
                    self._begin(self._lane(call, held))
                return
            if clock() - mark > PASS_ON:
                await asyncio.sleep(0)  # results are passed on, and others want the loop too
                mark = clock()

    async def _batch(self, code: StageCode, taken: list[Entry]) -> None:
        place.set(_Place(self, taken[0][0]))
        began = clock()
        try:
            results = await self._timed(code.many_async)([payload for _, payload in taken])
        except BaseException as error:  # the wall
            if self._loop is None:
                raise  # the worker ends
            own = own_error(error)
            self._failed += [self.crew.failure_of(seq, own) for seq, _ in taken]
        else:
            sort_out(self.crew, taken, results, self._done, self._failed, mixed=code.mixed)
        self._ended(began, *[seq for seq, _ in taken])

    def _timed(self, call: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        """The same with the function's time limit, if it has one."""
        crew, timeout = self.crew, self.crew.function.timeout
        if timeout is None:
            return call

        async def timed(argument: Any) -> Any:
            try:
                async with asyncio.timeout(timeout) as limit:
                    return await call(argument)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise timed_out(crew.line.id, crew.id, timeout) from None

        return timed


class _Place:
    """Where a coroutine runs."""

    __slots__ = ("_share", "_worker", "seq")

    def __init__(self, worker: CoroutineWorker, seq: int = -1) -> None:
        self._worker = worker
        self.seq = seq
        self._share = worker.crew.shares[worker.number]

    def context(self) -> Context:
        """The item that is here."""
        line = self._worker.crew.line
        return self._worker.crew.context(self.seq, lambda: line.over)

    def home(self) -> Any:
        """The runtime."""
        return self._worker.crew.line.workers.runtime()

    def lend(self) -> bool:
        """The code waits for other functions: the worker's share of the claim is lent to them."""
        return self._share.lend()

    def reclaim(self, loan: object) -> None:
        """The wait is over."""
        self._share.reclaim(loan)

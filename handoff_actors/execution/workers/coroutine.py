"""Coroutine functions: one event loop on one thread per runtime, any number of attempts in flight.

A coroutine needs no worker's permit; one that has a cost needs a claim each, and takes the next
attempt over on it when it is done. ``CoroutineQueue`` is the queue of such a class: instead of lanes
that serve one attempt after another it has one ``_Flight`` per attempt.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterable, Iterator
from time import perf_counter as clock
from typing import TYPE_CHECKING, Any

from handoff_actors.execution.context import Context
from handoff_actors.execution.invoke import invoke_async
from handoff_actors.execution.queues import Queue
from handoff_actors.execution.run_data import RunData
from handoff_actors.execution.run_state import Raised, TimedOut
from handoff_actors.graph.plan import LaneClass
from handoff_actors.resources.claims import Claim

if TYPE_CHECKING:
    from handoff_actors.execution.workers.roster import Workers


class CoroutineWorker:
    """An event loop on a thread of its own, made when first needed."""

    def __init__(self, name: str) -> None:
        self._name = f"{name}-coroutines"
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.in_flight = 0

    def call_soon(self, callback: Any, *args: Any) -> None:
        """Run ``callback(*args)`` on the loop's thread; ignored once it is closed."""
        try:
            self._running_loop().call_soon_threadsafe(callback, *args)
        except RuntimeError:
            return

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._run, args=(loop,), name=self._name, daemon=True
                )
                self._thread.start()
            return self._loop

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    def close(self, timeout: float) -> None:
        """Cancel what is in flight and end the thread."""
        with self._lock:
            loop, thread = self._loop, self._thread
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout)


class _Flight:
    """One attempt on the loop; the place and the lane of that attempt."""

    __slots__ = ("began", "claim", "expired", "lent", "queue", "task", "timer", "token")

    def __init__(self, queue: CoroutineQueue, claim: Claim | None, token: int) -> None:
        self.queue = queue
        self.claim = claim
        self.token = token
        self.task: asyncio.Task[Any] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.expired = False
        self.lent = False
        self.began = 0.0

    def context(self) -> Context:
        data, token = self.queue.data, self.token
        n = data.plan.n
        return Context(
            data.dag_id,
            data.plan.ids[token % n],
            token // n + 1,
            data.node,
            lambda: data.stopping or self.expired,
        )

    def home(self) -> Any:
        return self.queue.workers.runtime()

    def lend(self) -> Any:
        """A blocking call on the loop lends the claim; the loop itself it keeps."""
        if self.claim is not None:
            self.queue.workers.suspend(self.claim)
        return self.claim

    def reclaim(self, loan: Any) -> None:
        if loan is not None:
            self.queue.workers.resume(loan)

    def tokens(self) -> Iterable[int]:
        return () if self.token < 0 else (self.token,)

    def given_up(self) -> bool:
        """Whether the attempt was superseded."""
        return self.expired

    def run(self) -> None:
        """Flights are begun on the loop, by their queue."""

    def wake(self) -> None:
        """Flights never park."""

    def holds_batch(self) -> bool:
        return False

    def unblock(self) -> None:
        """Nothing waits behind it."""

    def stop(self) -> None:
        """Cancel the coroutine."""
        self.queue.workers.coroutines.call_soon(self._cancel)

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


class CoroutineQueue(Queue):
    """The queue of a class of coroutine functions that run in this process."""

    __slots__ = ()

    def __init__(self, data: RunData, number: int, kind: LaneClass, workers: Workers) -> None:
        super().__init__(data, number, kind, workers, self._no_lane, workers.coroutine_permits)

    @staticmethod
    def _no_lane(_queue: Queue, _claim: Claim | None) -> Any:
        raise AssertionError("flights begin on the loop")

    def tokens(self) -> Iterator[int]:
        yield from list(self.ready)
        for lane in list(self.lanes):
            yield from lane.tokens()

    def adjust(self) -> None:
        """There may be new work: begin it, or ask for claims for it."""
        if not self.ready or self.data.stopping:
            return
        if not self.needs_claim:
            self.workers.coroutines.call_soon(self._begin_ready)
            return
        wanted = len(self.lanes) + len(self.ready)
        room = self.data.options.max_concurrency
        if room is not None:
            wanted = min(wanted, room)
        if wanted > self.wanted:
            self.want(wanted)

    def granted(self, claim: Claim) -> None:
        """The tracker gave a claim."""
        self.workers.coroutines.call_soon(self._begin_claimed, claim)

    def stop(self) -> None:
        self.ready.clear()
        for lane in list(self.lanes):
            lane.stop()
        self.settle()

    # On the loop's thread.

    def _begin_ready(self) -> None:
        room = self.data.options.max_concurrency
        while self.ready and (room is None or self.data.lanes < room):
            try:
                self._begin(None, self.ready.popleft())
            except IndexError:
                return

    def _begin_claimed(self, claim: Claim) -> None:
        try:
            if self.data.stopping:
                raise IndexError
            token = self.ready.popleft()
        except IndexError:
            self.release_claim(claim)
        else:
            self._begin(claim, token)

    def _begin(self, claim: Claim | None, token: int) -> None:
        data = self.data
        i = token % data.plan.n
        flight = _Flight(self, claim, token)
        with self.lock:
            self.lanes.add(flight)
            data.lanes += 1
        self.workers.coroutines.in_flight += 1
        flight.began = clock()
        loop = asyncio.get_running_loop()
        timeout = data.plan.functions[i].timeout
        if timeout is not None:
            flight.timer = loop.call_later(timeout, self._expire, flight)
        context: contextvars.Context = data.context.copy()
        flight.task = context.run(
            lambda: loop.create_task(
                _guard(invoke_async(data.plan.call(i), data.values, flight)), context=context
            )
        )
        flight.task.add_done_callback(lambda task: self._landed(flight, task))

    def _expire(self, flight: _Flight) -> None:
        if flight.token < 0:
            return
        token, flight.token = flight.token, -1
        flight.expired = True
        if flight.task is not None:
            flight.task.cancel()
        self.data.report(TimedOut(token, self.data.node))

    def _landed(self, flight: _Flight, task: asyncio.Task[Any]) -> None:
        data = self.data
        if flight.timer is not None:
            flight.timer.cancel()
        token, flight.token = flight.token, -1
        self.workers.coroutines.in_flight -= 1
        self.ended += 1
        with self.lock:
            self.remove(flight)
        claim, flight.claim = flight.claim, None
        if claim is not None:
            if self.ready and not data.stopping and not self.workers.claims_contended(data.key):
                self._begin_claimed(claim)
            else:
                self.release_claim(claim)
        if token < 0:
            if data.ref is not None:
                data.ref.signal()
            return
        i = token % data.plan.n
        data.starts[i], data.ends[i] = flight.began, clock()
        error: BaseException | None
        try:
            succeeded, outcome = task.result()
        except BaseException as raised:
            succeeded, outcome = False, raised
        if succeeded:
            data.done.append((token, outcome))
            if data.ref is not None:
                data.ref.signal()
        else:
            error = outcome
            assert error is not None
            data.report(Raised(token, error, data.node))
        self.adjust()


async def _guard(coroutine: Any) -> tuple[bool, Any]:
    """The wall: not even SystemExit may reach the loop."""
    try:
        return True, await coroutine
    except BaseException as error:
        return False, error

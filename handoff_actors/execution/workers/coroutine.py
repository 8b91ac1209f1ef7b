"""Coroutine functions: one event loop on one thread per runtime, any number of attempts in flight.

A coroutine needs no worker's permit; one that has a cost needs a claim each, and takes the next
attempt over on it when it is done. ``CoroutineQueue`` is the queue of such a class: instead of
lanes that serve one attempt after another it has one ``_Flight`` per attempt.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterable
from time import perf_counter as clock
from typing import TYPE_CHECKING, Any

from handoff_actors.execution.context import Context
from handoff_actors.execution.invoke import Values, invoke_async
from handoff_actors.execution.queues import Queue
from handoff_actors.execution.run_data import RunData
from handoff_actors.execution.run_state import Raised, TimedOut
from handoff_actors.graph.calls import Call
from handoff_actors.graph.plan import LaneClass
from handoff_actors.resources.claims import Claim

if TYPE_CHECKING:
    from handoff_actors.execution.workers.roster import Workers


class CoroutineWorker:
    """An event loop on a thread of its own, made when first needed, and not once it is closed.

    Args:
        name: the prefix of its thread's name.
        closed: it never runs anything.
    """

    def __init__(self, name: str, closed: bool = False) -> None:
        self._name = f"{name}-coroutines"
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = closed
        self.in_flight = 0

    def call_soon(self, callback: Any, *args: Any) -> None:
        """Run ``callback(*args)`` on the loop's thread; ignored once it is closed."""
        try:
            self._running_loop().call_soon_threadsafe(callback, *args)
        except RuntimeError:
            return

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise RuntimeError("the coroutines were stopped with their runtime")
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
            self._closed = True
            loop, thread = self._loop, self._thread
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout)


class _Flight:
    """One attempt on the loop; the place and the lane of that attempt."""

    __slots__ = (
        "attempt", "began", "claim", "expired", "loans", "queue", "task", "timer", "token",
    )  # fmt: skip

    def __init__(self, queue: CoroutineQueue, claim: Claim | None, token: int) -> None:
        self.queue = queue
        self.claim = claim
        self.attempt = token
        self.token = token  # -1 once its outcome was reported
        self.task: asyncio.Task[Any] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.expired = False
        self.loans = 0
        self.began = 0.0

    def context(self) -> Context:
        """The attempt that runs here."""
        data, token = self.queue.data, self.attempt
        n = data.plan.n
        return Context(
            data.dag_id,
            data.plan.ids[token % n],
            token // n + 1,
            data.node,
            lambda: data.stopping or self.expired,
        )

    def home(self) -> Any:
        """The runtime."""
        return self.queue.workers.runtime()

    def lend(self) -> Any:
        """Give the claim and the place to others; a blocking call keeps the loop itself."""
        self.queue.lend(self)
        return self

    def reclaim(self, loan: Any) -> None:
        """Get them back."""
        if loan is not None:
            self.queue.reclaim(self)

    def tokens(self) -> Iterable[int]:
        """The attempt in progress."""
        return () if self.token < 0 else (self.token,)

    def given_up(self) -> bool:
        """Whether the attempt was superseded."""
        return self.expired

    def run(self) -> None:
        """Flights are begun on the loop, by their queue."""

    def is_brief(self) -> bool:
        """It is on the loop already."""
        return True

    def holds_batch(self) -> bool:
        """It is one attempt."""
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
            wanted = min(wanted, len(self.lanes) + room - self.data.lanes)
        self.want_more(wanted)

    def grow(self, count: int) -> None:  # noqa: ARG002  all that may begin does
        """Begin what may begin."""
        self.adjust()

    def granted(self, claim: Claim) -> None:
        """The tracker gave a claim."""
        self.workers.coroutines.call_soon(self._begin_claimed, claim)

    # On the loop's thread.

    def _begin_ready(self) -> None:
        while self._begin(None):
            pass

    def _begin_claimed(self, claim: Claim) -> None:
        if not self._begin(claim):
            self.release_claim(claim)

    def _begin(self, claim: Claim | None) -> bool:
        """Begin the next attempt; False if there is none, or no room for it."""
        data = self.data
        with self.lock:
            if data.stopping or not self.has_room():
                return False
            try:
                token = self.ready.popleft()
            except IndexError:
                return False
            flight = _Flight(self, claim, token)
            self.add(flight)
        self.workers.coroutines.in_flight += 1
        flight.began = clock()
        loop = asyncio.get_running_loop()
        timeout = data.plan.functions[token % data.plan.n].timeout
        if timeout is not None:
            flight.timer = loop.call_later(timeout, self._expire, flight)
        context: contextvars.Context = data.context.copy()
        call = data.plan.call(token % data.plan.n)
        flight.task = context.run(
            lambda: loop.create_task(_attempt(call, data.values, flight), context=context)
        )
        flight.task.add_done_callback(lambda task: self._landed(flight, task))
        return True

    def _expire(self, flight: _Flight) -> None:
        if flight.token < 0:
            return
        token, flight.token = flight.token, -1
        data, i = self.data, token % self.data.plan.n
        data.starts[i], data.ends[i] = flight.began, clock()
        data.trail.by[i] = data.trail.worker("coroutines")
        flight.expired = True
        if flight.task is not None:
            flight.task.cancel()
        self.abandon(flight)
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
            self.apart.discard(flight)
            claim, flight.claim = flight.claim, None
        if claim is not None:
            if self.workers.claims_contended(data.key):
                self.release_claim(claim)
            else:
                self._begin_claimed(claim)
        if token < 0:
            if data.ref is not None:
                data.ref.signal()
            return
        i = token % data.plan.n
        data.starts[i], data.ends[i] = flight.began, clock()
        data.trail.by[i] = data.trail.worker("coroutines")
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


async def _attempt(call: Call, values: Values, here: _Flight) -> tuple[bool, Any]:
    """The wall: not even SystemExit may reach the loop."""
    try:
        return True, await invoke_async(call, values, here)
    except BaseException as error:
        return False, error

"""A lane that runs functions on the carrier thread it is called on.

The loop is the hottest code of the library. Per attempt it takes a token from the shared deque,
runs the code in a copy of the caller's context variables, and puts the outcome into the run's
``done`` deque; it signals the runner only when work runs low or ``PATIENCE`` has passed, and then
usually becomes the thread that runs the runner's step. A function that is the only argument of the
next one is followed by it at once (``links``), which makes a chain one piece of work.

A thread cannot be killed: when a timed attempt is given up, the lane is *abandoned*. It keeps its
claim until the code really returns, and then ends without a word.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable
from time import perf_counter as clock
from typing import TYPE_CHECKING, Any

from handoff_actors.events import ThreadAbandoned
from handoff_actors.execution.context import Context, place
from handoff_actors.execution.invoke import invoke
from handoff_actors.execution.queues import PATIENCE, Queue
from handoff_actors.execution.run_state import Raised, TimedOut
from handoff_actors.resources.claims import Claim

if TYPE_CHECKING:
    from handoff_actors.execution.workers.roster import Workers

_LINGER = 0.001
"""Seconds a lane that found nothing to do waits for more, while others of its run are at work."""


class _Row(threading.local):
    def __init__(self) -> None:
        self.name = f"thread {threading.current_thread().name.rpartition('-')[2]}"


_row = _Row()


def thread_row() -> str:
    """What the timeline calls the thread that runs this."""
    return _row.name


class ThreadLane:
    """See the module.

    Args:
        queue: what it serves.
        claim: what it holds.
        workers: the runtime's.
    """

    __slots__ = ("abandoned", "claim", "loans", "queue", "thread", "timer", "token", "workers")

    def __init__(self, queue: Queue, claim: Claim | None, workers: Workers) -> None:
        self.queue = queue
        self.claim = claim
        self.workers = workers
        self.token = -1
        self.loans = 0
        self.abandoned: list[bool] | None = None
        self.timer: Any = None
        self.thread: int | None = None

    # As the place of attempts.

    def context(self) -> Context:
        """The attempt that runs here now."""
        data = self.queue.data
        token = self.token
        n = data.plan.n
        return Context(
            data.dag_id,
            data.plan.ids[token % n],
            token // n + 1,
            data.node,
            lambda: data.stopping or self.token != token or self.given_up(),
        )

    def given_up(self) -> bool:
        """Whether the attempt was superseded while it ran."""
        return self.abandoned is not None and not self.abandoned

    def home(self) -> Any:
        """The runtime."""
        return self.workers.runtime()

    def lend(self) -> Any:
        """Give the permit and the claim's resources to others."""
        if threading.get_ident() != self.thread:
            return None
        self.workers.carriers.release_deferred()
        self.queue.lend(self)
        return self.queue

    def reclaim(self, loan: Any) -> None:
        """Get them back."""
        if loan is not None:
            self.queue.reclaim(self)

    # As a lane.

    def tokens(self) -> Iterable[int]:
        """The attempt in progress."""
        token = self.token
        return () if token < 0 else (token,)

    def stop(self) -> None:
        """The code sees ``cancelled()``; nothing more can be done to a thread."""

    def is_brief(self) -> bool:
        """One attempt waits, and those before were short: with more, batches are worth a thread."""
        queue = self.queue
        return len(queue.ready) == 1 and 0.0 < queue.mean < PATIENCE and not queue.kind.timed

    def holds_batch(self) -> bool:
        """It holds one attempt at a time."""
        return False

    def unblock(self) -> None:
        """Nothing waits behind its attempt."""

    def run(self) -> None:
        """Serve the queue until there is nothing to do for a while."""
        self.workers.carriers.set_busy(True)
        self.thread = threading.get_ident()
        queue = self.queue
        if not queue.kind.timed:
            self._serve()
            return
        self._serve_timed()
        if self.given_up():
            self.workers.abandoned.discard(self)
            queue.give_way(self)

    def _serve(self) -> None:
        queue, data = self.queue, self.queue.data
        plan, ref = data.plan, data.ref
        assert ref is not None
        pop, ready = queue.ready.popleft, queue.ready
        plain, codes, values, n = plan.plain, plan.codes, data.values, plan.n
        starts, ends = data.starts, data.ends
        trail, me = data.trail, data.trail.worker(thread_row())
        done = data.deliverer()
        links = data.links
        base = data.context.copy()
        base.run(place.set, self)
        copy = base.copy
        signal = ref.mailbox.signal
        following = -1
        carried: Any = None
        count = 0
        began = since = mark = clock()
        trail.stretches.append((began, me))
        while True:
            if following >= 0:
                token = following
            else:
                try:
                    token = pop()
                except IndexError:
                    if count:
                        signal()
                        mark = clock()
                        self._account(mark - since, count)
                        since, count = mark, 0
                        if ready:
                            began = mark
                            trail.stretches.append((began, me))
                            continue
                    if not queue.linger(self, _LINGER):
                        return
                    began = since = mark = clock()
                    trail.stretches.append((began, me))
                    continue
            self.token = token
            if data.stopping:
                following = -1
                continue
            i = token if token < n else token % n
            args = plain[i]
            try:
                if args is None:
                    value = invoke(plan.calls[i], values, self, base)
                elif following >= 0:
                    value = copy().run(codes[i], carried)
                else:
                    value = copy().run(codes[i], *[values[a] for a in args])
            except BaseException as error:
                now = clock()
                starts[i], ends[i], trail.by[i] = began, now, me
                began = now
                trail.stretches.append((began, me))
                following = -1
                self.token = -1
                self._raised(token, error)
                mark = since = now
                count = 0
                continue
            now = clock()
            starts[i] = began
            ends[i] = began = now
            if links is not None and (following := links[i]) >= 0:
                carried = value
                self.token = following
                if not queue.ticking:
                    # The next one may take long; what is done must not wait for it.
                    queue.arm()
            else:
                self.token = -1
            done((token, value))
            count += 1
            if now - mark > PATIENCE:
                signal()
                mark = clock()
                self._account(mark - since, count)
                since, count = mark, 0
                waiting = len(ready)
                if waiting > 1 and len(queue.lanes) - len(queue.parked) < queue.company:
                    queue.grow(1)
                if queue.contended(self):
                    if following >= 0:
                        ready.appendleft(following)
                        self.token = -1
                    queue.give_way(self)
                    return
            elif following < 0 and len(ready) < 2:
                signal()
                mark = clock()
                self._account(mark - since, count)
                since, count = mark, 0

    def _account(self, elapsed: float, count: int) -> None:
        queue = self.queue
        queue.ended += count
        queue.mean += 0.25 * (elapsed / count - queue.mean) if queue.mean else elapsed / count

    def _raised(self, token: int, error: BaseException) -> None:
        data = self.queue.data
        self.queue.ended += 1
        data.report(Raised(token, error, data.node))

    # Functions with a timeout: one attempt at a time, each with a timer.

    def _serve_timed(self) -> None:
        queue, data = self.queue, self.queue.data
        plan, n = data.plan, data.plan.n
        me = data.trail.worker(thread_row())
        base = data.context.copy()
        base.run(place.set, self)
        done = data.deliverer()
        while True:
            try:
                token = queue.ready.popleft()
            except IndexError:
                if queue.leave(self):
                    return
                continue
            self.token = token
            if data.stopping:
                self.token = -1
                continue
            i = token % n
            timeout = plan.functions[i].timeout
            gate = self.abandoned = [True]
            data.trail.by[i] = me
            began = data.starts[i] = clock()
            if timeout is not None:
                self.timer = self.workers.timers.call_later(
                    timeout, functools.partial(self._expired, gate, token)
                )
            outcome: Any = None
            failed: BaseException | None = None
            try:
                outcome = invoke(plan.call(i), data.values, self, base)
            except BaseException as error:
                failed = error
            ended = clock()
            try:
                gate.pop()
            except IndexError:
                return
            data.starts[i], data.ends[i] = began, ended
            self.abandoned = None
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
            self.token = -1
            queue.ended += 1
            if failed is not None:
                data.report(Raised(token, failed, data.node))
            else:
                done((token, outcome))
                assert data.ref is not None
                data.ref.signal()
            if queue.ready and queue.contended(self):
                queue.give_way(self)
                return

    def _expired(self, gate: list[bool], token: int) -> None:
        """On the timer thread: the attempt took too long."""
        try:
            gate.pop()
        except IndexError:
            return
        queue = self.queue
        data = queue.data
        data.ends[token % data.plan.n] = clock()
        self.workers.abandoned.add(self)
        queue.abandon(self)
        self.workers.events.publish(
            ThreadAbandoned(dag_id=data.dag_id, function_id=data.plan.ids[token % data.plan.n])
        )
        data.reports.append(TimedOut(token, data.node))
        if data.ref is not None:
            data.ref.mailbox.signal_elsewhere()

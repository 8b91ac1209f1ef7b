"""Pipeline: what the user holds of a stream.

Guarantees that whoever waits here is told when the pipeline ends, however it does; that a consumer
who gives up loses nothing of what others wait for; and that nothing but the handle keeps a pipeline
alive: when it is collected, the pipeline ends and gives back what it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator, Mapping, Sized
from time import monotonic
from time import perf_counter as clock
from types import TracebackType
from typing import Any, Self

from handoff_actors.actors.latches import passed
from handoff_actors.errors import (
    MissingInputError,
    PipelineFullError,
    PipelineStoppedError,
    describe,
)
from handoff_actors.pipeline.line import Line
from handoff_actors.pipeline.order import Outlet
from handoff_actors.pipeline.statistics import PipelineStatistics

_PULL = 500e-6
"""Seconds that ``map`` pulls from its iterable before it looks at its results."""
_YIELDS = 32
"""Results that ``map`` yields before it looks whether it can feed more."""
_PATIENCE = 1.0
"""Seconds that ``stop`` waits for workers in user code."""

Follow = Callable[[str, int | None, Any], Callable[[int, str], object]]
"""Makes what is told of progress, of name, number of items and the user's ``progress``."""


class Pipeline:
    """A DAG that items are pushed into and results come out of, in order.

    Made by ``stream(dag)``. A context manager, also of ``async with``: leaving it ends the input
    and waits for whoever else reads; by an exception, or with unread output, it stops.

    Attributes:
        id: what it is called; its actor is ``pipeline:<id>``.
    """

    def __init__(self, line: Line, follow: Follow) -> None:
        self._line = line
        self._follow = follow
        self._readers: list[tuple[int, object]] = []
        self._collected = weakref.finalize(self, line.forsake)
        self._collected.atexit = False

    @property
    def id(self) -> Hashable:
        """What it is called."""
        return self._line.id

    @property
    def name(self) -> str:
        """What its actor is called, in ``status()`` and for fault injection."""
        return self._line.name

    # Items go in.

    def push(self, value: Any, timeout: float | None = None) -> int:
        """Push an item; blocks while ``max_pending`` are pushed and not taken.

        Args:
            value: of its input; a mapping of ids to values, if there are several inputs.
            timeout: seconds to wait for room; None waits as long as the pipeline lives.

        Returns:
            The number of the item: 0 for the first.

        Raises:
            PipelineFullError: there was no room in time.
            PipelineStoppedError: it was closed or has ended; the ``__cause__`` says why.
            MissingInputError: the mapping lacks an input, or has something else.
        """
        line = self._line
        row = value if line.plan.n_inputs == 1 else self._row(value)
        with line.lock:
            # The way of most pushes: there is room, and the workers are at work.
            if line.budget > 0 and not line.flow.closed and not line.flow.timed:
                line.budget -= 1
                seq = line.flow.put(row)
                for crew in line.first:
                    if crew.parked:
                        break
                else:
                    return seq
                line.flow.absorb()
                wakers = line.rouse()
            else:
                seq, wakers = -1, []
        if seq < 0:
            return self._push([row], timeout, line.main)
        for wake in wakers:
            wake()
        return seq

    def push_nowait(self, value: Any) -> int:
        """As ``push``, without waiting."""
        first = self._try_push([self._row(value)], None, self._line.main)
        if first is None:
            raise self._full(0.0)
        return first

    async def apush(self, value: Any, timeout: float | None = None) -> int:
        """As ``push``, for asyncio: the loop is not blocked."""
        row = self._row(value)
        end = None if timeout is None else monotonic() + timeout
        while True:
            event = asyncio.Event()
            waker = _on_loop(event)
            first = self._try_push([row], waker, self._line.main)
            if first is not None:
                return first
            left = None if end is None else end - monotonic()
            try:
                await asyncio.wait_for(event.wait(), left)
            except TimeoutError:
                if self._forget_pusher(waker):
                    raise self._full(timeout) from None
            except BaseException:
                if not self._forget_pusher(waker):
                    self._line.made_room()
                raise

    def _row(self, value: Any) -> Any:
        plan = self._line.plan
        if plan.n_inputs == 1:
            return value
        wanted = plan.ids[plan.n :]
        if not isinstance(value, Mapping):
            raise MissingInputError(
                f"pipeline {self.id!r} has the inputs {wanted!r}: push a mapping of their values, "
                f"not {describe(value)}",
                missing=wanted,
                unknown=[],
            )
        missing = [id_ for id_ in wanted if id_ not in value]
        unknown = [id_ for id_ in value if id_ not in wanted]
        if missing or unknown:
            what = f"lacks {missing!r}" if missing else f"has {unknown!r}, which are no inputs"
            raise MissingInputError(
                f"what was pushed into pipeline {self.id!r} {what}; its inputs are {wanted!r}",
                missing=missing,
                unknown=unknown,
            )
        return tuple([value[id_] for id_ in wanted])

    def _try_push(
        self,
        rows: list[Any],
        waker: Callable[[], object] | None,
        outlet: Outlet,
    ) -> int | None:
        """Push items, all or none; the number of the first.

        Args:
            rows: the items.
            waker: to be called when there may be room, if there is none.
            outlet: where they come out.
        """
        line = self._line
        flow = line.flow
        with line.lock:
            if line.over or flow.closed:
                raise line.error()
            if flow.room < len(rows):
                if waker is not None:
                    line.pushers.append(waker)
                return None
            first = flow.push(rows, outlet, line.now())
            line.budget = flow.room
            wakers = line.rouse()
            if line.pushers and flow.room > 0:
                wakers.append(line.pushers.popleft())
        for wake in wakers:
            wake()
        return first

    def _push(self, rows: list[Any], timeout: float | None, outlet: Outlet) -> int:
        """Push items, all at once, as soon as there is room."""
        first = self._try_push(rows, None, outlet)
        if first is not None:
            return first
        end = None if timeout is None else monotonic() + timeout
        latch = threading.Lock()
        latch.acquire()
        while True:
            first = self._try_push(rows, latch.release, outlet)
            if first is not None:
                return first
            try:
                woken = passed(latch, None if end is None else end - monotonic())
            except BaseException:
                if not self._forget_pusher(latch.release):
                    self._line.made_room()
                raise
            if not woken:
                if self._forget_pusher(latch.release):
                    raise self._full(timeout)
                latch.acquire()  # woken in the last moment: the room may be ours

    def _forget_pusher(self, waker: Callable[[], object]) -> bool:
        """A pusher waits no more; False if it was woken before."""
        line = self._line
        with line.lock:
            if waker in line.pushers:
                line.pushers.remove(waker)
                return True
        return False

    def _full(self, timeout: float | None) -> PipelineFullError:
        most = self._line.flow.limits.max_pending
        return PipelineFullError(
            f"pipeline {self.id!r} had no room for another item within {timeout or 0.0:g} s: "
            f"{most} are pushed and not taken (max_pending={most}); take results out of it"
        )

    # Results come out.

    def __iter__(self) -> Iterator[Any]:
        """The results of pushed items, in the order of their pushes, until it is closed.

        The result of an item that failed is its ``ItemFailedError``.
        """
        return self._results(self._line.main)

    def __next__(self) -> Any:
        """The next result."""
        value = self._take(self._line.main)
        if value is _END:
            raise StopIteration
        return value

    def _results(self, outlet: Outlet) -> Iterator[Any]:
        pop, pushers = outlet.out.popleft, self._line.pushers
        mark = (threading.get_ident(), object())
        self._readers.append(mark)
        try:
            while True:
                try:
                    value = pop()
                except IndexError:
                    value = self._take(outlet)
                    if value is _END:
                        return
                else:
                    if pushers:
                        self._line.made_room()
                yield value
        finally:
            self._readers.remove(mark)

    def _take(self, outlet: Outlet) -> Any:
        """The next result of an outlet, waiting for it; ``_END`` when there will be none."""
        line = self._line
        latch: threading.Lock | None = None
        while True:
            with line.lock:
                if outlet.out:
                    value = outlet.out.popleft()
                    break
                if line.outlet_over(outlet):
                    last = line.over or line.flow.drained
                    self._check_end(outlet)
                    value = _END
                    break
                if latch is None:
                    latch = threading.Lock()
                    latch.acquire()
                outlet.waiting.append(latch.release)
            try:
                passed(latch)
            except BaseException:
                with line.lock, contextlib.suppress(ValueError):
                    outlet.waiting.remove(latch.release)
                raise
        if value is _END:
            if last:
                # Who has seen the end finds that the pipeline holds nothing any more.
                line.ended.wait(_PATIENCE)
        elif line.pushers:
            line.made_room()
        return value

    def _check_end(self, outlet: Outlet) -> None:
        """Nothing more comes; raises why, if that was no good end. The lock is held."""
        root = self._line.root
        if root is not None and (outlet.waits or root.__class__ is not PipelineStoppedError):
            raise self._line.error()

    async def __aiter__(self) -> AsyncIterator[Any]:
        """As iteration, for asyncio."""
        line, outlet = self._line, self._line.main
        mark = (threading.get_ident(), asyncio.current_task())
        self._readers.append(mark)
        taken = 0
        try:
            while True:
                event = None
                with line.lock:
                    value = _END
                    if outlet.out:
                        value = outlet.out.popleft()
                    elif line.outlet_over(outlet):
                        self._check_end(outlet)
                        return
                    else:
                        event = asyncio.Event()
                        waker = _on_loop(event)
                        outlet.waiting.append(waker)
                if event is not None:
                    try:
                        await event.wait()
                    finally:
                        with line.lock, contextlib.suppress(ValueError):
                            outlet.waiting.remove(waker)
                    continue
                if line.pushers:
                    line.made_room()
                yield value
                taken += 1
                if taken % 64 == 0:
                    await asyncio.sleep(0)  # others want the loop too
        finally:
            self._readers.remove(mark)

    def map(self, iterable: Iterable[Any], *, progress: Any = None) -> Iterator[Any]:
        """Push what an iterable gives, as results are taken; yields their results, in order.

        It pulls from the iterable on the thread that iterates, at most ``max_pending`` items ahead
        of what it has yielded. Only its own items come out here; the pipeline stays open. When the
        iterator is dropped, results that it has not yielded are dropped with it.

        Args:
            iterable: of items, as ``push`` takes them.
            progress: True shows a bar on a terminal; a callable gets a ``Progress``.

        Raises:
            PipelineStoppedError: it was closed or has ended.
            Exception: what the iterable raises.
        """
        line = self._line
        with line.lock:
            if line.over or line.flow.closed:
                raise line.error()
        follow = None
        if progress:
            total = len(iterable) if isinstance(iterable, Sized) else None
            follow = self._follow(str(self.id), total, progress)
        return self._map(iter(iterable), follow)

    def _map(self, source: Iterator[Any], follow: Any) -> Iterator[Any]:
        line = self._line
        flow, pushers = line.flow, line.pushers
        with line.lock:
            outlet = flow.order.open()
        pop = outlet.out.popleft
        rows: list[Any] = []
        more, count, state = True, 0, "failed"
        try:
            while True:
                if more:
                    more = self._feed(source, rows, outlet)
                elif not outlet.waits and not outlet.out:
                    break
                try:
                    for _ in range(_YIELDS):
                        value = pop()
                        count += 1
                        if pushers:
                            line.made_room()
                        yield value
                except IndexError:
                    if more and flow.room > 0:
                        continue
                    if not outlet.waits and not outlet.out:
                        continue
                    value = self._take(outlet)
                    if value is _END:
                        break
                    count += 1
                    yield value
                if follow is not None:
                    follow(count, "running")
            state = "succeeded"
        finally:
            with line.lock:
                flow.order.close(outlet)
            line.made_room()
            if follow is not None:
                follow(count, state)

    def _feed(self, source: Iterator[Any], rows: list[Any], outlet: Outlet) -> bool:
        """Push what there is room for; False when the source has no more.

        Args:
            source: of values.
            rows: what was pulled from it and not pushed.
            outlet: where the items come out.
        """
        flow = self._line.flow
        room, end, more = flow.room, clock() + _PULL, True
        if len(rows) < max(1, room):
            for value in source:
                rows.append(self._row(value))
                if len(rows) >= room or clock() > end:
                    break
            else:
                more = False
        while rows:
            part = rows[: max(1, flow.room)]
            if self._try_push(part, None, outlet) is None:
                if outlet.waits or outlet.out:
                    return True  # there is something to yield, which will make room
                self._push(part[:1], None, outlet)
                del rows[:1]
            else:
                del rows[: len(part)]
        if not more:
            with self._line.lock:
                flow.flush()
                wakers = self._line.rouse()
            for wake in wakers:
                wake()
        return more

    # For stages that are hosted for other nodes.

    def push_many(self, rows: list[Any], *, flush: bool) -> None:
        """Push the values of items for which there is room; ``flush`` ends partial batches."""
        if rows:
            self._push(rows, None, self._line.main)
        if flush:
            line = self._line
            with line.lock:
                line.flow.flush()
                wakers = line.rouse()
            for wake in wakers:
                wake()

    def share_claim(self, beside: Iterable[Pipeline]) -> None:
        """One of these, stages of the same pipeline, has claimed for this one too."""
        for line in [other._line for other in beside]:  # noqa: SLF001  of its own class
            if line.claims:
                self._line.lender = line

    def lists(self, most: int) -> Iterator[list[Any]]:
        """As iteration, but in lists of what there is, up to ``most``."""
        out = self._line.main.out
        while (value := self._take(self._line.main)) is not _END:
            found = [value]
            while out and len(found) < most:
                found.append(out.popleft())
            yield found

    # Its end.

    def close(self) -> None:
        """End the input: what was pushed drains to whoever iterates. Returns at once."""
        line = self._line
        with line.lock:
            if line.flow.closed:
                return
            line.flow.close()
            wakers = [*line.pushers, *line.rouse()]
            line.pushers.clear()
            for outlet in line.flow.order.outlets:
                wakers += outlet.waiting
                outlet.waiting.clear()
            drained = line.flow.drained
        for wake in wakers:
            wake()
        if drained:
            line.end(None)

    def stop(self) -> None:
        """End now; what was not taken out is lost. Idempotent.

        Waits a moment for code that is running. A thread that does not end keeps its pipeline's
        claims until it does; a worker process is killed.
        """
        self._line.stop("was stopped")
        self._line.ended.wait(_PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
            while self._read_elsewhere() and not self._line.ended.wait(0.05):
                pass
            if not self._line.flow.pending:
                self._line.ended.wait(_PATIENCE)
        self.stop()

    def _read_elsewhere(self) -> bool:
        """Whether another thread, or another task of this one, iterates."""
        here = threading.get_ident()
        alive = {thread.ident for thread in threading.enumerate()}
        task = _current_task()
        for thread, reader in list(self._readers):
            if thread != here:
                if thread in alive:
                    return True
            elif isinstance(reader, asyncio.Task) and reader is not task and not reader.done():
                return True
        return False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
            while self._read_elsewhere() and not self._line.ended.is_set():
                await asyncio.sleep(0.02)
        await asyncio.to_thread(self.__exit__, kind, None, None)

    # How it is doing.

    def statistics(self) -> PipelineStatistics:
        """A snapshot: of each stage what waits, what is at work, what came of it, and how fast."""
        line = self._line
        with line.lock:
            flow = line.flow
            state = "ended" if line.over else "closed" if flow.closed else "running"
            pending = flow.pending
            return PipelineStatistics(
                {crew.id: crew.describe() for crew in line.crews},
                flow.pushed,
                flow.pushed - pending,
                pending,
                state,
            )

    def __repr__(self) -> str:
        return f"<Pipeline {self.id!r} {self._line.phase}>"


_END: Any = object()


def _on_loop(event: asyncio.Event) -> Callable[[], object]:
    """A waker for a coroutine of the running loop."""
    loop = asyncio.get_running_loop()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(event.set)

    return wake


def _current_task() -> Any:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None

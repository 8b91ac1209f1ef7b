"""Pipeline: what the user holds of a stream.

How items go in is in ``inlet`` and ``mapping``, how results come out in ``results``. Guarantees
that nothing but the handle keeps a pipeline alive, and whoever iterates over it: when it is
collected, the pipeline ends and gives back what it holds.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, Self

from handoff_actors.pipeline.inlet import Inlet
from handoff_actors.pipeline.line import Line
from handoff_actors.pipeline.mapping import mapped
from handoff_actors.pipeline.results import (
    END,
    PATIENCE,
    Readers,
    lists,
    results,
    results_async,
    take,
)
from handoff_actors.pipeline.statistics import PipelineStatistics

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
        self._inlet = Inlet(line)
        self._readers: Readers = []
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
        row = value if line.plan.n_inputs == 1 else self._inlet.row(value)
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
            return self._inlet.push([row], timeout, line.main)
        for wake in wakers:
            wake()
        return seq

    def push_nowait(self, value: Any) -> int:
        """As ``push``, without waiting."""
        first = self._inlet.try_push([self._inlet.row(value)], None, self._line.main)
        if first is None:
            raise self._inlet.full(0.0)
        return first

    async def apush(self, value: Any, timeout: float | None = None) -> int:
        """As ``push``, for asyncio: the loop is not blocked."""
        return await self._inlet.apush(self._inlet.row(value), timeout)

    # Results come out.

    def __iter__(self) -> Iterator[Any]:
        """The results of pushed items, in the order of their pushes, until it is closed.

        The result of an item that failed is its ``ItemFailedError``.
        """
        return results(self, self._line, self._line.main, self._readers)

    def __next__(self) -> Any:
        """The next result."""
        value = take(self._line, self._line.main)
        if value is END:
            raise StopIteration
        return value

    def __aiter__(self) -> AsyncIterator[Any]:
        """As iteration, for asyncio."""
        return results_async(self, self._line, self._line.main, self._readers)

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
        return mapped(self, line, self._inlet, iter(iterable), follow)

    # For stages that are hosted for other nodes.

    def push_many(self, rows: list[Any], *, flush: bool) -> None:
        """Push the values of items for which there is room; ``flush`` ends partial batches."""
        if rows:
            self._inlet.push(rows, None, self._line.main)
        if flush:
            self._inlet.flush()

    def share_claim(self, beside: Iterable[Pipeline]) -> None:
        """One of these, stages of the same pipeline, has claimed for this one too."""
        for line in [other._line for other in beside]:  # noqa: SLF001  of its own class
            if line.claims:
                self._line.lender = line

    def lists(self, most: int) -> Iterator[list[Any]]:
        """As iteration, but in lists of what there is, up to ``most``."""
        return lists(self._line, self._line.main, most)

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
        self._line.ended.wait(PATIENCE)

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
                self._line.ended.wait(PATIENCE)
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


def _current_task() -> Any:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None

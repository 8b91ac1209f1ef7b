"""Inlet: where items go into a pipeline: their values checked, and room waited for.

Guarantees that whoever waits for room is told when the pipeline ends, and that one who gives up
takes no other's turn: room that was his passes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from handoff_actors.actors.latches import passed
from handoff_actors.arguments import patience, unlike
from handoff_actors.errors import MissingInputError, PipelineFullError, describe
from handoff_actors.pipeline.line import Line
from handoff_actors.pipeline.order import Outlet
from handoff_actors.pipeline.wakers import on_loop


class Inlet:
    """See the module.

    Args:
        line: the pipeline.
    """

    __slots__ = ("_line",)

    def __init__(self, line: Line) -> None:
        self._line = line

    def row(self, value: Any) -> Any:
        """What the flow takes for an item; raises ``MissingInputError``."""
        line = self._line
        plan = line.plan
        if plan.n_inputs == 1:
            return value
        wanted = plan.ids[plan.n :]
        if not isinstance(value, Mapping):
            raise MissingInputError(
                f"pipeline {line.id!r} has the inputs {wanted!r}: push a mapping of their values, "
                f"not {describe(value)}",
                missing=wanted,
                unknown=[],
            )
        missing, unknown = unlike(wanted, value)
        if missing or unknown:
            what = f"lacks {missing!r}" if missing else f"has {unknown!r}, which are no inputs"
            raise MissingInputError(
                f"what was pushed into pipeline {line.id!r} {what}; its inputs are {wanted!r}",
                missing=missing,
                unknown=unknown,
            )
        return tuple([value[id_] for id_ in wanted])

    def try_push(
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

    def push(self, rows: list[Any], timeout: float | None, outlet: Outlet) -> int:
        """Push items, all at once, as soon as there is room."""
        first = self.try_push(rows, None, outlet)
        if first is not None:
            return first
        timeout = patience(timeout)
        end = None if timeout is None else monotonic() + timeout
        latch = threading.Lock()
        latch.acquire()
        while True:
            first = self.try_push(rows, latch.release, outlet)
            if first is not None:
                return first
            try:
                woken = passed(latch, None if end is None else end - monotonic())
            except BaseException:
                if not self._forget(latch.release):
                    self._line.made_room()
                raise
            if not woken:
                if self._forget(latch.release):
                    raise self.full(timeout)
                latch.acquire()  # woken in the last moment: the room may be ours

    async def apush(self, row: Any, timeout: float | None) -> int:
        """As ``push``, of one item that comes out of ``main``, for asyncio."""
        timeout = patience(timeout)
        end = None if timeout is None else monotonic() + timeout
        while True:
            event = asyncio.Event()
            waker = on_loop(event)
            first = self.try_push([row], waker, self._line.main)
            if first is not None:
                return first
            left = None if end is None else end - monotonic()
            try:
                await asyncio.wait_for(event.wait(), left)
            except TimeoutError:
                if self._forget(waker):
                    raise self.full(timeout) from None
            except BaseException:
                if not self._forget(waker):
                    self._line.made_room()
                raise

    def _forget(self, waker: Callable[[], object]) -> bool:
        """A pusher waits no more; False if it was woken before."""
        line = self._line
        with line.lock:
            if waker in line.pushers:
                line.pushers.remove(waker)
                return True
        return False

    def full(self, timeout: float | None) -> PipelineFullError:
        """The error of one who got no room in time."""
        most = self._line.flow.limits.max_pending
        return PipelineFullError(
            f"pipeline {self._line.id!r} had no room for another item within {timeout or 0.0:g} s: "
            f"{most} are pushed and not taken (max_pending={most}); take results out of it"
        )

    def flush(self) -> None:
        """Nothing more comes for a while: partial batches go."""
        line = self._line
        with line.lock:
            line.flow.flush()
            wakers = line.rouse()
        for wake in wakers:
            wake()

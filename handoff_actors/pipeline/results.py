"""Results as they come out of a pipeline: one by one, in lists, awaited.

Guarantees that whoever waits for a result is told when there will be none, and why; and that one
who gives up waiting loses nothing of what others wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from handoff_actors.actors.latches import passed
from handoff_actors.errors import PipelineStoppedError
from handoff_actors.pipeline.line import Line
from handoff_actors.pipeline.order import Outlet
from handoff_actors.pipeline.wakers import on_loop

PATIENCE = 1.0
"""Seconds to wait for workers in user code when a pipeline ends."""

END: Any = object()
"""In the place of a result: there will be none."""

Readers = list[tuple[int, object]]
"""Who iterates: threads, and on each what tells one iteration, or task, from others."""


def results(_handle: object, line: Line, outlet: Outlet, readers: Readers) -> Iterator[Any]:
    """What comes out of an outlet, until there is no more; the handle is kept that long."""
    pop, pushers = outlet.out.popleft, line.pushers
    mark = (threading.get_ident(), object())
    readers.append(mark)
    try:
        while True:
            try:
                value = pop()
            except IndexError:
                value = take(line, outlet)
                if value is END:
                    return
            else:
                if pushers:
                    line.made_room()
            yield value
    finally:
        readers.remove(mark)


def take(line: Line, outlet: Outlet) -> Any:
    """The next result of an outlet, waiting for it; ``END`` when there will be none."""
    latch: threading.Lock | None = None
    while True:
        with line.lock:
            if outlet.out:
                value = outlet.out.popleft()
                break
            if line.outlet_over(outlet):
                last = line.over or line.flow.drained
                _check_end(line, outlet)
                value = END
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
    if value is END:
        if last:
            # Who has seen the end finds that the pipeline holds nothing any more.
            line.ended.wait(PATIENCE)
    elif line.pushers:
        line.made_room()
    return value


def _check_end(line: Line, outlet: Outlet) -> None:
    """Nothing more comes; raises why, if that was no good end. The lock is held."""
    root = line.root
    if root is not None and (outlet.waits or root.__class__ is not PipelineStoppedError):
        raise line.error()


def lists(line: Line, outlet: Outlet, most: int) -> Iterator[list[Any]]:
    """As ``results``, but in lists of what there is, up to ``most``."""
    out = outlet.out
    while (value := take(line, outlet)) is not END:
        found = [value]
        while out and len(found) < most:
            found.append(out.popleft())
        yield found


async def results_async(
    _handle: object, line: Line, outlet: Outlet, readers: Readers
) -> AsyncIterator[Any]:
    """As ``results``, for asyncio."""
    mark = (threading.get_ident(), asyncio.current_task())
    readers.append(mark)
    taken = 0
    try:
        while True:
            event = None
            with line.lock:
                value = END
                if outlet.out:
                    value = outlet.out.popleft()
                elif line.outlet_over(outlet):
                    _check_end(line, outlet)
                    return
                else:
                    event = asyncio.Event()
                    waker = on_loop(event)
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
        readers.remove(mark)

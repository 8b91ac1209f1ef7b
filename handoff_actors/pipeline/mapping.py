"""``Pipeline.map``: an iterable goes in as its results are taken.

Guarantees that nothing is pulled before a result is asked for, and at most ``max_pending`` items
ahead; that the items' results alone come out, in order; and that what is dropped halfway leaves
nothing behind that others would have to wait for.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter as clock
from typing import Any

from handoff_actors.pipeline.inlet import Inlet
from handoff_actors.pipeline.line import Line
from handoff_actors.pipeline.order import Outlet
from handoff_actors.pipeline.results import END, take

_PULL = 500e-6
"""Seconds that it pulls from its iterable before it looks at its results."""
_YIELDS = 32
"""Results that it yields before it looks whether it can feed more."""


def mapped(
    _handle: object, line: Line, inlet: Inlet, source: Iterator[Any], follow: Any
) -> Iterator[Any]:
    """The results of what ``source`` gives; the handle is kept until there are no more.

    ``follow``, if any, is told how many have come out.
    """
    flow, pushers = line.flow, line.pushers
    with line.lock:
        outlet = flow.order.open()
    pop = outlet.out.popleft
    rows: list[Any] = []
    more, count, state = True, 0, "failed"
    try:
        while True:
            if more:
                more = _feed(line, inlet, source, rows, outlet)
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
                value = take(line, outlet)
                if value is END:
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


def _feed(line: Line, inlet: Inlet, source: Iterator[Any], rows: list[Any], outlet: Outlet) -> bool:
    """Push what there is room for; False when the source has no more.

    Args:
        line: the pipeline.
        inlet: of it.
        source: of values.
        rows: what was pulled from it and not pushed.
        outlet: where the items come out.
    """
    flow = line.flow
    room, end, more = flow.room, clock() + _PULL, True
    if len(rows) < max(1, room):
        for value in source:
            rows.append(inlet.row(value))
            if len(rows) >= room or clock() > end:
                break
        else:
            more = False
    while rows:
        part = rows[: max(1, flow.room)]
        if inlet.try_push(part, None, outlet) is None:
            if outlet.waits or outlet.out:
                return True  # there is something to yield, which will make room
            inlet.push(part[:1], None, outlet)
            del rows[:1]
        else:
            del rows[: len(part)]
    if not more:
        inlet.flush()
    return more

"""How functions are called, and what they share workers by: the small objects of a plan.

Guarantees that what is here can be pickled, as far as the user's code and values can, so that it
can be sent to whoever runs the function. Nobody changes such an object once it is made.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from handoff_actors.graph.callables import Code
from handoff_actors.graph.checks import Pair


@dataclass(slots=True, eq=False)
class Call:
    """How one function is called; never changed. Picklable, as far as the user's code is.

    Attributes:
        id: whose call it is, for errors.
        code: the callable.
        sources: where the first positional arguments come from, in order.
        extra_args: positional arguments that follow them.
        extra_kwargs: keyword arguments, or None.
        as_list: the values of ``sources`` are handed over as one list.
        is_async: the code gives a coroutine.
        init: ``(callable, args)`` that makes the state, or None.
        batching: the code gets one list of argument tuples.
    """

    id: Hashable
    code: Code
    sources: tuple[Source, ...]
    extra_args: tuple[Any, ...] = ()
    extra_kwargs: dict[str, Any] | None = None
    as_list: bool = False
    is_async: bool = False
    init: Pair | None = None
    batching: bool = False


@dataclass(slots=True, eq=False)
class InlineCall:
    """The value of an inline function, evaluated once per attempt of whoever takes it.

    Attributes:
        key: the id of the inline: attempts remember its value under it.
        call: how it is called.
    """

    key: Hashable
    call: Call


@dataclass(slots=True, eq=False)
class Converted:
    """A value that passes the callables of an ``Argument``.

    Attributes:
        source: the value before.
        producer: the value index of who made it; None for an inline, which is made where it is
            needed.
        serialize: ``(callable, extras)`` that runs where the value is, or None.
        deserialize: ``(callable, extras)`` that runs where it is needed, or None.
        origin: the other node where ``serialize`` has run already, or None.
        given: what it returned there, or the value itself when there is no ``serialize``.
    """

    source: int | InlineCall
    producer: int | None
    serialize: Pair | None
    deserialize: Pair | None
    origin: str | None = None
    given: Any = None


Source = int | InlineCall | Converted


@dataclass(frozen=True, slots=True)
class LaneClass:
    """What functions that can share workers and claims have in common.

    Attributes:
        isolation: ``"thread"``, ``"process"``, or None for the runtime's own.
        is_async: they give coroutines.
        cost: what each attempt claims, in integer micro-units, without zeros; None is no claim.
        pin: the name of the node they must run on, or None.
        group: the number of their group of collocated functions, when it is not pinned.
        timed: they have timeouts.
        stateful: they have ``init`` or batches.
    """

    isolation: str | None = None
    is_async: bool = False
    cost: dict[str, int] | None = None
    pin: str | None = None
    group: int | None = None
    timed: bool = False
    stateful: bool = False


def all_sources(call: Call) -> list[Source]:
    """What a call takes, and what the inlines take that it takes; those once each."""
    found: list[Source] = []
    seen: set[Hashable] = set()
    stack: list[Source] = list(call.sources)
    while stack:
        source = stack.pop()
        found.append(source)
        inner = source.source if isinstance(source, Converted) else source
        if isinstance(inner, InlineCall) and inner.key not in seen:
            seen.add(inner.key)
            stack.extend(inner.call.sources)
    return found


def values_taken(call: Call) -> dict[int, None]:
    """The values that must be at hand when it is called: all but those that it has ``given``."""
    found: dict[int, None] = {}
    for source in all_sources(call):
        inner = source
        if isinstance(source, Converted):
            if source.origin is not None:
                continue
            inner = source.source
        if isinstance(inner, int):
            found[inner] = None
    return found

"""Calling one function: its arguments, the inlines and serialisers among them, its state.

Runs where the function runs: on a worker thread, an event loop, or in a worker process. Whatever
the user's code raises passes through; the wall is around the worker's loop.
"""

from __future__ import annotations

import contextvars
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from handoff_actors.execution.context import Place, place
from handoff_actors.graph.calls import Call, Converted, InlineCall, Source
from handoff_actors.results.elsewhere import Elsewhere

Values = Mapping[int, Any] | Sequence[Any]


def invoke(call: Call, values: Values, here: Place, base: contextvars.Context | None = None) -> Any:
    """Call a function that is no coroutine function.

    Args:
        call: what to call.
        values: the values of the plan's indices that the call names.
        here: where the attempt runs.
        base: the context variables to run with; a copy is used. None is the calling thread's.

    Returns:
        The function's result.
    """
    context = contextvars.copy_context() if base is None else base.copy()
    return context.run(_invoke, call, values, here)


async def invoke_async(call: Call, values: Values, here: Place) -> Any:
    """Await a coroutine function; to be run as a task that has a context of its own.

    Inlines and serialisers are no coroutines: they are evaluated on a thread, lest they block
    everything else on the loop; so are values that are on disk.
    """
    place.set(here)
    if any(source.__class__ is not int or _is_on_disk(source, values) for source in call.sources):
        # Whoever awaits has imported it; a worker process without coroutines is spared it.
        import asyncio

        args = await asyncio.to_thread(arguments, call, values, here.context().node)
    else:
        args = arguments(call, values, "")
    if call.init is None and not call.batching:
        return await call.code(*args, **(call.extra_kwargs or {}))
    return _unwrap(call, await call.code(*_wrap(call, args), **(call.extra_kwargs or {})))


def _is_on_disk(index: Any, values: Any) -> bool:
    peek = getattr(values, "peek", None)
    value = None if peek is None else peek(index)
    return isinstance(value, Elsewhere) and value.on_disk


def _invoke(call: Call, values: Values, here: Place) -> Any:
    place.set(here)
    args = arguments(call, values, here.context().node if call.sources else "")
    if call.init is None and not call.batching:
        return call.code(*args, **(call.extra_kwargs or {}))
    return _unwrap(call, call.code(*_wrap(call, args), **(call.extra_kwargs or {})))


def arguments(call: Call, values: Values, node: str) -> list[Any]:
    """The positional arguments of ``call``; each inline is evaluated once.

    Args:
        call: what will be called.
        values: the values of the plan's indices that it names.
        node: the name of the node that evaluates them.
    """
    memo: dict[Hashable, Any] = {}
    args = [
        values[source] if source.__class__ is int else _evaluate(source, values, node, memo)
        for source in call.sources
    ]
    return [args, *call.extra_args] if call.as_list else [*args, *call.extra_args]


def _evaluate(source: Source, values: Values, node: str, memo: dict[Hashable, Any]) -> Any:
    """The value of one source; inlines below it are walked without recursion."""
    _evaluate_inlines(source, values, node, memo)
    return _leaf(source, values, node, memo)


def _leaf(source: Source, values: Values, node: str, memo: dict[Hashable, Any]) -> Any:
    if isinstance(source, int):
        return values[source]
    if isinstance(source, InlineCall):
        return memo[source.key]
    origin = source.origin
    if origin is not None:
        data = source.given
    else:
        origin = node
        data = _leaf(source.source, values, node, memo)
        if source.serialize is not None:
            function, extra = source.serialize
            data = function(data, node, node, *extra)
    if source.deserialize is not None:
        function, extra = source.deserialize
        data = function(data, origin, node, *extra)
    return data


def _evaluate_inlines(source: Source, values: Values, node: str, memo: dict[Hashable, Any]) -> None:
    stack = [source]
    while stack:
        top = stack[-1]
        inline = top.source if isinstance(top, Converted) else top
        if not isinstance(inline, InlineCall) or inline.key in memo:
            stack.pop()
            continue
        call = inline.call
        missing = [s for s in call.sources if _pending(s, memo)]
        if missing:
            stack.extend(reversed(missing))
            continue
        args = [_leaf(s, values, node, memo) for s in call.sources]
        if call.as_list:
            args = [args]
        memo[inline.key] = call.code(*args, *call.extra_args, **(call.extra_kwargs or {}))
        stack.pop()


def _pending(source: Source, memo: dict[Hashable, Any]) -> bool:
    inline = source.source if isinstance(source, Converted) else source
    return isinstance(inline, InlineCall) and inline.key not in memo


def _wrap(call: Call, args: list[Any]) -> list[Any]:
    """The arguments of a function with state or batches that gets a single item."""
    wrapped: list[Any] = [[tuple(args)]] if call.batching else args
    if call.init is not None:
        function, init_args = call.init
        wrapped = [function(*init_args), *wrapped]
    return wrapped


def _unwrap(call: Call, result: Any) -> Any:
    if call.init is not None:
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(
                f"function {call.id!r} has init, so its code must return (result, state), "
                f"not {type(result).__name__}"
            )
        result = result[0]
    if call.batching:
        if not isinstance(result, list) or len(result) != 1:
            size = len(result) if isinstance(result, list) else type(result).__name__
            raise TypeError(
                f"function {call.id!r} got a batch of 1, so its code must return a list of 1 "
                f"result, not {size}"
            )
        result = result[0]
    return result

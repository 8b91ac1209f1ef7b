"""The code of a stage as one worker of it has it: with its state, its arguments, and its contract.

Runs where the worker runs: on a thread, an event loop, or in a worker process. A *payload* is what
an item brings to a stage: the one value it takes, or a tuple of them.

Guarantees that what breaks the contract of state and batches is an error of the items it concerns
that says what was expected, and that the state then is what it was before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from handoff_actors.errors import describe
from handoff_actors.execution.invoke import arguments
from handoff_actors.graph.calls import Call
from handoff_actors.pipeline.joins import Entry

Payload = Any


class Failed:
    """In the place of a result: the item failed alone, before the code had it."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return Failed, (self.error,)


class StageCode:
    """See the module.

    Args:
        call: how the function is called.
        values: the indices of the values that a payload brings, in order.
        node: the name of the node it runs on.

    Attributes:
        begun: ``begin`` has made the state.
        bare: the arguments of an item are its payload, as it is.
        mixed: the results of a batch may have a ``Failed`` among them.
    """

    __slots__ = ("_single", "bare", "begun", "call", "mixed", "node", "state", "values")

    def __init__(self, call: Call, values: tuple[int, ...], node: str) -> None:
        self.call = call
        self.values = values
        self.node = node
        self.state: Any = None
        self.begun = False
        self._single = len(values) == 1
        self.bare = call.sources == values and not (call.extra_args or call.as_list)
        self.mixed = not self.bare or getattr(call.code, "mixed", False) is True

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.call, self.values, self.node)

    def begin(self) -> None:
        """Make the state; raises what ``init`` raises."""
        if self.call.init is not None:
            function, args = self.call.init
            self.state = function(*args)
        self.begun = True

    def arguments(self, payload: Payload) -> list[Any]:
        """The positional arguments for an item, without the state."""
        parts = (payload,) if self._single else payload
        return arguments(self.call, dict(zip(self.values, parts, strict=True)), self.node)

    def caller(self) -> Callable[[Payload], Any]:
        """What turns the payload of one item into its result; for functions without batches."""
        call = self.call
        if call.init is not None or call.extra_args or call.extra_kwargs or call.as_list:
            return self.one
        if call.sources == self.values:
            code = call.code
            return code if self._single else lambda payload: code(*payload)
        return self.one

    def async_caller(self) -> Callable[[Payload], Awaitable[Any]]:
        """The same of a coroutine function."""
        call = self.call
        plain = call.init is None and not call.extra_args and not call.extra_kwargs
        if plain and self._single and self.bare:
            code: Callable[[Payload], Awaitable[Any]] = call.code
            return code
        return self.one_async

    def one(self, payload: Payload) -> Any:
        """The result of one item."""
        call = self.call
        args = self.arguments(payload)
        if call.init is None:
            return call.code(*args, **(call.extra_kwargs or {}))
        return self._keep_state(call.code(self.state, *args, **(call.extra_kwargs or {})))

    async def one_async(self, payload: Payload) -> Any:
        """The same of a coroutine function."""
        call = self.call
        args = self.arguments(payload)
        if call.init is None:
            return await call.code(*args, **(call.extra_kwargs or {}))
        return self._keep_state(await call.code(self.state, *args, **(call.extra_kwargs or {})))

    def batch_caller(self) -> Callable[[Sequence[Entry]], list[Any]]:
        """What turns a batch of entries into what ``many`` gives for their payloads."""
        call = self.call
        if not self.bare or call.init is not None or call.extra_kwargs:
            return lambda entries: self.many([payload for _, payload in entries])
        code, single = call.code, self._single

        def run(entries: Sequence[Entry]) -> list[Any]:
            answer = code([(p,) for _, p in entries] if single else [p for _, p in entries])
            if answer.__class__ is list and len(answer) == len(entries):
                return answer
            return self._results(answer, len(entries))

        return run

    def many(self, payloads: Sequence[Payload]) -> list[Any]:
        """The results of a batch; if it is ``mixed``, a ``Failed`` for each without arguments."""
        failed, batch = self._prepare(payloads)
        if not batch:
            return failed
        call = self.call
        args = [batch] if call.init is None else [self.state, batch]
        answer = call.code(*args, **(call.extra_kwargs or {}))
        return self._merge(failed, self._results(answer, len(batch)))

    async def many_async(self, payloads: Sequence[Payload]) -> list[Any]:
        """The same of a coroutine function."""
        failed, batch = self._prepare(payloads)
        if not batch:
            return failed
        call = self.call
        args = [batch] if call.init is None else [self.state, batch]
        answer = await call.code(*args, **(call.extra_kwargs or {}))
        return self._merge(failed, self._results(answer, len(batch)))

    def _prepare(self, payloads: Sequence[Payload]) -> tuple[list[Any], list[tuple[Any, ...]]]:
        """What has failed already, with ``_EMPTY`` for the others if any has; and the batch."""
        if self.bare:
            return [], list(zip(payloads, strict=True)) if self._single else list(payloads)
        failed: list[Any] = []
        batch = []
        for payload in payloads:
            try:
                batch.append(tuple(self.arguments(payload)))
            except BaseException as error:  # of an inline or a serialiser: of this item alone
                failed.append(Failed(error))
            else:
                failed.append(_EMPTY)
        return failed if len(batch) < len(failed) else [], batch

    def _results(self, answer: Any, size: int) -> list[Any]:
        """The results in what the code has returned; the state is kept."""
        state = self.state
        if self.call.init is not None:
            answer, state = self._pair(answer)
        if not isinstance(answer, list) or len(answer) != size:
            found = (
                f"a list of {len(answer)}"
                if isinstance(answer, list)
                else f"{type(answer).__name__} {describe(answer)}"
            )
            raise TypeError(
                f"function {self.call.id!r} got a batch of {size}, so its code must return a list "
                f"of {size} results, not {found}"
            )
        self.state = state
        return answer

    @staticmethod
    def _merge(failed: list[Any], answer: list[Any]) -> list[Any]:
        if not failed:
            return answer
        values = iter(answer)
        return [next(values) if result is _EMPTY else result for result in failed]

    def _keep_state(self, answer: Any) -> Any:
        result, self.state = self._pair(answer)
        return result

    def _pair(self, answer: Any) -> tuple[Any, Any]:
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise TypeError(
                f"function {self.call.id!r} has init, so its code must return (result, state), "
                f"not {type(answer).__name__} {describe(answer)}"
            )
        return answer


_EMPTY: Any = object()


class RemoteCode(StageCode):
    """The code of a stage in a worker process: what is taught to it, and called with its attempts.

    Called without arguments it begins; with one list, where the function takes batches, it answers
    with their results; else its arguments are the parts of a payload.
    """

    __slots__ = ()

    def __call__(self, *parts: Any) -> Any:
        """See the class."""
        if not parts:
            return self.begin()
        if self.call.batching:
            return self.many(parts[0])
        return self.one(self._payload(parts))

    def _payload(self, parts: tuple[Any, ...]) -> Payload:
        if self._single:
            return parts[0]
        return parts if self.values else ()

    def to_begin(self) -> tuple[Any, ...]:
        """The arguments that make it begin."""
        return ()

    def to_run(self, payloads: Sequence[Payload]) -> tuple[Any, ...]:
        """The arguments that make it run an item, or a batch."""
        if self.call.batching:
            return (list(payloads),)
        (payload,) = payloads
        return (payload,) if self._single else payload or (None,)

    @property
    def arity(self) -> int:
        """How many arguments it is called with for an item."""
        return 1 if self.call.batching else max(1, len(self.values))


class RemoteAsyncCode(RemoteCode):
    """The same of a coroutine function; what ``RemoteCode`` takes comes as one tuple."""

    __slots__ = ()

    async def __call__(self, parts: tuple[Any, ...]) -> Any:
        """See ``RemoteCode``."""
        if not parts:
            return self.begin()
        if self.call.batching:
            return await self.many_async(parts[0])
        return await self.one_async(self._payload(parts))

    def to_begin(self) -> tuple[Any, ...]:
        """See ``RemoteCode``."""
        return ((),)

    def to_run(self, payloads: Sequence[Payload]) -> tuple[Any, ...]:
        """See ``RemoteCode``."""
        return (super().to_run(payloads),)

    @property
    def arity(self) -> int:
        """See ``RemoteCode``."""
        return 1

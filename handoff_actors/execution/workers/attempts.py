"""Attempts as a worker process has them: what came in a frame, where it runs, how it is called.

Guarantees that a value which cannot be read fails only the attempts that take it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from handoff_actors.cluster.framing import payload_of
from handoff_actors.cluster.payload import loads
from handoff_actors.errors import HandoffError, describe
from handoff_actors.execution.context import Context
from handoff_actors.graph.calls import Call

if TYPE_CHECKING:
    from handoff_actors.execution.workers.child import Child


class Function:
    """A call as this process knows it.

    Attributes:
        call: the call.
        code: what to call with the values alone, when that is all there is to it; else None.
        sources: the value indices of the arguments of ``code``.
    """

    __slots__ = ("call", "code", "sources")

    def __init__(self, call: Call) -> None:
        self.call = call
        plain = (
            all(source.__class__ is int for source in call.sources)
            and not (call.extra_args or call.extra_kwargs or call.as_list)
            and not (call.is_async or call.batching)
            and call.init is None
        )
        self.code = call.code if plain else None
        self.sources: tuple[Any, ...] = tuple(call.sources)


class Batch:
    """The attempts of one frame, as columns."""

    __slots__ = (
        "_buffers",
        "_dag",
        "_dag_slot",
        "_loaded",
        "_odd",
        "_slots",
        "attempts",
        "ids",
        "keys",
        "number",
        "refs",
        "tokens",
        "values",
    )

    def __init__(
        self, number: int, columns: Any, slots: list[Any], buffers: list[bytearray]
    ) -> None:
        self.number = number
        (self._dag, self._dag_slot, self.tokens, self.keys, self.ids, self._odd, self.attempts,
         self.values, self.refs) = columns  # fmt: skip
        self._slots = slots
        self._buffers = buffers
        self._loaded: dict[int, Any] = {}

    def load(self, slot: int, what: str) -> Any:
        """The value of a slot, made once."""
        if slot not in self._loaded:
            self._loaded[slot] = loads(payload_of(self._slots[slot], self._buffers), what)
        return self._loaded[slot]

    def dag_id(self) -> Any:
        """Whose attempts these are."""
        return self._dag if self._dag_slot < 0 else self.load(self._dag_slot, "dag_id")

    def function_id(self, index: int) -> Any:
        """The function of an attempt."""
        slot = self._odd.get(index)
        return self.ids[index] if slot is None else self.load(slot, "the id of a function")

    def arguments(self, index: int) -> Any:
        """The values of an attempt, those in slots among them."""
        values = self.values[index]
        refs = self.refs.get(index)
        if refs is None:
            return values
        values = dict(enumerate(values)) if values.__class__ is tuple else values
        for number, slot in refs.items():
            what = f"argument {number} of function {describe(self.function_id(index))}"
            values[number] = self.load(slot, what)
        return values


class Here:
    """Where an attempt runs: its place."""

    __slots__ = ("batch", "child", "index", "token")

    def __init__(self, child: Child) -> None:
        self.child = child
        self.batch: Batch | None = None
        self.index = 0
        self.token = -1

    def context(self) -> Context:
        """The attempt that runs here now."""
        batch, index, child = self.batch, self.index, self.child
        if batch is None:
            raise HandoffError("no function runs here any more")
        mark = (batch.number, self.token)
        return Context(
            batch.dag_id(),
            batch.function_id(index),
            batch.attempts[index],
            child.node,
            lambda: mark in child.cancelled,
        )

    def begin(self) -> None:
        """See ``Child.begin``."""
        self.child.begin(self.token)

    def lend(self) -> None:
        """The node lends what it holds when the forwarded call arrives there."""

    def reclaim(self, loan: None) -> None:
        """See ``lend``."""

    def home(self) -> Home:
        """The runtime: a stand-in that forwards."""
        return Home(self.child, self.token)


class Home:
    """Stands for the runtime: its methods are calls to the node of this process."""

    __slots__ = ("_child", "_token")

    def __init__(self, child: Child, token: int) -> None:
        self._child = child
        self._token = token

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def forwarded(*args: Any, **kwargs: Any) -> Any:
            return self._child.forward(self._token, name, args, kwargs)

        forwarded.__name__ = name
        return forwarded

"""A stage on another node: how its call and its items get there.

A stage abroad is, on its node, a pipeline of one function with one input: the payload. Guarantees
that only what a serialiser returns crosses, where an ``Argument`` has one, and that each of its two
callables sees both nodes' names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from handoff_actors.graph.calls import Call, Converted
from handoff_actors.graph.checks import Pair
from handoff_actors.graph.dag import DAG
from handoff_actors.graph.function import Function
from handoff_actors.pipeline.code import StageCode

Payload = Any


class Deserialize:
    """The second callable of an ``Argument``, with the nodes between which the data went."""

    def __init__(self, function: Any, source: str, target: str) -> None:
        self.function = function
        self.source = source
        self.target = target

    def __call__(self, data: Any, _source: str, _target: str, *extra: Any) -> Any:
        """The data as it is needed."""
        return self.function(data, self.source, self.target, *extra)


@dataclass(frozen=True)
class Shape:
    """A stage as it is sent to its node.

    Attributes:
        call: how the function is called there.
        values: the indices of the values that a payload brings there, in order.
        function: its other fields.
    """

    call: Call
    values: tuple[int, ...]
    function: Function


class Border:
    """What is between this node and a stage on another.

    Args:
        call: of the stage.
        values: the indices of the values a payload brings here.
        function: the stage's.
        source: this node's name.
        target: the other's.

    Attributes:
        shape: what is sent.
    """

    def __init__(
        self, call: Call, values: tuple[int, ...], function: Function, source: str, target: str
    ) -> None:
        self._values = values
        self._nodes = (source, target)
        self._serialized: list[tuple[int, Pair]] = []
        sources: list[Any] = []
        needed: dict[int, None] = {}
        made = max(values, default=0) + 1
        for each in call.sources:
            if isinstance(each, Converted) and isinstance(each.source, int):
                number = each.source
                if each.serialize is not None:
                    self._serialized.append((number, each.serialize))
                    number, made = made, made + 1
                after = each.deserialize
                if after is not None:
                    after = (Deserialize(after[0], source, target), after[1])
                needed[number] = None
                sources.append(Converted(number, each.producer, None, after))
            else:
                sources.append(each)
        # Inlines need what they need; a value that only a serialiser takes stays here.
        only = {number for number, _ in self._serialized}
        plain = {each for each in call.sources if isinstance(each, int)}
        inlines = any(not isinstance(each, (int, Converted)) for each in call.sources)
        inlines = inlines or any(
            isinstance(each, Converted) and not isinstance(each.source, int)
            for each in call.sources
        )
        kept = [v for v in values if inlines or v in plain or v in needed or v not in only]
        self._kept = [values.index(v) for v in kept]
        there = (*kept, *[v for v in needed if v not in values])
        self._as_it_is = not self._serialized
        self.shape = Shape(
            dataclasses.replace(call, sources=tuple(sources)),
            values if self._as_it_is else there,
            function,
        )

    def cross(self, payload: Payload) -> Payload:
        """What of a payload is sent; raises what a serialiser raises."""
        if self._as_it_is:
            return payload
        parts: Sequence[Any] = (payload,) if len(self._values) == 1 else payload
        source, target = self._nodes
        sent = [parts[i] for i in self._kept]
        for number, (function, extra) in self._serialized:
            sent.append(function(parts[self._values.index(number)], source, target, *extra))
        return sent[0] if len(sent) == 1 else tuple(sent)


class Hosted:
    """The code of the one function of a pipeline that is a stage for another node.

    Attributes:
        mixed: see ``StageCode``.
    """

    def __init__(self, call: Call, values: tuple[int, ...], node: str) -> None:
        self.code = StageCode(call, values, node)
        self.call = call
        self.mixed = self.code.mixed

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.call, self.code.values, self.code.node)

    def __call__(self, *args: Any) -> Any:
        """What the function gives for a payload, or a batch of them."""
        *state, given = args
        code = self._with(state)
        if self.call.batching:
            result: Any = code.many([payload for (payload,) in given])
        else:
            result = code.one(given)
        return (result, code.state) if state else result

    def _with(self, state: list[Any]) -> StageCode:
        """The code for one call: whoever calls has the state."""
        if not state:
            return self.code
        code = StageCode(self.call, self.code.values, self.code.node)
        (code.state,) = state
        return code


class AsyncHosted(Hosted):
    """The same of a coroutine function."""

    async def __call__(self, *args: Any) -> Any:
        """See ``Hosted``."""
        *state, given = args
        code = self._with(state)
        if self.call.batching:
            result: Any = await code.many_async([payload for (payload,) in given])
        else:
            result = await code.one_async(given)
        return (result, code.state) if state else result


def hosted_dag(name: str, shape: Shape, node: str) -> DAG:
    """The DAG that is a stage of another node's pipeline here."""
    call, function = shape.call, shape.function
    kind: Callable[..., Any] = AsyncHosted if call.is_async else Hosted
    dag = DAG(name)
    dag.add_function(Function("payload", type="input"))
    return dag.add_function(
        Function(
            function.id if function.id != "payload" else ("payload", 1),
            ["payload"],
            kind(call, shape.values, node),
            cost=function.cost,
            init=function.init,
            parallelism=function.parallelism,
            batch_size=function.batch_size,
            isolation=function.isolation,
            timeout=function.timeout,
            max_crashes=function.max_crashes,
        )
    )

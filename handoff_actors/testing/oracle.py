"""What a DAG gives when its functions are simply called one after another: the oracle of tests.

Shares nothing with the scheduler: it follows the arguments of each function as they are written.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Hashable, Mapping
from typing import Any

from handoff_actors.errors import MissingInputError
from handoff_actors.graph.callables import resolve_code
from handoff_actors.graph.dag import DAG
from handoff_actors.graph.function import Argument, Function


def sequential(
    dag: DAG, inputs: Mapping[Hashable, Any] | None = None, *, node: str = "sequential"
) -> dict[Hashable, Any]:
    """Evaluate a DAG by calling its functions in order, each once.

    Args:
        dag: what to evaluate.
        inputs: the values of its inputs, by id.
        node: what the callables of ``Argument``s are told as source and target.

    Returns:
        The value of each regular function, by id: what ``execute(dag).results`` must be equal to.

    Raises:
        InvalidDAGError: the DAG cannot be run.
        MissingInputError: an input has no value.
        BaseException: what the code of a function raises.
    """
    dag.validate()
    given = dict(inputs or {})
    values: dict[Hashable, Any] = {}
    regular = [id_ for id_, function in dag.functions.items() if function.type == "regular"]
    for root in regular:
        todo = [root]
        while todo:
            function = dag.functions[todo[-1]]
            if function.id in values:
                todo.pop()
                continue
            missing = [id_ for id_ in map(_id, function.args) if id_ not in values]
            if missing:
                todo.extend(reversed(missing))
                continue
            todo.pop()
            values[function.id] = _value(function, values, given, dag, node)
    return {id_: values[id_] for id_ in regular}


def _id(arg: Hashable) -> Hashable:
    return arg.id if isinstance(arg, Argument) else arg


def _value(
    function: Function,
    values: Mapping[Hashable, Any],
    given: Mapping[Hashable, Any],
    dag: DAG,
    node: str,
) -> Any:
    if function.type == "input":
        if function.id not in given:
            raise MissingInputError(
                f"the inputs for DAG {dag.id!r} lack {function.id!r}",
                missing=[function.id],
                unknown=[],
            )
        return given[function.id]
    args: list[Any] = [_argument(arg, values, node) for arg in function.args]
    if function.argument_inclusion == "as_list":
        args = [args]
    args += function.extra_args
    if function.batch_size is not None:
        args = [[tuple(args)]]
    if function.init is not None:
        args.insert(0, _call(function.init))
    code = resolve_code(function.code or "", function.id)
    value = code(*args, **(function.extra_kwargs or {}))
    if inspect.iscoroutine(value):
        value = asyncio.run(value)
    if function.init is not None:
        value = value[0]
    return value[0] if function.batch_size is not None else value


def _argument(arg: Hashable, values: Mapping[Hashable, Any], node: str) -> Any:
    value = values[_id(arg)]
    if isinstance(arg, Argument):
        for convert in (arg.serialization_fn, arg.deserialization_fn):
            if convert is not None:
                value = _call(convert, value, node, node)
    return value


def _call(pair: Any, *args: Any) -> Any:
    """Call a callable, or a ``(callable, [extra...])`` pair."""
    if isinstance(pair, tuple):
        return pair[0](*args, *pair[1])
    return pair(*args)

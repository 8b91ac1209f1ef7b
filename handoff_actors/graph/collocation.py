"""Which functions must run on one node because they ask for it by ``Collocated``.

Guarantees that a group ends in exactly one function that is not collocated itself, whose pin, when
it has one, is the pin of all. So no group can have two pins. Takes O(V).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from handoff_actors.errors import InvalidFunctionError, describe
from handoff_actors.graph.function import INLINE, INPUT, Collocated, Function
from handoff_actors.graph.order import hint


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of a DAG.

    Attributes:
        group_of: the number of the group of each function that is in one.
        pins: for each group the name of the node it is pinned to, or None.
    """

    group_of: dict[Hashable, int]
    pins: list[str | None]


def resolve_groups(functions: Mapping[Hashable, Function]) -> Groups:
    """Follow every ``Collocated`` to the function whose place decides.

    Raises:
        InvalidFunctionError: the target is unknown, an inline or an input, or a chain of
            collocations closes.
    """
    group_of: dict[Hashable, int] = {}
    pins: list[str | None] = []
    for function in functions.values():
        path: dict[Hashable, None] = {}
        here = function
        while here.id not in group_of and isinstance(here.node, Collocated):
            path[here.id] = None
            target = functions.get(here.node.id)
            if target is None:
                _refuse(here, f"which the DAG does not have{hint(here.node.id, functions)}")
            if target.shape & (INLINE | INPUT):
                _refuse(here, f"an {target.type} function, which runs on no node of its own")
            if target.id in path:
                cycle = list(path)[list(path).index(target.id) :]
                shown = " → ".join(map(describe, [*cycle[:10], target.id]))
                _refuse(here, f"and so no node is ever decided: {shown}")
            here = target
        if path:
            number = group_of.get(here.id)
            if number is None:
                number = group_of[here.id] = len(pins)
                pins.append(None if isinstance(here.node, Collocated) else here.node)
            for id_ in path:
                group_of[id_] = number
    return Groups(group_of, pins)


def _refuse(function: Function, text: str) -> NoReturn:
    raise InvalidFunctionError(
        f"function {describe(function.id)} is to run with {describe(function.node)}, {text}",
        function_id=function.id,
        field="node",
    )

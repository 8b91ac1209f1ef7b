"""Hypothesis strategies: any cost, function, DAG and fault. Needs ``handoff_actors[test]``.

The code of drawn functions is deterministic, can be pickled, and mixes all its arguments and their
order into a number: a value that went the wrong way shows.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from handoff_actors.graph.dag import DAG
from handoff_actors.graph.function import Argument, Collocated, Function
from handoff_actors.life import NAMES
from handoff_actors.testing.fault_plan import Fault, rebuilt

CAPABILITIES: Mapping[str, float] = {"cpu": 2.0, "memory": 100.0}
"""What the strategies take a node to offer, unless they are told."""


def mix(name: int, *args: Any, **more: Any) -> int:
    """A number in which all arguments and their order show."""
    total = name + 1
    for arg in (*args, *more.values()):
        total = total * 31 + (mix(7, *arg) if isinstance(arg, (list, tuple)) else int(arg))
    return total % 1_000_003


async def mix_later(name: int, *args: Any, **more: Any) -> int:
    """The same, as a coroutine."""
    return mix(name, *args, **more)


def shift(data: int, _source: str, _target: str, by: int = 1) -> int:
    """What drawn ``Argument``s do to a value on its way."""
    return (data + by) % 1_000_003


@st.composite
def costs(
    draw: DrawFn, capabilities: Mapping[str, float] = CAPABILITIES
) -> dict[str, float] | None:
    """Costs that a node with these capabilities can meet: none, shares of it, all of it."""
    if draw(st.booleans()):
        return None
    names = draw(st.lists(st.sampled_from(sorted(capabilities)), unique=True, max_size=2))
    return {
        name: capabilities[name] * draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
        for name in names
    }


@st.composite
def functions(
    draw: DrawFn,
    id: Hashable = 0,  # noqa: A002  as in Function
    args: Sequence[Hashable] = (),
    *,
    capabilities: Mapping[str, float] = CAPABILITIES,
    type: str = "regular",  # noqa: A002
    isolation: Sequence[str | None] = (None,),
    coroutines: bool = True,
) -> Function:
    """One function of this id that takes these results, in any of the forms a function has.

    Args:
        draw: given by Hypothesis.
        id: the function's.
        args: ids whose results it takes; some become ``Argument``s.
        capabilities: what its cost must fit into.
        type: ``"regular"``, ``"inline"`` or ``"input"``.
        isolation: what to draw it from.
        coroutines: whether the code may be ``async``.
    """
    if type == "input":
        return Function(id, type="input")
    regular = type == "regular"
    number = draw(st.integers(0, 99))
    code: Any = mix
    if regular and coroutines and draw(st.integers(0, 5)) == 0:
        code = mix_later
    return Function(
        id,
        [_argument(draw, arg) for arg in args],
        functools.partial(code, number),
        extra_args=draw(st.lists(st.integers(0, 9), max_size=2)),
        extra_kwargs=draw(st.one_of(st.none(), st.fixed_dictionaries({"k": st.integers(0, 9)}))),
        argument_inclusion=draw(st.sampled_from(["variadic", "variadic", "as_list"])),
        type="regular" if regular else "inline",
        cost=draw(costs(capabilities)) if regular else None,
        isolation=draw(st.sampled_from(list(isolation))) if regular else None,
        timeout=draw(st.sampled_from([None, None, 60.0])) if regular else None,
    )


def _argument(draw: DrawFn, id_: Hashable) -> Hashable:
    if draw(st.integers(0, 7)):
        return id_
    return Argument(
        id_,
        draw(st.sampled_from([None, shift, (shift, [3])])),
        draw(st.sampled_from([None, shift])),
    )


@st.composite
def dags(
    draw: DrawFn,
    max_size: int = 12,
    *,
    capabilities: Mapping[str, float] = CAPABILITIES,
    inputs: bool = False,
    inlines: bool = True,
    isolation: Sequence[str | None] = (None,),
    coroutines: bool = True,
) -> DAG:
    """DAGs that can be run: chains, fans, diamonds and what lies between. Ids are 0, 1, 2, ...

    Args:
        draw: given by Hypothesis.
        max_size: functions at most.
        capabilities: what costs must fit into.
        inputs: whether there may be functions of type ``"input"``; give them ints.
        inlines: whether there may be functions of type ``"inline"``.
        isolation: what the functions' own is drawn from.
        coroutines: whether code may be ``async``.
    """
    dag = DAG()
    kinds = ["regular"] * 6 + ["inline"] * inlines + ["input"] * inputs
    regular: list[int] = []
    for i in range(draw(st.integers(1, max_size))):
        kind = draw(st.sampled_from(kinds))
        near = st.integers(max(0, i - 6), i - 1) if i else st.nothing()
        args = draw(st.lists(near, max_size=4)) if i and kind != "input" else []
        function = draw(
            functions(
                i, args, capabilities=capabilities, type=kind, isolation=isolation,
                coroutines=coroutines,
            )
        )  # fmt: skip
        if kind == "regular":
            if regular and draw(st.integers(0, 9)) == 0:
                function = _beside(function, draw(st.sampled_from(regular)))
            regular.append(i)
        dag.add_function(function)
    return dag


def _beside(function: Function, other: int) -> Function:
    return rebuilt(function, node=Collocated(other))


def faults(kinds: Sequence[str] = ("crash", "delay")) -> SearchStrategy[Fault]:
    """Faults that a runtime survives, for ``FaultPlan`` or to be applied at once.

    Args:
        kinds: of ``"crash"``, ``"delay"``, ``"kill_worker"`` (needs worker processes) and
            ``"drop_replies"`` (whoever asks waits for its deadline).
    """
    names = st.sampled_from(NAMES)
    every: dict[str, SearchStrategy[Fault]] = {
        "crash": names.map(lambda name: Fault("crash", name)),
        "delay": st.builds(
            lambda name, seconds: Fault("delay", name, seconds),
            names,
            st.sampled_from([0.001, 0.005, 0.02]),
        ),
        "kill_worker": st.just(Fault("kill_worker")),
        "drop_replies": names.map(lambda name: Fault("drop_replies", name, 1)),
    }
    return st.one_of(*(every[kind] for kind in kinds))

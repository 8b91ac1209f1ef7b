"""The order in which the functions of a DAG can run, or why there is none.

Guarantees that dependencies come first and that insertion order is kept wherever they allow it:
each function stands where it was added, after those it needs that were added later. Takes O(V+E)
and no recursion, however deep the DAG.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import NoReturn

from handoff_actors.errors import CyclicDependencyError, MissingFunctionError, describe
from handoff_actors.graph.function import WRAPPED, Argument, Function

_HINT_AMONG = 5_000  # difflib is slow: a hint is not worth seconds


def arg_ids(function: Function) -> tuple[Hashable, ...]:
    """The ids of the functions whose results ``function`` takes, in order."""
    if function.shape & WRAPPED:
        return tuple([a.id if isinstance(a, Argument) else a for a in function.args])
    return function.args


def in_order(functions: Mapping[Hashable, Function]) -> list[Function]:
    """All functions, dependencies first.

    Raises:
        MissingFunctionError: an argument names no function.
        CyclicDependencyError: functions wait for each other.
    """
    ordered: list[Function] = []
    done: set[Hashable] = set()
    open_: dict[Hashable, None] = {}  # the path from the root to where we are
    for root in functions.values():
        if root.id in done:
            continue
        needs = arg_ids(root)
        if done.issuperset(needs):
            done.add(root.id)
            ordered.append(root)
            continue
        path = [(root, iter(needs))]
        open_[root.id] = None
        while path:
            function, waiting = path[-1]
            for needed in waiting:
                if needed in done:
                    continue
                if needed in open_:
                    refuse_cycle(list(open_), needed)
                found = functions.get(needed)
                if found is None:
                    refuse_missing(functions, function, needed)
                open_[found.id] = None
                path.append((found, iter(arg_ids(found))))
                break
            else:
                path.pop()
                del open_[function.id]
                done.add(function.id)
                ordered.append(function)
    return ordered


def refuse_cycle(path: list[Hashable], again: Hashable) -> NoReturn:
    """Raise for the cycle that closes when ``path`` comes to ``again``, which lies on it.

    The cycle is told in the order in which the functions would run.
    """
    cycle = path[path.index(again) :][::-1]
    shown = [describe(id_) for id_ in cycle]
    if len(shown) > 12:
        shown[6:-5] = [f"… {len(shown) - 11} more …"]
    raise CyclicDependencyError(
        "these functions wait for each other: "
        + " → ".join([*shown, shown[0]])
        + "; each takes the result of the one before it: remove one of these arguments",
        cycle=cycle,
    )


def refuse_missing(
    functions: Mapping[Hashable, Function], function: Function, missing: Hashable
) -> NoReturn:
    """Raise for an argument of ``function`` that names no function."""
    raise MissingFunctionError(
        f"function {describe(function.id)} takes the result of {describe(missing)}, "
        f"which the DAG does not have{hint(missing, functions)}",
        function_id=function.id,
        missing=missing,
    )


def hint(missing: Hashable, known: Iterable[Hashable]) -> str:
    """``"; did you mean 'x'?"`` when something close to ``missing`` is known, else what to do."""
    import difflib

    near: list[str] = []
    text = str(missing) if isinstance(missing, (str, int, float)) else None
    if text is not None:
        for id_ in known:
            if not isinstance(id_, str) and str(id_) == text:
                return f"; did you mean {describe(id_)}, which is no str?"
            if isinstance(id_, str) and abs(len(id_) - len(text)) <= 3:
                near.append(id_)
                if len(near) >= _HINT_AMONG:
                    break
        close = difflib.get_close_matches(text, near, n=1)
        if close:
            return f"; did you mean {close[0]!r}?"
    return "; add it, or declare it with type='input' if its value comes from outside"

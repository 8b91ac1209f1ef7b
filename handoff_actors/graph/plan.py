"""A DAG compiled to be run: integers instead of ids, columns instead of objects.

Guarantees that a ``Plan`` that exists can be run: nothing is missing, nothing waits for itself,
collocations are resolved, code given as a path is imported. Nobody changes a plan once it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast

from handoff_actors.graph.callables import Code
from handoff_actors.graph.calls import Call, Converted, InlineCall, LaneClass, Source
from handoff_actors.graph.function import Function

__all__ = ["Call", "Converted", "InlineCall", "LaneClass", "Plan", "Source"]


_T = TypeVar("_T")


class _Lazy(Generic[_T]):
    """A column that is made when it is looked at first, and stays.

    Two threads may both make it, as nothing is locked: what they make is the same.
    """

    __slots__ = ("_make", "_name")

    def __init__(self, make: Callable[[Any], _T]) -> None:
        self._make = make
        self._name = make.__name__

    def __get__(self, plan: Plan, _owner: type[Plan]) -> _T:
        found = plan.__dict__[self._name] = self._make(plan)
        return found


class Plan:
    """A DAG compiled to be run.

    Values have indices: the regular functions 0 to ``n - 1``, dependencies first, then the inputs.
    Inline functions have none: they are part of the calls of those that take them.

    Attributes:
        ids: the id of each value.
        index: the value index of each id.
        functions: the function of each value.
        n: how many regular functions there are.
        n_inputs: how many inputs there are.
        deps: for each regular function the values it needs, inlines seen through, each once.
        dependents: for each value the regular functions that need it, in order.
        indegree: for each regular function how many regular ones it needs.
        consumers: for each value how many regular functions need it.
        sinks: the regular functions that no regular one needs.
        plain: for each regular function the values that are its arguments, in order, when there
            is no more to its call than ``code(*values)``, else None.
        codes: the callable of each regular function.
        calls: the call of each regular function that is not plain.
        class_of: the number of each regular function's class.
        classes: what the functions of a class have in common.
        groups: of each group of collocated functions its regular functions.
        group_of: the number of the group of each function that is in one.
        group_pins: for each group the name of the node it is pinned to, or None.
    """

    ids: list[Hashable]
    functions: list[Function]
    n: int
    n_inputs: int = 0
    deps: list[tuple[int, ...]]
    plain: list[tuple[int, ...] | None]
    codes: list[Code]
    calls: dict[int, Call]
    class_of: list[int]
    classes: list[LaneClass]
    groups: Sequence[tuple[int, ...]] = ()
    group_of: Mapping[int, int] = MappingProxyType({})
    group_pins: Sequence[str | None] = ()

    # What a run of few functions may never look at is made when it is.

    @_Lazy
    def index(self) -> dict[Hashable, int]:
        """See the class."""
        return {id_: value for value, id_ in enumerate(self.ids)}

    @_Lazy
    def dependents(self) -> list[list[int]]:
        """See the class."""
        found: list[list[int]] = [[] for _ in self.ids]
        for i, deps in enumerate(self.deps):
            for d in deps:
                found[d].append(i)
        return found

    @_Lazy
    def indegree(self) -> list[int]:
        """See the class."""
        n = self.n
        if self.n_inputs:
            return [sum([d < n for d in deps]) for deps in self.deps]
        return list(map(len, self.deps))

    @_Lazy
    def consumers(self) -> list[int]:
        """See the class."""
        return list(map(len, self.dependents))

    @_Lazy
    def sinks(self) -> list[int]:
        """See the class."""
        n = self.n
        return [i for i, readers in enumerate(self.dependents) if not readers and i < n]

    def call(self, i: int) -> Call:
        """The call of the regular function ``i``, made when it is plain."""
        found = self.calls.get(i)
        if found is not None:
            return found
        return Call(self.ids[i], self.codes[i], cast("tuple[Source, ...]", self.plain[i]))

    def levels(self) -> list[list[int]]:
        """The regular functions by the longest way that leads to them."""
        level = [0] * self.n
        levels: list[list[int]] = []
        n = self.n
        for i, deps in enumerate(self.deps):
            here = max([level[d] + 1 for d in deps if d < n], default=0)
            level[i] = here
            if here == len(levels):
                levels.append([])
            levels[here].append(i)
        return levels

    def width(self) -> int:
        """How many regular functions the fullest level has."""
        return max(map(len, self.levels()), default=0)

    def critical_path(self, weights: Sequence[float] | None = None) -> list[int]:
        """The regular functions of the heaviest way through, in order.

        Args:
            weights: what each regular function weighs, say seconds; None is 1 for each.
        """
        n = self.n
        total: list[float] = []
        before: list[int] = []
        for i, deps in enumerate(self.deps):
            last = max([d for d in deps if d < n], key=total.__getitem__, default=-1)
            before.append(last)
            total.append((total[last] if last >= 0 else 0) + (1 if weights is None else weights[i]))
        path: list[int] = []
        i = max(range(n), key=total.__getitem__, default=-1)
        while i >= 0:
            path.append(i)
            i = before[i]
        return path[::-1]

    def __repr__(self) -> str:
        return f"<Plan of {self.n} functions and {self.n_inputs} inputs>"

"""DAG: collecting functions, by hand or as a decorator.

Guarantees that adding a function costs O(1), that no function is ever replaced, and that a DAG
which several threads use is safe once it is built.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, Unpack, overload

from handoff_actors.errors import (
    DuplicateFunctionError,
    InvalidDAGError,
    InvalidFunctionError,
    describe,
    unfit_id,
)
from handoff_actors.graph.callables import Code
from handoff_actors.graph.compiler import compile_plan
from handoff_actors.graph.function import (
    Function,
    FunctionFields,
)
from handoff_actors.graph.plan import Plan

F = TypeVar("F", bound=Code)


class DAG:
    """Functions and which results they take from each other.

    Args:
        id: any hashable; it names the run. None gives a unique one.

    Raises:
        InvalidDAGError: the id is not hashable, or has no repr.
    """

    __slots__ = ("__weakref__", "_functions", "_id", "_plan", "_view")

    def __init__(self, id: Hashable = None) -> None:  # noqa: A002
        if (reason := unfit_id(id)) is not None:
            raise InvalidDAGError(f"a DAG's id {reason}")
        self._id: Hashable = f"dag-{os.urandom(6).hex()}" if id is None else id
        self._functions: dict[Hashable, Function] = {}
        self._view: Mapping[Hashable, Function] = MappingProxyType(self._functions)
        self._plan: Plan | None = None

    @property
    def id(self) -> Hashable:
        """What names the DAG and, if the caller gives no other, its runs."""
        return self._id

    @property
    def functions(self) -> Mapping[Hashable, Function]:
        """The functions by their ids, in the order in which they were added; read-only."""
        return self._view

    def add_function(self, function: Function) -> DAG:
        """Add a function.

        Returns:
            The DAG, so that calls can be chained.

        Raises:
            DuplicateFunctionError: there is one of this id.
            InvalidDAGError: it is no ``Function``.
        """
        if not isinstance(function, Function):
            raise InvalidDAGError(
                f"add_function() takes a Function, got {describe(function)}; "
                "make one with Function(id, args, code)"
            )
        id_ = function.id
        if id_ in self._functions:
            raise DuplicateFunctionError(
                f"the DAG {describe(self._id)} has a function {describe(id_)} already; "
                "give this one another id",
                function_id=id_,
            )
        self._functions[id_] = function
        self._plan = None
        return self

    @overload
    def function(self, code: F, /) -> F: ...

    @overload
    def function(
        self,
        code: None = None,
        /,
        *,
        id: Hashable = None,
        args: Iterable[Hashable] | None = None,
        **fields: Unpack[FunctionFields],
    ) -> Callable[[F], F]: ...

    def function(
        self,
        code: F | None = None,
        /,
        *,
        id: Hashable = None,  # noqa: A002
        args: Iterable[Hashable] | None = None,
        **fields: Unpack[FunctionFields],
    ) -> F | Callable[[F], F]:
        """Add the decorated function: ``@dag.function`` or ``@dag.function(cost={"cpu": 1})``.

        Args:
            code: the function, when there are no parentheses.
            id: its id; None is its name.
            args: as of ``Function``; None takes its parameters without default, after the state
                when there is an ``init``, and but for those that ``extra_args`` and
                ``extra_kwargs`` fill.
            **fields: the other fields of ``Function``.

        Returns:
            The decorated function itself.

        Raises:
            InvalidFunctionError: a field is wrong, or the parameters do not say what the args are.
            DuplicateFunctionError: there is one of this id.
        """

        def add(code: F) -> F:
            own = _name(code) if id is None else id
            inferred = _inferred_args(own, code, fields) if args is None else args
            self.add_function(Function(own, inferred, code, **fields))
            return code

        return add if code is None else add(code)

    def validate(self) -> None:
        """Check that the DAG can be run; remembers the plan, so that checking again is free.

        Raises:
            MissingFunctionError: an argument names no function.
            CyclicDependencyError: functions wait for each other.
            InvalidFunctionError: code cannot be imported, or a collocation cannot be met.
        """
        self.plan()

    def plan(self) -> Plan:
        """The DAG compiled to be run, made anew after a function was added; raises as validate."""
        plan = self._plan
        if plan is None:
            plan = self._plan = compile_plan(self)
        return plan

    def to_mermaid(self, states: Mapping[Hashable, str] | None = None) -> str:
        """The DAG as Mermaid text; ``states`` maps ids to states of a run, which color them."""
        from handoff_actors.graph.drawing import to_mermaid  # only who draws pays for it

        return to_mermaid(self, states)

    def to_dot(self, states: Mapping[Hashable, str] | None = None) -> str:
        """The DAG as Graphviz DOT text; ``states`` is as of ``to_mermaid``."""
        from handoff_actors.graph.drawing import to_dot

        return to_dot(self, states)

    def to_svg(self, states: Mapping[Hashable, str] | None = None) -> str:
        """The DAG as an SVG picture; ``states`` is as of ``to_mermaid``.

        Needs no other program. Of a DAG of more than 500 functions the levels are drawn.
        """
        from handoff_actors.graph.drawing import to_svg

        return to_svg(self, states)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        from handoff_actors.graph.drawing import display

        return display(self)

    def __len__(self) -> int:
        return len(self._functions)

    def __contains__(self, id: object) -> bool:  # noqa: A002
        return id in self._functions

    def __repr__(self) -> str:
        count = len(self._functions)
        return f"<DAG {describe(self._id)} of {count} function{'' if count == 1 else 's'}>"

    def __getstate__(self) -> tuple[Hashable, tuple[Function, ...]]:
        return self._id, tuple(self._functions.values())

    def __setstate__(self, state: tuple[Hashable, tuple[Function, ...]]) -> None:
        self._id, functions = state
        self._functions = {f.id: f for f in functions}
        self._view = MappingProxyType(self._functions)
        self._plan = None


def _name(code: object) -> str:
    name = getattr(code, "__name__", None)
    if not isinstance(name, str) or not name.isidentifier():
        raise InvalidFunctionError(
            f"{describe(code)} has no name that could be its id: write dag.function(id=...)(code)",
            function_id=None,
            field="id",
        )
    return name


def _inferred_args(function_id: Hashable, code: Code, fields: FunctionFields) -> list[str]:
    """The parameters of ``code`` that results of other functions are to fill."""

    def refuse(reason: str) -> InvalidFunctionError:
        return InvalidFunctionError(
            f"function {describe(function_id)}: {reason}; give args=[...]",
            function_id=function_id,
            field="args",
        )

    if fields.get("batch_size") is not None or fields.get("argument_inclusion") == "as_list":
        raise refuse("its one parameter is a list, which does not say what is in it")
    try:
        parameters = list(inspect.signature(code).parameters.values())
    except Exception as error:
        raise refuse(f"its signature cannot be read ({error})") from error
    given = fields.get("extra_kwargs") or {}
    positional = [p for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD]
    if fields.get("init") is not None:
        positional = positional[1:]  # the state
    positional = [p for p in positional if p.name not in given]
    needed = [p.name for p in positional if p.default is p.empty]
    for p in parameters:
        if p.kind == p.KEYWORD_ONLY and p.default is p.empty and p.name not in given:
            raise refuse(
                f"its parameter {p.name!r} is keyword-only, so no result can be its argument: "
                f"set it by extra_kwargs={{{p.name!r}: ...}}, or make it positional"
            )
    extra = len(tuple(fields.get("extra_args") or ()))
    if extra and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        # The extras stand behind the args; those without room take the last parameters.
        needed = needed[: max(0, len(positional) - extra)]
    return needed

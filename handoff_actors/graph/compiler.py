"""Making a plan: a DAG is validated and compiled in one go.

Compiling costs O(V+E), where an inline counts once for each function that evaluates it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from handoff_actors.graph.callables import Code, is_coroutine_callable, resolve_code
from handoff_actors.graph.calls import Call, Converted, InlineCall, LaneClass, Source
from handoff_actors.graph.checks import with_extras
from handoff_actors.graph.collocation import Groups, resolve_groups
from handoff_actors.graph.function import (
    ASYNC,
    BOUND,
    COLLOCATED,
    INLINE,
    INPUT,
    PATH,
    PLACED,
    REPEATED,
    STATE,
    TIMED,
    WRAPPED,
    Argument,
    Function,
    check_call,
    to_micro,
)
from handoff_actors.graph.order import in_order
from handoff_actors.graph.plan import Plan

if TYPE_CHECKING:
    from handoff_actors.graph.dag import DAG

_CLASSED = ASYNC | STATE | TIMED | PLACED | PATH  # what is not at once in the default class
_NO_DEFAULT = _CLASSED | INLINE | INPUT
_INTS = frozenset({int})
_DEFAULT_CLASS = LaneClass()
_DEFAULT_CLASSES = [_DEFAULT_CLASS]
_DEFAULT_KEY = (0, None, None, None, "micro", ())
_OWN_CLASS = ASYNC | STATE | TIMED
_NOT_PLAIN = BOUND | STATE | ASYNC
_SPECIAL = _NOT_PLAIN | WRAPPED | INLINE | INPUT | REPEATED | PATH  # args are not just looked up
_USUAL = {0}
_SMALL = 16  # so many values that an inline needs are remembered


def compile_plan(dag: DAG) -> Plan:
    """Validate ``dag`` and compile it.

    Raises:
        MissingFunctionError: an argument names no function.
        CyclicDependencyError: functions wait for each other.
        InvalidFunctionError: code cannot be imported, or a collocation cannot be met.
    """
    functions = dag.functions
    shapes = set(map(_shape_of, functions.values()))
    make = _usual_plan if shapes == _USUAL else _compiler(functions, shapes)
    try:
        # Most DAGs are built in an order in which they can run.
        return make(functions.values())
    except KeyError:
        pass
    return make(in_order(functions))


def _compiler(
    functions: Mapping[Hashable, Function], shapes: set[int]
) -> Callable[[Iterable[Function]], Plan]:
    """What makes the plan of functions of any shape."""
    union = 0
    for shape in shapes:
        union |= shape
    some_default = any(not shape & _NO_DEFAULT for shape in shapes)
    groups = None
    if union & COLLOCATED:
        groups = resolve_groups(functions)
        some_default = False
    return lambda ordered: _Compiler(ordered, union, groups, some_default).plan


def _usual_plan(functions: Iterable[Function]) -> Plan:
    """As ``_Compiler``, of functions that are no more than ``code(*results)``, anywhere."""
    plan = Plan()
    plan.functions = regular = list(functions)
    plan.ids = ids = list(map(_id_of, regular))
    plan.n = n = len(ids)
    plan.codes = list(map(_code_of, regular))
    plan.calls = {}
    plan.class_of = [0] * n
    plan.classes = _DEFAULT_CLASSES
    args_of = list(map(_args_of, regular))
    if any(args_of):
        index: dict[Hashable, int] = {}
        dependents: list[list[int]] = [[] for _ in ids]
        value_of = index.__getitem__
        deps_of: list[tuple[int, ...]] = []
        for i, args in enumerate(args_of):
            deps = tuple(map(value_of, args))
            deps_of.append(deps)
            for d in deps:
                dependents[d].append(i)
            index[ids[i]] = i
        plan.index, plan.dependents, plan.deps = index, dependents, deps_of
    else:
        plan.deps = cast("list[tuple[int, ...]]", args_of)
    plan.plain = cast("list[tuple[int, ...] | None]", plan.deps)
    return plan


_shape_of, _id_of, _code_of, _args_of = map(attrgetter, ("shape", "id", "code", "args"))


class _Compiler:
    """Makes one plan from functions that come in an order in which they can run.

    Raises:
        KeyError: they do not come in such an order.
    """

    __slots__ = ("class_keys", "groups", "inlines", "plan", "reaches")

    def __init__(
        self,
        functions: Iterable[Function],
        union: int,
        groups: Groups | None,
        some_default: bool,
    ) -> None:
        ordered = regular = list(functions)
        inputs: list[Function] = []
        if union & INPUT:
            inputs = [f for f in regular if f.shape & INPUT]
            ordered = regular = [f for f in regular if not f.shape & INPUT]
        if union & INLINE:
            regular = [f for f in regular if not f.shape & INLINE]
        self.groups = groups
        self.inlines: dict[Hashable, InlineCall] = {}
        self.reaches: dict[Hashable, tuple[int, ...]] = {}
        self.class_keys: dict[Any, int] = {_DEFAULT_KEY: 0} if some_default else {}

        plan = self.plan = Plan()
        n = plan.n = len(regular)
        plan.n_inputs = len(inputs)
        plan.functions = regular + inputs
        plan.ids = [f.id for f in plan.functions]
        plan.index = {f.id: value for value, f in enumerate(inputs, n)} if inputs else {}
        plan.codes = cast("list[Code]", [f.code for f in regular])
        plan.calls = {}
        plan.class_of = [0] * n
        plan.classes = [_DEFAULT_CLASS] if some_default else []
        plan.dependents = [[] for _ in plan.functions]
        self._columns(ordered)
        if groups is not None:
            group_of: dict[int, int] = {}
            members: list[list[int]] = [[] for _ in groups.pins]
            for i, id_ in enumerate(plan.ids):
                group = groups.group_of.get(id_)
                if group is not None:
                    group_of[i] = group
                    members[group].append(i)
            plan.group_pins, plan.group_of = groups.pins, group_of
            plan.groups = list(map(tuple, members))

    def _columns(self, ordered: list[Function]) -> None:
        """Fill the columns that need a step per function: the loop that compiling consists of."""
        plan = self.plan
        plain: list[tuple[int, ...] | None] = []
        deps_of: list[tuple[int, ...]] = []
        plan.plain, plan.deps = plain, deps_of
        index, dependents, class_of = plan.index, plan.dependents, plan.class_of
        grouped = self.groups is not None
        inlines = self.inlines
        value_of = index.__getitem__
        i = 0
        for function in ordered:
            shape = function.shape
            values: tuple[int, ...] | None
            if not shape & _SPECIAL:
                try:
                    deps = values = tuple(map(value_of, function.args))
                except KeyError:
                    if not inlines:
                        raise
                    shape, deps, values = self._special(i, function)
            elif shape & INLINE:
                self._inline(function)
                continue
            else:
                shape, deps, values = self._special(i, function)
            deps_of.append(deps)
            plain.append(values)
            for d in deps:
                dependents[d].append(i)
            if shape & _CLASSED or grouped:
                class_of[i] = self._class_of(function, shape)
            index[function.id] = i
            i += 1

    def _special(
        self, i: int, function: Function
    ) -> tuple[int, tuple[int, ...], tuple[int, ...] | None]:
        """The shape, the values needed and, when it is plain, the arguments of a function."""
        shape = function.shape
        sources = self._sources(function)
        if shape & PATH:
            self.plan.codes[i] = code = _imported(function)
            if is_coroutine_callable(code):
                shape |= ASYNC
        if not _INTS.issuperset(map(type, sources)):
            deps = self._reach(sources)
        else:
            values = cast("tuple[int, ...]", sources)
            deps = tuple(dict.fromkeys(values))
            if not shape & _NOT_PLAIN:
                return shape, deps, values
        self.plan.calls[i] = _call(function, self.plan.codes[i], sources, shape)
        return shape, deps, None

    def _inline(self, function: Function) -> None:
        sources = self._sources(function)
        code = _imported(function) if function.shape & PATH else cast("Code", function.code)
        self.inlines[function.id] = InlineCall(
            function.id, _call(function, code, sources, function.shape)
        )
        taken = [s.source if isinstance(s, Converted) else s for s in sources]
        if all(isinstance(s, int) or s.key in self.reaches for s in taken):
            reach = self._reach(sources)
            if len(reach) <= _SMALL:
                self.reaches[function.id] = reach

    def _sources(self, function: Function) -> tuple[Source, ...]:
        index, inlines = self.plan.index, self.inlines
        sources: list[Source] = []
        for arg in function.args:
            id_ = arg.id if isinstance(arg, Argument) else arg
            value = index.get(id_)
            source = inlines[id_] if value is None else value
            if isinstance(arg, Argument):
                before = with_extras(arg.serialization_fn)
                after = with_extras(arg.deserialization_fn)
                if before is not None or after is not None:
                    sources.append(Converted(source, value, before, after))
                    continue
            sources.append(source)
        return tuple(sources)

    def _reach(self, sources: Sequence[Source]) -> tuple[int, ...]:
        """The values that ``sources`` need, inlines seen through, each once.

        What an inline needs is remembered when it is little. Else it is walked again for each who
        takes it, as it is evaluated again for each: remembering it all would be quadratic.
        """
        found: dict[int, None] = {}
        seen: set[Hashable] = set()
        stack: list[Source] = list(reversed(sources))
        while stack:
            source = stack.pop()
            if isinstance(source, Converted):
                source = source.source
            if isinstance(source, int):
                found[source] = None
                continue
            if source.key in seen:
                continue
            seen.add(source.key)
            known = self.reaches.get(source.key)
            if known is not None:
                found.update(dict.fromkeys(known))
            else:
                stack.extend(reversed(source.call.sources))
        return tuple(found)

    def _class_of(self, function: Function, shape: int) -> int:
        group = pin = None
        if self.groups is not None:
            group = self.groups.group_of.get(function.id)
        if group is not None and self.groups is not None:
            pin = self.groups.pins[group]
            if pin is not None:
                group = None  # the pin says all there is to say
        elif function.node is not None:
            pin = cast("str", function.node)
        bits = shape & _OWN_CLASS
        cost = tuple(function.cost.items()) if function.cost else ()
        key = (bits, function.isolation, pin, group, cost)
        number = self.class_keys.get(key)
        if number is None:
            micro = {name: to_micro(amount) for name, amount in sorted(cost)}
            micro = {name: amount for name, amount in micro.items() if amount}
            same = (*key[:4], "micro", tuple(micro.items()))
            number = self.class_keys.get(same)
            if number is None:
                number = len(self.plan.classes)
                self.plan.classes.append(
                    LaneClass(
                        function.isolation,
                        bool(bits & ASYNC),
                        micro or None,
                        pin,
                        group,
                        bool(bits & TIMED),
                        bool(bits & STATE),
                    )
                )
                self.class_keys[same] = number
            self.class_keys[key] = number
        return number


def _imported(function: Function) -> Code:
    code = resolve_code(cast("str", function.code), function.id)
    check_call(function, code)
    return code


def _call(function: Function, code: Code, sources: tuple[Source, ...], shape: int) -> Call:
    return Call(
        function.id,
        code,
        sources,
        function.extra_args,
        function.extra_kwargs or None,
        function.argument_inclusion == "as_list",
        bool(shape & ASYNC),
        with_extras(function.init),
        function.batch_size is not None,
    )

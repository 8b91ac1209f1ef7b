"""One function of a DAG: what to call, with which results, where, and how often.

Guarantees that a ``Function``, ``Argument`` or ``Collocated`` that exists is right in all that can
be known without its DAG: every field is checked when it is built, and nothing changes afterwards.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Literal, NoReturn, TypedDict, cast

from handoff_actors.errors import InvalidFunctionError, describe, unfit_id
from handoff_actors.graph.callables import (
    Code,
    is_code_path,
    is_coroutine_callable,
    misfit,
    name_of,
)
from handoff_actors.graph.checks import (
    CodeWithExtras,
    as_tuple,
    check_above_zero,
    check_choice,
    check_int,
    check_pair,
    check_seconds,
    checked_cost,
    checked_kwargs,
    refuse,
)

FunctionKind = Literal["regular", "inline", "input"]
Isolation = Literal["thread", "process"]
ArgumentInclusion = Literal["variadic", "as_list"]


class FunctionFields(TypedDict, total=False):
    """The fields of a ``Function`` that the decorator passes on."""

    extra_args: Iterable[Any]
    extra_kwargs: Mapping[str, Any] | None
    cost: Mapping[str, float] | None
    node: str | Collocated | None
    type: FunctionKind
    argument_inclusion: ArgumentInclusion
    max_retries: int | None
    retry_delay: float
    max_crashes: int
    timeout: float | None
    isolation: Isolation | None
    init: CodeWithExtras | None
    parallelism: int
    batch_size: int | None
    batch_timeout: float | None
    version: Hashable


MICRO = 1_000_000


def to_micro(amount: float) -> int:
    """An amount of a resource in integer millionths, so that sums of amounts are exact."""
    return round(float(amount) * MICRO)


# What the compiler asks of a function, as bits of ``Function.shape``: 0 is the usual function.
INLINE = 1
INPUT = 2
WRAPPED = 4  # an Argument among its args
REPEATED = 8  # the same id twice among its args
BOUND = 16  # extra_args, extra_kwargs or as_list
STATE = 32  # init or batching
ASYNC = 64
PATH = 128  # code is "module:qualname"
TIMED = 256
PLACED = 512  # cost, node or isolation
COLLOCATED = 1024


@dataclass(frozen=True, slots=True)
class Argument:
    """The result of another function, converted on its way.

    Attributes:
        id: the function whose result it is.
        serialization_fn: called as ``fn(data, source_node, target_node, *extra)`` where the data
            is; what it returns crosses the wire. A callable or ``(callable, [extra...])``.
        deserialization_fn: the same, called where the data is needed.

    Raises:
        InvalidFunctionError: the id is not hashable, or a callable is none.
    """

    id: Hashable
    serialization_fn: CodeWithExtras | None = None
    deserialization_fn: CodeWithExtras | None = None

    def __post_init__(self) -> None:
        _check_id(self.id, "args", "an Argument's id")
        for name in ("serialization_fn", "deserialization_fn"):
            value = getattr(self, name)
            if value is not None:
                check_pair(self.id, name, value, before=3)

    def __hash__(self) -> int:
        return hash(self.id)


@dataclass(frozen=True, slots=True)
class Collocated:
    """As a function's ``node``: wherever the function ``id`` runs.

    Raises:
        InvalidFunctionError: the id is not hashable.
    """

    id: Hashable

    def __post_init__(self) -> None:
        _check_id(self.id, "node", "a Collocated's id")


def _check_id(value: object, name: str, what: str) -> None:
    if (reason := unfit_id(value)) is not None:
        raise InvalidFunctionError(f"{what} {reason}", function_id=None, field=name)
    if isinstance(value, (Argument, Collocated, Function)):
        raise InvalidFunctionError(
            f"{what} must be the id of a function, got {describe(value)}; give its .id",
            function_id=None,
            field=name,
        )


_put = object.__setattr__


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Function:
    """One function of a DAG.

    Attributes:
        id: any hashable, unique in its DAG.
        args: ids, or ``Argument``s, whose results are the first positional arguments, in order.
        code: any callable, ``async def`` included, or ``"module:qualname"``.
        extra_args: positional arguments that follow them.
        extra_kwargs: keyword arguments.
        cost: resources claimed while it runs: name to amount; None or zeros claim nothing.
        node: the name of the node it must run on, or ``Collocated(id)``; None is anywhere.
        type: ``"regular"``; ``"inline"``: evaluated by each function that takes it; ``"input"``:
            its value comes from outside.
        argument_inclusion: ``"as_list"`` hands over the results of ``args`` as one list.
        max_retries: how often it runs again after it raised; None is the run's own.
        retry_delay: seconds before the first of them, doubling.
        max_crashes: how often it runs again after its worker or node died.
        timeout: seconds for one attempt; None is no limit.
        isolation: ``"thread"`` or ``"process"``; None is the runtime's own.
        init: a callable or ``(callable, [args])`` that makes the state which is its first argument.
        parallelism: workers it has in a pipeline.
        batch_size: the code gets one list of so many argument tuples.
        batch_timeout: seconds after which a partial batch is handed over.
        version: change it to make checkpoints of older code stale.
        shape: bits for the compiler, derived from the rest.

    Raises:
        InvalidFunctionError: a field cannot be what it is; ``.field`` names it.
    """

    id: Hashable
    args: tuple[Hashable, ...]
    code: Code | str | None
    extra_args: tuple[Any, ...]
    extra_kwargs: dict[str, Any] | None
    cost: dict[str, float] | None
    node: str | Collocated | None
    type: FunctionKind
    argument_inclusion: ArgumentInclusion
    max_retries: int | None
    retry_delay: float
    max_crashes: int
    timeout: float | None
    isolation: Isolation | None
    init: CodeWithExtras | None
    parallelism: int
    batch_size: int | None
    batch_timeout: float | None
    version: Hashable
    shape: int = field(init=False, compare=False)

    def __init__(
        self,
        id: Hashable,  # noqa: A002
        args: Iterable[Hashable] = (),
        code: Code | str | None = None,
        *,
        extra_args: Iterable[Any] = (),
        extra_kwargs: Mapping[str, Any] | None = None,
        cost: Mapping[str, float] | None = None,
        node: str | Collocated | None = None,
        type: FunctionKind = "regular",  # noqa: A002
        argument_inclusion: ArgumentInclusion = "variadic",
        max_retries: int | None = None,
        retry_delay: float = 0.0,
        max_crashes: int = 3,
        timeout: float | None = None,
        isolation: Isolation | None = None,
        init: CodeWithExtras | None = None,
        parallelism: int = 1,
        batch_size: int | None = None,
        batch_timeout: float | None = None,
        version: Hashable = None,
    ) -> None:
        if id.__class__ is not str:
            _check_id(id, "id", "a function's id")
        if args.__class__ is not tuple:
            args = as_tuple(id, "args", args)
        if extra_args.__class__ is not tuple:
            extra_args = as_tuple(id, "extra_args", extra_args)
        shape = _shape_of_args(id, args) if args else 0
        if type != "regular":
            if type == "inline":
                shape |= INLINE
            elif type == "input":
                shape |= INPUT
            else:
                check_choice(id, "type", type, ("regular", "inline", "input"))
        if argument_inclusion != "variadic":
            check_choice(id, "argument_inclusion", argument_inclusion, ("variadic", "as_list"))
            shape |= BOUND
        if extra_kwargs is not None:
            extra_kwargs = checked_kwargs(id, extra_kwargs)
        if extra_args or extra_kwargs:
            shape |= BOUND
        if cost is not None:
            cost = checked_cost(id, cost)
            shape |= PLACED
        if node is not None:
            shape |= _shape_of_node(id, node)
        if isolation is not None:
            check_choice(id, "isolation", isolation, ("thread", "process"))
            shape |= PLACED
        if timeout is not None:
            check_above_zero(id, "timeout", timeout)
            shape |= TIMED
        if init is not None:
            check_pair(id, "init", init, before=0)
            shape |= STATE
        if batch_size is not None:
            check_int(id, "batch_size", batch_size, 1)
            shape |= STATE
        if batch_timeout is not None:
            check_above_zero(id, "batch_timeout", batch_timeout)
            if batch_size is None:
                refuse(id, "batch_timeout", "batch_timeout without batch_size: give both")
        if max_retries is not None:
            check_int(id, "max_retries", max_retries, 0)
        if retry_delay != 0.0 or retry_delay.__class__ is not float:
            check_seconds(id, "retry_delay", retry_delay)
        if max_crashes.__class__ is not int or max_crashes < 0:
            check_int(id, "max_crashes", max_crashes, 0)
        if parallelism.__class__ is not int or parallelism < 1:
            check_int(id, "parallelism", parallelism, 1)

        put = _put
        put(self, "id", id)
        put(self, "args", args)
        put(self, "code", code)
        put(self, "extra_args", extra_args)
        put(self, "extra_kwargs", extra_kwargs)
        put(self, "cost", cost)
        put(self, "node", node)
        put(self, "type", type)
        put(self, "argument_inclusion", argument_inclusion)
        put(self, "max_retries", max_retries)
        put(self, "retry_delay", retry_delay)
        put(self, "max_crashes", max_crashes)
        put(self, "timeout", timeout)
        put(self, "isolation", isolation)
        put(self, "init", init)
        put(self, "parallelism", parallelism)
        put(self, "batch_size", batch_size)
        put(self, "batch_timeout", batch_timeout)
        put(self, "version", version)
        if code.__class__ is FunctionType and not shape & (INLINE | INPUT | BOUND | STATE):
            # The usual case: misfit() and is_coroutine_callable() know it at a glance.
            reason = misfit(cast("Code", code), len(args))
            if reason is not None:
                _refuse_call(self, reason, len(args))
            if is_coroutine_callable(code):
                shape |= ASYNC
        else:
            shape |= _shape_of_code(self, shape)
        put(self, "shape", shape)

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        shown = [describe(self.id)]
        if self.args:
            shown.append(f"args={describe(self.args)}")
        if self.code is not None:
            shown.append(f"code={self.code if isinstance(self.code, str) else name_of(self.code)}")
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if value != default:
                shown.append(f"{name}={describe(value)}")
        return f"Function({', '.join(shown)})"

    def __getstate__(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in _FIELDS])

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        for name, value in zip(_FIELDS, state, strict=True):
            _put(self, name, value)


_FIELDS = tuple(Function.__dataclass_fields__)
_DEFAULTS: dict[str, Any] = dict(Function.__init__.__kwdefaults__ or {})


def argument_count(function: Function) -> int:
    """How many positional arguments the code of ``function`` is called with."""
    state = function.init is not None
    if function.batch_size is not None:
        return state + 1
    own = 1 if function.argument_inclusion == "as_list" else len(function.args)
    return state + own + len(function.extra_args)


def check_call(function: Function, code: Code) -> None:
    """Refuse ``code`` when it cannot be called as ``function`` would call it.

    Raises:
        InvalidFunctionError: the arguments do not fit, or an inline's code is async.
    """
    count = argument_count(function)
    reason = misfit(code, count, function.extra_kwargs)
    if reason is not None:
        _refuse_call(function, reason, count)
    if function.type == "inline" and is_coroutine_callable(code):
        refuse(
            function.id,
            "code",
            f"the inline {name_of(code)} is async, but inlines are evaluated on the worker's "
            "thread; make it a regular function",
        )


def _refuse_call(function: Function, reason: str, count: int) -> NoReturn:
    keywords = "".join(f", {name}=" for name in function.extra_kwargs or ())
    refuse(
        function.id,
        "args",
        f"its code would be called with {count} positional arguments{keywords} "
        f"(args={describe(function.args)}), which do not fit: {reason}",
    )


def _shape_of_code(function: Function, shape: int) -> int:
    """The bits that the code adds; refuses what the type of the function rules out."""
    code = function.code
    if shape & (INLINE | INPUT):
        for name in _NOT_FOR_INPUT if shape & INPUT else _NOT_FOR_INLINE:
            value = getattr(function, name)
            if value != _DEFAULTS.get(name, () if name == "args" else None):
                refuse(
                    function.id,
                    name,
                    f"an {function.type} function has no {name}, got {describe(value)}",
                )
        if shape & INPUT:
            return 0
    if isinstance(code, str):
        if not is_code_path(code):
            refuse(
                function.id, "code", f"code={describe(code)} is not of the form 'module:qualname'"
            )
        return PATH
    if not callable(code):
        hint = "has no code" if code is None else f"code={describe(code)} is not callable"
        refuse(function.id, "code", f"{hint}; give a callable or 'module:qualname'")
    check_call(function, code)
    return ASYNC if is_coroutine_callable(code) else 0


_NOT_FOR_INLINE = ("node", "init", "cost", "timeout", "isolation", "batch_size", "batch_timeout")
_NOT_FOR_INPUT = (
    *("code", "args", "extra_args", "extra_kwargs", "argument_inclusion"),
    *_NOT_FOR_INLINE,
)


def _shape_of_args(owner: Hashable, args: tuple[Any, ...]) -> int:
    shape = 0
    for arg in args:
        if arg.__class__ is not str:
            if arg.__class__ is Argument:
                shape = WRAPPED
            else:
                try:
                    _check_id(arg, "args", "an id in args")
                except InvalidFunctionError as error:
                    refuse(owner, "args", str(error))
    if len(args) > 1:
        ids = {a.id if a.__class__ is Argument else a for a in args} if shape else set(args)
        if len(ids) != len(args):
            shape |= REPEATED
    return shape


def _shape_of_node(owner: Hashable, node: object) -> int:
    if isinstance(node, Collocated):
        return PLACED | COLLOCATED
    if not isinstance(node, str) or not node:
        refuse(owner, "node", f"node={describe(node)} is neither a node's name nor Collocated(id)")
    return PLACED

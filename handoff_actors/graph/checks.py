"""Checks of single values, each of which refuses what a field cannot be.

Guarantees that what is refused is an ``InvalidFunctionError`` that names the function and field.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import inf
from numbers import Complex, Number, Real
from typing import Any, NoReturn, cast

from handoff_actors.errors import InvalidFunctionError, describe
from handoff_actors.graph.callables import Code, misfit

CodeWithExtras = Code | tuple[Code, Sequence[Any]]
Pair = tuple[Code, tuple[Any, ...]]

LONGEST = 1e9
"""Seconds, 31 years: the longest time that can be asked for. Clocks and locks can hold it."""


def with_extras(value: CodeWithExtras | None) -> Pair | None:
    """``fn`` or ``(fn, [extra...])`` as ``(fn, (extra...))``; None stays None."""
    if value is None:
        return None
    return (value, ()) if callable(value) else (value[0], tuple(value[1]))


def refuse(function_id: Hashable, name: str, text: str) -> NoReturn:
    """Raise for the field ``name`` of a function; ``text`` says why and what to do."""
    raise InvalidFunctionError(
        f"function {describe(function_id)}: {text}", function_id=function_id, field=name
    )


def check_pair(owner: Hashable, name: str, value: object, before: int) -> None:
    """Refuse what is neither a callable nor ``(callable, [extra...])`` that can be called so."""
    extras: Sequence[Any] = ()
    code = value
    if not callable(value) and isinstance(value, tuple) and len(value) == 2:
        code, extras = value
        if not isinstance(extras, (list, tuple)):
            refuse(owner, name, f"{name}={describe(value)}: the arguments must be in a list")
    if not callable(code):
        refuse(
            owner, name, f"{name}={describe(value)} is neither callable nor a (callable, [args])"
        )
    reason = misfit(code, before + len(extras))
    if reason is not None:
        refuse(
            owner,
            name,
            f"{name} would be called with {before + len(extras)} arguments, which do not fit: "
            f"{reason}",
        )


def as_tuple(owner: Hashable, name: str, values: Iterable[Any]) -> tuple[Any, ...]:
    """``values`` as a tuple; refuses what is one value, or has no order."""
    if isinstance(values, (str, bytes)):
        refuse(owner, name, f'{name}={values!r} is one value, not a list: write ["…"] around it')
    if isinstance(values, (set, frozenset, Mapping)) or not isinstance(values, Iterable):
        refuse(owner, name, f"{name}={describe(values)} must be a list or tuple: they have order")
    return tuple(values)


def checked_kwargs(owner: Hashable, kwargs: object) -> dict[str, Any]:
    """A copy of ``kwargs``; refuses what is no mapping of names."""
    if not isinstance(kwargs, Mapping):
        refuse(owner, "extra_kwargs", f"extra_kwargs={describe(kwargs)} must be a mapping")
    for name in kwargs:
        if not isinstance(name, str):
            refuse(owner, "extra_kwargs", f"extra_kwargs has the key {describe(name)}, not a str")
    return dict(kwargs)


def checked_cost(owner: Hashable, cost: object) -> dict[str, float]:
    """A copy of ``cost``; refuses what is no mapping of names to finite amounts >= 0."""
    if cost.__class__ is not dict and not isinstance(cost, Mapping):
        refuse(owner, "cost", f"cost={describe(cost)} must map names to amounts")
    for name, amount in cost.items():
        if not isinstance(name, str) or not name:
            refuse(owner, "cost", f"cost has the name {describe(name)}, which is no str")
        number = amount if amount.__class__ is float else real_number(amount)
        if number is None or not 0 <= number < inf:
            refuse(
                owner,
                "cost",
                f"cost of {name!r} is {describe(amount)}; it must be a finite number, 0 or more",
            )
    return dict(cost)


def real_number(value: object) -> float | None:
    """``value`` as a float; None if it is no real number (a bool is none)."""
    if value.__class__ is not int and (isinstance(value, bool) or not isinstance(value, Number)):
        return None
    if isinstance(value, Complex) and not isinstance(value, Real):
        return None
    try:
        return float(cast("float", value))
    except (ValueError, OverflowError):  # a signalling NaN, an int beyond all floats
        return None


def is_seconds(value: object, *, zero: bool = False) -> bool:
    """Whether ``value`` is a time that can be waited for: above 0 (or 0), at most ``LONGEST``."""
    number = real_number(value)
    return number is not None and (0 < number <= LONGEST or (zero and number == 0))


def check_choice(owner: Hashable, name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse what is none of the ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        refuse(owner, name, f"{name}={describe(value)} must be one of {', '.join(allowed)}")


def check_int(owner: Hashable, name: str, value: object, least: int) -> None:
    """Refuse what is no int, a bool, or below ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        refuse(owner, name, f"{name}={describe(value)} must be an int of at least {least}")


def check_above_zero(owner: Hashable, name: str, value: object) -> None:
    """Refuse what is no finite number of seconds above 0."""
    if not is_seconds(value):
        refuse(
            owner,
            name,
            f"{name}={describe(value)} must be a finite number of seconds above 0 (at most "
            f"{LONGEST:g}), or None",
        )


def check_seconds(owner: Hashable, name: str, value: object) -> None:
    """Refuse what is no finite number of seconds, 0 or more."""
    if not is_seconds(value, zero=True):
        refuse(
            owner,
            name,
            f"{name}={describe(value)} must be a finite number of seconds, 0 or more (at most "
            f"{LONGEST:g})",
        )

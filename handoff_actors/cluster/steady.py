"""Whether what an object consists of can change while the object stays the same one.

Guarantees to say so only of what is known to be steady: a definition made of such objects, which
are still the same ones, need not be made again.
"""

from __future__ import annotations

import collections
import enum
import functools
import re
import types
import typing
from typing import Any

_STEADY = frozenset(
    {
        bool,
        bytes,
        complex,
        float,
        int,
        range,
        str,
        type(None),
        type(Ellipsis),
        type(NotImplemented),
        functools.cached_property,
        property,
        re.Pattern,
        types.BuiltinFunctionType,
        types.ClassMethodDescriptorType,
        types.GenericAlias,
        types.GetSetDescriptorType,
        types.MemberDescriptorType,
        types.MethodDescriptorType,
        types.ModuleType,
        types.UnionType,
        types.WrapperDescriptorType,
        typing.NewType,
        typing.ParamSpec,
        typing.TypeVar,
        type(typing.List[int]),  # noqa: UP006  the alias of typing, not of types
        type(vars(collections.namedtuple("_Pair", "a"))["a"]),  # noqa: PYI024
    }
)
_GUARDS = frozenset({"repr_running"})  # empty but while a dataclass is being shown
_NESTED = 4  # tuples within tuples that are looked into


def is_steady(value: Any, nested: int = _NESTED) -> bool:
    """Whether ``value`` stays what it is while it is the same object."""
    kind = type(value)
    if kind in _STEADY or isinstance(value, type | enum.Enum):
        return True
    if kind is types.FunctionType:
        return _steady_function(value, nested)
    if kind is staticmethod or kind is classmethod:
        return is_steady(value.__func__, nested)
    if kind is tuple or kind is frozenset:
        return nested > 0 and all(is_steady(item, nested - 1) for item in value)
    return kind.__module__ in ("dataclasses", "logging")  # sentinels; loggers go by name


def _steady_function(function: types.FunctionType, nested: int) -> bool:
    """A function is as steady as what it holds; what it reads by name is looked at apart."""
    if nested <= 0:
        return False
    held: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    held += function.__dict__.values()
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            if name in _GUARDS:
                continue
            held.append(cell.cell_contents)
        except ValueError:  # to be set later
            return False
    return all(is_steady(item, nested - 1) for item in held)

"""How large values are, about: told without a look at all of them."""

from __future__ import annotations

import sys
from collections import deque
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, cast

_CONTAINERS = (list, tuple, dict, set, frozenset)
_SAMPLE = 64
_PROBES = 8
"""Of each container inside a value so many items are looked at."""
_DEEPEST = 5
_FLAT = frozenset({int, float, bool, complex, str, bytes, bytearray, type(None)})
_HEAP = 1 << 9
"""The flag of a class that was made by a ``class`` statement, or as if by one."""
_NAMED = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType)
"""What belongs to the program, not to the value."""


def size_of(value: Any) -> int:
    """About how many bytes a value has."""
    nbytes = getattr(value, "nbytes", None)
    if isinstance(nbytes, int):
        return nbytes
    try:
        size = sys.getsizeof(value)
    except Exception:  # the value is the user's: its size may be anything
        return 0
    if isinstance(value, _CONTAINERS) and value:
        some = list(islice(value.values() if isinstance(value, dict) else value, _SAMPLE))
        size += sum(map(size_of_flat, some)) * len(value) // len(some)
    return size


def size_of_flat(value: Any) -> int:
    """As ``size_of``, without a look into containers."""
    nbytes = getattr(value, "nbytes", None)
    if isinstance(nbytes, int):
        return nbytes
    try:
        return sys.getsizeof(value)
    except Exception:
        return 0


def deep_size_of(value: Any) -> tuple[int, bool]:
    """As ``size_of``, with a look at what is inside, a few of each.

    Returns:
        The size, and whether all that was met says how large it is.
    """
    dark: list[type] = []
    try:
        return int(_deep(value, _DEEPEST, dark)), not dark
    except Exception:  # the user's attributes and items may do anything
        return 0, False


def _deep(value: Any, depth: int, dark: list[type]) -> float:
    kind = type(value)
    if kind in _FLAT:
        return sys.getsizeof(value)
    if isinstance(value, _NAMED):
        return 0
    nbytes = getattr(value, "nbytes", None)
    if isinstance(nbytes, int):
        return nbytes
    size: float = sys.getsizeof(value)
    if isinstance(value, (*_CONTAINERS, deque)):
        if value and depth:
            items = value.values() if isinstance(value, dict) else value
            some = list(islice(items, _PROBES if depth < _DEEPEST else _SAMPLE))
            size += sum(_deep(item, depth - 1, dark) for item in some) * len(value) / len(some)
        return size
    if cast("Any", kind).__sizeof__ is not object.__sizeof__:
        return size  # it says so itself
    inner = [*getattr(value, "__dict__", {}).values()]
    slots = (s for base in kind.__mro__ for s in _names(base.__dict__.get("__slots__", ())))
    inner += [found for s in slots if (found := getattr(value, s, None)) is not None]
    if not inner and not kind.__flags__ & _HEAP:
        dark.append(kind)
    if depth:
        size += sum(_deep(item, depth - 1, dark) for item in islice(inner, _SAMPLE))
    return size


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)

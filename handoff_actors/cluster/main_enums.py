"""Enums that others cannot import: taken apart, and made again with their members.

Guarantees that a member is made without the user's ``__new__`` and ``__init__``, which ran at home,
and has its value, the data of a mixed-in type, and its attributes all the same.
"""

from __future__ import annotations

import enum
from typing import Any

ENUM_INTERNALS = frozenset(
    {
        "__new__",
        "__new_member__",
        "_all_bits_",
        "_boundary_",
        "_flag_mask_",
        "_hashable_values_",
        "_inverted_",
        "_member_map_",
        "_member_names_",
        "_member_type_",
        "_new_member_",
        "_singles_mask_",
        "_unhashable_values_",
        "_unhashable_values_map_",
        "_use_args_",
        "_value2member_map_",
        "_value_repr_",
    }
)

_RAW = {int: int.__int__, str: str.__str__, float: float.__float__}


def member_names(cls: Any) -> list[str]:
    """The names of all members, aliases included."""
    return list(cls.__members__)


def taken_apart(cls: Any, name: str) -> tuple[str, Any, tuple[Any, ...]]:
    """A member as ``(name, value, what the mixed-in type is made of)``."""
    member = cls.__members__[name]
    raw = _RAW.get(cls._member_type_)
    if raw is not None:
        return name, member._value_, (raw(member),)
    plain = cls._member_type_ in (bytes, tuple, complex)
    return name, member._value_, (member._value_,) if plain else ()


def member_state(cls: Any) -> dict[str, dict[str, Any]]:
    """The attributes of each member that the user's code gave it, by name."""
    return {
        name: {key: value for key, value in vars(member).items() if key not in _MEMBER_INTERNALS}
        for name, member in cls.__members__.items()
    }


_MEMBER_INTERNALS = frozenset({"_name_", "_value_", "__objclass__", "_sort_order_"})


class _Packed:
    """A member before its class is made."""

    __slots__ = ("data", "value")

    def __init__(self, value: Any, data: tuple[Any, ...]) -> None:
        self.value = value
        self.data = data


def new_enum(
    meta: Any,
    name: str,
    bases: tuple[type, ...],
    space: dict[str, Any],
    members: list[tuple[str, Any, tuple[Any, ...]]],
    boundary: Any,
) -> type:
    """An Enum of the metaclass ``meta`` with ``members``, as ``taken_apart`` gives them."""

    def new_member(cls: Any, packed: _Packed) -> Any:
        member = cls._member_type_.__new__(cls, *packed.data)
        member._value_ = packed.value
        return member

    def no_init(*_args: Any) -> None:
        """The attributes of members come with the content."""

    options = {} if boundary is None or not members else {"boundary": boundary}
    body = enum.EnumMeta.__prepare__(name, bases)
    for key, value in space.items():
        body[key] = value
    if members:
        body["__new__"] = new_member
        body["__init__"] = no_init
        for key, value, data in members:
            body[key] = _Packed(value, data)
    made: Any = enum.EnumMeta.__new__(meta, name, bases, body, **options)
    if members:
        type.__delattr__(made, "__init__")
    return made  # type: ignore[no-any-return]

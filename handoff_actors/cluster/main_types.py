"""Classes that no other process can import: each is one class in each process.

A class gets a key when it first leaves its process. What travels is the key, the version of its
content and its definition; whoever knows the key takes the class it has, so an object that comes
home is of the original class, and Enum members are the members. A class that was changed since
is sent as a newer version, which changes the copies in place; one that was defined anew is another.
"""

from __future__ import annotations

import abc
import collections
import enum
import io
import itertools
import operator
import os
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

from handoff_actors.cluster.by_value import MAIN_MODULES, ByValuePickler, Reduced, importable
from handoff_actors.cluster.main_enums import (
    ENUM_INTERNALS,
    member_names,
    member_state,
    new_enum,
    taken_apart,
)
from handoff_actors.cluster.steady import is_steady
from handoff_actors.cluster.strays import is_built_in

_KEPT = 1024  # so many definitions, and classes of others, are remembered at least

_lock = threading.RLock()
_versions = itertools.count(1)
_serials = itertools.count(1)


class _Identity:
    """What is known of one class.

    Attributes:
        key: its name among all processes.
        version: of its content; 0 while it is being made.
        home: whether it was made here by the user's code.
    """

    __slots__ = ("home", "key", "version")

    def __init__(self, key: str, version: int, home: bool) -> None:
        self.key = key
        self.version = version
        self.home = home


class _Definition:
    """A pickled class, and what it was made of, to see whether that still holds."""

    __slots__ = ("blob", "classes", "read", "steady", "version")

    def __init__(self, version: int, blob: bytes) -> None:
        self.version = version
        self.blob = blob
        self.steady = True
        self.read: list[tuple[Any, str, Any]] = []
        self.classes: list[tuple[type, list[Any]]] = []

    def holds(self) -> bool:
        """Whether nothing that it was made of has changed, as far as a glance can tell."""
        if not self.steady:
            return False
        for cls, values in self.classes:
            now = cls.__dict__.values()
            if len(now) != len(values) or not all(map(operator.is_, now, values)):
                return False
        return all(space.get(name, self) is value for space, name, value in self.read)


_identities: weakref.WeakKeyDictionary[type, _Identity] = weakref.WeakKeyDictionary()
_classes: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()
_definitions: collections.OrderedDict[str, _Definition] = collections.OrderedDict()
_guests: collections.deque[type] = collections.deque(maxlen=_KEPT)
_unfinished: list[tuple[type, _Identity, int]] = []  # under _lock: what the running load makes
_settled_in_main = False
_process = os.urandom(8).hex()


def _after_fork() -> None:
    global _process, _lock
    _process = os.urandom(8).hex()
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def settle_in_main() -> None:
    """Put classes that arrive into ``__main__`` too: this process has no script of its own."""
    global _settled_in_main
    _settled_in_main = True


def reduce_class(pickler: ByValuePickler, cls: type) -> Reduced:
    """How to pickle a class: by name where another process finds it, else as said above."""
    if importable(cls) or is_built_in(cls):
        return NotImplemented
    if pickler.definition:
        pickler.written.append(cls)
        return _written_out(cls)
    identity = _identify(cls)
    found = _definitions.get(identity.key)
    if found is None or not (found.holds() if identity.home else found.version):
        found = _define(cls, identity)
    return resolve, (identity.key, found.version, found.blob)


def _identify(cls: type) -> _Identity:
    identity = _identities.get(cls)
    if identity is None:
        with _lock:
            identity = _identities.get(cls)
            if identity is None:
                key = f"{_process}.{next(_serials)}"
                identity = _identities[cls] = _Identity(key, 1, True)
                _classes[key] = cls
    return identity


def _define(cls: type, identity: _Identity) -> _Definition:
    with _lock:
        file = io.BytesIO()
        pickler = ByValuePickler(file, definition=True)
        pickler.dump(cls)
        blob = file.getvalue()
        before = _definitions.get(identity.key)
        if not identity.home:
            version = identity.version
        elif before is not None and before.blob == blob:
            version = before.version
        else:
            version = next(_versions)
        definition = _Definition(version, blob)
        definition.classes = [(c, list(c.__dict__.values())) for c in pickler.written]
        definition.read = pickler.read
        definition.steady = all(
            name in _SET_UP or is_steady(value)
            for c in pickler.written
            for name, value in _content(c).items()
        ) and all(is_steady(value) for _, _, value in pickler.read)
        _remember(identity.key, definition)
        return definition


_SET_UP = frozenset(
    {"__annotations__", "__dataclass_fields__", "__dataclass_params__", "__protocol_attrs__"}
)
_reading: list[int] = []  # under _lock: the versions of the definitions being read


def _remember(key: str, definition: _Definition) -> None:
    _definitions[key] = definition
    _definitions.move_to_end(key)
    while len(_definitions) > _KEPT:
        _definitions.popitem(last=False)


def resolve(key: str, version: int, blob: bytes) -> type:
    """The class of that key, made or renewed from its definition when need be."""
    cls = _classes.get(key)
    if cls is not None:
        identity = _identities[cls]
        if identity.home or identity.version >= version:
            return cls
    with _lock:
        started = len(_unfinished)
        _reading.append(version)
        try:
            made: type = pickle.loads(blob)
        except BaseException:
            for broken, identity, _ in _unfinished[started:]:
                if identity.version == 0:
                    _classes.pop(identity.key, None)
                    _identities.pop(broken, None)
            raise
        else:
            for _done, identity, its_version in _unfinished[started:]:
                identity.version = its_version
            _remember(key, _Definition(version, blob))
            return made
        finally:
            _reading.pop()
            del _unfinished[started:]


# A class written out: a skeleton, so that what is in it may refer to it, and its content.


def _written_out(cls: type) -> Reduced:
    identity = _identify(cls)
    version = None if identity.home else identity.version  # None: that of the whole definition
    names = (cls.__name__, cls.__qualname__, cls.__module__)
    members = None
    slots = None
    if isinstance(cls, enum.EnumMeta):
        members = [taken_apart(cls, name) for name in member_names(cls)] or None
    else:
        slots = cls.__dict__.get("__slots__")
    boundary = getattr(cls, "_boundary_", None)
    bases = tuple([base for base in cls.__bases__ if not issubclass(base, _Shield) or base is cls])
    args = (identity.key, version, type(cls), names, bases, slots, members, boundary)
    state = (version, _content(cls), member_state(cls) if members else None)
    return skeleton, args, state, None, None, fill


def _content(cls: type) -> dict[str, Any]:
    is_enum = isinstance(cls, enum.EnumMeta)
    left_out = _INTERNALS | ENUM_INTERNALS.union(member_names(cls)) if is_enum else _INTERNALS
    content: dict[str, Any] = {}
    for name, value in cls.__dict__.items():
        if name in left_out:
            continue
        own = getattr(value, "__objclass__", None) is cls
        if own and isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
            continue
        content[name] = value
    return content


_INTERNALS = frozenset({"__dict__", "__slotnames__", "__weakref__", "_abc_impl"})


def skeleton(
    key: str,
    version: int | None,
    meta: type,
    names: tuple[str, str, str],
    bases: tuple[type, ...],
    slots: Any,
    members: list[tuple[str, Any, tuple[Any, ...]]] | None,
    boundary: Any,
) -> type:
    """The class of that key, empty if it is new here."""
    with _lock:
        cls = _classes.get(key)
        if cls is None:
            space: dict[str, Any] = {"__module__": names[2], "__qualname__": names[1]}
            if slots is not None:
                space["__slots__"] = slots
            cls = _new_class(meta, names[0], bases, space, members, boundary)
            identity = _Identity(key, 0, False)
            _identities[cls] = identity
            _classes[key] = cls
            _guests.append(cls)
            if _settled_in_main and names[2] in MAIN_MODULES and "." not in names[1]:
                setattr(sys.modules["__main__"], names[1], cls)
        identity = _identities[cls]
        if version is None:
            version = _reading[-1]
        if not identity.home and identity.version < version:
            _unfinished.append((cls, identity, version))
        return cls


class _Shield:
    """Marks what stood before the bases of a class while that was made."""

    __slots__ = ()


def _hush(_cls: Any, /, **_options: Any) -> None:
    """Tell no base that it has a new subclass: the class brings the traces of that along."""


def _new_class(
    meta: Any,
    name: str,
    bases: tuple[type, ...],
    space: dict[str, Any],
    members: list[tuple[str, Any, tuple[Any, ...]]] | None,
    boundary: Any,
) -> type:
    if issubclass(meta, enum.EnumMeta):
        return new_enum(meta, name, bases, space, members or [], boundary)
    make: Callable[..., type] = type.__new__
    if issubclass(meta, abc.ABCMeta):
        make = abc.ABCMeta.__new__
    if any("__init_subclass__" in vars(c) for base in bases for c in base.__mro__[:-1]):
        hushed = {"__slots__": (), "__init_subclass__": classmethod(_hush)}
        shield: Any = type("_Shield", (_Shield,), hushed)
        made = make(meta, name, (shield, *bases), space)
        try:
            made.__bases__ = bases
        except TypeError:  # another layout: it stays, and does nothing from now on
            del shield.__init_subclass__
        return made
    return make(meta, name, bases, space)


def fill(
    cls: type, state: tuple[int | None, dict[str, Any], dict[str, dict[str, Any]] | None]
) -> None:
    """Give the class its content, unless it has that or a newer one."""
    version, content, members = state
    identity = _identities[cls]
    if version is None:
        version = _reading[-1]
    if identity.home or identity.version >= version:
        return
    if identity.version:
        for name in set(_content(cls)).difference(content):
            type.__delattr__(cls, name)
    for name, value in content.items():
        if name != "__slots__" and cls.__dict__.get(name, fill) is not value:
            type.__setattr__(cls, name, value)
    for name, attributes in (members or {}).items():
        vars(cls)["_member_map_"][name].__dict__.update(attributes)


def reduce_member(member: Any) -> Reduced:
    """How to pickle a member of an Enum: by name, as a copy of its value may equal nothing."""
    cls, name = type(member), member._name_
    if name is None or importable(cls) or cls.__members__.get(name) is not member:
        return NotImplemented
    return member_of, (cls, name)


def member_of(cls: Any, name: str) -> Any:
    """The member of that name."""
    return cls.__members__[name]

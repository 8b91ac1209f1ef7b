"""The pickler of what pickle would only name: functions, cells, class members, by value.

A C pickler whose ``reducer_override`` takes over what another process could not import. A function
carries the globals it uses, and the helpers and classes among them do the same; functions of one
module share their globals within a payload, closures share their cells, and what refers to itself
does so again on the other side. dill serves what is rare and safe; what it would silently make
wrong (locks, threads, sockets, files, generators) is refused, as pickle does.
"""

from __future__ import annotations

import builtins
import collections
import dataclasses
import dis
import enum
import functools
import importlib
import io
import marshal
import os
import pickle
import sys
import types
import typing
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from handoff_actors.cluster.strays import is_built_in, is_stray

MAIN_MODULES = frozenset({"__main__", "__mp_main__"})
"""Modules that are another module in another process."""

_CARRIED = ("__name__", "__package__", "__file__")  # globals that every function brings along
_GLOBAL_OPS = frozenset(
    dis.opmap[name]
    for name in (
        "LOAD_GLOBAL",
        "STORE_GLOBAL",
        "DELETE_GLOBAL",
        "LOAD_NAME",
        "LOAD_FROM_DICT_OR_GLOBALS",
    )
    if name in dis.opmap
)
_LOAD_GLOBAL = dis.opmap["LOAD_GLOBAL"]

Reduced = Any  # what reducer_override may return

Snapshot = list[tuple[Any, str, Any]]
"""What a definition was made of: (globals, name, value) for each global that it read."""


class ByValuePickler(pickle.Pickler):
    """See the module.

    Args:
        file: where the pickle goes.
        buffer_callback: as pickle's.
        definition: whether classes are written out here (the definition of one class is made)
            instead of as a reference that carries its definition.
    """

    def __init__(
        self,
        file: io.BytesIO,
        buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
        definition: bool = False,
    ) -> None:
        super().__init__(file, 5, buffer_callback=buffer_callback)
        self.definition = definition
        self.bases: dict[int, dict[str, Any]] = {}
        self.read: Snapshot = []
        self.written: list[type] = []

    def reducer_override(self, obj: Any, /) -> Reduced:
        """How to pickle ``obj``; NotImplemented leaves it to pickle."""
        kind = type(obj)
        reducer = _REDUCERS.get(kind)
        if reducer is not None:
            return reducer(self, obj)
        if isinstance(obj, type):
            if is_built_in(obj):
                name = _BUILTIN_TYPES.get(obj)
                return NotImplemented if name is None else (getattr, (types, name))
            from handoff_actors.cluster.main_types import reduce_class

            return reduce_class(self, obj)
        if type(kind) is not type and isinstance(obj, enum.Enum):
            from handoff_actors.cluster.main_types import reduce_member

            return reduce_member(obj)
        if kind.__module__ == "dataclasses":
            return _reduce_sentinel(obj)
        if kind in _LEFT_TO_DILL:
            return _reduce_by_dill(self, obj)
        return NotImplemented


def find(module_name: str | None, qualname: str) -> Any:
    """What ``qualname`` means in a module that is loaded here; None if nothing."""
    found: Any = sys.modules.get(module_name) if module_name is not None else None
    if found is None or "<locals>" in qualname:
        return None
    for part in qualname.split("."):
        found = getattr(found, part, None)
        if found is None:
            return None
    return found


def importable(obj: Any) -> bool:
    """Whether another process finds ``obj`` by its module and name."""
    module = getattr(obj, "__module__", None)
    qualname = getattr(obj, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or is_stray(module):
        return False
    return find(module, qualname) is obj


# Functions.


@functools.lru_cache(maxsize=4096)
def names_of(code: types.CodeType) -> tuple[str, ...]:
    """The globals that ``code`` and the code nested in it may touch."""
    names = dict.fromkeys(_global_names(code))
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names.update(dict.fromkeys(names_of(const)))
    return tuple(names)


def _global_names(code: types.CodeType) -> Iterator[str]:
    extended = 0
    raw = code.co_code
    shift = 1 if sys.version_info >= (3, 11) else 0
    for i in range(0, len(raw), 2):
        op, arg = raw[i], raw[i + 1] | extended
        extended = arg << 8 if op == dis.EXTENDED_ARG else 0
        if op in _GLOBAL_OPS:
            yield code.co_names[arg >> shift if op == _LOAD_GLOBAL else arg]


def _submodules(code: types.CodeType, used: dict[str, Any]) -> list[str]:
    """Modules below the used ones that the code reaches: ``a.b`` of ``import a.b``."""
    modules = [value.__name__ for value in used.values() if isinstance(value, types.ModuleType)]
    if not modules:
        return []
    names: set[str] = set()
    stack = [code]
    while stack:
        top = stack.pop()
        names.update(top.co_names)
        stack.extend(const for const in top.co_consts if isinstance(const, types.CodeType))
    loaded = list(sys.modules)
    return [
        name
        for module in modules
        for name in loaded
        if name.startswith(module + ".") and names.issuperset(name[len(module) + 1 :].split("."))
    ]


def _reduce_function(pickler: ByValuePickler, function: types.FunctionType) -> Reduced:
    module, qualname = function.__module__, function.__qualname__
    if importable(function):
        return NotImplemented
    owner_name, _, name = qualname.rpartition(".")
    if owner_name and not pickler.definition:
        owner = find(module, owner_name)
        if isinstance(owner, type) and vars(owner).get(name) is function:
            return getattr, (owner, name)
    code, space = function.__code__, function.__globals__
    used: dict[str, Any] = {}
    base: dict[str, Any] | str
    home = space.get("__name__")
    if (
        isinstance(home, str)
        and not is_stray(home)
        and vars(sys.modules.get(home, builtins)) is space
    ):
        base = home
    else:
        base = pickler.bases.setdefault(id(space), {})
        if not base:
            base.update({key: space[key] for key in _CARRIED if key in space})
        for key in names_of(code):
            if key in space:
                used[key] = space[key]
                pickler.read.append((space, key, space[key]))
    cells = function.__closure__
    contents = None if cells is None else [_content(cell) for cell in cells]
    state = (
        used,
        contents,
        function.__defaults__,
        function.__kwdefaults__,
        function.__dict__ or None,
        function.__annotations__ or None,
        (function.__name__, qualname, module, function.__doc__),
        _submodules(code, used),
    )
    args = (marshal.dumps(code), base, cells)
    return make_function, args, state, None, None, fill_function


class Unset:
    """Stands for a cell's content that is not there (yet)."""


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return Unset


def make_function(
    code: bytes, base: dict[str, Any] | str, cells: tuple[types.CellType, ...] | None
) -> types.FunctionType:
    """A function whose cells and globals are filled later, so that it may refer to itself."""
    if isinstance(base, str):
        space = vars(importlib.import_module(base))
    else:
        base.setdefault("__builtins__", builtins)
        space = base
    return types.FunctionType(load_code(code), space, None, None, cells)


def fill_function(function: types.FunctionType, state: tuple[Any, ...]) -> None:
    """Give a function what it had at home."""
    used, contents, defaults, kwdefaults, attributes, annotations, texts, modules = state
    if used:
        function.__globals__.update(used)
    for cell, content in zip(function.__closure__ or (), contents or (), strict=True):
        if content is not Unset:
            cell.cell_contents = content
    function.__defaults__ = defaults
    function.__kwdefaults__ = kwdefaults
    if attributes:
        function.__dict__.update(attributes)
    if annotations:
        function.__annotations__ = annotations
    function.__name__, function.__qualname__, function.__module__, function.__doc__ = texts
    for name in modules:
        importlib.import_module(name)


def load_code(data: bytes) -> types.CodeType:
    """A code object; both sides run the same Python version."""
    code: types.CodeType = marshal.loads(data)  # noqa: S302  as safe as the pickle it came in
    return code


def make_cell() -> types.CellType:
    """An empty cell; the functions that share it fill it."""
    return types.CellType()


# What classes and globals hold.


def _reduce_module(_pickler: ByValuePickler, module: types.ModuleType) -> Reduced:
    name = module.__name__
    if name in MAIN_MODULES:
        return importlib.import_module, ("__main__",)
    if is_stray(name) or sys.modules.get(name) is not module:
        raise TypeError(f"cannot pickle module {name!r}: another process cannot import it")
    return importlib.import_module, (name,)


def _reduce_cached_property(
    _pickler: ByValuePickler, obj: functools.cached_property[Any]
) -> Reduced:
    return make_cached_property, (obj.func, obj.attrname, obj.__doc__)


def make_cached_property(
    function: Callable[[Any], Any], name: str | None, doc: str | None
) -> functools.cached_property[Any]:
    """A ``cached_property`` that knows its name (and has a lock of its own)."""
    made = functools.cached_property(function)
    made.attrname = name
    made.__doc__ = doc
    return made


def _reduce_lru_cache(_pickler: ByValuePickler, obj: Any) -> Reduced:
    if importable(obj):
        return NotImplemented
    return make_lru_cache, (obj.__wrapped__, obj.cache_parameters())


def make_lru_cache(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """A cached function whose cache is empty."""
    return functools.lru_cache(**options)(function)


_variables: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_variable_keys: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def _reduce_type_variable(_pickler: ByValuePickler, obj: Any) -> Reduced:
    if not is_stray(obj.__module__) and find(obj.__module__, obj.__name__) is obj:
        return NotImplemented
    key = _variable_keys.get(obj)
    if key is None:
        key = _variable_keys.setdefault(obj, os.urandom(12).hex())
        _variables[key] = obj
    args = (obj.__name__, *getattr(obj, "__constraints__", ()))
    options = {}
    if isinstance(obj, typing.NewType):
        args = (obj.__name__, obj.__supertype__)
    elif not isinstance(obj, typing.TypeVarTuple):
        options = {
            "bound": obj.__bound__,
            "covariant": obj.__covariant__,
            "contravariant": obj.__contravariant__,
        }
    return make_type_variable, (key, type(obj), args, options, obj.__module__)


def make_type_variable(
    key: str, kind: type, args: tuple[Any, ...], options: dict[str, Any], module: str
) -> Any:
    """A type variable or new type, one in each process."""
    made = _variables.get(key)
    if made is None:
        made = kind(*args, **options)
        made.__module__ = module
        made = _variables.setdefault(key, made)
        _variable_keys[made] = key
    return made


_SENTINELS = {
    id(value): name
    for name, value in vars(dataclasses).items()
    if type(value).__module__ == "dataclasses"
}


def _reduce_sentinel(obj: Any) -> Reduced:
    name = _SENTINELS.get(id(obj))
    if name is None:
        return NotImplemented
    return getattr, (dataclasses, name)


_LEFT_TO_DILL: frozenset[type] = frozenset(
    {
        types.GetSetDescriptorType,
        types.MemberDescriptorType,
        type({}.keys()),
        type({}.values()),
        type({}.items()),
        type(collections.OrderedDict().keys()),
        type(collections.OrderedDict().values()),
        type(collections.OrderedDict().items()),
    }
)


def _reduce_by_dill(pickler: ByValuePickler, obj: Any) -> Reduced:
    import dill

    class Rest(dill.Pickler):  # type: ignore[misc]
        """dill for ``obj`` itself, this pickler's rules for what it holds."""

        def reducer_override(self, inner: Any) -> Reduced:
            return NotImplemented if inner is obj else pickler.reducer_override(inner)

    file = io.BytesIO()
    Rest(file, 5, recurse=True).dump(obj)
    return load_by_dill, (file.getvalue(),)


def load_by_dill(data: bytes) -> Any:
    """What dill made of something rare."""
    import dill

    return dill.loads(data)


def make_mapping_proxy(mapping: dict[Any, Any]) -> types.MappingProxyType[Any, Any]:
    """A read-only view of a mapping."""
    return types.MappingProxyType(mapping)


_BUILTIN_TYPES: dict[type, str] = {
    value: name
    for name, value in vars(types).items()
    if isinstance(value, type)
    and value.__module__ == "builtins"
    and getattr(builtins, value.__name__, None) is not value
    and value is not types.NoneType
}
"""Types that say they are in builtins, and are not: they are found in ``types``."""

_REDUCERS: dict[type, Callable[[ByValuePickler, Any], Reduced]] = {
    types.FunctionType: _reduce_function,
    types.CellType: lambda _p, _cell: (make_cell, ()),
    types.CodeType: lambda _p, code: (load_code, (marshal.dumps(code),)),
    types.ModuleType: _reduce_module,
    types.MappingProxyType: lambda _p, m: (make_mapping_proxy, (dict(m),)),
    staticmethod: lambda _p, s: (staticmethod, (s.__func__,)),
    classmethod: lambda _p, c: (classmethod, (c.__func__,)),
    property: lambda _p, p: (property, (p.fget, p.fset, p.fdel, p.__doc__)),
    functools.cached_property: _reduce_cached_property,
    type(functools.lru_cache(maxsize=1)(lambda: None)): _reduce_lru_cache,
    typing.TypeVar: _reduce_type_variable,
    typing.ParamSpec: _reduce_type_variable,
    typing.TypeVarTuple: _reduce_type_variable,
    typing.NewType: _reduce_type_variable,
}

"""What a value or a callable is, as a digest of its content: the same again in another process.

Of code counts what it does: byte code, constants, names, defaults, closures, and the helpers,
classes and constants of the user's own modules that it names, by their own content, as deep as it
goes. What does not count: file names, line numbers, and what stands elsewhere in a module. Code of
the standard library and of installed packages is known by module, name and version.

Guarantees that whatever cannot be told for sure (a lock, an open file, ``eval``) raises
``UnidentifiableError``, so that nothing stale is ever taken for current.
"""

from __future__ import annotations

import contextlib
import copyreg
import dis
import enum
import functools
import hashlib
import importlib
import importlib.util
import struct
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from handoff_actors.checkpoint.modules import Origin, origin, version_of
from handoff_actors.errors import describe

_OPAQUE = frozenset({"eval", "exec", "compile", "globals", "locals", "vars", "__import__"})
"""Builtins by which code can depend on anything."""
_NOT_OF_A_CLASS = frozenset(
    {"__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__abstractmethods__",
     "_abc_impl", "__dataclass_fields__", "__dataclass_params__", "__firstlineno__",
     "__annotate__", "__annotate_func__", "__annotations_cache__", "__static_attributes__",
     "_is_protocol", "__parameters__", "__orig_bases__"}
)  # fmt: skip
_GLOBAL_OPS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"})


class UnidentifiableError(Exception):
    """What something is cannot be told for sure; the text says what, and where it was found."""


def digest(value: Any) -> bytes:
    """The digest of a value or callable.

    Raises:
        UnidentifiableError: it cannot be identified for sure.
    """
    try:
        return Content().of(value)
    except UnidentifiableError:
        raise
    except RecursionError:
        raise UnidentifiableError(f"{describe(value)} is nested too deeply") from None
    except Exception as error:  # a __reduce__ of the user's may raise anything
        raise UnidentifiableError(
            f"{describe(value)}: {type(error).__name__}: {describe(str(error))}"
        ) from error


class Content:
    """One walk over values.

    What is known is not walked again, however it is shared. In a cycle, what was met before is told
    by how many steps ago that was; whatever is closed in itself counts as one step, so that it does
    not matter what was walked before.
    """

    def __init__(self) -> None:
        self._known: dict[int, bytes] = {}
        self._kept: list[Any] = []
        self._number: dict[int, int] = {}
        self._open: list[int] = []
        self._steps = 0
        self._here = 0
        self._low = 0
        self._modules: set[int] = set()

    def of(self, value: Any) -> bytes:
        """The digest of one value."""
        plain = _PLAIN.get(type(value))
        if plain is not None:
            return _hash((type(value).__name__.encode(), plain(value)))
        return self._walk(value, lambda: self._compound(value, type(value)))

    def _walk(self, value: Any, parts: Callable[[], Iterable[bytes]]) -> bytes:
        key = id(value)
        known = self._known.get(key)
        if known is not None:
            self._steps += 1
            return known
        number = self._number.get(key)
        if number is not None:
            self._low = min(self._low, number)
            return b"again %d" % (self._here - number)
        own, low, here, opened = self._steps, self._low, self._here, len(self._open)
        self._kept.append(value)  # its id must not be given to another meanwhile
        self._number[key] = self._here = self._low = own
        self._open.append(key)
        self._steps += 1
        found = _hash(parts())
        self._here = here
        if self._low < own:  # part of a cycle that goes on
            self._low = min(self._low, low)
            return found
        for other in self._open[opened:]:
            del self._number[other]
        del self._open[opened:]
        self._steps, self._low = own + 1, low
        self._known[key] = found
        return found

    def _all(self, name: str, values: Iterable[Any]) -> Iterable[bytes]:
        yield name.encode()
        for value in values:
            yield self.of(value)

    def _compound(self, value: Any, kind: type) -> Iterable[bytes]:
        if kind is tuple or kind is list:
            return self._all(kind.__name__, value)
        if kind is dict:
            return self._all("dict", (x for pair in value.items() for x in pair))
        if kind is set or kind is frozenset:
            # Each by itself: their order is another in each process.
            return (kind.__name__.encode(), *sorted(Content().of(x) for x in value))
        if kind is types.FunctionType:
            return self._function(value)
        if kind is types.CodeType:
            return self._code(value)
        if kind is types.ModuleType:
            return self._module(value, ())
        if isinstance(value, type):
            return self._class(value)
        if kind is functools.partial:
            return self._all("partial", (value.func, value.args, value.keywords))
        if kind is types.MethodType:
            return self._all("method", (value.__func__, value.__self__))
        if kind is types.BuiltinFunctionType:
            return self._builtin(value)
        if kind in (staticmethod, classmethod):
            return self._all(kind.__name__, (value.__func__,))
        if kind is property:
            return self._all("property", (value.fget, value.fset, value.fdel))
        if kind in (types.WrapperDescriptorType, types.MethodDescriptorType,
                    types.ClassMethodDescriptorType, types.GetSetDescriptorType,
                    types.MemberDescriptorType, types.MethodWrapperType):  # fmt: skip
            owner = getattr(value, "__objclass__", None)
            return self._all("descriptor", (owner, value.__name__))
        if isinstance(value, enum.Enum):
            return self._all("enum", (kind, value.name))
        wrapped = value.__dict__.get("__wrapped__") if hasattr(value, "__dict__") else None
        if wrapped is not None and callable(value) and kind.__module__ == "functools":
            return self._all("wrapper", (kind.__name__, wrapped))
        return self._object(value, kind)

    # Objects.

    def _object(self, value: Any, kind: type) -> Iterable[bytes]:
        if isinstance(value, types.GenericAlias) or kind.__module__ == "typing":
            return (b"typing", repr(value).encode())
        reducer = copyreg.dispatch_table.get(kind)
        reduced = reducer(value) if reducer is not None else value.__reduce_ex__(4)
        if isinstance(reduced, str):
            return (b"global", kind.__module__.encode(), reduced.encode())
        function, args, state, items, pairs = (*reduced, None, None, None, None)[:5]
        return self._all(
            "object",
            (
                function,
                args,
                state,
                None if items is None else list(items),
                None if pairs is None else list(pairs),
            ),
        )

    def _builtin(self, value: Any) -> Iterable[bytes]:
        own = value.__self__
        if own is None or isinstance(own, types.ModuleType):
            if value.__module__ == "builtins" and value.__name__ in _OPAQUE:
                raise UnidentifiableError(f"{value.__name__}() can depend on anything")
            return self._named("builtin", value)
        return self._all("builtin method", (own, value.__name__))

    def _named(self, what: str, value: Any) -> Iterable[bytes]:
        module = getattr(value, "__module__", None) or ""
        name = getattr(value, "__qualname__", None) or value.__name__
        return (what.encode(), module.encode(), name.encode(), version_of(module).encode())

    def _class(self, cls: type) -> Iterable[bytes]:
        if origin(cls.__module__) is not Origin.OWN:
            return self._named("class", cls)
        members = {k: v for k, v in vars(cls).items() if k not in _NOT_OF_A_CLASS}
        if issubclass(cls, enum.Enum):
            members = {name: member.value for name, member in cls.__members__.items()} | {
                k: v for k, v in members.items() if isinstance(v, types.FunctionType)
            }
        return self._all("own class", (cls.__qualname__, type(cls), cls.__bases__, members))

    # Code.

    def _function(self, function: types.FunctionType) -> Iterable[bytes]:
        if origin(function.__module__) is not Origin.OWN and _is_global(function):
            return self._named("function", function)
        cells = []
        for cell in function.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:
                cells.append("empty cell")
        parts = list(
            self._all(
                "own function",
                (function.__code__, function.__defaults__, function.__kwdefaults__, cells),
            )
        )
        for name, value in sorted(self._globals_of(function).items()):
            parts += [name.encode(), self._named_value(function.__code__, value)]
        return parts

    def _named_value(self, code: types.CodeType, value: Any) -> bytes:
        if isinstance(value, types.ModuleType):
            return _hash(self._module(value, _attributes(code)))
        return self.of(value)

    def _globals_of(self, function: types.FunctionType) -> Mapping[str, Any]:
        """What the code, and the code inside it, names beyond itself."""
        found: dict[str, Any] = {}
        builtins = cast("Any", function).__builtins__
        for code in _with_inner(function.__code__):
            before: list[Any] = [0, None]  # the level and the names of an import
            for instruction in dis.get_instructions(code):
                name = instruction.argval
                if instruction.opname in _GLOBAL_OPS:
                    if name in function.__globals__:
                        found[name] = function.__globals__[name]
                    elif name in builtins and name in _OPAQUE:
                        raise UnidentifiableError(
                            f"{function.__qualname__} uses {name}(), which can depend on anything"
                        )
                    elif name not in builtins:
                        found[name] = "not defined"
                elif instruction.opname == "IMPORT_NAME":
                    package = function.__globals__.get("__package__") or ""
                    found.update(_imported(name, before[-2], package))
                before = [before[-1], name]
        return found

    def _module(self, module: types.ModuleType, names: Iterable[str]) -> Iterable[bytes]:
        yield b"module"
        yield module.__name__.encode()
        if origin(module.__name__) is not Origin.OWN:
            yield version_of(module.__name__).encode()
            return
        names = tuple(names)
        self._modules.add(id(module))
        for name in names:
            value = vars(module).get(name, module)
            if not isinstance(value, types.ModuleType):
                yield name.encode()
                yield self.of(value)
            elif id(value) not in self._modules:
                yield name.encode()
                yield _hash(self._module(value, names))
        self._modules.discard(id(module))

    def _code(self, code: types.CodeType) -> Iterable[bytes]:
        consts = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
        inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
        return self._all(
            "code",
            (
                code.co_code, consts, inner, code.co_names, code.co_varnames, code.co_freevars,
                code.co_cellvars, code.co_flags, code.co_argcount, code.co_kwonlyargcount,
                code.co_posonlyargcount, code.co_exceptiontable, sys.version_info[:2],
            ),
        )  # fmt: skip


def _hash(parts: Iterable[bytes]) -> bytes:
    hasher = hashlib.blake2b(digest_size=20)
    for part in parts:
        hasher.update(struct.pack("<q", len(part)))
        hasher.update(part)
    return hasher.digest()


def _with_inner(code: types.CodeType) -> Iterable[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _with_inner(const)


def _attributes(code: types.CodeType) -> list[str]:
    return sorted({name for inner in _with_inner(code) for name in inner.co_names})


def _imported(name: str, level: Any, package: str) -> dict[str, Any]:
    """The module of an import statement, and the packages above it, which it binds too."""
    found: dict[str, Any] = {}
    with contextlib.suppress(ImportError):
        if isinstance(level, int) and level:
            name = importlib.util.resolve_name("." * level + name, package)
        while name:
            found[f"import {name}"] = importlib.import_module(name)
            name = name.rpartition(".")[0]
    return found


def _is_global(function: types.FunctionType) -> bool:
    """Whether the function is what its module has under its name: no closure, no lambda."""
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


_PLAIN: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"",
    bool: lambda v: b"1" if v else b"0",
    int: lambda v: str(v).encode() if v.bit_length() < 10_000 else hex(v).encode(),
    float: lambda v: struct.pack("<d", v),
    complex: lambda v: struct.pack("<dd", v.real, v.imag),
    str: lambda v: v.encode("utf-8", "surrogatepass"),
    bytes: lambda v: v,
    bytearray: bytes,
    range: lambda v: repr(v).encode(),
    type(...): lambda _: b"",
    type(NotImplemented): lambda _: b"",
}

"""What in a value cannot be pickled, and how to get there from it.

Guarantees to end soon: it looks at a bounded number of parts, and gives the closest it found.
"""

from __future__ import annotations

import functools
import io
import types
from collections.abc import Iterator
from typing import Any

from handoff_actors.cluster.by_value import ByValuePickler, importable
from handoff_actors.cluster.strays import is_built_in
from handoff_actors.errors import SerializationError, describe, text_of

_PARTS = 2000  # so many parts are tried
_DEPTH = 30


def serialization_error(obj: Any, what: str, cause: BaseException) -> SerializationError:
    """The error that says which part of ``obj`` cannot cross.

    Args:
        obj: what could not be pickled.
        what: what it is, say ``"argument 0 of function 'x'"``.
        cause: why pickling failed.
    """
    path, culprit = _culprit(obj, what.partition(" of ")[0])
    found, kind = describe(culprit), type(culprit)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    if isinstance(cause, RecursionError):
        reason = "it is nested too deeply"
    else:
        reason = f"{type(cause).__name__}: {text_of(cause)}"
    return SerializationError(
        f"{what} cannot cross to another process: {path} is {found}, a {name} "
        f"({reason}). Make such an object inside the function that uses it, leave it out, or run "
        "the function with isolation='thread'",
        dag_id=None,
        function_id=None,
        path=path,
        object=found,
    )


def picklable(obj: Any) -> bool:
    """Whether ``obj`` can be pickled."""
    try:
        ByValuePickler(io.BytesIO(), lambda _buffer: False).dump(obj)
    except (Exception, SystemExit, GeneratorExit):  # reducers of users may raise anything
        return False
    return True


def _culprit(obj: Any, path: str) -> tuple[str, Any]:
    left = _PARTS
    seen = {id(obj)}
    for _ in range(_DEPTH):
        for step, part in _parts(obj):
            if id(part) in seen:
                continue
            left -= 1
            if left < 0:
                return path, obj
            if not picklable(part):
                seen.add(id(part))
                obj, path = part, path + step
                break
        else:
            return path, obj
    return path, obj


def _parts(obj: Any) -> Iterator[tuple[str, Any]]:
    """What ``obj`` consists of, with the text that leads there."""
    if isinstance(obj, dict):
        for key, value in list(obj.items()):
            yield f"[{describe(key, 40)}]", value
        for key in list(obj):
            yield f".key({describe(key, 40)})", key
    elif isinstance(obj, list | tuple):
        for i, value in enumerate(obj):
            yield f"[{i}]", value
    elif isinstance(obj, set | frozenset):
        for value in list(obj):
            yield f".item({describe(value, 40)})", value
    if isinstance(obj, types.FunctionType):
        yield from _parts_of_function(obj)
    elif isinstance(obj, types.MethodType):
        yield ".__self__", obj.__self__
    elif isinstance(obj, functools.partial):
        yield ".func", obj.func
        yield ".args", obj.args
        yield ".keywords", obj.keywords
    elif isinstance(obj, type):
        if not importable(obj):
            for name, value in list(vars(obj).items()):
                if isinstance(value, staticmethod | classmethod):
                    yield f".{name}", value.__func__
                elif name not in ("__dict__", "__weakref__", "_abc_impl"):
                    yield f".{name}", value
        return
    attributes = getattr(obj, "__dict__", None)
    if isinstance(attributes, dict):
        for name, value in list(attributes.items()):
            yield f".{name}", value
    for cls in type(obj).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            private = name.startswith("__") and not name.endswith("__")
            value = getattr(obj, f"_{cls.__name__.lstrip('_')}{name}" if private else name, None)
            if value is not None:
                yield f".{name}", value
    if not is_built_in(type(obj)) and not importable(type(obj)):
        yield ".__class__", type(obj)


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        try:
            yield f".closure[{name!r}]", cell.cell_contents
        except ValueError:
            continue
    if importable(function):
        return
    from handoff_actors.cluster.by_value import names_of

    for name in names_of(function.__code__):
        if name in function.__globals__:
            yield f".globals[{name!r}]", function.__globals__[name]
    for i, value in enumerate(function.__defaults__ or ()):
        yield f".defaults[{i}]", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f".defaults[{name!r}]", value

"""What a callable is: async or not, and whether it can be called with so many arguments.

Guarantees that nothing here ever calls the code it looks at, and that a callable whose signature
cannot be read is taken as it is.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Hashable, Mapping
from inspect import CO_COROUTINE, CO_VARARGS
from types import FunctionType
from typing import Any

from handoff_actors.errors import InvalidFunctionError, describe

Code = Callable[..., Any]


def is_coroutine_callable(code: object) -> bool:
    """Whether calling ``code`` gives a coroutine: ``async def``, a partial or an object of such."""
    if type(code) is FunctionType and not code.__dict__:  # a mark of 3.12's is in __dict__
        return bool(code.__code__.co_flags & CO_COROUTINE)
    while isinstance(code, functools.partial):
        code = code.func
    if inspect.iscoroutinefunction(code):
        return True
    return not isinstance(code, type) and inspect.iscoroutinefunction(
        getattr(type(code), "__call__", None)  # noqa: B004  the method itself is what is asked for
    )


def misfit(code: Code, count: int, keywords: Mapping[str, Any] | None = None) -> str | None:
    """Why ``code`` cannot be called with ``count`` positional arguments and these keywords.

    Returns:
        The reason in words, or None when it can be called, or nothing is known of its signature.
    """
    if not keywords and type(code) is FunctionType:
        shape = code.__code__
        most = shape.co_argcount
        if (count <= most or shape.co_flags & CO_VARARGS) and not shape.co_kwonlyargcount:
            if count >= most:
                return None
            defaults = code.__defaults__
            if defaults and count >= most - len(defaults):
                return None
    try:
        # What is called is the wrapper, so its own signature counts: it may well add arguments.
        signature = inspect.signature(code, follow_wrapped=False)
    except Exception:  # a property of the user's may raise anything: not readable
        return None
    try:
        signature.bind(*range(count), **(keywords or {}))
    except TypeError as error:
        return f"{error}; it is {name_of(code)}{signature}"
    return None


def name_of(code: object) -> str:
    """The name of a callable for people to read."""
    name = getattr(code, "__qualname__", None)
    return name if isinstance(name, str) else describe(code)


def is_code_path(text: str) -> bool:
    """Whether ``text`` has the form ``"module:qualname"``."""
    module, colon, qualname = text.partition(":")
    return bool(colon) and all(
        part.isidentifier() for name in (module, qualname) for part in name.split(".")
    )


def resolve_code(code: Code | str, function_id: Hashable = None) -> Code:
    """The callable that ``code`` is or, as ``"module:qualname"``, names.

    Args:
        code: a callable, given back as it is, or where to import it from.
        function_id: whose code it is, for the error.

    Raises:
        InvalidFunctionError: it cannot be imported, or is not callable.
    """
    if not isinstance(code, str):
        return code
    module, _, qualname = code.partition(":")
    try:
        target: Any = importlib.import_module(module)
        for name in qualname.split("."):
            target = getattr(target, name)
    except Exception as error:  # importing runs the module's own code: it may raise anything
        raise InvalidFunctionError(
            f"function {describe(function_id)}: code={code!r} cannot be imported "
            f"({type(error).__name__}: {error}); it is looked up as 'module:qualname'",
            function_id=function_id,
            field="code",
        ) from error
    if not callable(target):
        raise InvalidFunctionError(
            f"function {describe(function_id)}: code={code!r} is {describe(target)}, "
            "which is not callable",
            function_id=function_id,
            field="code",
        )
    return target  # type: ignore[no-any-return]  # callable() narrows Any to Any

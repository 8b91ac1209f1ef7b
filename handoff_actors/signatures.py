"""Signatures as users see them, for functions that take their options as ``**options``.

The options of a run, a stream and a runtime are typed once, by a ``TypedDict``, and have their
defaults in one place. ``shown`` puts them into what ``help()`` and ``inspect.signature`` tell.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def parameters(options: Mapping[str, Any]) -> list[inspect.Parameter]:
    """A keyword-only parameter for each option and its default."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(name, kind, default=value) for name, value in options.items()]


def shown(options: Mapping[str, Any]) -> Callable[[F], F]:
    """Decorates a function whose last parameter is ``**options``.

    Args:
        options: their names and defaults.
    """

    def decorate(function: F) -> F:
        own = inspect.signature(function)
        positional = list(own.parameters.values())[:-1]
        signature = own.replace(parameters=[*positional, *parameters(options)])
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return decorate

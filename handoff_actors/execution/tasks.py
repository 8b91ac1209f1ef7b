"""The tasks of an ``Executor``, as the worker that runs one has them.

In a file of its own, as worker processes import it: it needs nothing of the face.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from handoff_actors.errors import describe

T = TypeVar("T")

_initialized: set[str] = set()
"""The pools whose initializer this process has called."""


class InitializerError(Exception):
    """The initializer of a pool raised."""


def call(task: tuple[Any, Any, Any]) -> Any:
    """Call a function with positional and keyword arguments."""
    fn, args, kwargs = task
    return fn(*args, **kwargs)


def call_each(fn: Callable[..., T], calls: list[tuple[Any, ...]]) -> list[T]:
    """Call a function with each of these arguments: a chunk of ``map``."""
    return [fn(*args) for args in calls]


def initialize(function: Callable[..., object], args: tuple[Any, ...]) -> None:
    """Call an initializer.

    Raises:
        InitializerError: it raised.
    """
    try:
        function(*args)
    except BaseException as error:
        raise InitializerError(describe(error, 200)) from error


class Call:
    """``call``, in a process that calls the initializer of the pool ``key`` first."""

    def __init__(
        self, key: str, initializer: tuple[Callable[..., object], tuple[Any, ...]]
    ) -> None:
        self.key = key
        self.initializer = initializer

    def __call__(self, task: tuple[Any, Any, Any]) -> Any:
        """Run one task."""
        if self.key not in _initialized:
            initialize(*self.initializer)
            _initialized.add(self.key)
        return call(task)


def evaluate(values: list[Any], node: Callable[[dict[Any, Any]], Any], keys: list[Any]) -> Any:
    """A task of Dask's: ``node`` gets the values of the keys it depends on, by key."""
    return node(dict(zip(keys, values, strict=True)))

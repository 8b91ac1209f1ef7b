"""The tasks of an ``Executor``: as a pool has them, and as the worker that runs one.

In a file of its own, as worker processes import it: it needs nothing of the face.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar, cast

from handoff_actors.cluster.payload import Payload, loads
from handoff_actors.errors import CrashedAttempt, describe
from handoff_actors.execution.context import place

T = TypeVar("T")

_initialized: set[str] = set()
"""The pools whose initializer this process has called."""


class InitializerError(Exception):
    """The initializer of a pool raised."""


class Task:
    """What was submitted, until its future has an outcome.

    Attributes:
        future: whom the outcome is for.
        fn: to be called.
        args: with these.
        kwargs: and these.
        crashes: the deaths of processes that are put down to it.
        at_hand: how often a process died that was about to run it.
    """

    __slots__ = ("args", "at_hand", "begun", "crashes", "fn", "future", "kwargs")

    def __init__(self, future: Future[Any], fn: Any, args: Any, kwargs: Any) -> None:
        self.future = future
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.begun = False
        self.crashes: list[CrashedAttempt] = []
        self.at_hand = 0

    def begin(self) -> bool:
        """It goes to a worker, perhaps once more; False if it was cancelled."""
        if not self.begun:
            self.begun = self.future.set_running_or_notify_cancel()
        return self.begun


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
    """``call``, in a process that first calls the initializer, if any, of the pool ``key``."""

    def __init__(
        self, key: str, initializer: tuple[Callable[..., object], tuple[Any, ...]] | None
    ) -> None:
        self.key = key
        self.initializer = initializer

    def __call__(self, task: tuple[Any, Any, Any]) -> Any:
        """Run one task."""
        if self.initializer is not None and self.key not in _initialized:
            initialize(*self.initializer)
            _initialized.add(self.key)
        return call(task)


class CallOnce(Call):
    """The same, for tasks that come many at once: the node knows which of them have begun.

    Small ones come pickled, as reading an argument may kill the process, too.
    """

    def __call__(self, task: tuple[Any, Any, Any] | bytes) -> Any:
        """Run one task."""
        here: Any = place.get()
        here.begin()
        if isinstance(task, bytes):
            task = cast("tuple[Any, Any, Any]", loads(Payload(task), "argument of a task"))
        return super().__call__(task)


def evaluate(values: list[Any], node: Callable[[dict[Any, Any]], Any], keys: list[Any]) -> Any:
    """A task of Dask's: ``node`` gets the values of the keys it depends on, by key."""
    return node(dict(zip(keys, values, strict=True)))

"""``Executor``: the standard library's interface to pools, on the workers of a runtime."""

from __future__ import annotations

import concurrent.futures
import itertools
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar, cast

from handoff_actors import default
from handoff_actors.errors import ConfigurationError, describe
from handoff_actors.execution.context import place
from handoff_actors.execution.tasks import call_each
from handoff_actors.execution.workers.roster import usable_cores
from handoff_actors.runtime import Runtime
from handoff_actors.task_pool import TaskPool

P = ParamSpec("P")
T = TypeVar("T")


class Executor(concurrent.futures.Executor):
    """A pool of the workers of a runtime; see ``concurrent.futures.Executor`` for its methods.

    Without ``runtime`` it uses the running default one, and else one of its own, which ends with
    the pool.

    Args:
        max_workers: how many tasks run at once; None is 32 or fewer threads, or the cores.
        isolation: ``"thread"`` or ``"process"``; for processes tasks and results are pickled,
            lambdas and what a script defines too.
        initializer: called in each worker before its first task.
        initargs: its arguments.
        runtime: whose workers to use.
        max_crashes: how many worker processes may die under one task before it fails with
            ``FunctionCrashedError``; with 0 it is never run twice.
        max_retries: how often a task that raises is run again.
        timeout: seconds that a task may take.
        cost: what each task claims of the node's capabilities.

    Raises:
        ValueError: an argument has a value that cannot be used.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        isolation: str = "thread",
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        runtime: Runtime | None = None,
        max_crashes: int = 0,
        max_retries: int = 0,
        timeout: float | None = None,
        cost: Mapping[str, float] | None = None,
    ) -> None:
        if isolation not in ("thread", "process"):
            raise ConfigurationError(
                f"isolation must be 'thread' or 'process', not {describe(isolation)}"
            )
        if max_workers is None:
            cores = usable_cores()
            max_workers = min(32, cores + 4) if isolation == "thread" else cores
        elif not isinstance(max_workers, int) or max_workers < 1:
            raise ConfigurationError(
                f"max_workers must be greater than 0, and not {describe(max_workers)}"
            )
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        options = {"max_crashes": max_crashes, "timeout": timeout, "cost": cost}
        self._pool = TaskPool(
            max_workers,
            isolation,
            None if initializer is None else (initializer, tuple(initargs)),
            _here() if runtime is None else runtime,
            max_retries,
            {name: value for name, value in options.items() if value is not None},
        )
        weakref.finalize(self, self._pool.close, wait=False)

    @property
    def runtime(self) -> Runtime:
        """Whose workers it uses."""
        return self._pool.runtime

    @property
    def max_workers(self) -> int:
        """How many tasks run at once."""
        return self._pool.max_workers

    @property
    def _broken(self) -> str | None:
        return self._pool.broken

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        """Have ``fn(*args, **kwargs)`` called by a worker.

        Returns:
            The future of its result. If its worker process dies, that is ``FunctionCrashedError``.

        Raises:
            RuntimeError: the pool was shut down.
            BrokenExecutor: the initializer failed.
        """
        return self._pool.submit(fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call ``fn`` with the items of ``iterables``, side by side; results come in order.

        Args:
            fn: called with as many arguments as there are iterables.
            *iterables: the shortest one counts.
            timeout: seconds from this call within which each result must have come.
            chunksize: so many calls make one task.
            buffersize: at most so many tasks are submitted whose results were not yet taken, and
                the iterables are read no further; None reads them to their end at once.

        Raises:
            TimeoutError: from the iterator, if a result does not come in time.
            ValueError: ``chunksize`` or ``buffersize`` is less than 1.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        end = None if timeout is None else time.monotonic() + timeout
        calls = zip(*iterables, strict=False)
        submit = self._pool.submit
        tasks: Iterator[concurrent.futures.Future[Any]]
        if chunksize == 1:
            tasks = (submit(fn, args, {}) for args in calls)
        else:
            chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
            tasks = (submit(call_each, (fn, chunk), {}) for chunk in chunks)
        # What a caller may see fail, fails here; what it takes lazily, it gets lazily.
        futures = deque(itertools.islice(tasks, buffersize))
        results = _results(futures, tasks if buffersize is not None else iter(()), end)
        if chunksize == 1:
            return results
        return _flattened(cast("Iterator[list[T]]", results))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks.

        Args:
            wait: return when all tasks have ended.
            cancel_futures: cancel those that have not begun.
        """
        self._pool.close(wait=wait, cancel=cancel_futures)


def _here() -> Runtime | None:
    """The runtime that runs the calling code, or the default one if it is running."""
    inner = place.get()
    found = default.running() if inner is None else inner.home()
    return found if isinstance(found, Runtime) else None


def _results(
    futures: deque[concurrent.futures.Future[Any]],
    more: Iterator[concurrent.futures.Future[Any]],
    end: float | None,
) -> Iterator[Any]:
    try:
        while futures:
            # The result must not live on here once the caller lets go of it.
            yield _taken(futures, more, end)
    finally:
        for future in futures:
            future.cancel()


def _taken(
    futures: deque[concurrent.futures.Future[Any]],
    more: Iterator[concurrent.futures.Future[Any]],
    end: float | None,
) -> Any:
    future = futures.popleft()
    try:
        value = future.result(None if end is None else max(0.0, end - time.monotonic()))
    finally:
        future.cancel()
        del future
    futures.extend(itertools.islice(more, 1))
    return value


def _flattened(results: Iterator[list[T]]) -> Iterator[T]:
    for chunk in results:
        chunk.reverse()
        while chunk:
            yield chunk.pop()

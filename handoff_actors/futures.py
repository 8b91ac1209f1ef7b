"""``Executor``: the standard library's interface to pools, on the workers of a runtime.

    submit ──▶ pending ──▶ pump, a function that a thread of the runtime runs (threads)
                      └──▶ a run of one function for each task (processes, and what has options)

Guarantees that each future gets exactly one outcome, whatever dies: what a worker process takes
with it is the one task that it ran, and the pool goes on. A task is never run twice unless
``max_crashes`` or ``max_retries`` allow it. A task that waits for another one of its pool lends
its place to it, so that nested tasks never deadlock.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextvars import ContextVar, copy_context
from typing import Any, ParamSpec, TypeVar, cast

from handoff_actors import default
from handoff_actors.errors import ConfigurationError, FunctionFailedError, describe
from handoff_actors.events import log
from handoff_actors.execution.context import place
from handoff_actors.execution.run import Run, while_lent
from handoff_actors.execution.tasks import Call, InitializerError, call, call_each, initialize
from handoff_actors.execution.workers.roster import usable_cores
from handoff_actors.graph.dag import DAG
from handoff_actors.graph.function import Function
from handoff_actors.runtime import Runtime

P = ParamSpec("P")
T = TypeVar("T")

_SLICE = 0.05
"""Seconds that a pump keeps its worker while there are tasks; then others get their turn."""

_numbers = itertools.count(1)
_open: set[_Pool] = set()
"""Pools that have not ended: what was submitted is done before the interpreter ends."""
_exiting = False
_inside: ContextVar[_Pool | None] = ContextVar("handoff_pool", default=None)


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
        self._pool = _Pool(
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


class _Future(concurrent.futures.Future[Any]):
    """A future that lends the place of the task that waits for it."""

    _pool: _Pool

    def result(self, timeout: float | None = None) -> Any:
        """As that of any future."""
        if self.done() or place.get() is None:
            return super().result(timeout)
        with self._pool.lent():
            return while_lent(lambda: super(_Future, self).result(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As that of any future."""
        if self.done() or place.get() is None:
            return super().exception(timeout)
        with self._pool.lent():
            return while_lent(lambda: super(_Future, self).exception(timeout))


class _Lent:
    """While it is entered, one more task of the pool may run than its limit says."""

    def __init__(self, pool: _Pool | None) -> None:
        self._pool = pool

    def __enter__(self) -> None:
        if self._pool is not None:
            self._pool.extend(1)

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.extend(-1)


class _Task:
    __slots__ = ("args", "fn", "future", "kwargs")

    def __init__(self, future: _Future, fn: Any, args: Any, kwargs: Any) -> None:
        self.future = future
        self.fn = fn
        self.args = args
        self.kwargs = kwargs


class _Pool:
    """What outlives the ``Executor``: the tasks that wait, and those in flight."""

    def __init__(
        self,
        limit: int,
        isolation: str,
        initializer: tuple[Callable[..., object], tuple[Any, ...]] | None,
        runtime: Runtime | None,
        max_retries: int,
        options: Mapping[str, Any],
    ) -> None:
        self.number = next(_numbers)
        self.max_workers = limit
        self._limit = limit
        self.broken: str | None = None
        self.initializer = initializer
        self._own = runtime is None
        self.runtime = runtime or Runtime(max_workers=limit, isolation=isolation)
        self._pending: deque[_Task] = deque()
        self._lock = threading.Lock()
        self._in_flight = 0
        self._owed = 0  # pumps that have begun for a task and not taken one yet
        self._closed = False
        self._ending = False
        self._ended = threading.Event()
        self._dispatching = False
        self._again = False
        self._max_retries = max_retries
        self._runs = itertools.count(1)
        self._initialized = threading.local()
        plain = isolation == "thread" and not max_retries and not options.keys() - {"max_crashes"}
        self._dag = DAG(f"executor-{self.number}")
        code: Any = self._call_here
        if isolation == "process":
            key = f"{self.runtime.name}-{self.number}"
            code = Call(key, initializer) if initializer else call
        task = Function("call", ["task"], code, isolation=cast("Any", isolation), **options)
        if plain:
            self._begin = self._begin_pump
            self._dag.add_function(Function("pump", (), self._pump, isolation="thread"))
        else:
            self._begin = self._begin_task
            self._dag.add_function(Function("task", type="input")).add_function(task)
        if self._own:
            self.runtime.start()
        _open.add(self)

    def submit(self, fn: Any, args: Any, kwargs: Any) -> _Future:
        """See ``Executor.submit``."""
        future = _Future()
        future._pool = self  # noqa: SLF001  it is made here
        with self._lock:
            self._check()
            self._pending.append(_Task(future, fn, args, kwargs))
            full = self._in_flight >= self._limit
        if not full:
            self._dispatch()
        return future

    def _check(self) -> None:
        if self.broken is not None:
            raise concurrent.futures.BrokenExecutor(self.broken)
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def lent(self) -> _Lent:
        """While the calling task waits, another one may run in its place."""
        return _Lent(self if _inside.get() is self else None)

    def extend(self, by: int) -> None:
        """Change how many may run at once."""
        with self._lock:
            self._limit += by
        if by > 0:
            self._dispatch()

    def close(self, wait: bool, cancel: bool = False) -> None:
        """See ``Executor.shutdown``."""
        with self._lock:
            self._closed = True
            cancelled = list(self._pending)[self._owed :] if cancel else []
        for task in cancelled:
            if task.future.cancel():
                task.future.set_running_or_notify_cancel()
        if cancelled:
            with self._lock:
                self._pending = deque(t for t in self._pending if not t.future.cancelled())
        self._end_if_idle()
        if wait and _inside.get() is not self:
            self._ended.wait()

    # Tasks into flight.

    def _dispatch(self) -> None:
        """Begin what can begin; one thread does it, for all who come meanwhile."""
        while True:
            with self._lock:
                if self._dispatching:
                    self._again = True
                    return
                self._dispatching = True
                self._again = False
            try:
                while self._begin():
                    pass
            finally:
                with self._lock:
                    self._dispatching = False
                    again = self._again
            if not again:
                break
        self._end_if_idle()

    def _take_off(self) -> bool:
        """Whether there is a task and room for it; then one more is in flight."""
        with self._lock:
            if self._in_flight >= self._limit or not self._pending:
                return False
            self._in_flight += 1
            return True

    def _land(self) -> None:
        with self._lock:
            self._in_flight -= 1
        self._dispatch()

    def _end_if_idle(self) -> None:
        with self._lock:
            if not self._closed or self._pending or self._in_flight or self._ending:
                return
            self._ending = True
        if self._own:
            # Perhaps a worker of the runtime brought us here, and it cannot stop itself.
            threading.Thread(target=self._end, name="handoff-executor", daemon=True).start()
        else:
            self._end()

    def _end(self) -> None:
        if self._own:
            self.runtime.stop()
        _open.discard(self)
        self._ended.set()

    def _run(self, inputs: dict[Hashable, Any]) -> Run:
        return self.runtime.submit_soon(
            self._dag,
            inputs=inputs,
            dag_id=f"executor-{self.number}/{next(self._runs)}",
            max_retries=self._max_retries,
        )

    # One run for each task.

    def _begin_task(self) -> bool:
        if not self._take_off():
            return False
        with self._lock:
            task = self._pending.popleft() if self._pending else None
        if task is None or not task.future.set_running_or_notify_cancel():
            with self._lock:
                self._in_flight -= 1
            return task is not None
        try:
            run = self._run({"task": (task.fn, task.args, task.kwargs)})
        except BaseException as error:
            with self._lock:
                self._in_flight -= 1
            task.future.set_exception(error)
            return True
        future = task.future
        run.add_done_callback(lambda done: self._finished(cast("Run", done), future))
        return True

    def _finished(self, run: Run, future: _Future) -> None:
        error = run.exception()
        value = None
        if error is None:
            result = run.result()
            value = result.results["call"]
            result.release()
        elif isinstance(error, FunctionFailedError) and error.__cause__ is not None:
            error = error.__cause__
        if isinstance(error, InitializerError):
            self._break(error)
            error = concurrent.futures.BrokenExecutor(self.broken)
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
        self._land()

    def _call_here(self, task: tuple[Any, Any, Any]) -> Any:
        """The code of a task in a thread."""
        _inside.set(self)
        self._initialize()
        return call(task)

    # Pumps.

    def _begin_pump(self) -> bool:
        if not self._take_off():
            return False
        with self._lock:
            self._owed += 1
        try:
            run = self._run({})
        except BaseException as error:
            with self._lock:
                self._in_flight -= 1
                self._owed -= 1
            self._fail_pending(error)
            return False
        run.add_done_callback(lambda done: self._pumped(cast("Run", done)))
        # One at a time: the next is for what this one has not taken by then.
        with self._lock:
            return len(self._pending) > self._in_flight

    def _pumped(self, run: Run) -> None:
        error = run.exception()
        if error is None:
            run.result().release()
        elif isinstance(error.__cause__, InitializerError):
            self._break(error.__cause__)
        elif self._pending:
            # The runtime has stopped, or failed: nobody will run what is left.
            self._fail_pending(error)
        self._land()

    def _pump(self) -> None:
        """The code of a pump: task after task, until there is none or others want the worker."""
        _inside.set(self)
        try:
            self._initialize()
        finally:
            with self._lock:
                self._owed -= 1
        base = copy_context()
        until = time.monotonic() + _SLICE
        pending = self._pending
        while True:
            try:
                task = pending.popleft()
            except IndexError:
                return
            future = task.future
            if future.set_running_or_notify_cancel():
                try:
                    value = base.copy().run(task.fn, *task.args, **task.kwargs)
                except BaseException as error:
                    future.set_exception(error)
                    del error
                else:
                    future.set_result(value)
                    del value
            del task, future
            if time.monotonic() > until:
                return

    # The initializer.

    def _initialize(self) -> None:
        if self.initializer is None or getattr(self._initialized, "done", False):
            return
        initialize(*self.initializer)
        self._initialized.done = True

    def _break(self, error: BaseException) -> None:
        self.broken = f"the initializer of a worker raised {error}; the pool is not usable any more"
        log.error("initializer_raised", error=str(error), exc_info=error)
        self._fail_pending(concurrent.futures.BrokenExecutor(self.broken))

    def _fail_pending(self, error: BaseException) -> None:
        with self._lock:
            tasks, self._pending = self._pending, deque()
        for task in tasks:
            if task.future.set_running_or_notify_cancel():
                task.future.set_exception(error)


def _end_all() -> None:
    """Before the interpreter ends, and the runtimes with it: what was submitted is done."""
    global _exiting
    _exiting = True
    for pool in list(_open):
        pool.close(wait=True)


atexit.register(_end_all)

"""What is behind an ``Executor``: the tasks that wait and those in flight; it outlives the facade.

    submit ──▶ pending ──▶ pump: a function that a thread of the runtime runs. It calls tasks there,
                      │    or sends them to a process that it owns meanwhile, in batches
                      └──▶ a run of one function for each task, if it has retries, timeout or cost

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
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import ContextVar, copy_context
from typing import Any, cast

from handoff_actors.actors.latches import heard
from handoff_actors.errors import FunctionFailedError
from handoff_actors.events import log
from handoff_actors.execution.context import place
from handoff_actors.execution.run import Run, while_lent
from handoff_actors.execution.tasks import Call, CallOnce, InitializerError, Task, call, initialize
from handoff_actors.graph.dag import DAG
from handoff_actors.graph.function import Function
from handoff_actors.runtime import Runtime

_SLICE = 0.05
"""Seconds that a pump keeps its worker while there are tasks; then others get their turn."""
_LINGER = 0.002
"""Seconds that a pump waits for another task before it lets go of its worker."""

_numbers = itertools.count(1)
_open: set[TaskPool] = set()
"""Pools that have not ended: what was submitted is done before the interpreter ends."""
_exiting = False
_inside: ContextVar[TaskPool | None] = ContextVar("handoff_pool", default=None)


class _Future(concurrent.futures.Future[Any]):
    """A future that lends the place of the task that waits for it."""

    _pool: TaskPool

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

    def __init__(self, pool: TaskPool | None) -> None:
        self._pool = pool

    def __enter__(self) -> None:
        if self._pool is not None:
            self._pool.extend(1)

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.extend(-1)


class TaskPool:
    """See the module.

    Args:
        limit: how many tasks run at once.
        isolation: ``"thread"`` or ``"process"``.
        initializer: called in each worker before its first task, with these arguments.
        runtime: whose workers to use; None is one of its own.
        max_retries: how often a task that raises is run again.
        options: of the function that is a task: ``max_crashes``, ``timeout``, ``cost``.

    Attributes:
        name: what its tasks are called.
        broken: why it is not usable any more.
        mean: seconds that a task in a process takes; 0.0 while nobody knows.
        max_crashes: how many deaths of processes a task may cost.
    """

    def __init__(
        self,
        limit: int,
        isolation: str,
        initializer: tuple[Callable[..., object], tuple[Any, ...]] | None,
        runtime: Runtime | None,
        max_retries: int,
        options: Mapping[str, Any],
    ) -> None:
        self.name = f"executor-{next(_numbers)}"
        self.max_workers = limit
        self._limit = limit
        self.broken: str | None = None
        self.mean = 0.0
        self.max_crashes: int = options.get("max_crashes", 0)
        self.initializer = initializer
        self._own = runtime is None
        self.runtime = runtime or Runtime(max_workers=limit, isolation=isolation)
        self._pending: deque[Task] = deque()
        self._lock = threading.Lock()
        self._in_flight = 0
        self._owed = 0  # pumps that have begun for a task and not taken one yet
        self._closed = False
        self._ending = False
        self._ended = threading.Event()
        self._dispatching = False
        self._again = False
        self._idle: list[threading.Lock] = []  # the latches of pumps that wait for a task
        self._max_retries = max_retries
        self._runs = itertools.count(1)
        self._initialized = threading.local()
        self._dag = DAG(self.name)
        key = f"{self.runtime.name}-{self.name}"
        code: Any = self._call_here if isolation == "thread" else Call(key, initializer)
        task = Function("call", ["task"], code, isolation=cast("Any", isolation), **options)
        if not max_retries and not options.keys() - {"max_crashes"}:
            pump = self._pump if isolation == "thread" else self._pump_process
            self._code = CallOnce(key, initializer)
            self._begin = self._begin_pump
            self._dag.add_function(Function("pump", (), pump, isolation="thread"))
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
            self._pending.append(Task(future, fn, args, kwargs))
            latch = self._idle.pop() if self._idle else None
            full = self._in_flight >= self._limit
        if latch is not None:
            latch.release()
        elif not full:
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
            idle, self._idle = self._idle, []
        for latch in idle:
            latch.release()
        for task in cancelled:
            if task.future.cancel():
                task.future.set_running_or_notify_cancel()
        if cancelled:
            with self._lock:
                self._pending = deque(t for t in self._pending if not t.future.cancelled())
        self._end_if_idle()
        if wait and _inside.get() is not self:
            heard(self._ended.wait)

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
            dag_id=f"{self.name}/{next(self._runs)}",
            max_retries=self._max_retries,
        )

    # One run for each task.

    def _begin_task(self) -> bool:
        if not self._take_off():
            return False
        with self._lock:
            task = self._pending.popleft() if self._pending else None
        if task is None or not task.begin():
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

    def _finished(self, run: Run, future: concurrent.futures.Future[Any]) -> None:
        error = run.exception()
        value = None
        if error is None:
            result = run.result()
            value = result.results["call"]
            result.release()
        elif isinstance(error, FunctionFailedError) and error.__cause__ is not None:
            error = error.__cause__
        self._answer(future, error, value)
        self._land()

    def _answer(
        self, future: concurrent.futures.Future[Any], error: BaseException | None, value: Any
    ) -> None:
        if isinstance(error, InitializerError):
            self._break(error)
            error = concurrent.futures.BrokenExecutor(self.broken)
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

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
            self.paid()
        base = copy_context()
        until = time.monotonic() + _SLICE
        pending = self._pending
        while True:
            try:
                task = pending.popleft()
            except IndexError:
                if self.more_soon():
                    continue
                return
            future = task.future
            if task.begin():
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

    def _pump_process(self) -> None:
        """The code of a pump whose tasks run in a process that it owns meanwhile."""
        from handoff_actors.execution.workers.task_lane import TaskLane

        here: Any = place.get()
        _inside.set(self)
        TaskLane(here.workers, self, self._code, _SLICE).run()

    def paid(self) -> None:
        """See ``Tasks``."""
        with self._lock:
            self._owed -= 1

    # For the lanes of processes.

    def take(self) -> Task | None:
        """See ``Tasks``."""
        try:
            return self._pending.popleft()
        except IndexError:
            return None

    def give_back(self, tasks: Sequence[Task]) -> None:
        """See ``Tasks``."""
        with self._lock:
            self._pending.extendleft(reversed(tasks))
            latches = [self._idle.pop() for _ in tasks if self._idle]
        for latch in latches:
            latch.release()
        self._dispatch()

    def share(self, held: int) -> int:
        """See ``Tasks``."""
        return -(-(len(self._pending) + held) // self.max_workers)

    def has_room(self) -> bool:
        """See ``Tasks``."""
        return bool(self._idle) or self._in_flight < self._limit

    def more_soon(self) -> bool:
        """Wait a moment for another task; whether there is one."""
        latch = threading.Lock()
        latch.acquire()
        with self._lock:
            if self._pending or self._closed or _exiting:
                return bool(self._pending)
            self._idle.append(latch)
        latch.acquire(timeout=_LINGER)
        with self._lock:
            if latch in self._idle:
                self._idle.remove(latch)
            return bool(self._pending)

    def ended(self, task: Task, error: BaseException | None, value: Any) -> None:
        """See ``Tasks``."""
        self._answer(task.future, error, value)

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

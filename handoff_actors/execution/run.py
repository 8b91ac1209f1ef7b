"""What the caller of a run holds while it goes on: ``Run``, a future of its ``ExecutionResult``."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Generator, Hashable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from handoff_actors.actors.latches import heard, passed
from handoff_actors.errors import NotStartedError, RunCancelledError
from handoff_actors.execution.context import place
from handoff_actors.execution.result import ExecutionResult
from handoff_actors.execution.run_data import FREED, MISSING, RunData
from handoff_actors.execution.runner import Cancel, Listen

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        total: functions to run.
        finished: functions that have.
        state: ``"running"``, ``"succeeded"``, ``"failed"`` or ``"cancelled"``.
    """

    total: int
    finished: int
    state: str


def while_lent(wait: Callable[[], _T]) -> _T:
    """Wait; inside a function, what it holds is lent to others meanwhile."""
    here = place.get()
    if here is None:
        return wait()
    loan = here.lend()
    try:
        return wait()
    finally:
        here.reclaim(loan)


_RUNNING: Final = "RUNNING"
_FINISHED: Final = "FINISHED"


class Run(concurrent.futures.Future["ExecutionResult"]):
    """One execution of a DAG: a future of its ``ExecutionResult``, and awaitable.

    It waits by locks of its own, as a condition costs a thread that waits several times as much.
    What ``concurrent.futures`` itself looks at is there, in its form.
    """

    def __init__(self, dag_id: Hashable) -> None:
        # As the base's, but for a lock in place of the condition that is never waited for.
        self._condition = threading.Lock()  # type: ignore[assignment]
        self._state = _RUNNING
        self._result = self._exception = None
        self._waiters = []
        self._done_callbacks: list[Any] = []
        self._sleepers: list[threading.Lock] = []
        self._data: RunData | None = None
        self.dag_id = dag_id

    @property
    def key(self) -> int:
        """What its runtime knows it by."""
        assert self._data is not None, "the run was not admitted"
        return self._data.key

    def bind(self, data: RunData) -> None:
        """Say which run this is the future of; called once, when it is admitted."""
        self._data = data

    def done(self) -> bool:
        """Whether it has its answer."""
        return self._state is _FINISHED

    def result(self, timeout: float | None = None) -> ExecutionResult:
        """Wait for the outcome.

        Inside a function, what the function holds is lent to others meanwhile, so that a run
        that waits for another never keeps it from running.

        Args:
            timeout: seconds to wait; the run goes on after it.

        Raises:
            TimeoutError: no outcome within ``timeout``.
            ExecutionError: how the run ended, if it did not succeed.
        """
        if self._state is not _FINISHED:
            self._wait(timeout)
        if self._exception is None:
            assert self._result is not None
            return self._result
        try:
            raise self._exception
        finally:
            # The error's traceback has this frame: no cycle through it.
            del self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As ``result``, with the error returned."""
        if self._state is not _FINISHED:
            self._wait(timeout)
        return self._exception

    def _wait(self, timeout: float | None) -> None:
        here = place.get()
        if here is None:
            self._sleep(timeout)
            return
        loan = here.lend()
        try:
            self._sleep(timeout)
        finally:
            here.reclaim(loan)

    def _sleep(self, timeout: float | None) -> None:
        latch = threading.Lock()
        latch.acquire()
        self._sleepers.append(latch)
        # Whoever settles says so first and looks for sleepers then; here it is the other way round.
        if self._state is _FINISHED:
            return
        if not passed(latch, timeout):
            self._sleepers.remove(latch)
            if self._state is _FINISHED:
                return
            raise TimeoutError(f"the run of DAG {self.dag_id!r} did not end within {timeout} s")

    def cancel(self) -> bool:
        """Cancel the run, also while it runs.

        Returns:
            True if it ends cancelled; False if it has ended already.
        """
        error = RunCancelledError(
            f"the run of DAG {self.dag_id!r} was cancelled; what had finished stays readable",
            dag_id=self.dag_id,
            function_id=None,
        )
        return self.end(error) or self.cancelled()

    def end(self, error: BaseException) -> bool:
        """Have the run end with ``error``, also while it runs; False if it has ended already."""
        if not self.settle(None, error):
            return False
        data = self._data
        if data is not None:
            data.stopping = True
            data.ref.cast(Cancel(error))
        return True

    def settle(self, result: ExecutionResult | None, error: BaseException | None) -> bool:
        """Give the answer; False if there is one already."""
        with self._condition:
            if self._state is _FINISHED:
                return False
            self._result, self._exception = result, error
            self._state = _FINISHED
            for waiter in self._waiters:
                if error is not None:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
        # A copy: one that gives up waiting leaves the list meanwhile.
        for latch in self._sleepers[:]:
            latch.release()
        self._invoke_callbacks()  # type: ignore[attr-defined]  # typeshed leaves it out
        return True

    def set_result(self, result: ExecutionResult) -> None:
        """As the standard library's; for those who make futures of their own."""
        if not self.settle(result, None):
            raise concurrent.futures.InvalidStateError(f"{self!r} has its answer")

    def set_exception(self, exception: BaseException | None) -> None:
        """As the standard library's; for those who make futures of their own."""
        if not self.settle(None, exception):
            raise concurrent.futures.InvalidStateError(f"{self!r} has its answer")

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._state is _FINISHED and isinstance(self._exception, RunCancelledError)

    def progress(self) -> Progress:
        """How far it is; costs next to nothing."""
        data = self._data
        if data is None:
            return Progress(0, 0, "running")
        state = "cancelled" if self.cancelled() else data.state
        return Progress(data.plan.n, data.finished, state)

    def as_completed(self, timeout: float | None = None) -> Iterator[tuple[Hashable, Any]]:
        """Yield ``(id, value)`` of each function as it finishes; then raise, if the run failed.

        Args:
            timeout: seconds to wait for the next one.

        Raises:
            TimeoutError: nothing finished within ``timeout``.
            ExecutionError: how the run ended, after all that had finished.
        """
        data = self._data
        assert data is not None, "the run was not admitted"
        queue: SimpleQueue[int | None] = SimpleQueue()
        told: list[int | None] = []

        def wait(seconds: float) -> bool:
            with contextlib.suppress(Empty):
                told.append(queue.get(timeout=seconds))
            return bool(told)

        data.ref.cast(Listen(queue))
        # Whatever becomes of the runner: the run has one end.
        self.add_done_callback(lambda _: queue.put(None))
        seen: set[int] = set()  # a runner that crashed may tell of some twice
        while True:
            if not while_lent(lambda: heard(wait, timeout)):
                raise TimeoutError(f"no function finished within {timeout} s")
            if (index := told.pop()) is None:
                break
            if index not in seen:
                seen.add(index)
                yield from self._completed(index)
        untold = [i for i in range(data.plan.n) if i not in seen and data.peek(i) is not MISSING]
        for index in sorted(untold, key=data.ends.__getitem__):
            yield from self._completed(index)
        self.result(timeout)

    def _completed(self, index: int) -> Iterator[tuple[Hashable, Any]]:
        data = self._data
        assert data is not None
        value = data.read(index)
        if value is not FREED:
            yield data.plan.ids[index], value

    def __await__(self) -> Generator[Any, None, ExecutionResult]:
        # Whoever awaits has imported it; most programs need not pay for it.
        import asyncio

        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not waiter.done():
                waiter.set_result(None)

        def wake(_: Any) -> None:
            try:
                loop.call_soon_threadsafe(finish)
            except RuntimeError:
                return  # the loop was closed: nobody waits any more

        self.add_done_callback(wake)
        yield from waiter
        return super().result(0)

    def __repr__(self) -> str:
        progress = self.progress()
        return f"<Run of {self.dag_id!r}: {progress.state}, {progress.finished}/{progress.total}>"


class RunHandle:
    """What code in a worker process holds of a run that it submitted to its node."""

    def __init__(self, key: int, dag_id: Hashable) -> None:
        self.key = key
        self.dag_id = dag_id

    def _ask(self, what: str, *args: Any) -> Any:
        here = place.get()
        if here is None:
            raise NotStartedError("the handle of a run is for the function that submitted it")
        return here.home().ask_run(self.key, what, *args)

    def result(self, timeout: float | None = None) -> ExecutionResult:
        """As ``Run.result``."""
        outcome: ExecutionResult = self._ask("result", timeout)
        return outcome

    def done(self) -> bool:
        """As ``Run.done``."""
        return bool(self._ask("done"))

    def cancel(self) -> bool:
        """As ``Run.cancel``."""
        return bool(self._ask("cancel"))

    def progress(self) -> Progress:
        """As ``Run.progress``."""
        progress: Progress = self._ask("progress")
        return progress

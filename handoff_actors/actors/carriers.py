"""The threads that carry actors and workers: parked when idle, made on demand, one set a runtime.

An actor has no thread of its own. A job (draining a mailbox, running functions) is carried by the
thread that was parked last, or by a new one; so a thousand idle actors cost no thread, and a job
never waits behind another. ``defer`` is for a job that should follow the one in progress on the
same thread: a hop to another thread costs more than most jobs do. A carrier may have a ``Duty``, a
loop that does brief jobs in between, and loses it to another one when a job is not brief.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

from handoff_actors.events import log

if TYPE_CHECKING:
    from handoff_actors.actors.duty import Duty

Job = Callable[[], None]

_IDLE_SECONDS = 10.0
_AGAIN = 0.05
"""Seconds until a thread that could not be started is asked for again."""


class Carrier(threading.Thread):
    """One thread of the set.

    Args:
        owner: the set.
        name: of the thread.
        job: its first.

    Attributes:
        deferred: what follows the job in progress.
        busy: whether the job in progress will go on for long.
        duty: what it attends to between brief jobs.
        ends: whether it ends after its job, instead of waiting for another.
    """

    def __init__(self, owner: Carriers, name: str, job: Job | None) -> None:
        super().__init__(name=name, daemon=True)
        self.owner = owner
        self.job = job
        self.wake = threading.Lock()
        self.wake.acquire()
        self.deferred: deque[Job] = deque()
        self.busy = False
        self.duty: Duty | None = None
        self.ends = False

    def run(self) -> None:
        """Do jobs, until there is none for long."""
        _local.carrier = self
        owner = self.owner
        deferred, backlog = self.deferred, owner.backlog
        while (job := self.job) is not None:
            self.job = None
            while True:
                self.do(job)
                if deferred:
                    job = deferred.popleft()
                elif not backlog or (job := owner.waiting()) is None:
                    break
            del job
            if not self.ends:
                owner.park(self)
        owner.gone(self)

    def do(self, job: Job) -> None:
        """One job, on this thread."""
        try:
            job()
        except BaseException as error:  # one job must not end its carrier
            # Jobs have walls of their own; what still arrives here is our bug.
            log.error("carrier_job_raised", exc_info=error)
        self.busy = False


class _Local(threading.local):
    carrier: Carrier | None = None


_local = _Local()


class Carriers:
    """An elastic set of daemon threads.

    Args:
        name: the prefix of the threads' names.

    Attributes:
        opened: when it was made, monotonic seconds.
        backlog: jobs that wait for a thread, as the machine gives no more.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._numbers = count(1)
        self._parked: deque[Carrier] = deque()
        self._lock = threading.Lock()
        self._all: set[Carrier] = set()
        self._closed = False
        self.opened = time.monotonic()
        self.backlog: deque[Job] = deque()
        self._retry: Callable[[float, Callable[[], None]], object] | None = None

    def submit(self, job: Job) -> None:
        """Carry ``job`` on a parked thread or a new one. Jobs of a closed set still run.

        If the machine gives no more threads, it waits for one that is free, or that can be had.
        """
        try:
            carrier = self._parked.pop()
        except IndexError:
            self._hire(job)
        else:
            carrier.job = job
            carrier.wake.release()

    def _hire(self, job: Job) -> None:
        carrier = Carrier(self, f"{self._name}-{next(self._numbers)}", job)
        with self._lock:
            self._all.add(carrier)
        try:
            carrier.start()
        except RuntimeError as error:
            with self._lock:
                self._all.discard(carrier)
            log.error("thread_not_started", system=self._name, error=str(error))
            self.backlog.append(job)
            self._again()

    def _again(self) -> None:
        """Something waits for a thread: see that it gets one."""
        if self._parked:
            self._serve()
        elif self._retry is not None:
            self._retry(_AGAIN, self._serve)

    def _serve(self) -> None:
        job = self.waiting()
        if job is not None:
            self.submit(job)

    def waiting(self) -> Job | None:
        """Take the job that has waited longest for a thread, if there is one."""
        try:
            return self.backlog.popleft()
        except IndexError:
            return None

    def on_shortage(self, call_later: Callable[[float, Callable[[], None]], object]) -> None:
        """Say how to try again later when a thread could not be started."""
        self._retry = call_later

    def defer(self, job: Job, *, brief: bool = False) -> None:
        """Carry ``job`` on this thread after its current job, if it is ours and not busy.

        Args:
            job: what is to be done.
            brief: it will not take long, as far as is known: a thread with a duty takes it too.
        """
        carrier = _local.carrier
        if (
            carrier is not None
            and carrier.owner is self
            and not carrier.busy
            and (brief or carrier.duty is None)
        ):
            carrier.deferred.append(job)
        else:
            self.submit(job)

    def set_busy(self, busy: bool) -> None:
        """Say that the current job will go on for long: nothing is deferred to its end then."""
        carrier = _local.carrier
        if carrier is not None:
            carrier.busy = busy
            if busy and carrier.deferred:
                self.release_deferred()

    def release_deferred(self) -> None:
        """Hand what this thread deferred to other threads: to be called before blocking.

        Its duty, too, if it is at a job.
        """
        carrier = _local.carrier
        if carrier is not None:
            if carrier.duty is not None:
                carrier.duty.leave(carrier)
            while carrier.deferred:
                carrier.owner.submit(carrier.deferred.popleft())

    def current(self) -> Carrier | None:
        """The calling thread, if it is one of this set."""
        carrier = _local.carrier
        return carrier if carrier is not None and carrier.owner is self else None

    def carries_current_thread(self) -> bool:
        """Whether the calling thread is one of this set."""
        return self.current() is not None

    def park(self, carrier: Carrier) -> None:
        """Wait for the next job, which is then in ``carrier.job``; None means: end."""
        if self._closed:
            return
        self._parked.append(carrier)
        if self._closed and self._unpark(carrier):
            return
        while not carrier.wake.acquire(timeout=_IDLE_SECONDS):
            # If somebody took us off the stack in this very moment, the wake-up is on its way.
            if self._unpark(carrier):
                return

    def _unpark(self, carrier: Carrier) -> bool:
        try:
            self._parked.remove(carrier)
        except ValueError:
            return False
        return True

    def is_spare(self, carrier: Carrier) -> bool:
        """Whether a thread waits for a job that may still come."""
        return not self._closed and carrier in self._parked

    def gone(self, carrier: Carrier) -> None:
        """Forget a thread that ends."""
        with self._lock:
            self._all.discard(carrier)

    def threads(self) -> list[threading.Thread]:
        """The threads alive now, parked ones included."""
        with self._lock:
            return list(self._all)

    def close(self, timeout: float) -> list[threading.Thread]:
        """End the parked threads and wait for the busy ones.

        Args:
            timeout: seconds to wait for all together.

        Returns:
            The threads that were still busy then; they end with their jobs.
        """
        self._closed = True
        deadline = time.monotonic() + timeout
        current = threading.current_thread()
        left: list[threading.Thread] = []
        for thread in self.threads():
            self._end_parked()
            if thread is not current:
                while thread.is_alive() and (wait := deadline - time.monotonic()) > 0:
                    thread.join(min(wait, 0.02))
                    self._end_parked()
                if thread.is_alive():
                    left.append(thread)
        return left

    def _end_parked(self) -> None:
        while self._parked:
            try:
                carrier = self._parked.pop()
            except IndexError:
                return
            carrier.job = None
            carrier.wake.release()

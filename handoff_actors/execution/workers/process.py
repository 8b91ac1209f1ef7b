"""The worker processes of a runtime: a pool that keeps a warm one ready.

Guarantees that no process is started before one is wanted, that whoever acquires a worker gets one
that was alive a moment ago, that a dead process is noticed and replaced without being asked for,
and that a closed pool leaves no process, thread or descriptor.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from handoff_actors.cluster.spawner import Spawner
from handoff_actors.errors import CrashedAttempt, HandoffError
from handoff_actors.execution.workers.exits import WorkerLost
from handoff_actors.execution.workers.packing import Outcome, WorkItem, check_call
from handoff_actors.execution.workers.process_worker import ProcessWorker
from handoff_actors.execution.workers.spawn import start

__all__ = ["Outcome", "ProcessPool", "ProcessWorker", "WorkItem", "WorkerLost", "check_call"]

OnRequest = Callable[[ProcessWorker, int, str, tuple[Any, ...], dict[str, Any]], Any]

_TRIES = 3
"""Workers that may end by themselves before they are ready: nothing can be started here then."""
_KILLED_TRIES = 30
"""The same of workers that are killed: by whom does not say that others will be."""
_START_TIMEOUT = 60.0
"""Seconds a worker may take to be ready."""
_KEPT_CODE = 1 << 20
"""Bytes of calls that an idle worker may remember."""


class ProcessPool:
    """See the module.

    Args:
        name: of its threads.
        node: the name of the node.
        limit: how many idle workers are kept; how many are at work is not bounded here.
        on_request: carries out what code in a worker asks of the runtime: worker, attempt, name,
            args, kwargs; called on a thread of its own, may block.
        on_started: told the process id of each worker once it is ready.
        on_lost: told of each worker that died and was not ended by us.
    """

    def __init__(
        self,
        name: str,
        node: str,
        limit: int,
        on_request: OnRequest,
        on_started: Callable[[int], None],
        on_lost: Callable[[CrashedAttempt], None],
    ) -> None:
        self._name = name
        self._node = node
        self._limit = limit
        self._on_request = on_request
        self._on_started = on_started
        self._on_lost = on_lost
        self._spawner = Spawner(f"{name}-spawner")
        self._changed = threading.Condition(threading.Lock())
        self._all: dict[int, ProcessWorker] = {}
        self._idle: deque[ProcessWorker] = deque()  # the one used last is at the right
        self._held: set[ProcessWorker] = set()
        self._starting = 0
        self._wanted = 0
        self._failures = 0
        self._killed = 0
        self._failure = "none got ready in time"
        self._closed = False
        self._epoll: select.epoll | None = None
        self._bell = -1
        self._by_fd: dict[int, ProcessWorker] = {}
        self._watcher: threading.Thread | None = None
        self._requests: set[threading.Thread] = set()

    # For lanes.

    def acquire(self) -> ProcessWorker:
        """A live worker; blocks until one is ready.

        Raises:
            HandoffError: the pool is closed, or workers die before they are ready.
        """
        end = monotonic() + _START_TIMEOUT
        with self._changed:
            self._failures = self._killed = 0
            self._wanted += 1
            try:
                while True:
                    if self._closed:
                        raise HandoffError("the worker processes were stopped with their runtime")
                    # One may have died and not been noticed: no attempt should find that out.
                    while self._idle and self._idle[-1].dead():
                        self._idle.pop()
                    if self._idle:
                        worker = self._idle.pop()
                        self._held.add(worker)
                        break
                    if self._hopeless() or monotonic() > end:
                        raise HandoffError(
                            f"no worker process can be started on node {self._node!r}: "
                            f"{self._failure}; what it printed to stderr says more"
                        )
                    self._top_up()
                    self._changed.wait(end - monotonic())
            finally:
                self._wanted -= 1
            self._top_up()
            return worker

    def release(self, worker: ProcessWorker) -> None:
        """Give a worker back, whatever state it is in."""
        if worker.reusable and worker.taught > _KEPT_CODE:
            with contextlib.suppress(WorkerLost):
                worker.forget()
        with self._changed:
            self._held.discard(worker)
            dead = worker.pid not in self._all
            if not dead:
                if worker.reusable and not self._closed and len(self._idle) <= self._limit:
                    self._idle.append(worker)
                    self._changed.notify()
                elif worker.reusable:
                    worker.end()
                else:
                    worker.kill()
        if dead:
            worker.close(0.0)

    def ready(self) -> set[int]:
        """The process ids of workers that are up."""
        with self._changed:
            return {pid for pid, worker in self._all.items() if worker.ready and worker.alive}

    def describe(self) -> dict[str, Any]:
        """Counts and process ids for ``status()``."""
        with self._changed:
            return {
                "idle": len(self._idle),
                "starting": self._starting,
                "pids": sorted(self._all),
            }

    # Starting.

    def _top_up(self) -> None:
        """Start what is wanted; when nobody waits, one to spare. The lock is held."""
        missing = max(self._wanted, 1) - len(self._idle) - self._starting
        for _ in range(missing):
            self._starting += 1
            self._spawner.submit(self._start)

    def _hopeless(self) -> bool:
        return self._failures >= _TRIES or self._killed >= _KILLED_TRIES

    def _start(self) -> None:
        """On the spawner's thread."""
        with self._changed:
            if self._closed:
                self._starting -= 1
                return
            if self._watcher is None:
                self._begin_watching()
        try:
            worker = ProcessWorker(start(self._node), self._node, self._requested)
        except OSError as error:
            with self._changed:
                self._starting -= 1
                self._failures += 1
                self._failure = str(error)
                self._changed.notify_all()
            return
        with self._changed:
            self._all[worker.pid] = worker
            if self._closed:
                worker.kill()
            assert self._epoll is not None
            for fd in worker.descriptors():
                self._by_fd[fd] = worker
                self._epoll.register(fd, select.EPOLLIN)

    # The watcher: one thread reads the control sockets of all workers and sees them die.

    def _begin_watching(self) -> None:
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._watcher = threading.Thread(
            target=self._watch, name=f"{self._name}-processes", daemon=True
        )
        self._watcher.start()

    def _watch(self) -> None:
        epoll = self._epoll
        assert epoll is not None
        while True:
            for fd, _ in epoll.poll():
                if fd == self._bell:
                    return
                worker = self._by_fd.get(fd)
                if worker is None:
                    continue
                was_ready = worker.ready
                more = worker.on_control()
                if worker.ready and not was_ready:
                    self._ready(worker)
                if not more or fd != worker.descriptors()[0]:
                    self._ended(worker)

    def _ready(self, worker: ProcessWorker) -> None:
        with self._changed:
            self._starting -= 1
            self._failures = self._killed = 0
            self._idle.appendleft(worker)
            self._changed.notify()
        self._on_started(worker.pid)

    def _ended(self, worker: ProcessWorker) -> None:
        """A process is dead: stop watching it, and replace it if it is missed."""
        crash = worker.crash()
        with self._changed:
            if self._all.pop(worker.pid, None) is None:
                return
            for fd in worker.descriptors():
                del self._by_fd[fd]
                assert self._epoll is not None
                self._epoll.unregister(fd)
            if not worker.ready:
                self._starting -= 1
                if crash.exit_code == -signal.SIGKILL:
                    self._killed += 1
                else:
                    self._failures += 1
                self._failure = f"process {crash.pid} {crash.reason} before it was ready"
            with contextlib.suppress(ValueError):
                self._idle.remove(worker)
            if not self._closed and not self._hopeless() and not worker.ending:
                self._top_up()
            held = worker in self._held
            news = worker.ready and not worker.ending
            self._changed.notify_all()
        if not held:
            worker.close(0.0)
        if news:
            self._on_lost(crash)

    # Calls of the library from inside workers.

    def _requested(
        self,
        worker: ProcessWorker,
        token: int,
        number: int,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        def carry_out() -> None:
            try:
                answer, ok = self._on_request(worker, token, name, args, kwargs), True
            except BaseException as error:
                answer, ok = error, False
            try:
                worker.reply(number, ok, answer)
            finally:
                self._requests.discard(threading.current_thread())

        thread = threading.Thread(target=carry_out, name=f"{self._name}-{name}", daemon=True)
        self._requests.add(thread)
        thread.start()

    # The end.

    def close(self, timeout: float) -> None:
        """End all workers; those that do not end within ``timeout`` seconds are killed."""
        end = monotonic() + timeout
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for worker in self._all.values():
                if worker.ready:
                    worker.end()
                else:
                    worker.kill()
            self._changed.wait_for(lambda: not self._all, timeout)
            for worker in self._all.values():
                worker.kill()
            watched = self._watcher is not None
        self._spawner.close(max(1.0, end - monotonic()))
        with self._changed:
            self._changed.wait_for(lambda: not self._all, 5.0)
        if watched and self._watcher is not None and self._epoll is not None:
            os.eventfd_write(self._bell, 1)
            self._watcher.join(max(1.0, end - monotonic()))
            self._epoll.close()
            os.close(self._bell)
            self._watcher = None
        for worker in list(self._held):
            worker.close(0.0)
        for thread in list(self._requests):
            thread.join(max(0.1, end - monotonic()))

"""The worker processes of a runtime: a pool that keeps a warm one ready.

Guarantees that no process is started before one is wanted, that whoever acquires a worker gets one
that was alive a moment ago, that a dead process is noticed and replaced without being asked for,
and that a closed pool leaves no process, thread or descriptor.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from handoff_actors.errors import CrashedAttempt, HandoffError
from handoff_actors.execution.workers.process_worker import (
    Outcome,
    ProcessWorker,
    WorkerLost,
    WorkItem,
    check_call,
)
from handoff_actors.execution.workers.spawn import Spawner, start

__all__ = ["Outcome", "ProcessPool", "ProcessWorker", "WorkItem", "WorkerLost", "check_call"]

OnRequest = Callable[[ProcessWorker, int, str, tuple[Any, ...], dict[str, Any]], Any]

_TRIES = 3
_START_TIMEOUT = 60.0
"""Seconds a process may take to start."""


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
        self._idle: deque[ProcessWorker] = deque()
        self._all: dict[int, ProcessWorker] = {}
        self._starting = 0
        self._wanted = 0
        self._failures = 0
        self._failure = ""
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
            HandoffError: the pool is closed, or processes die before they are ready.
        """
        end = monotonic() + _START_TIMEOUT * _TRIES
        with self._changed:
            self._wanted += 1
            self._failures = 0
            try:
                while True:
                    if self._closed:
                        raise HandoffError("the runtime's worker processes were stopped")
                    while self._idle:
                        worker = self._idle.pop()
                        if worker.alive:
                            return worker
                    if self._failures >= _TRIES or monotonic() > end:
                        raise HandoffError(
                            f"a worker process cannot be started on node {self._node!r}: "
                            f"{self._failure or 'none got ready in time'}; what it printed to "
                            "stderr says more"
                        )
                    self._top_up()
                    self._changed.wait(end - monotonic())
            finally:
                self._wanted -= 1
                if not self._closed:
                    self._top_up()

    def release(self, worker: ProcessWorker) -> None:
        """Give a worker back, whatever state it is in."""
        with self._changed:
            if worker.alive and not worker.ending and not self._closed:
                if len(self._idle) <= self._limit:
                    self._idle.append(worker)
                    self._changed.notify()
                    return
        self._spawner.submit(lambda: self._dispose(worker, 1.0))

    def describe(self) -> dict[str, Any]:
        """Counts and process ids for ``status()``."""
        with self._changed:
            return {
                "idle": len(self._idle),
                "starting": self._starting,
                "pids": sorted(self._all),
            }

    # Starting. The lock is held.

    def _top_up(self) -> None:
        """Start what is wanted; when nobody waits, one to spare."""
        missing = max(self._wanted, 1) - len(self._idle) - self._starting
        for _ in range(missing):
            self._starting += 1
            self._spawner.submit(self._start)

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
            self._by_fd[worker.fileno_control()] = worker
            if worker.fileno_exit() >= 0:
                self._by_fd[worker.fileno_exit()] = worker
            assert self._epoll is not None
            for fd in (worker.fileno_control(), worker.fileno_exit()):
                if fd >= 0:
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
                new = not worker.ready
                more = worker.on_control()
                if new and worker.ready:
                    self._ready(worker)
                if not more or fd == worker.fileno_exit():
                    self._ended(worker)

    def _ready(self, worker: ProcessWorker) -> None:
        with self._changed:
            self._starting -= 1
            self._failures = 0
            self._idle.appendleft(worker)
            self._changed.notify()
        self._on_started(worker.pid)

    def _unwatch(self, worker: ProcessWorker) -> None:
        """Stop watching it. The lock is held."""
        for fd in (worker.fileno_control(), worker.fileno_exit()):
            if fd >= 0 and self._by_fd.pop(fd, None) is not None and self._epoll is not None:
                self._epoll.unregister(fd)

    def _ended(self, worker: ProcessWorker) -> None:
        """A process is dead."""
        crash = worker.crash()
        with self._changed:
            self._unwatch(worker)
            if not worker.ready:
                self._starting -= 1
                self._failures += 1
                self._failure = f"process {crash.pid} {crash.reason} before it was ready"
            was_idle = worker in self._idle
            if was_idle:
                self._idle.remove(worker)
            if not self._closed and self._failures < _TRIES:
                if self._wanted or not worker.ending:
                    self._top_up()
            self._changed.notify_all()
        if was_idle or not worker.ready:
            self._dispose(worker, 0.0)
        if worker.ready and not worker.ending:
            self._on_lost(crash)

    def _dispose(self, worker: ProcessWorker, timeout: float) -> None:
        """End a process and free what it held."""
        worker.end()
        with self._changed:
            self._unwatch(worker)
            self._all.pop(worker.pid, None)
        worker.close(timeout)

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
            except BaseException as error:  # noqa: BLE001  it is the caller's, in the worker
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
            workers = list(self._all.values())
            self._changed.notify_all()
        for worker in workers:
            worker.end()
        for worker in workers:
            self._dispose(worker, end - monotonic())
        self._spawner.close(max(1.0, end - monotonic()))
        with self._changed:
            late = list(self._all.values())  # started while we closed
        for worker in late:
            self._dispose(worker, 0.0)
        if self._watcher is not None:
            os.eventfd_write(self._bell, 1)
            self._watcher.join(max(1.0, end - monotonic()))
            assert self._epoll is not None
            self._epoll.close()
            os.close(self._bell)
        for thread in list(self._requests):
            thread.join(max(0.1, end - monotonic()))

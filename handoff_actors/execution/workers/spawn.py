"""Starting worker processes.

Guarantees that all are started by one thread, which lives until the last of them is gone (the
kernel ends a child when the *thread* that started it ends), that they see the same interpreter
flags, arguments, module path, directory and environment as their parent, that none imports the
user's ``__main__``, and that they hold no descriptor but two sockets and the standard streams.
"""

from __future__ import annotations

import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bootstrap.py")


@dataclass(slots=True)
class Started:
    """A process that was started; whoever has it closes what it holds.

    Attributes:
        process: the process.
        work: our end of the socket for attempts and outcomes; does not block.
        control: our end of the socket for everything else; does not block.
        pidfd: a descriptor that can be read once the process is dead; -1 where there is none.
        began: one double in memory we share with it: ``perf_counter()`` when it began to call the
            function it is at.
    """

    process: subprocess.Popen[bytes]
    work: socket.socket
    control: socket.socket
    pidfd: int
    began: mmap.mmap


def start(node: str) -> Started:
    """Start a worker process; to be called on the thread of a ``Spawner`` only.

    Args:
        node: the name of the node it works for.

    Raises:
        OSError: the system cannot.
    """
    sockets: list[socket.socket] = []
    page = os.memfd_create("handoff-began", os.MFD_CLOEXEC)
    try:
        os.ftruncate(page, 8)
        began = mmap.mmap(page, 8)
        for _ in range(2):
            sockets += socket.socketpair()
        work, work_there, control, control_there = sockets
        there = (work_there.fileno(), control_there.fileno(), page)
        process = subprocess.Popen(
            [
                sys.executable,
                *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]  # noqa: SLF001
                _SCRIPT,
                *map(str, there),
                str(os.getpid()),
                node,
                str(len(sys.argv)),
                *map(str, sys.argv),
                *[entry for entry in sys.path if isinstance(entry, str)],
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=there,
        )
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    finally:
        os.close(page)
    work_there.close()
    control_there.close()
    work.setblocking(False)
    control.setblocking(False)
    try:
        pidfd = os.pidfd_open(process.pid)
    except (OSError, AttributeError):
        pidfd = -1
    return Started(process, work, control, pidfd, began)


class Spawner:
    """A thread that does what has to be done on the thread that starts processes.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Have the thread call ``job``, which must not raise; the thread starts when needed."""
        self._jobs.put(job)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        # Children inherit the mask: Ctrl-C must not reach one before it can ignore it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        while (job := self._jobs.get()) is not None:
            job()

    def close(self, timeout: float) -> None:
        """End the thread, and with it every process it started that still lives.

        Args:
            timeout: seconds to wait for it.
        """
        with self._lock:
            thread = self._thread
        if thread is not None:
            self._jobs.put(None)
            thread.join(timeout)

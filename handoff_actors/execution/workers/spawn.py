"""Starting worker processes.

Guarantees, beside those of the ``Spawner`` they are started by, that they see the same interpreter
flags, arguments, module path, directory and environment as their parent, that none imports the
user's ``__main__``, and that they hold no descriptor but two sockets and the standard streams.
"""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
from dataclasses import dataclass

from handoff_actors.execution.workers.relay import level_here

PAGE = 16
"""Bytes of the memory shared with each process."""
_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bootstrap.py")


@dataclass(slots=True)
class Started:
    """A process that was started; whoever has it closes what it holds.

    Attributes:
        process: the process.
        work: our end of the socket for attempts and outcomes; does not block.
        control: our end of the socket for everything else; does not block.
        pidfd: a descriptor that can be read once the process is dead; -1 where there is none.
        began: two doubles in memory we share with it: ``perf_counter()`` when it began to call the
            function it is at, and the attempt that it last said to begin.
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
        os.ftruncate(page, PAGE)
        began = mmap.mmap(page, PAGE)
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
            env={**os.environ, "HANDOFF_LOG_LEVEL": str(level_here())},
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

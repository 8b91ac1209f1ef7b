"""What a process has, and what has come since: threads, processes, descriptors, shared memory.

Reads ``/proc`` and nothing else, so it needs no further package. Others may work beside it: what
tests of another process hold is not counted, nor are threads that wait for the work of a runtime
which was there before and still is.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Iterable

from handoff_actors.actors.carriers import Carrier

PATIENCE = 5.0
"""Seconds that what is just ending has to be gone."""


class Leaks:
    """A snapshot of what this process has; ``new()`` tells what is more than that now.

    Daemon threads and what lives for the whole process are no exception: take the snapshot after
    they are there. A runtime that several tests share is: it has as many threads as were ever at
    work at once, so another one that waits for work is not counted; one that is at work is.
    """

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.threads = set(threading.enumerate())
        self.children = descendants()
        self.files = open_files()
        self.shared = shared_memory()

    def new(self) -> list[str]:
        """In words, what is more than before; empty is good."""
        found = [
            f"thread {thread.name}" for thread in threading.enumerate()
            if thread not in self.threads and not self._is_spare(thread)
        ]  # fmt: skip
        found += [f"process {pid} ({command(pid)})" for pid in descendants() - self.children]
        files = open_files()
        if len(files) > len(self.files):
            # A number is used again, so what is behind it counts, and how many there are.
            before = sorted(self.files.values())
            more = [name for name in files.values() if not _take(before, name)]
            found += [f"{_kind(name)} {name}" for name in more] or [
                f"{len(files) - len(self.files)} descriptors more"
            ]
        segments = shared_memory() - self.shared
        if segments:
            segments = _ours(segments) & shared_memory()  # one that is gone meanwhile has no holder
        found += [f"shared memory {name}" for name in sorted(segments)]
        return found

    def _is_spare(self, thread: threading.Thread) -> bool:
        """Whether it waits for work of a runtime that was there before, and still is."""
        if not isinstance(thread, Carrier):
            return False
        return thread.owner.opened <= self.since and thread.owner.is_spare(thread)

    def check(self, patience: float = PATIENCE) -> None:
        """Wait until there is nothing new.

        Raises:
            AssertionError: after ``patience`` seconds there still was; it is listed.
        """
        end = time.monotonic() + patience
        collected = False
        while found := self.new():
            if time.monotonic() > end:
                if not collected:  # what only waits for the collector is no leak
                    gc.collect()
                    collected = True
                    continue
                raise AssertionError("left behind: " + "; ".join(found))
            time.sleep(0.002)


def _take(names: list[str], name: str) -> bool:
    try:
        names.remove(name)
    except ValueError:
        return False
    return True


def _kind(name: str) -> str:
    return "socket" if name.startswith("socket:") else "descriptor"


def open_files() -> dict[int, str]:
    """The descriptors of this process, and what each is."""
    found: dict[int, str] = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of the listing itself is closed by now
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def shared_memory() -> set[str]:
    """The named segments of shared memory of this machine that are this user's."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir("/dev/shm"):  # noqa: S108  it is looked at, not written
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_uid == os.getuid():
                    found.add(entry.name)
    return found


def _ours(segments: set[str]) -> set[str]:
    """Those that this process or one below it holds, and those that nobody holds who lives.

    A semaphore that nobody holds is not counted: its name does not say whose it was, and
    ``multiprocessing`` removes those of this process when it ends.
    """
    ours = {os.getpid(), *descendants()}
    held: set[str] = set()
    others: set[str] = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            (held if int(name) in ours else others).update(_mapped(name) & segments)
    unheld = {name for name in segments - held - others if not name.startswith("sem.")}
    return held | unheld


def _mapped(pid: str) -> set[str]:
    """What a process has mapped or open in shared memory; nothing if that may not be seen."""
    paths: list[str] = []
    with (
        contextlib.suppress(OSError),
        open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file,
    ):
        paths += [line.rstrip("\n").partition("/dev/shm/")[2] for line in file]  # noqa: S108
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                path = os.readlink(f"/proc/{pid}/fd/{fd}")
                paths.append(path.partition("/dev/shm/")[2])  # noqa: S108
    return {path for path in paths if path}


def descendants() -> set[int]:
    """The processes below this one, zombies included."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parents[int(name)] = int(_stat(name)[1])
    found: set[int] = set()
    todo: Iterable[int] = [os.getpid()]
    while todo:
        todo = [pid for pid, parent in parents.items() if parent in todo]
        found.update(todo)
    return found


def _stat(pid: str) -> list[str]:
    """The fields of a process from its state on; its name may contain anything."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def command(pid: int) -> str:
    """What a process was started as."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()[:120]
    except OSError:
        return "gone"

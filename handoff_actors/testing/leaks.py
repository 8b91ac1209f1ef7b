"""What a process has, and what has come since: threads, processes, descriptors, shared memory.

Reads ``/proc`` and nothing else, so it needs no further package.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Iterable

PATIENCE = 5.0
"""Seconds that what is just ending has to be gone."""


class Leaks:
    """A snapshot of what this process has; ``new()`` tells what is more than that now.

    Daemon threads and what lives for the whole process are no exception: take the snapshot after
    they are there.
    """

    def __init__(self) -> None:
        self.threads = set(threading.enumerate())
        self.children = descendants()
        self.files = open_files()
        self.shared = shared_memory()

    def new(self) -> list[str]:
        """In words, what is more than before; empty is good."""
        found = [
            f"thread {thread.name}" for thread in threading.enumerate()
            if thread not in self.threads
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
        found += [f"shared memory {name}" for name in shared_memory() - self.shared]
        return found

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

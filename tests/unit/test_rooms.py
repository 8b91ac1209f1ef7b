"""Rooms for large values: used again, never under a view, and given back."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from handoff_actors.cluster import memory
from handoff_actors.cluster.rooms import Rooms

Eventually = Callable[..., None]
MB = 1 << 20


class Clock:
    """What the rooms have called later, to be called by hand."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def later(self, _seconds: float, job: Callable[[], None]) -> None:
        self.jobs.append(job)

    def tick(self) -> None:
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rooms(clock: Clock) -> Rooms:
    return Rooms(clock.later)


def one(rooms: Rooms, size: int) -> memoryview:
    (room,) = rooms.lend([size], "n1")
    assert isinstance(room, memoryview)
    assert len(room) == size
    return room


def where(view: memoryview) -> int:
    """The address of its first byte."""
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def test_a_room_is_used_again_when_its_last_view_is_gone(rooms: Rooms) -> None:
    view = one(rooms, 4 * MB)
    address = where(view)
    part = view[MB : 2 * MB].cast("Q")
    part[0] = 7
    del view
    other = one(rooms, 4 * MB)
    assert where(other) != address
    other[:] = b"x" * (4 * MB)
    assert part[0] == 7  # what somebody views is nobody else's
    assert rooms.idle == 0
    del part
    assert rooms.idle == 4 * MB
    assert where(one(rooms, 3 * MB)) == address


def test_what_is_much_too_large_is_left_for_others(rooms: Rooms) -> None:
    address = where(one(rooms, 64 * MB))
    small = one(rooms, 2 * MB)
    assert where(small) != address
    assert where(one(rooms, 33 * MB)) == address


def test_the_parts_of_a_value_have_rooms_of_their_own(rooms: Rooms) -> None:
    sizes = [100, 2 * MB, 2 * MB, MB - 1, MB]
    parts = rooms.lend(sizes, "n1")
    assert [len(part) for part in parts] == sizes
    for number, part in enumerate(parts):
        part[:] = bytes([number]) * len(part)
    assert all(part[0] == part[-1] == number for number, part in enumerate(parts))


def test_a_view_may_be_collected_as_garbage(rooms: Rooms, eventually: Eventually) -> None:
    class Node:
        pass

    def garbage() -> None:
        node: Any = Node()
        node.itself, node.view = node, one(rooms, 2 * MB)

    garbage()
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()
    assert rooms.idle == 2 * MB


def test_what_is_idle_for_long_is_given_back(clock: Clock) -> None:
    rooms = Rooms(clock.later, keep=0.0)
    view = one(rooms, 2 * MB)
    mapping = weakref.ref(next(iter(rooms._lent)).memory)
    clock.tick()
    assert mapping() is not None
    assert clock.jobs  # there is one that may become idle
    del view
    clock.tick()
    assert (rooms.idle, mapping(), clock.jobs) == (0, None, [])
    one(rooms, 2 * MB)
    assert len(clock.jobs) == 1


def test_what_was_idle_for_a_moment_is_kept(rooms: Rooms, clock: Clock) -> None:
    one(rooms, 2 * MB)
    clock.tick()
    assert rooms.idle == 2 * MB
    assert len(clock.jobs) == 1


def test_idle_pages_are_the_system_s(rooms: Rooms) -> None:
    view = one(rooms, 8 * MB)
    view[:] = b"x" * len(view)

    def lazy() -> int:
        with open("/proc/self/smaps_rollup") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        return int(lines["LazyFree"].split()[0]) * 1024

    before = lazy()
    del view
    assert lazy() - before >= 8 * MB


def test_views_outlive_the_rooms(rooms: Rooms, clock: Clock) -> None:
    view, gone = one(rooms, 2 * MB), one(rooms, 2 * MB)
    mappings = [weakref.ref(room.memory) for room in rooms._lent]
    del gone
    rooms.close()
    assert rooms.idle == 0
    view[0] = 1
    assert sum(mapping() is not None for mapping in mappings) == 1
    del view
    assert [mapping() for mapping in mappings] == [None, None]
    clock.tick()
    assert clock.jobs == []


def test_idle_rooms_go_before_a_value_is_refused(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    one(rooms, 2 * MB)
    asked: list[int] = []

    def left() -> int:
        asked.append(rooms.idle)
        return 4 * MB

    monkeypatch.setattr(memory, "memory_left", left)
    with pytest.raises(MemoryError, match=r"8 MB on node 'n1' does not fit into the 4 MB"):
        rooms.lend([8 * 1000 * 1000], "n1")
    assert asked == [2 * MB, 0]
    one(rooms, 2 * MB)
    asked.clear()
    one(rooms, 2 * MB)  # takes no more memory than there is taken
    assert asked == []
    with pytest.raises(MemoryError):
        rooms.lend([2 * MB, 8 * MB], "n1")
    assert rooms.idle == 2 * MB  # nobody has it, and it is not lost


def test_a_mapping_that_cannot_be_had_is_no_memory(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "memory_left", lambda: None)
    with pytest.raises(MemoryError, match="gives this process no more memory"):
        rooms.lend([1 << 55], "n1")


def test_many_threads_lend_and_leave(rooms: Rooms) -> None:
    failed: list[int] = []

    def work(number: int) -> None:
        for k in range(200):
            view = one(rooms, MB + 4096 * (k % 5))
            mark = bytes([number, k % 256]) * 8
            for at in range(0, len(view) - 16, 1 << 18):
                view[at : at + 16] = mark
            if any(bytes(view[at : at + 16]) != mark for at in range(0, len(view) - 16, 1 << 18)):
                failed.append(k)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failed
    assert not rooms._lent
    assert len(rooms._idle) <= 12  # each thread has its next room before it leaves the last one

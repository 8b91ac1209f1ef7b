"""Carrier threads: on demand, reused, and none left."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from handoff_actors.actors.carriers import Carriers

Eventually = Callable[..., None]


def test_jobs_do_not_wait_behind_each_other() -> None:
    carriers = Carriers("t")
    meet = threading.Barrier(4)
    for _ in range(3):
        carriers.submit(lambda: meet.wait(10) and None)
    meet.wait(10)
    assert carriers.close(10) == []


def test_a_parked_thread_is_used_again(eventually: Eventually) -> None:
    carriers = Carriers("t")
    seen: list[threading.Thread] = []
    for expected in range(1, 4):
        carriers.submit(lambda: seen.append(threading.current_thread()))
        eventually(lambda n=expected: len(seen) == n and len(carriers._parked) == 1)
    assert len(set(seen)) == 1
    assert carriers.close(10) == []
    assert carriers.threads() == []


def test_a_deferred_job_follows_on_the_same_thread() -> None:
    carriers = Carriers("t")
    done = threading.Event()
    trace: list[tuple[str, threading.Thread]] = []

    def second() -> None:
        trace.append(("second", threading.current_thread()))
        done.set()

    def first() -> None:
        assert carriers.carries_current_thread()
        carriers.defer(second)
        trace.append(("first", threading.current_thread()))

    carriers.submit(first)
    assert done.wait(10)
    assert [name for name, _ in trace] == ["first", "second"]
    assert len({thread for _, thread in trace}) == 1
    assert not carriers.carries_current_thread()
    carriers.close(10)


def test_what_was_deferred_can_be_handed_over_before_blocking() -> None:
    carriers = Carriers("t")
    released, done = threading.Event(), threading.Event()

    def first() -> None:
        carriers.defer(released.set)
        carriers.release_deferred()
        assert released.wait(10)
        done.set()

    carriers.submit(first)
    assert done.wait(10)
    carriers.close(10)


def test_defer_from_a_foreign_thread_submits() -> None:
    carriers = Carriers("t")
    done = threading.Event()
    carriers.defer(done.set)
    assert done.wait(10)
    carriers.close(10)


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_job_that_raises_does_not_end_its_carrier(
    error: type[BaseException], eventually: Eventually
) -> None:
    carriers = Carriers("t")

    def job() -> None:
        raise error

    carriers.submit(job)
    eventually(lambda: len(carriers._parked) == 1)
    done = threading.Event()
    carriers.submit(done.set)
    assert done.wait(10)
    assert carriers.close(10) == []


def test_close_names_the_busy_ones_and_they_end_with_their_job(eventually: Eventually) -> None:
    carriers = Carriers("t")
    release, begun = threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        release.wait(20)

    carriers.submit(job)
    assert begun.wait(10)
    (busy,) = carriers.close(0.01)
    release.set()
    busy.join(10)
    assert not busy.is_alive()
    assert carriers.threads() == []


def test_jobs_of_a_closed_set_still_run() -> None:
    carriers = Carriers("t")
    carriers.close(1)
    done = threading.Event()
    carriers.submit(done.set)
    assert done.wait(10)
    assert carriers.close(10) == []


class Shortage:
    """A machine that gives no threads for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.over = False
        self.refused = 0
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if not self.over and not thread.name.startswith("test"):
                self.refused += 1
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)


def test_a_job_waits_when_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    carriers = Carriers("t")
    go, done = threading.Event(), threading.Semaphore(0)
    carriers.submit(lambda: go.wait(10) and None)
    shortage = Shortage(monkeypatch)
    for _ in range(3):
        carriers.submit(lambda: done.release())
    assert shortage.refused == 3
    go.set()  # the one that there is comes to them
    for _ in range(3):
        assert done.acquire(timeout=10)
    assert carriers.close(10) == []


def test_a_thread_that_could_not_be_started_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    carriers = Carriers("t")
    later: list[Callable[[], None]] = []
    carriers.on_shortage(lambda _seconds, callback: later.append(callback))
    shortage = Shortage(monkeypatch)
    done = threading.Event()
    carriers.submit(done.set)
    later.pop()()
    assert shortage.refused == 2
    assert not done.is_set()
    shortage.over = True
    later.pop()()
    assert done.wait(10)
    assert not later
    assert carriers.close(10) == []

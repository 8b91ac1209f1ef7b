"""A duty is attended to by one thread at a time, whatever the jobs in between do."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from handoff_actors.actors.carriers import Carriers
from handoff_actors.actors.duty import Duty
from handoff_actors.actors.timers import Timers

Eventually = Callable[..., None]


class Reading:
    """A duty as a link has it: takes what is in ``inbox``, and defers it as a brief job."""

    def __init__(self, carriers: Carriers, timers: Timers) -> None:
        self.carriers = carriers
        self.inbox: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self.attending = 0
        self.most = 0
        self.rounds = 0
        self.thread: threading.Thread | None = None
        self.ended = threading.Event()
        self.duty = Duty(carriers, timers, self.attend)
        self.duty.begin()

    def attend(self) -> bool:
        while True:
            self.attending += 1
            self.most = max(self.most, self.attending)
            self.thread = threading.current_thread()
            job = self.inbox.get()
            self.rounds += 1
            self.attending -= 1
            if job is None:
                self.ended.set()
                return True
            self.carriers.defer(job, brief=True)
            if not self.duty.do_jobs():
                return False


@pytest.fixture
def carriers() -> Iterator[Carriers]:
    made = Carriers("t")
    yield made
    assert made.close(10) == []


@pytest.fixture
def timers() -> Iterator[Timers]:
    made = Timers("t")
    yield made
    made.close()


@pytest.fixture
def reading(carriers: Carriers, timers: Timers) -> Iterator[Reading]:
    made = Reading(carriers, timers)
    yield made
    made.inbox.put(None)
    assert made.ended.wait(10)


def ran_by(reading: Reading) -> threading.Thread:
    """The thread that does a brief job now."""
    found: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()
    reading.inbox.put(lambda: found.put(threading.current_thread()))
    return found.get(timeout=10)


def test_brief_jobs_are_done_by_the_thread_that_attends(reading: Reading) -> None:
    assert {ran_by(reading) for _ in range(50)} == {reading.thread}


def test_what_may_be_long_is_not(reading: Reading, carriers: Carriers) -> None:
    found: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()
    reading.inbox.put(lambda: carriers.defer(lambda: found.put(threading.current_thread())))
    assert found.get(timeout=10) is not ran_by(reading)


def test_another_thread_attends_when_a_job_does_not_end(reading: Reading) -> None:
    first = ran_by(reading)
    go, begun = threading.Event(), threading.Event()
    after: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()

    def block() -> None:
        begun.set()
        assert go.wait(10)
        after.put(threading.current_thread())

    reading.inbox.put(block)
    assert begun.wait(10)
    second = ran_by(reading)
    assert second is not first
    go.set()
    assert after.get(timeout=10) is first
    assert ran_by(reading) is second  # the first is an ordinary carrier from then on


def test_a_job_that_says_it_blocks_is_not_waited_for(carriers: Carriers) -> None:
    class Never(Timers):
        def call_later(self, seconds: float, callback: Callable[[], None]) -> Any:
            return None

    reading = Reading(carriers, Never("t"))
    first = ran_by(reading)
    go = threading.Event()

    def block() -> None:
        carriers.release_deferred()
        carriers.release_deferred()
        assert go.wait(10)

    reading.inbox.put(block)
    assert ran_by(reading) is not first
    go.set()
    reading.inbox.put(None)
    assert reading.ended.wait(10)
    assert reading.most == 1


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, ValueError])
def test_what_a_job_raises_ends_nothing(reading: Reading, kind: type[BaseException]) -> None:
    def fail() -> None:
        raise kind("a job")

    first = ran_by(reading)
    reading.inbox.put(fail)
    assert ran_by(reading) is first


def test_what_follows_a_job_follows_on_its_thread_also_when_that_attends_no_more(
    reading: Reading, carriers: Carriers
) -> None:
    first = ran_by(reading)
    go, begun, done = threading.Event(), threading.Event(), threading.Event()
    by: list[threading.Thread] = []

    def block() -> None:
        carriers.defer(lambda: (by.append(threading.current_thread()), done.set()), brief=True)
        begun.set()
        assert go.wait(10)

    reading.inbox.put(block)
    assert begun.wait(10)
    assert ran_by(reading) is not first
    go.set()
    assert done.wait(10)
    assert by == [first]


def test_one_thread_attends_at_a_time(reading: Reading) -> None:
    chance = random.Random(7)
    pause = threading.Event()
    done: queue.SimpleQueue[int] = queue.SimpleQueue()

    def job(number: int, seconds: float) -> Callable[[], None]:
        def work() -> None:
            if seconds:
                pause.wait(seconds)
            done.put(number)

        return work

    count = 400
    for number in range(count):
        # Around the bound, so that jobs end in the moment in which they are given up.
        seconds = chance.choice((0.0, 0.0, 0.0, chance.uniform(0.001, 0.005)))
        reading.inbox.put(job(number, seconds))
    assert sorted(done.get(timeout=30) for _ in range(count)) == list(range(count))
    assert reading.most == 1
    assert reading.rounds == count


def test_nothing_ticks_while_there_is_nothing_to_do(
    reading: Reading, timers: Timers, eventually: Eventually
) -> None:
    for _ in range(3):
        ran_by(reading)
        eventually(lambda: not timers._heap and not reading.duty._ticking)


def test_the_thread_ends_with_the_duty(
    carriers: Carriers, timers: Timers, eventually: Eventually
) -> None:
    reading = Reading(carriers, timers)
    ran_by(reading)
    reading.inbox.put(None)
    assert reading.ended.wait(10)
    eventually(lambda: not carriers.threads())

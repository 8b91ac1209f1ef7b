"""Timers: in order, cancellable, and gone when closed."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from handoff_actors.actors.server import Actor
from handoff_actors.actors.system import ActorSystem
from handoff_actors.actors.timers import Timers


def test_timers_fire_in_order_of_their_time() -> None:
    timers = Timers("t")
    fired: list[str] = []
    done = threading.Event()
    due = {
        "last": timers.call_later(0.03, lambda: fired.append("last")).due,
        "first": timers.call_later(0.0, lambda: fired.append("first")).due,
        "second": timers.call_later(0.015, lambda: fired.append("second")).due,
    }
    timers.call_later(0.06, done.set)
    assert done.wait(10)
    # Usually first, second, last; on a busy machine this thread may be late to set the others.
    assert fired == sorted(due, key=due.__getitem__)
    timers.close()


def test_a_cancelled_timer_does_not_fire() -> None:
    timers = Timers("t")
    fired: list[str] = []
    done = threading.Event()
    timers.call_later(0.005, lambda: fired.append("cancelled")).cancel()
    timers.call_later(0.01, done.set)
    assert done.wait(10)
    assert fired == []
    timers.close()


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_callback_that_raises_stops_no_other(error: type[BaseException]) -> None:
    timers = Timers("t")
    done = threading.Event()

    def bad() -> None:
        raise error

    timers.call_later(0.0, bad)
    timers.call_later(0.001, done.set)
    assert done.wait(10)
    timers.close()


def test_close_forgets_all_and_ends_the_thread() -> None:
    timers = Timers("t")
    fired: list[str] = []
    timers.call_later(60, lambda: fired.append("no"))
    thread = timers._thread
    assert thread is not None
    timers.close(10)
    assert not thread.is_alive()
    timers.call_later(0, lambda: fired.append("no"))
    assert fired == []


def test_cancelled_timers_do_not_pile_up(actor_system: ActorSystem) -> None:
    timers = actor_system.timers
    kept = [timers.call_later(3600, lambda: None) for _ in range(10)]
    for _ in range(1000):
        timers.call_later(3600, lambda: None).cancel()
    assert len(timers._heap) <= 2 * 64
    assert {entry[2] for entry in timers._heap} >= set(kept)


def test_send_after_is_a_cast(actor_system: ActorSystem) -> None:
    got = threading.Event()

    class Waiter(Actor):
        def handle(self, message: Any) -> Any:
            assert message == "tick"
            got.set()

    actor_system.timers.send_after(0.0, actor_system.start(Waiter()), "tick")
    assert got.wait(10)

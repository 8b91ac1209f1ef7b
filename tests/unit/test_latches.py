"""Waiting for a latch."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from handoff_actors.actors.latches import passed


def held() -> threading.Lock:
    latch = threading.Lock()
    latch.acquire()
    return latch


def test_it_is_taken_when_it_is_released():
    latch = held()
    thread = threading.Thread(target=latch.release)
    thread.start()
    assert passed(latch)
    assert latch.locked()
    thread.join()


@pytest.mark.parametrize("timeout", [0.0, -1.0, 0.05, 0.25])
def test_it_gives_up(timeout):
    began = time.monotonic()
    assert not passed(held(), timeout)
    assert time.monotonic() - began >= timeout


def interrupted(thread: threading.Thread, latch: threading.Lock) -> None:
    thread.start()
    passed(latch, 15)


def test_a_signal_that_does_not_end_the_wait_is_heard():
    """Another thread takes the signal, as when it comes just before the wait begins."""
    latch, end = held(), threading.Event()

    def interrupt() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        end.wait(20)

    thread = threading.Thread(target=interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted(thread, latch)
    finally:
        end.set()
        thread.join()

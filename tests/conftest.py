"""Fixtures for all tests: an actor system that leaves no thread, and a wait with a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from handoff_actors.actors.system import ActorSystem

pytest_plugins = ["handoff_actors_pytest"]

DEADLINE = 20.0
"""Seconds after which a test that waits has failed; generous, as the machine may be busy."""


def wait_until(predicate: Callable[[], object], deadline: float = DEADLINE) -> None:
    """Poll ``predicate`` until it holds. Only for what has no event to wait for."""
    end = time.monotonic() + deadline
    while not predicate():
        assert time.monotonic() < end, f"not within {deadline} s: {predicate}"
        time.sleep(0.001)


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """``wait_until``."""
    return wait_until


@pytest.fixture
def actor_system() -> Iterator[ActorSystem]:
    """An actor system; afterwards none of its threads may be left."""
    before = set(threading.enumerate())
    system = ActorSystem("test")
    yield system
    busy = system.close(DEADLINE)
    assert busy == []
    wait_until(lambda: not [t for t in threading.enumerate() if t not in before])

"""What functions of tests do on nodes that share this process: wait, and be counted."""

from __future__ import annotations

import threading
import time

import handoff_actors as handoff


def where():
    return handoff.current().node


class Gate:
    """Functions wait at it; picklable, as all nodes are in this process."""

    gates: dict = {}  # noqa: RUF012

    def __init__(self):
        self.key = id(self)
        self.gates[self.key] = self
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.calls: list[str] = []

    def __reduce__(self):
        return _gate, (self.key,)

    def __call__(self, *args):
        self.calls.append(where())
        self.entered.release()
        assert self.opened.wait(20.0)
        return where()

    def wait(self):
        assert self.entered.acquire(timeout=20.0)


def _gate(key):
    return Gate.gates[key]


def count(gate, *args):
    gate.calls.append(where())
    return len(args), where()


def until(condition, timeout=20.0):
    """Returns once the condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it does not come to hold"
        time.sleep(0.002)

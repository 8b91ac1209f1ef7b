"""Being a node: what ``start_nodes`` and ``handoff node`` run in a process of their own.

Guarantees: SIGTERM ends it in order (a node from the command line finishes what it is running
first), a second one at once; it goes on trying to join until it has; it leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from handoff_actors.errors import NodeDownError, NodeUnreachableError
from handoff_actors.events import log
from handoff_actors.runtime import Runtime

_JOIN = 5.0  # seconds for one try to join
_RETRY = 0.5
_DRAIN_POLL = 0.05


class Stop:
    """Set by SIGTERM; by the second one the process ends at once."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """The handler of the signal."""
        if self.asked.is_set():
            os._exit(128 + number)
        self.asked.set()


def local_node(key: str, *, name: str, connect: str, options: Mapping[str, Any]) -> None:
    """Be a node that ``start_nodes`` of another process has started.

    Args:
        key: of the cluster.
        name: of this node.
        connect: where the process that started it listens.
        options: of ``start()``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = Stop()
    signal.signal(signal.SIGTERM, stop)
    with Runtime(name=name, authkey=key, **options) as runtime:
        if join(runtime, connect, stop.asked, once=True):
            runtime.cluster().publish(ready=True)
            stop.asked.wait()
        else:
            os._exit(3)


def serve(
    runtime: Runtime,
    seeds: tuple[str, ...],
    drain: float,
    told: Callable[[str], object] = lambda _: None,
) -> None:
    """Be a node until SIGTERM or Ctrl-C; finishes what it runs, then stops.

    Args:
        runtime: started, and listening.
        seeds: addresses of nodes to join; those that cannot be reached are tried again.
        drain: seconds that functions in progress get at the end.
        told: called with a line for the operator when something has happened.
    """
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        for seed in seeds:
            joined = join(runtime, seed, stop.asked)
            if joined:
                told(f"joined {joined} at {seed}")
        runtime.cluster().publish(ready=True)
        stop.asked.wait()
        told("draining: no new work, what runs is finished")
        finished = drained(runtime, drain)
        told("drained" if finished else f"not drained within {drain:g} s, stopping all the same")
    finally:
        runtime.stop()


def join(
    runtime: Runtime, address: str, stopped: threading.Event, *, once: bool = False
) -> str | None:
    """Connect, again and again unless ``once``; None if the process is to stop before."""
    while not stopped.is_set():
        try:
            return runtime.connect(address, _JOIN)
        except (NodeUnreachableError, NodeDownError) as error:
            log.warning("cannot_join", node=runtime.node(), address=address, error=str(error))
            if once:
                return None
            stopped.wait(_RETRY)
    return None


def drained(runtime: Runtime, seconds: float) -> bool:
    """Take no new work and wait until nothing runs here; whether that came in time."""
    runtime.cluster().publish(draining=True)
    end = time.monotonic() + seconds
    idle = 0
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            # What was under way when the others heard of it has come by the second look.
            idle = 0 if runtime.busy() else idle + 1
            if idle == 2:
                return True
        time.sleep(_DRAIN_POLL)
    return False

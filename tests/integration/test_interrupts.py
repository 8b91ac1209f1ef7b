"""Ctrl-C that is noticed late: the signal comes while the main thread is on its way into a wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

WAITS = {
    "execute": "handoff.execute(slow)",
    "as_completed": "next(handoff.submit(slow).as_completed())",
    "stream": "handoff.submit(busy); begun.wait(); handoff.stream(costly)",
    "get_result": "handoff.get_result('nobody', 'knows', timeout=None)",
    "take": "next(iter(handoff.stream(lines)))",
    "push": "pipeline = handoff.stream(lines, max_pending=1); pipeline.push(1); pipeline.push(2)",
}


@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_is_heard_in_a_wait_that_it_does_not_break(
    wait: str, popen: Callable[[str], Any]
) -> None:
    # The main thread blocks the signal, so another one gets it: what Python then does about it is
    # left to the main thread, which no signal wakes.
    process = popen(
        f"""
        import os, signal, threading
        import handoff_actors as handoff

        handoff.start(shutdown_timeout=0.2, capabilities={{"cpu": 1}})
        left, begun = threading.Event(), threading.Event()
        slow = handoff.new().add_function(handoff.Function("s", (), lambda: left.wait(20)))
        lines = handoff.new()
        lines.add_function(handoff.Function("x", type="input"))
        lines.add_function(handoff.Function("y", ["x"], lambda x: x))
        def work():
            begun.set()
            left.wait(20)

        busy = handoff.new().add_function(handoff.Function("s", (), work, cost={{"cpu": 1}}))
        costly = handoff.new().add_function(handoff.Function("x", type="input"))
        costly.add_function(handoff.Function("y", ["x"], lambda x: x, cost={{"cpu": 1}}))
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            {WAITS[wait]}
        except KeyboardInterrupt:
            print("heard", flush=True)
        left.set()
        handoff.stop()
        """
    )
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "heard\n", "")

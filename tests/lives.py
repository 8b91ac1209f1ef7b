"""What live runtimes have in common when a state machine lets anything happen to them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import time
from typing import Any

import psutil
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import handoff_actors as handoff
from handoff_actors.testing import crash


@dataclasses.dataclass
class LiveRun:
    """A run that a machine started."""

    dag_id: Any
    run: handoff.Run
    cancelled: bool = dataclasses.field(default=False, kw_only=True)
    released: bool = dataclasses.field(default=False, kw_only=True)
    outcome: Any = dataclasses.field(default=None, kw_only=True)


class RuntimeLife(RuleBasedStateMachine):
    """A runtime with runs; a machine of its own begins it, and says what else may happen."""

    runtime: handoff.Runtime

    def __init__(self) -> None:
        super().__init__()
        self.threads = set(threading.enumerate())
        self.children = {p.pid for p in psutil.Process().children()}
        self.numbers = itertools.count()
        self.runs: list[Any] = []
        self.stored: dict[Any, int] = {}

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        live = data.draw(st.sampled_from(self.runs))
        if live.run.cancel():
            live.cancelled = True
            assert live.run.cancelled()

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def crash_runner(self, data: Any) -> None:
        live = data.draw(st.sampled_from(self.runs))
        with contextlib.suppress(handoff.ConfigurationError):
            crash(f"run:{live.dag_id}", runtime=self.runtime)

    @invariant()
    def one_terminal_state(self) -> None:
        for live in self.runs:
            if live.run.done():
                outcome = live.run.exception() or "result"
                assert live.outcome is None or live.outcome is outcome
                live.outcome = outcome

    def all_were_told(self) -> None:
        """After ``stop()``."""
        for live in self.runs:
            assert live.run.done(), "stop() leaves nobody waiting"
            if isinstance(live.run.exception(), handoff.RunCancelledError):
                live.cancelled = True

    def nothing_is_left(self) -> None:
        """At the end."""
        end = time.monotonic() + 10
        while left := [t for t in threading.enumerate() if t not in self.threads]:
            assert time.monotonic() < end, left
            time.sleep(0.001)
        assert {p.pid for p in psutil.Process().children()} <= self.children

"""A live cluster, and whatever may happen to it: nodes die, freeze; actors crash; callers cancel.

``HANDOFF_LIVES`` says how much of it, as for the runtime of one node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import handoff_actors as handoff
from handoff_actors import Function
from handoff_actors.testing import crash, freeze_node, kill_node, thaw_node
from tests.lives import LiveRun, RuntimeLife

LIVES = int(os.environ.get("HANDOFF_LIVES", "0")) // 20 or 2
NODES = ("b", "c")
ACTORS = (
    "result_store",
    "resource_tracker",
    "data_location_registry",
    "worker_supervisor",
    "execution_supervisor",
    "distributed_executor",
    "distributed_result_store",
    "gateway",
    "membership",
    "node_supervisor",
    "node:b",
    "node:c",
)
_GATE = 40.0


def wait_for(path: str) -> None:
    """A function that does not end before this file is there."""
    end = time.monotonic() + _GATE
    while not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.002)


def code(i: int, size: int, gate: str | None, *parts: bytes) -> bytes:
    if gate is not None:
        wait_for(gate)
    total = (i + sum(int.from_bytes(part[:8], "big") for part in parts)) % 2**40
    return total.to_bytes(8, "big") + bytes(size)


@dataclasses.dataclass
class Live(LiveRun):
    """A run that the machine started."""

    gate: Path
    expected: dict[int, bytes]


class ClusterLife(RuntimeLife):
    """This node and two node processes."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.frozen: set[str] = set()

    @initialize()
    def begin(self) -> None:
        self.runtime = handoff.Runtime(
            name="home", capabilities={"cpu": 2}, max_restarts=1_000_000, heartbeat_timeout=1.0,
            node_return_timeout=60.0, shutdown_timeout=2.0,
        ).start()  # fmt: skip
        self.runtime.start_nodes(2, names=NODES, capabilities={"cpu": 2})

    @rule(
        n=st.integers(1, 10),
        cost=st.sampled_from([None, 0.5, 1.0, 2.0]),
        width=st.integers(1, 4),
        gated=st.booleans(),
        size=st.sampled_from([0, 0, 50_000]),
        pins=st.lists(st.sampled_from([None, None, None, "home", *NODES]), min_size=10,
                      max_size=10),
    )  # fmt: skip
    def submit(
        self, n: int, cost: float | None, width: int, gated: bool, size: int, pins: list[Any]
    ) -> None:
        number = next(self.numbers)
        gate = self.folder / f"gate {number}"
        if not gated:
            gate.touch()
        dag = handoff.new(("run", number))
        expected: dict[int, bytes] = {}
        for i in range(n):
            args = [i - width] if i >= width else []
            expected[i] = code(i, size, None, *(expected[a] for a in args))
            dag.add_function(
                Function(
                    i, args, _bound(i, size, str(gate) if i == n // 2 else None),
                    cost=None if cost is None else {"cpu": cost}, node=pins[i], max_crashes=1000,
                )
            )  # fmt: skip
        self.runs.append(Live(dag.id, self.runtime.submit(dag), gate, expected))

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def let_go(self, data: Any) -> None:
        data.draw(st.sampled_from(self.runs)).gate.touch()

    @rule(name=st.sampled_from(NODES))
    def kill(self, name: str) -> None:
        with contextlib.suppress(handoff.HandoffError):  # it is dead, and not back yet
            kill_node(name, runtime=self.runtime)
            self.frozen.discard(name)

    @precondition(lambda self: len(self.frozen) < 1)
    @rule(name=st.sampled_from(NODES))
    def freeze(self, name: str) -> None:
        with contextlib.suppress(handoff.HandoffError):
            freeze_node(name, runtime=self.runtime)
            self.frozen.add(name)

    @precondition(lambda self: self.frozen)
    @rule()
    def thaw(self) -> None:
        for name in list(self.frozen):
            with contextlib.suppress(handoff.HandoffError):
                thaw_node(name, runtime=self.runtime)
        self.frozen.clear()

    @rule(name=st.sampled_from(ACTORS))
    def crash_actor(self, name: str) -> None:
        with contextlib.suppress(handoff.ConfigurationError):  # it is just being restarted
            crash(name, runtime=self.runtime)

    @rule(key=st.integers(0, 3), value=st.integers())
    def store(self, key: int, value: int) -> None:
        self.runtime.store_value("mine", key, value)
        self.stored[key] = value
        assert self.runtime.get_value("mine", key) == value

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        live = data.draw(st.sampled_from(self.runs))
        if live.run.done():
            self.check_outcome(live)
            if live.run.exception() is None:
                live.run.result().release()
                live.released = True

    @rule()
    def stop_and_start(self) -> None:
        self.thaw()
        for live in self.runs:
            live.gate.touch()
        self.runtime.stop()
        self.all_were_told()
        self.runs.clear()
        self.stored.clear()
        self.runtime.start()
        self.runtime.start_nodes(2, names=NODES, capabilities={"cpu": 2})

    def check_outcome(self, live: Live) -> None:
        error = live.run.exception(60)
        if error is None:
            assert not live.cancelled
            if not live.released:
                assert dict(live.run.result().results) == live.expected
        else:
            assert isinstance(error, handoff.RunCancelledError), error
            assert live.cancelled

    @invariant()
    def it_answers(self) -> None:
        if not hasattr(self, "runtime"):
            return
        assert self.runtime.node_info().state == "up"
        held = sum(claim.amounts.get("cpu", 0.0) for claim in self.runtime.status().claims)
        assert held <= 2.0 + 1e-6, "never over-committed"
        assert self.runtime.synchronize("mine", list(self.stored)) == self.stored

    def teardown(self) -> None:
        try:
            if hasattr(self, "runtime"):
                self.end()
        finally:
            shutil.rmtree(self.folder)

    def end(self) -> None:
        self.thaw()
        for live in self.runs:
            live.gate.touch()
        try:
            for live in self.runs:
                self.check_outcome(live)
            end = time.monotonic() + 60
            while not self.is_idle():
                assert time.monotonic() < end, str(self.runtime.status())
                time.sleep(0.01)
        finally:
            self.runtime.stop()
        self.nothing_is_left()

    def is_idle(self) -> bool:
        """Nobody holds anything, and both nodes are back with all they offer free."""
        infos = [self.runtime.node_info(name) for name in ("home", *NODES)]
        return not self.runtime.status().claims and all(
            info.state == "up" and dict(info.available) == dict(info.capabilities) for info in infos
        )


def _bound(i: int, size: int, gate: str | None) -> Any:
    return lambda *parts: code(i, size, gate, *parts)


def test_a_life_of_a_cluster() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        ClusterLife,
        settings=settings(
            max_examples=LIVES, stateful_step_count=15, deadline=None, derandomize=LIVES == 2,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip

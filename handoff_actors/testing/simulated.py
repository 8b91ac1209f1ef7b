"""SimulatedCluster: thousands of nodes in one thread, a virtual clock, and every fault by seed.

The decisions are the library's own, as they are pure: the run state that recomputes what a node
took with it, the ledger of each node, membership, and the index of nodes. Simulated are the
network, the clock, and the code of functions. One seed gives one history, whatever the machine; a
history that goes wrong is run again by ``replay(log)``, also after the code was changed.

    SimulatedCluster ── what the user does, the code of functions, invariants, the log
    └─ SimulatedOrchestrator ── membership, runs, placement
       └─ SimulatedNetwork ── clock, links, faults
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from handoff_actors.errors import ConfigurationError
from handoff_actors.execution.run_state import Start
from handoff_actors.graph.dag import DAG
from handoff_actors.testing.simulated_node import Dispatch, SimulatedNode
from handoff_actors.testing.simulated_orchestrator import SimulatedOrchestrator
from handoff_actors.testing.simulated_run import Bytes, Seconds, SimulatedRun


class SimulatedCluster(SimulatedOrchestrator):
    """See the module.

    Args:
        nodes: how many.
        seed: of everything that is drawn.
        capabilities: of each node, in units; a callable gives those of the node of a number.
        strategy: ``"first_available"`` or ``"load_balanced"``.
        delay: seconds a message takes, from and to.
        loss: the part of messages that is lost, each with its link.
        churn: how often each node dies, times a second.
        freezes: how often each node freezes, times a second.
        downtime: seconds that a dead node is gone, or a frozen one is frozen, from and to.
        failures: the part of attempts that raise.
        crashes: the part of attempts whose worker dies.
        bandwidth: bytes a second between two nodes.
        heartbeat: as ``heartbeat_timeout`` of ``start()``.
        check: assert the invariants after every event, at the cost of a look at what it touched.
        record: keep the whole history, not only its digest.

    Attributes:
        now: virtual seconds.
        events: how many have been handled.
        history: ``(time, kind, ...)`` of each, if it is recorded.
        decisions: how many placements were made.
        deciding: real seconds that the run states and placements took.
        lost: attempts that nodes took with them.
        deaths: of nodes.
    """

    def __init__(
        self,
        nodes: int = 10,
        *,
        seed: int = 0,
        capabilities: Mapping[str, float] | Callable[[int], Mapping[str, float]] | None = None,
        strategy: str = "first_available",
        delay: tuple[float, float] = (0.0002, 0.002),
        loss: float = 0.0,
        churn: float = 0.0,
        freezes: float = 0.0,
        downtime: tuple[float, float] = (0.5, 3.0),
        failures: float = 0.0,
        crashes: float = 0.0,
        bandwidth: float = 1e9,
        heartbeat: float = 5.0,
        check: bool = True,
        record: bool = True,
    ) -> None:
        if strategy not in ("first_available", "load_balanced"):
            raise ConfigurationError(f"unknown strategy {strategy!r}")
        offers = capabilities or {"cpu": 2.0}
        table = offers if callable(offers) else lambda _number: offers
        each = [dict(table(number)) for number in range(nodes)]
        self._options = {
            "nodes": each, "seed": seed, "strategy": strategy, "delay": delay, "loss": loss,
            "churn": churn, "freezes": freezes, "downtime": downtime, "failures": failures,
            "crashes": crashes, "bandwidth": bandwidth, "heartbeat": heartbeat,
        }  # fmt: skip
        self._bandwidth, self._failures, self._crashes = bandwidth, failures, crashes
        super().__init__(
            each, seed=seed, strategy=strategy, delay=delay, loss=loss, churn=churn,
            freezes=freezes, downtime=downtime, heartbeat=heartbeat, check=check, record=record,
        )  # fmt: skip

    def run(self, until: float | None = None, events: int | None = None) -> None:
        """Go on until all runs have ended.

        Args:
            until: or until this virtual time.
            events: or until so many events have been handled in all.
        """
        while any(run.state == "running" for run in self.runs) if until is None else True:
            if until is not None and (not self._queue or self._queue[0][0] > until):
                if until > self.now:
                    self.commands.append((self.events, "run", until))
                    self.now = until
                return
            if events is not None and self.events >= events:
                return
            if not self.step():
                assert until is not None, f"nothing happens any more, and {self.runs} go on"
                return

    # What the user does.

    def submit(
        self,
        dag: DAG,
        *,
        seconds: Seconds = 0.01,
        sizes: Bytes = 1000,
        keep: Any = "all",
        max_retries: int = 3,
    ) -> SimulatedRun:
        """Begin a run; see ``SimulatedRun``."""
        run = SimulatedRun(len(self.runs), dag, seconds, sizes, keep, max_retries)
        self.runs.append(run)
        run.began = self.now
        shape = None
        if self._record:
            shape = [
                (run.inputs(i), run.amounts[run.plan.class_of[i]], run.seconds[i], run.sizes[i])
                for i in range(run.plan.n)
            ]
            kept = None if run.kept is None else [i for i in range(run.plan.n) if run.kept[i]]
            self.commands.append((self.events, "submit", shape, kept, max_retries))
        self._note("submit", run.plan.n)
        self._feed(run, Start())
        self._place()
        return run

    # Work, at the nodes.

    def _received(self, node: SimulatedNode, dispatch: Dispatch) -> None:
        wait = 0.0
        for _, name, _, size in dispatch.inputs:
            if name != node.name:
                wait = max(wait, 2 * self._delay[0] + size / self._bandwidth)
        self._after(wait, self._fetched, node, node.life, node.session, dispatch)

    def _fetched(self, node: SimulatedNode, life: int, session: int, dispatch: Dispatch) -> None:
        if not node.up or node.life != life or node.session != session:
            return
        number = dispatch.attempt[0]
        for i, name, life_there, _ in dispatch.inputs:
            there = self.nodes[name]
            if not there.up or there.life != life_there or (number, i) not in there.values:
                self._send(node, False, self._missing, dispatch.attempt)
                return
        self._begin_all(node, node.admit(dispatch))

    def _begin_all(self, node: SimulatedNode, begun: list[Dispatch]) -> None:
        for dispatch in begun:
            run = self.runs[dispatch.attempt[0]]
            run.attempts += 1
            values = [self._peek(dispatch.attempt[0], i) for i, *_ in dispatch.inputs]
            draw = self._code.random()
            self._after(
                dispatch.seconds, self._returned, node, node.life, node.session, dispatch, values,
                draw,
            )  # fmt: skip
        if self._check:
            node.check()

    def _peek(self, number: int, i: int) -> int | None:
        """A value, from whoever has it; None if it was lost in this very moment."""
        place = self.runs[number].where.get(i)
        return None if place is None else self.nodes[place[0]].values.get((number, i))

    def _returned(
        self, node: SimulatedNode, life: int, session: int, dispatch: Dispatch,
        values: list[int | None], draw: float,
    ) -> None:  # fmt: skip
        """The code of an attempt has ended, whoever still wants to know."""
        if not node.up or node.life != life:
            return
        if node.frozen:
            again = (node, life, session, dispatch, values, draw)
            self._after(max(0.0, node.frozen - self.now), self._returned, *again)
            return
        self._begin_all(node, node.finish(dispatch.attempt))
        if node.session != session:
            return
        number, token = dispatch.attempt
        run = self.runs[number]
        if draw < self._failures:
            self._send(node, False, self._failed, dispatch.attempt)
        elif draw < self._failures + self._crashes:
            self._send(node, False, self._crashed, dispatch.attempt)
        elif None in values:
            self._send(node, False, self._missing, dispatch.attempt)
        else:
            i = token % run.plan.n
            node.values[number, i] = run.value(i, [v for v in values if v is not None])
            self._send(node, False, self._done, dispatch.attempt)

    # Invariants.

    def check(self) -> None:
        """Assert the invariants, at the cost of a full look: for tests.

        Raises:
            AssertionError: one is broken.
        """
        for node in self.nodes.values():
            node.check()
        for run in self.runs:
            if run.state == "running":
                run.core.check()
            for token, name in run.placed.items():
                assert (run.number, token) in self._at[name], (run, token, name)
        for name, attempts in self._at.items():
            assert name in self._known
            for number, token in attempts:
                assert self.runs[number].placed.get(token) == name

    def check_idle(self) -> None:
        """Assert that nothing is held any more, once all has ended; see ``settle``.

        Raises:
            AssertionError: something is.
        """
        for node in self.nodes.values():
            if node.up:
                assert not node.ledger.held(), (node.name, node.ledger.held())
                assert node.ledger.free(node.name) == node.total

    # The log.

    def log(self) -> str:
        """All that is needed to run this history again, as JSON; for ``replay``."""
        import json

        return json.dumps(
            {
                "options": self._options,
                "commands": self.commands,
                "events": self.events,
                "digest": self.digest,
            }
        )

    @classmethod
    def replay(cls, log: str, *, check: bool = True) -> SimulatedCluster:
        """Run a history again: the same options, commands and faults at the same moments.

        Args:
            log: of ``log()``.
            check: as of the class.

        Returns:
            The cluster after the last event of the log. Its ``digest`` is that of the log, unless
            the code decides otherwise now than it did then.
        """
        import json

        from handoff_actors.testing.workflows import from_shape

        told = json.loads(log)
        options = told["options"]
        offers = options.pop("nodes")
        for name in ("delay", "downtime"):
            options[name] = tuple(options[name])
        made = cls(len(offers), capabilities=lambda i: offers[i], check=check, **options)
        for at, kind, *args in told["commands"]:
            while made.events < at and made.step():
                pass
            if kind == "submit":
                shape, kept, max_retries = args
                dag, seconds, sizes = from_shape(shape)
                keep = "all" if kept is None else kept
                made.submit(dag, seconds=seconds, sizes=sizes, keep=keep, max_retries=max_retries)
            else:
                getattr(made, kind)(*args)
        while made.events < told["events"] and made.step():
            pass
        return made

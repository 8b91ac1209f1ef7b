"""SimulatedCluster: thousands of nodes in one thread, a virtual clock, and every fault by seed.

The decisions are the library's own, as they are pure: the run state that recomputes what a node
took with it, the ledger of each node, membership, and the index of nodes. Simulated are the
network, the clock, and the code of functions. One seed gives one history, whatever the machine; a
history that goes wrong is run again by ``replay(log)``, also after the code was changed.

Links are as the real ones: what is sent on one arrives in order or not at all, and a message that
is lost is the end of its link. A node whose link has ended abandons what it had for the
orchestrator, and joins again.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from handoff_actors.cluster.membership import (
    Accept,
    Back,
    Close,
    Ended,
    Membership,
    Offered,
    Suspect,
    Tick,
)
from handoff_actors.errors import ConfigurationError, CrashedAttempt
from handoff_actors.execution.run_state import (
    Crashed,
    Event,
    Lost,
    Raised,
    Start,
    Step,
    Succeeded,
    Withdrawn,
)
from handoff_actors.graph.dag import DAG
from handoff_actors.resources.capabilities import to_micro
from handoff_actors.resources.node_index import Cost, NodeIndex
from handoff_actors.testing.simulated_node import Attempt, Dispatch, SimulatedNode
from handoff_actors.testing.simulated_run import Bytes, Seconds, SimulatedRun

_REJOIN = 0.2
"""Seconds until a node whose link ended joins again."""


class SimulatedError(Exception):
    """What simulated code raises."""


class Silence(dict[str, float]):
    """How long each session has been silent; those not named have just been heard."""

    def get(self, session: str, default: Any = None) -> Any:  # noqa: ARG002
        """Seconds."""
        return super().get(session, 0.0)


class SimulatedCluster:
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
        self._options = {
            "nodes": [dict(table(number)) for number in range(nodes)],
            "seed": seed, "strategy": strategy, "delay": delay, "loss": loss, "churn": churn,
            "freezes": freezes, "downtime": downtime, "failures": failures, "crashes": crashes,
            "bandwidth": bandwidth, "heartbeat": heartbeat,
        }  # fmt: skip
        self._delay, self._loss, self._bandwidth = delay, loss, bandwidth
        self._churn, self._freezes, self._downtime = churn, freezes, downtime
        self._failures, self._crashes = failures, crashes
        self._check, self._record = check, record
        # Streams of their own: what is drawn for one thing does not change another.
        self._net, self._fate, self._code = (
            random.Random(f"{seed} {what}")  # noqa: S311  it is to be the same again
            for what in ("net", "fate", "code")
        )
        self.now = 0.0
        self.events = 0
        self.history: list[tuple[Any, ...]] = []
        self.commands: list[tuple[Any, ...]] = []
        self._digest = hashlib.blake2b(digest_size=16)
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._sessions = itertools.count(1)
        self._arrival: dict[tuple[str, bool], float] = {}
        self.nodes: dict[str, SimulatedNode] = {}
        self.runs: list[SimulatedRun] = []
        self.membership = Membership("orchestrator", "1", heartbeat)
        self.index = NodeIndex()
        self._ask = getattr(self.index, strategy)
        self._by_bytes = strategy == "load_balanced"
        self._link: dict[str, str] = {}
        self._known: dict[str, SimulatedNode] = {}
        self._at: dict[str, set[Attempt]] = {}
        self._held: dict[str, set[tuple[int, int]]] = {}
        self._suspects: set[str] = set()
        self._backlog: dict[Cost, deque[Attempt]] = {}
        self._ticking = False
        self.decisions = 0
        self.deciding = 0.0
        self.lost = 0
        self.deaths = 0
        for number in range(nodes):
            node = SimulatedNode(f"n{number}", to_micro(table(number), "capabilities"))
            self.nodes[node.name] = node
            self._join(node)
        self._names = list(self.nodes)
        self._draw_fate()

    # The loop.

    def _after(self, seconds: float, action: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._numbers), action, args))

    def step(self) -> bool:
        """Handle the next event; False when there is none."""
        if not self._queue:
            return False
        self.now, _, action, args = heapq.heappop(self._queue)
        self.events += 1
        action(*args)
        return True

    def run(self, until: float | None = None, events: int | None = None) -> None:
        """Go on until all runs have ended.

        Args:
            until: or until this virtual time.
            events: or until so many events have been handled in all.
        """
        while any(run.state == "running" for run in self.runs) if until is None else True:
            if until is not None and (not self._queue or self._queue[0][0] > until):
                self.now = max(self.now, until)
                return
            if events is not None and self.events >= events:
                return
            if not self.step():
                assert until is not None, f"nothing happens any more, and {self.runs} go on"
                return

    def settle(self) -> None:
        """Let all that was begun end: no more faults, messages arrive."""
        self._churn = self._freezes = 0.0
        for _ in range(1_000_000):
            if not any(node.running or node.frozen for node in self.nodes.values()):
                return
            if not self.step():
                return

    def _note(self, kind: str, *args: Any) -> None:
        entry = (round(self.now, 9), kind, *args)
        self._digest.update(repr(entry).encode())
        if self._record:
            self.history.append(entry)

    @property
    def digest(self) -> str:
        """Of the history so far: equal histories have equal digests."""
        return self._digest.hexdigest()

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

    def kill(self, name: str, downtime: float | None = None) -> None:
        """A node's process dies; it is back after ``downtime`` seconds, None draws them."""
        self.commands.append((self.events, "kill", name, downtime))
        self._kill(name, downtime)

    def cut(self, name: str) -> None:
        """The link to a node is cut; the node lives, abandons its work and joins again."""
        self.commands.append((self.events, "cut", name))
        self._cut(self.nodes[name])

    def freeze(self, name: str, seconds: float) -> None:
        """A node does nothing for a while, and answers nobody."""
        self.commands.append((self.events, "freeze", name, seconds))
        self._freeze(name, seconds)

    # Nodes, and the network.

    def _draw_fate(self) -> None:
        rate = (self._churn + self._freezes) * len(self._names)
        if rate > 0:
            self._after(self._fate.expovariate(rate), self._strike)

    def _strike(self) -> None:
        name = self._fate.choice(self._names)
        dies = self._fate.random() * (self._churn + self._freezes) < self._churn
        if self._churn or self._freezes:
            if dies:
                self._kill(name, None)
            else:
                self._freeze(name, self._fate.uniform(*self._downtime))
        self._draw_fate()

    def _kill(self, name: str, downtime: float | None) -> None:
        node = self.nodes[name]
        if not node.up:
            return
        self._note("dies", name)
        self.deaths += 1
        node.up = False
        session, node.session = node.session, 0
        self._after(self._net.uniform(*self._delay), self._link_ended, name, session)
        gone = self._fate.uniform(*self._downtime) if downtime is None else downtime
        self._after(gone, self._restart, node, node.life)

    def _restart(self, node: SimulatedNode, life: int) -> None:
        if not node.up and node.life == life:
            self._note("starts", node.name)
            node.begin()
            self._join(node)

    def _freeze(self, name: str, seconds: float) -> None:
        node = self.nodes[name]
        if not node.up or node.frozen:
            return
        self._note("freezes", name)
        node.frozen = self.now + seconds
        self._after(seconds, self._thaw, node, node.life)
        if not self._ticking:
            self._ticking = True
            self._after(self.membership.interval, self._tick)

    def _thaw(self, node: SimulatedNode, life: int) -> None:
        if node.up and node.life == life:
            self._note("thaws", node.name)
            node.frozen = 0.0

    def _cut(self, node: SimulatedNode) -> None:
        if node.up and node.session:
            self._note("cut", node.name)
            self._break(node)

    def _break(self, node: SimulatedNode) -> None:
        """The link has ended; both sides notice."""
        session = node.session
        seconds = self._net.uniform(*self._delay)
        self._after(seconds, self._link_ended, node.name, session)
        self._after(seconds, self._cut_off, node, node.life, session)

    def _cut_off(self, node: SimulatedNode, life: int, session: int) -> None:
        if not node.up or node.life != life or node.session != session:
            return
        if node.frozen:
            self._after(node.frozen - self.now, self._cut_off, node, life, session)
            return
        self._note("abandons", node.name)
        node.abandon()
        self._after(_REJOIN, self._rejoin, node, life)

    def _rejoin(self, node: SimulatedNode, life: int) -> None:
        if node.up and node.life == life and not node.session:
            self._join(node)

    def _join(self, node: SimulatedNode) -> None:
        node.session = next(self._sessions)
        self._after(self._net.uniform(*self._delay), self._offered, node, node.life, node.session)

    def _send(self, node: SimulatedNode, outwards: bool, action: Any, *args: Any) -> None:
        """A message on the node's link, in order; or the link's end."""
        if self._loss and self._net.random() < self._loss:
            self._note("loses", node.name)
            self._break(node)
            return
        way = (node.name, outwards)
        at = max(self.now + self._net.uniform(*self._delay), self._arrival.get(way, 0.0))
        self._arrival[way] = at
        self._after(at - self.now, self._arrive, node, node.life, node.session, action, args)

    def _arrive(
        self, node: SimulatedNode, life: int, session: int, action: Any, args: tuple[Any, ...]
    ) -> None:
        if not node.up or node.life != life or node.session != session:
            return  # the link that it was sent on is no more
        if node.frozen:
            # Who is frozen neither reads nor writes; what is under way waits in buffers, in order.
            again = (node, life, session, action, args)
            self._after(max(0.0, node.frozen - self.now), self._arrive, *again)
            return
        action(node, *args)

    # Membership, at the orchestrator.

    def _offered(self, node: SimulatedNode, life: int, session: int) -> None:
        if not node.up or node.life != life or node.session != session:
            return
        self.membership.now = self.now
        for effect in self.membership.handle(Offered(node.card(), str(session))):
            if isinstance(effect, Close):
                self._down(effect.session)
            elif isinstance(effect, Accept):
                self._note("joins", node.name)
                self._link[str(session)] = node.name
                self._known[node.name] = node
                self._at[node.name] = set()
                self._held[node.name] = set()
                self.index.offer(node.name, node.total)
                self._place()
            else:  # it is not believed to be gone yet
                self._after(_REJOIN, self._offered, node, life, session)

    def _link_ended(self, name: str, session: int) -> None:
        if str(session) in self._link:
            self._note("down", name)
            self.membership.now = self.now
            self.membership.handle(Ended(str(session)))
            self._down(str(session))
            self._place()

    def _down(self, session: str) -> None:
        """A link is no more: what was on that node is to be done again."""
        name = self._link.pop(session, None)
        if name is None:
            return
        self.index.remove(name)
        self._suspects.discard(name)
        del self._known[name]
        crash = CrashedAttempt(name, 0, None, "the node is gone")
        tokens: dict[int, list[int]] = {}
        values: dict[int, list[int]] = {}
        for number, token in sorted(self._at.pop(name)):
            self.runs[number].placed.pop(token, None)
            tokens.setdefault(number, []).append(token)
            self.lost += 1
        for number, i in sorted(self._held.pop(name)):
            self.runs[number].where.pop(i, None)
            values.setdefault(number, []).append(i)
        for number in sorted({*tokens, *values}):
            lost = Lost(tokens.get(number, ()), values.get(number, ()), crash)
            self._feed(self.runs[number], lost)

    def _tick(self) -> None:
        frozen = {
            str(node.session): self.now
            for node in self._known.values()
            if node.frozen and node.session
        }
        since = getattr(self, "_silent_since", {})
        self._silent_since = {s: since.get(s, self.now) for s in frozen}
        silence = Silence({s: self.now - begun for s, begun in self._silent_since.items()})
        for effect in self.membership.handle(Tick(self.now, silence)):
            name = self._link.get(getattr(effect, "session", ""))
            if name is None:
                continue
            node = self._known[name]
            if isinstance(effect, Suspect):
                self._note("suspect", name)
                self._suspects.add(name)
                self.index.remove(name)
            elif isinstance(effect, Back):
                self._note("back", name)
                self._suspects.discard(name)
                self._offer_again(node)
            elif isinstance(effect, Close):
                self._note("given up", name)
                self.membership.handle(Ended(effect.session))
                self._after(0.0, self._cut_off, node, node.life, node.session)
                self._down(effect.session)
        self._place()
        if frozen or self._suspects:
            self._after(self.membership.interval, self._tick)
        else:
            self._ticking = False

    def _offer_again(self, node: SimulatedNode) -> None:
        self.index.offer(node.name, node.total)
        for number, token in sorted(self._at[node.name]):
            self.index.take(node.name, self._cost(self.runs[number], token))

    # Runs, at the orchestrator.

    @staticmethod
    def _cost(run: SimulatedRun, token: int) -> Cost:
        return run.costs[run.plan.class_of[token % run.plan.n]]

    def _feed(self, run: SimulatedRun, event: Event) -> None:
        if run.state != "running":
            return
        began = perf_counter()
        step = run.core.handle(event)
        self.deciding += perf_counter() - began
        self._carry_out(run, step)

    def _carry_out(self, run: SimulatedRun, step: Step) -> None:
        if step.failure is not None:
            self._end(run, "failed")
            return
        for token in step.ready:
            self._backlog.setdefault(self._cost(run, token), deque()).append((run.number, token))
        for seconds, token in step.retries:
            self._after(seconds, self._feed_and_place, run, Withdrawn((token,)))
        for i in step.freed:
            place = run.where.pop(i, None)
            if place is not None and place[0] in self._held:
                self._held[place[0]].discard((run.number, i))
        if step.finished:
            self._end(run, "succeeded")

    def _feed_and_place(self, run: SimulatedRun, event: Event) -> None:
        self._feed(run, event)
        self._place()

    def _end(self, run: SimulatedRun, state: str) -> None:
        assert run.state == "running", f"{run} ends a second time"
        self._note(state, run.number)
        run.state, run.ended = state, self.now
        if self._check and state == "succeeded":
            expected = run.expected()
            for i in range(run.plan.n):
                if run.kept is None or run.kept[i]:
                    name, life = run.where[i]
                    node = self.nodes[name]
                    if node.life == life and (run.number, i) in node.values:  # else: just dying
                        assert node.values[run.number, i] == expected[i], (run, i)

    def _place(self) -> None:
        """Send what waits to where there is room."""
        for cost in sorted(self._backlog):
            waiting = self._backlog.get(cost, deque())
            while waiting:
                number, token = waiting[0]
                run = self.runs[number]
                if run.state != "running" or not run.core.is_present(token):
                    waiting.popleft()
                    continue
                i = token % run.plan.n
                if any(d not in run.where for d in run.inputs(i)):
                    waiting.popleft()  # its inputs went with a node while it waited
                    self._feed(run, Withdrawn((token,)))
                    continue
                began = perf_counter()
                inputs: dict[str, int] = {}
                if self._by_bytes:
                    for d in run.inputs(i):
                        name = run.where[d][0]
                        inputs[name] = inputs.get(name, 0) + run.sizes[d]
                    name = self._ask(cost, inputs)
                else:
                    name = self._ask(cost)
                if name is None:
                    self.deciding += perf_counter() - began
                    break
                waiting.popleft()
                self.index.take(name, cost)
                self.decisions += 1
                self.deciding += perf_counter() - began
                self._dispatch(run, token, name)
            if not waiting:
                self._backlog.pop(cost, None)

    def _dispatch(self, run: SimulatedRun, token: int, name: str) -> None:
        i = token % run.plan.n
        self._note("send", run.number, token, name)
        assert token not in run.placed, f"{token} is on {run.placed.get(token)} already"
        run.placed[token] = name
        self._at[name].add((run.number, token))
        inputs = []
        for d in run.inputs(i):
            assert run.core.done[d], f"{i} begins before {d} has ended"
            inputs.append((d, *run.where[d], run.sizes[d]))
        dispatch = Dispatch(
            (run.number, token), run.amounts[run.plan.class_of[i]], run.seconds[i], inputs
        )
        self._send(self._known[name], True, self._received, dispatch)

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

    # Outcomes, at the orchestrator.

    def _off(self, node: SimulatedNode, attempt: Attempt) -> SimulatedRun | None:
        """An attempt is on its node no more; None if nobody waits for it."""
        run = self.runs[attempt[0]]
        at = self._at.get(node.name)
        if at is None or attempt not in at:
            return None
        at.discard(attempt)
        run.placed.pop(attempt[1], None)
        if node.name not in self._suspects:
            self.index.give(node.name, self._cost(run, attempt[1]))
        return run

    def _done(self, node: SimulatedNode, attempt: Attempt) -> None:
        run = self._off(node, attempt)
        if run is not None and run.state == "running" and run.core.is_present(attempt[1]):
            i = attempt[1] % run.plan.n
            self._note("done", *attempt, node.name)
            run.where[i] = (node.name, node.life)
            self._held[node.name].add((attempt[0], i))
            self._feed(run, Succeeded((attempt[1],)))
        self._place()

    def _failed(self, node: SimulatedNode, attempt: Attempt) -> None:
        run = self._off(node, attempt)
        if run is not None:
            self._note("raised", *attempt)
            self._feed(run, Raised(attempt[1], SimulatedError(), node.name))
        self._place()

    def _crashed(self, node: SimulatedNode, attempt: Attempt) -> None:
        run = self._off(node, attempt)
        if run is not None:
            self._note("crashed", *attempt)
            crash = CrashedAttempt(node.name, 0, -9, "was killed")
            self._feed(run, Crashed(attempt[1], crash))
        self._place()

    def _missing(self, node: SimulatedNode, attempt: Attempt) -> None:
        """The inputs of an attempt were gone when it came: their node's end will be noticed."""
        run = self._off(node, attempt)
        if run is not None:
            self._note("missing", *attempt)
            gone = [
                d
                for d in run.inputs(attempt[1] % run.plan.n)
                if (place := run.where.get(d)) is not None and not self._has(place, (attempt[0], d))
            ]
            for d in gone:
                self._held.get(run.where[d][0], set()).discard((attempt[0], d))
                del run.where[d]
            crash = CrashedAttempt(node.name, 0, None, "the value is gone")
            if gone:
                self._feed(run, Lost((), gone, crash))
            self._feed(run, Withdrawn((attempt[1],)))
        self._place()

    def _has(self, place: tuple[str, int], key: tuple[int, int]) -> bool:
        node = self.nodes[place[0]]
        return node.up and node.life == place[1] and key in node.values

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

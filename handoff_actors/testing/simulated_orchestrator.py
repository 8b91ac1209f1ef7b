"""The orchestrator of a ``SimulatedCluster``: membership, runs and placement."""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Mapping, Sequence
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
from handoff_actors.errors import CrashedAttempt
from handoff_actors.execution.run_state import (
    Crashed,
    Event,
    Lost,
    Raised,
    Step,
    Succeeded,
    Withdrawn,
)
from handoff_actors.resources.node_index import Cost, NodeIndex
from handoff_actors.testing.simulated_network import REJOIN, SimulatedNetwork
from handoff_actors.testing.simulated_node import Attempt, Dispatch, SimulatedNode
from handoff_actors.testing.simulated_run import SimulatedRun


class SimulatedError(Exception):
    """What simulated code raises."""


class Silence(dict[str, float]):
    """How long each session has been silent; those not named have just been heard."""

    def get(self, session: str, default: Any = None) -> Any:  # noqa: ARG002
        """Seconds."""
        return super().get(session, 0.0)


class SimulatedOrchestrator(SimulatedNetwork):
    """See the module; arguments and attributes are those of ``SimulatedCluster``."""

    def __init__(
        self,
        offers: Sequence[Mapping[str, float]],
        *,
        strategy: str,
        heartbeat: float,
        check: bool,
        **network: Any,
    ) -> None:
        super().__init__(offers, **network)
        self._check = check
        self.runs: list[SimulatedRun] = []
        self.membership = Membership("orchestrator", "1", heartbeat)
        self.index = NodeIndex()
        self._ask = getattr(self.index, strategy)
        self._by_bytes = strategy == "load_balanced"
        self._link: dict[str, str] = {}
        self._dead: set[int] = set()
        self._known: dict[str, SimulatedNode] = {}
        self._at: dict[str, set[Attempt]] = {}
        self._held: dict[str, set[tuple[int, int]]] = {}
        self._suspects: set[str] = set()
        self._silent_since: dict[str, float] = {}
        self._backlog: dict[Cost, deque[Attempt]] = {}
        self._ticking = False
        self.decisions = 0
        self.deciding = 0.0
        self.lost = 0

    @abc.abstractmethod
    def _received(self, node: SimulatedNode, dispatch: Dispatch) -> None:
        """An attempt has come to the node where it is to run."""

    # Membership.

    def _offered(self, node: SimulatedNode, life: int, session: int) -> None:
        if not node.up or node.life != life or node.session != session:
            return
        if session in self._dead:
            return  # the node will notice too, and join again
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
                self._after(REJOIN, self._offered, node, life, session)

    def _link_ended(self, name: str, session: int) -> None:
        if str(session) in self._link:
            self._note("down", name)
            self.membership.now = self.now
            self.membership.handle(Ended(str(session)))
            self._down(str(session))
            self._place()
        else:
            self._dead.add(session)

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

    def _falls_silent(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._after(self.membership.interval, self._tick)

    def _tick(self) -> None:
        frozen = {
            str(node.session): self.now
            for node in self._known.values()
            if node.frozen and node.session
        }
        since = self._silent_since
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

    # Runs.

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

    # Outcomes.

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

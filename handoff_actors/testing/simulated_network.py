"""The clock, the links and the faults of a ``SimulatedCluster``, and its nodes as far as they live.

Links are as the real ones: what is sent on one arrives in order or not at all, and a message that
is lost is the end of its link. A node whose link has ended abandons what it had for the
orchestrator, and joins again.
"""

from __future__ import annotations

import abc
import hashlib
import heapq
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from handoff_actors.resources.capabilities import to_micro
from handoff_actors.testing.simulated_node import SimulatedNode

REJOIN = 0.2
"""Seconds until a node whose link ended joins again."""


class SimulatedNetwork(abc.ABC):
    """See the module; arguments and attributes are those of ``SimulatedCluster``.

    Args:
        offers: the capabilities of each node, in units.
    """

    def __init__(
        self,
        offers: Sequence[Mapping[str, float]],
        *,
        seed: int,
        delay: tuple[float, float],
        loss: float,
        churn: float,
        freezes: float,
        downtime: tuple[float, float],
        record: bool,
    ) -> None:
        self._delay, self._loss = delay, loss
        self._churn, self._freezes, self._downtime = churn, freezes, downtime
        self._record = record
        # Streams of their own: what is drawn for one thing does not change another.
        self._net, self._fate, self._code = (
            random.Random(f"{seed} {what}")  # noqa: S311  it is to be the same again
            for what in ("net", "fate", "code")
        )
        self.now = 0.0
        self.events = 0
        self.history: list[tuple[Any, ...]] = []
        self.commands: list[tuple[Any, ...]] = []
        self.deaths = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._sessions = itertools.count(1)
        self._arrival: dict[tuple[str, bool], float] = {}
        self.nodes: dict[str, SimulatedNode] = {}
        for number, offered in enumerate(offers):
            node = SimulatedNode(f"n{number}", to_micro(offered, "capabilities"))
            self.nodes[node.name] = node
            self._join(node)
        self._names = list(self.nodes)
        self._draw_fate()

    # What the orchestrator notices.

    @abc.abstractmethod
    def _offered(self, node: SimulatedNode, life: int, session: int) -> None:
        """A node asks to join."""

    @abc.abstractmethod
    def _link_ended(self, name: str, session: int) -> None:
        """The link to a node is no more."""

    @abc.abstractmethod
    def _falls_silent(self) -> None:
        """Some node answers nobody from now on."""

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

    def settle(self) -> None:
        """Let all that was begun end: no more faults, messages arrive."""
        self.commands.append((self.events, "settle"))
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

    # Faults that the user makes.

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
        self._falls_silent()

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
        self._after(REJOIN, self._rejoin, node, life)

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

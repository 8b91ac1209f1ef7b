"""The actors of a cluster: ``gateway`` keeps it reachable, ``membership`` keeps it together.

Neither owns a connection: the gateway's server, the links and what is believed of the others are in
the mesh and its table, so the next incarnation of either goes on where the last one was.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from handoff_actors.actors.reasons import Exit, Reason
from handoff_actors.actors.server import Actor
from handoff_actors.cluster.membership import (
    BEATS,
    Back,
    Close,
    Dial,
    Effect,
    Membership,
    Suspect,
    Tick,
)
from handoff_actors.cluster.mesh import Mesh
from handoff_actors.cluster.peers import PeerBack, PeerSuspect
from handoff_actors.events import log


class GatewayKeeper(Actor):
    """Opens the gateway's server, and has it open for all its incarnations.

    Args:
        mesh: whose gateway it is.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def init(self) -> None:
        """Open what is not open."""
        self.mesh.open()

    def handle(self, message: Any) -> Any:
        """``Address`` is all that can be asked."""
        if isinstance(message, Address):
            return self.mesh.address
        return super().handle(message)


class Address:
    """Asked of the gateway: ``host:port``."""


class _Now:
    """It is time for a tick."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class MembershipKeeper(Actor):
    """The actor around ``Membership``.

    Events that somebody waits for are answered with the effects, which are then the asker's; the
    effects of all others are carried out here.

    Args:
        mesh: whose members these are.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def init(self) -> None:
        """Take the members over, and begin to tick."""
        mesh = self.mesh
        view = self.take(mesh.members)
        self.machine = Membership(mesh.node, mesh.incarnation, mesh.card.heartbeat, view)
        self.machine.now = time.monotonic()
        # What ended while there was no actor to be told.
        self._ticks = 0
        self._tick()

    def handle(self, message: Any) -> Any:
        """See ``membership``."""
        if isinstance(message, _Now):
            if message.number == self._ticks:
                self._tick()
            return None
        self.machine.now = time.monotonic()
        effects = self.machine.handle(message)
        if self.asker() is not None:
            return self._commit(effects)
        self._commit()
        self._carry_out(effects)
        return None

    def terminate(self, reason: Reason) -> None:
        """The last one takes leave of all peers."""
        if reason is Exit.SHUTDOWN:
            self.mesh.close()

    def _commit(self, reply: Any = None) -> Any:
        members, before = self.machine.members, self.mesh.members.view
        changes = {n: m for n, m in members.items() if before.get(n) is not m}
        gone = [name for name in before if name not in members]
        return self.commit(changes, gone, reply)

    def _tick(self) -> None:
        mesh, machine = self.mesh, self.machine
        self._ticks += 1
        silent: dict[str, float] = {}
        shortest = machine.interval
        for link in mesh.links():
            interval = min(machine.heartbeat, link.card.heartbeat) / BEATS
            shortest = min(shortest, interval)
            link.beat(interval / 2)
            silent[link.session] = link.silent()
        self.system.timers.send_after(shortest, self.ref, _Now(self._ticks))
        effects = machine.handle(Tick(time.monotonic(), silent))
        self._commit()
        self._carry_out(effects)

    def _carry_out(self, effects: list[Effect]) -> None:
        mesh = self.mesh
        links = {link.session: link for link in mesh.links()}
        for effect in effects:
            if isinstance(effect, Dial):
                mesh.carriers.submit(functools.partial(mesh.joining.redial, effect.card))
                continue
            link = links.get(getattr(effect, "session", ""))
            if link is None:
                continue
            if isinstance(effect, Close):
                link.close(effect.reason)
            elif isinstance(effect, Suspect):
                link.state = "suspect"
                log.warning("node_suspect", node=mesh.node, peer=link.name)
                mesh.notifier.tell(PeerSuspect(link))
            elif isinstance(effect, Back):
                link.state = "up"
                log.info("node_back", node=mesh.node, peer=link.name)
                mesh.notifier.tell(PeerBack(link))

"""The cluster over sockets: links to all other nodes.

    dialled by ``joining`` ─┐
    accepted by ``gateway`` ┴─► membership decides ─► a link ─► peers(), watchers, services

It is a plain object. Its decisions are ``membership``'s, whose actor drives it while the links go
on by themselves: should that actor or the gateway's crash, no link notices. What the user is told
of a peer comes from its link, at once.

Guarantees: a peer is in ``peers()`` before its first message is handled, and not any more once its
end is known; ``connect`` returns when every node that can be reached has a link to every other one.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from handoff_actors._version import __version__
from handoff_actors.actors.calls import Ref
from handoff_actors.actors.carriers import Carriers
from handoff_actors.actors.table import Table
from handoff_actors.actors.timers import Timers
from handoff_actors.cluster import addresses, bulk
from handoff_actors.cluster.gateway import (
    GatewayManager,
    GatewayServer,
    Place,
    current_connection,
)
from handoff_actors.cluster.handshake import PYTHON
from handoff_actors.cluster.joining import SERVICE, Joined, Joining, Welcome, seen_from
from handoff_actors.cluster.link import Link
from handoff_actors.cluster.membership import (
    Accept,
    Card,
    Close,
    Ended,
    Learnt,
    Member,
    Offered,
    Probe,
    Refuse,
)
from handoff_actors.cluster.payload import dumps
from handoff_actors.cluster.peers import (
    Cluster,
    NodeRecord,
    Peer,
    PeerDown,
    PeerFacts,
    PeerUp,
)
from handoff_actors.cluster.rooms import Rooms
from handoff_actors.cluster.tls import TLS
from handoff_actors.errors import (
    NodeError,
)
from handoff_actors.events import log

_HEAL = 5.0  # seconds for a node to be joined again
_PROBE = 1.0  # seconds for a sign of life of who has a name that another one wants


class Mesh(Cluster):
    """See the module, and ``Cluster``.

    Args:
        node: this node's name.
        key: the cluster's.
        place: where its gateway is to listen.
        heartbeat: seconds of silence after which a peer is given up.
        carriers: threads for what may wait.
        timers: for deadlines.
        describe: what ``handoff status`` shows of this node; called on any thread.
    """

    def __init__(
        self,
        node: str,
        key: bytes,
        place: Place,
        heartbeat: float,
        carriers: Carriers,
        timers: Timers,
        describe: Callable[[], Any],
    ) -> None:
        super().__init__(node, secrets.token_hex(8))
        self.key = key
        self.place = place
        self.carriers = carriers
        self.timers = timers
        self.describe_node = describe
        self.members: Table[str, Member] = Table()
        self.membership: Ref | None = None
        self.server: GatewayServer | None = None
        self.card = Card(
            node,
            self.incarnation,
            None,
            None,
            addresses.machine_id(),
            os.getpid(),
            heartbeat,
            PYTHON,
            __version__,
        )
        self._changed = threading.Condition(threading.Lock())
        self._links: dict[str, Link] = {}
        self.apart: set[str] = set()
        self._by_name: Mapping[str, Link] = {}
        self.joining = Joining(self)
        self.rooms = Rooms(self._later)
        self.closed = False
        self.serve(SERVICE, on_post=self._heard_of, on_call=self._asked_to_join)
        self.serve(bulk.SERVICE, on_call=self._piece)

    def _later(self, seconds: float, job: Callable[[], None]) -> None:
        """On a carrier, as jobs may take longer than timers may."""
        self.timers.call_later(seconds, lambda: self.carriers.submit(job))

    # The gateway.

    def open(self) -> None:
        """Open the gateway, unless it is open.

        Raises:
            ConfigurationError: its address cannot be listened on.
        """
        with self._changed:
            if self.server is not None or self.closed:
                return
            server: GatewayServer = GatewayManager(self.place, self.key).get_server()
            server.pin(self)
            bound: Place = server.address
            assert bound.host is not None
            address = addresses.text(bound.host, bound.port)
            self.card = replace(self.card, address=address, local=bound.local)
            self.server = server
            server.serve()

    @property
    def address(self) -> str | None:
        """``host:port`` of the gateway."""
        return self.card.address

    # What the gateway's clients call.

    def greet(self) -> Welcome:
        """Who is here."""
        return Welcome(self.card, self.cards())

    def join(
        self, card: Card, session: str, replaces: str | None, insists: bool
    ) -> Welcome | Refuse:
        """Somebody wants to be a peer over the connection that this comes from."""
        connection = current_connection()
        card = seen_from(card, connection.stream.peer_host())
        if card.name in self.apart:
            return Refuse("dialling")
        decision = self._decide(card, session, replaces, insists)
        if isinstance(decision, Refuse):
            return decision
        link = Link(self, card, session, connection.stream)
        connection.hand_over(lambda stream: link.end() if stream is None else link.run())
        self.begun(link)
        return Welcome(self.card, self.cards(without=card.name))

    def _decide(
        self, card: Card, session: str, replaces: str | None, insists: bool
    ) -> Accept | Refuse:
        probed = None
        while True:
            dialling = self.joining.is_dialling(card.name)
            event = Offered(card, session, replaces, dialling, insists, probed)
            for effect in self.ask(event):
                if isinstance(effect, Close):
                    self.end_link(effect.session, effect.reason)
                elif isinstance(effect, Accept | Refuse):
                    return effect
                elif isinstance(effect, Probe):
                    link = self._links.get(effect.session)
                    if link is not None and link.ping(_PROBE):
                        probed = effect.session
                    else:
                        self.end_link(effect.session, "it does not answer")

    def transfer(self, session: str) -> bool:
        """Make the connection that this comes from one for large values."""
        link = self._links.get(session)
        if link is None:
            return False
        current_connection().hand_over(
            lambda stream: None if stream is None else link.bulk.serve(stream)
        )
        return True

    def describe(self) -> Any:
        """The cluster as this node sees it."""
        return self.describe_node()

    # Links.

    def ask(self, event: Any) -> list[Any]:
        """What membership says is to be done."""
        assert self.membership is not None
        found: list[Any] = self.membership.call(event)
        return found

    def tell(self, event: Any) -> None:
        """Let membership know; it sees to what is to be done."""
        assert self.membership is not None
        self.membership.cast(event)

    def begun(self, link: Link) -> None:
        """A link was made: it is a peer from now on."""
        with self._changed:
            before = self._by_name.get(link.name)
            closed = self.closed
        if before is not None:
            before.told_down.wait(5.0)
        with self._changed:
            self._links[link.session] = link
            self._by_name = {**self._by_name, link.name: link}
            self._changed.notify_all()
        self.notifier.tell(PeerUp(link), link.told_up)
        log.info("node_up", node=self.node, peer=link.name, address=link.address, pid=link.pid)
        news = (link.card,)
        for other in self.peers().values():
            if other is not link:
                try:
                    other.post(SERVICE, news)
                except NodeError:
                    continue
        if closed:
            link.close("this node stops")

    def link_ended(self, link: Link) -> None:
        """A link is at its end; called by itself."""
        self.notifier.tell(PeerDown(link, link.reason), link.told_down)
        with self._changed:
            self._links.pop(link.session, None)
            if self._by_name.get(link.name) is link:
                self._by_name = {n: x for n, x in self._by_name.items() if x is not link}
        self.tell(Ended(link.session, link.left, link.facts))
        if link.left or self.closed:
            log.info("node_left", node=self.node, peer=link.name, reason=link.reason)
        else:
            log.warning("node_down", node=self.node, peer=link.name, reason=link.reason)

    def end_link(self, session: str, reason: str, *, left: bool = False) -> None:
        """End a link, and return when all watchers know, or after a while."""
        link = self._links.get(session)
        if link is not None:
            link.close(reason, left=left)
            link.told_down.wait(2.0)

    def facts_changed(self, link: Link) -> None:
        """A peer has said something new."""
        self.notifier.tell(PeerFacts(link))

    def links(self) -> list[Link]:
        """All links."""
        with self._changed:
            return list(self._links.values())

    def link(self, name: str) -> Link | None:
        """The link to the node of that name."""
        return self._by_name.get(name)

    def has(self, name: str) -> bool:
        """Whether there is a link to the node of that name."""
        return name in self._by_name

    def arrived(self, card: Card, deadline: float) -> bool:
        """Whether a link to that life of a node comes up in time."""

        def there() -> bool:
            link = self._by_name.get(card.name)
            return link is not None and link.incarnation == card.incarnation

        with self._changed:
            return self._changed.wait_for(there, max(0.0, deadline - time.monotonic()))

    def connect(self, address: str, timeout: float) -> str:
        """See ``Joining``."""
        return self.joining.connect(address, timeout)

    # What peers ask of each other.

    def _heard_of(self, peer: Peer, cards: Any) -> None:
        assert isinstance(peer, Link)
        self.tell(Learnt(self.relayed(cards, peer.card)))

    def _asked_to_join(self, peer: Peer, request: Any) -> Joined:
        assert isinstance(peer, Link)
        cards, seconds = request
        return self.joining.asked_to_join(self.relayed(cards, peer.card), seconds)

    def relayed(self, cards: Collection[Card], by: Card) -> tuple[Card, ...]:
        """The cards that a peer told of, with addresses as they are to be used here."""
        host = None if by.address is None else addresses.parse(by.address)[0]
        found = [seen_from(c, host if c.machine == by.machine else None) for c in cards]
        return tuple([c if self._may_reach(c) else replace(c, address=None) for c in found])

    def _may_reach(self, card: Card) -> bool:
        if card.address is None or card.machine == self.card.machine:
            return True
        return not addresses.is_loopback(addresses.parse(card.address)[0])

    @staticmethod
    def _piece(peer: Peer, request: Any) -> bytes:
        assert isinstance(peer, Link)
        return peer.bulk.piece(*request)

    # What is known.

    def cards(self, without: str | None = None) -> tuple[Card, ...]:
        """The cards of all peers that can be connected to."""
        return tuple(
            replace(link.card, facts=link.facts)
            for link in self._by_name.values()
            if link.name != without and link.state != "down"
        )

    def peers(self) -> Mapping[str, Peer]:
        """See ``Cluster``."""
        return {name: link for name, link in self._by_name.items() if link.state != "down"}

    def known(self) -> Mapping[str, NodeRecord]:
        """See ``Cluster``."""
        found: dict[str, NodeRecord] = {}
        links = self._by_name
        for name, member in list(self.members.view.items()):
            link = links.get(name)
            found[name] = _record(
                member.card if link is None else replace(link.card, facts=link.facts),
                "down" if link is None else link.state,
                member.left,
            )
        for name, link in links.items():
            if name not in found:
                found[name] = _record(replace(link.card, facts=link.facts), link.state, False)
        return found

    def publish(self, **facts: Any) -> None:
        """See ``Cluster``."""
        with self._changed:
            self.card = replace(self.card, facts={**self.card.facts, **facts})
            payload = dumps(self.card.facts, "facts")
            links = list(self._links.values())
        for link in links:
            link.tell_facts(payload)

    # Leaving.

    def disconnect(self, name: str) -> None:
        """Leave a node; it is not dialled again unless somebody connects anew.

        Raises:
            NodeDownError: it is not connected.
        """
        peer = self.peer(name)
        assert isinstance(peer, Link)
        self.joining.leave(peer)
        self.notifier.flush()

    def cut(self, name: str) -> None:
        """For fault tests: end the link to a node, and let none come to be until ``heal``."""
        self.apart.add(name)
        link = self._by_name.get(name)
        if link is not None:
            self.end_link(link.session, "its link was cut, by a test")

    def heal(self, name: str) -> None:
        """Undo ``cut``, and join the node again.

        Raises:
            NodeUnreachableError: it cannot be reached.
        """
        self.apart.discard(name)
        record = self.known().get(name)
        if record is not None and record.address is not None:
            self.connect(record.address, _HEAL)

    def close(self, timeout: float = 2.0) -> None:
        """Take leave of all, and end everything; idempotent.

        Args:
            timeout: seconds for all of it.
        """
        with self._changed:
            if self.closed:
                return
            self.closed = True
        deadline = time.monotonic() + timeout
        links = self.links()
        for link in links:
            link.farewell()
            link.close("this node stops", left=True)
        for link in links:
            link.told_down.wait(max(0.0, deadline - time.monotonic()))
        server = self.server
        if server is not None:
            server.close(max(0.2, deadline - time.monotonic()))
        self.notifier.close()
        self.rooms.close()


def _record(card: Card, state: Any, left: bool) -> NodeRecord:
    return NodeRecord(
        card.name,
        card.incarnation,
        card.address,
        card.pid,
        state,
        card.python,
        card.version,
        card.facts,
        left and state == "down",
    )


def place_for(name: str, listen: str | None, tls: TLS | None) -> Place:
    """Where the gateway of a node listens: on loopback, at any port, unless told otherwise.

    Raises:
        ConfigurationError: ``listen`` is no address.
    """
    host, port = addresses.parse(listen or "127.0.0.1:0", "listen")
    return Place(name, host, port, tls)

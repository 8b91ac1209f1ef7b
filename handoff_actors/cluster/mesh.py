"""The cluster over sockets: links to all other nodes, and how they come about.

    connect(address) ─► greet ─► join ─► a link, and the cards of all it knows ─► join each of them
                                      └► each of them joins those it misses ─► the mesh is complete

It is a plain object. Its decisions are ``membership``'s, whose actor drives it while the links go
on by themselves: should that actor or the gateway's crash, no link notices. What the user is told
of a peer comes from its link, at once.

Guarantees: a peer is in ``peers()`` before its first message is handled, and not any more once its
end is known; ``connect`` returns when every node that can be reached has a link to every other one.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from handoff_actors._version import __version__
from handoff_actors.actors.calls import Ref
from handoff_actors.actors.carriers import Carriers
from handoff_actors.actors.table import Table
from handoff_actors.actors.timers import Timers
from handoff_actors.cluster import bulk, transport
from handoff_actors.cluster.gateway import (
    Caller,
    GatewayManager,
    GatewayServer,
    Place,
    current_connection,
)
from handoff_actors.cluster.handshake import PYTHON
from handoff_actors.cluster.link import Link
from handoff_actors.cluster.membership import (
    Accept,
    Card,
    Close,
    Dialled,
    Ended,
    Learnt,
    Left,
    Member,
    Missed,
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
from handoff_actors.cluster.transport import TLS, Stream
from handoff_actors.errors import (
    ConfigurationError,
    HandoffError,
    NameTakenError,
    NodeDownError,
    NodeError,
    NodeUnreachableError,
)
from handoff_actors.events import log

SERVICE = "handoff.mesh"

_DIAL = 5.0  # seconds for a dial that nobody waits for
_PATIENCE = 1.0  # seconds for the other side's dial to arrive, before ours insists
_PROBE = 1.0  # seconds for a sign of life of who has a name that another one wants


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to ``join``: you are a peer, and these are the others.

    Attributes:
        card: who answers.
        others: the cards of its peers, with addresses as it sees them.
    """

    card: Card
    others: tuple[Card, ...]


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
            transport.machine_id(),
            os.getpid(),
            heartbeat,
            PYTHON,
            __version__,
        )
        self._changed = threading.Condition(threading.Lock())
        self._links: dict[str, Link] = {}
        self.apart: set[str] = set()
        self._by_name: Mapping[str, Link] = {}
        self._dialling: dict[str, int] = {}
        self._closed = False
        self.serve(SERVICE, on_post=self._heard_of, on_call=self._asked_to_join)
        self.serve(bulk.SERVICE, on_call=self._piece)

    # The gateway.

    def open(self) -> None:
        """Open the gateway, unless it is open.

        Raises:
            ConfigurationError: its address cannot be listened on.
        """
        with self._changed:
            if self.server is not None or self._closed:
                return
            server: GatewayServer = GatewayManager(self.place, self.key).get_server()
            server.pin(self)
            bound: Place = server.address
            assert bound.host is not None
            address = transport.text(bound.host, bound.port)
            self.card = replace(self.card, address=address, local=bound.local)
            self.server = server
            server.serve()

    @property
    def address(self) -> str | None:
        """``host:port`` of the gateway."""
        return self.card.address

    # What the gateway's clients call.

    def greet(self) -> Card:
        """Who is here."""
        return self.card

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
        self._begun(link)
        return Welcome(self.card, self.cards(without=card.name))

    def _decide(
        self, card: Card, session: str, replaces: str | None, insists: bool
    ) -> Accept | Refuse:
        probed = None
        while True:
            with self._changed:
                dialling = card.name in self._dialling
            event = Offered(card, session, replaces, dialling, insists, probed)
            for effect in self._ask(event):
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

    def _ask(self, event: Any) -> list[Any]:
        assert self.membership is not None
        found: list[Any] = self.membership.call(event)
        return found

    def _tell(self, event: Any) -> None:
        assert self.membership is not None
        self.membership.cast(event)

    def _begun(self, link: Link) -> None:
        """A link was made: it is a peer from now on."""
        with self._changed:
            before = self._by_name.get(link.name)
            closed = self._closed
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
        self._tell(Ended(link.session, link.left, link.facts))
        if link.left or self._closed:
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

    # Dialling.

    def connect(self, address: str, timeout: float) -> str:
        """Join the cluster of the node at ``address``; returns that node's name.

        Raises:
            NodeError: what went wrong.
            ConfigurationError: ``address`` is none, or this node's own.
        """
        deadline = time.monotonic() + timeout
        host, port = _reachable(address)
        place = replace(self.place, host=host, port=port, local=None)
        name, welcome = self._dial(place, deadline)
        others = () if welcome is None else welcome.others
        self._complete(others, deadline)
        self.notifier.flush()
        return name

    def _complete(self, cards: Collection[Card], deadline: float) -> None:
        """Join all of these nodes, have all peers join all others, until nobody is new."""
        asked: dict[str, int] = {}
        while True:
            self.join_all(cards, deadline)
            mine = self.cards()
            cards = []
            jobs = []
            for peer in self.peers().values():
                if asked.get(peer.session) == len(mine):
                    continue
                asked[peer.session] = len(mine)
                left = max(0.01, deadline - time.monotonic())
                jobs.append((peer, peer.ask(SERVICE, (mine, left), left)))
            for peer, job in jobs:
                try:
                    found = job.result(max(0.01, deadline - time.monotonic()) + 1.0)
                    assert isinstance(peer, Link)
                    cards += self._relayed(found, peer.card)
                except NodeDownError:
                    continue
                except (NodeError, concurrent.futures.TimeoutError) as error:
                    log.warning("mesh_incomplete", node=self.node, peer=peer.name, error=str(error))
            if not jobs or time.monotonic() > deadline:
                return

    def join_all(self, cards: Collection[Card], deadline: float) -> None:
        """Join those of the nodes that are no peers yet, at once.

        Raises:
            NameTakenError: one of them knows another node of this name.
        """
        jobs = []
        for card in {c.name: c for c in cards}.values():
            if card.name == self.node or card.address is None or card.name in self._by_name:
                continue
            done: concurrent.futures.Future[None] = concurrent.futures.Future()
            jobs.append((card, done))
            self.carriers.submit(functools.partial(self._join_one, card, done, deadline))
        for card, done in jobs:
            try:
                done.result(max(0.01, deadline - time.monotonic()) + 1.0)
            except NameTakenError:
                raise
            except (HandoffError, concurrent.futures.TimeoutError) as error:
                log.warning("mesh_incomplete", node=self.node, peer=card.name, error=str(error))

    def _join_one(self, card: Card, done: concurrent.futures.Future[None], deadline: float) -> None:
        try:
            self.dial(card, deadline)
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    def redial(self, card: Card) -> None:
        """Try to join a node that nobody waits for; on a carrier."""
        try:
            self.dial(card, time.monotonic() + _DIAL)
        except Exception as error:
            log.debug("dial_failed", node=self.node, peer=card.name, error=str(error))
            self._tell(Missed(card.name))

    def dial(self, card: Card, deadline: float) -> None:
        """Join the node of that card.

        Raises:
            NodeError: what went wrong.
        """
        if self._closed or card.name in self._by_name:
            return
        assert card.address is not None
        host, port = _reachable(card.address)
        with self._changed:
            self._dialling[card.name] = self._dialling.get(card.name, 0) + 1
        try:
            self._dial(replace(self.place, host=host, port=port, local=None), deadline, card.name)
        finally:
            with self._changed:
                self._dialling[card.name] -= 1
                if not self._dialling[card.name]:
                    del self._dialling[card.name]

    def _dial(
        self, place: Place, deadline: float, wanted: str | None = None
    ) -> tuple[str, Welcome | None]:
        """Join whoever is at ``place``; None if it is a peer already."""
        replaces: str | None = None
        insists = False
        while True:
            left = deadline - time.monotonic()
            caller = Caller(replace(place, timeout=max(0.01, left)), self.key)
            try:
                card = seen_from(_reached(caller.call("greet")), place.host)
                if wanted is not None and card.name != wanted:
                    raise NodeUnreachableError(
                        f"at {card.address} there is {card.name!r} now, not {wanted!r}", node=wanted
                    )
                if card.name in self.apart:
                    raise NodeUnreachableError(
                        f"the link to {card.name!r} is cut, by a test", node=card.name
                    )
                if card.incarnation == self.incarnation:
                    raise ConfigurationError(f"{card.address} is this node itself")
                there = self._by_name.get(card.name)
                if there is not None and there.incarnation == card.incarnation:
                    return card.name, None
                caller = self._nearer(caller, card, place, deadline)
                session = secrets.token_hex(8)
                mine = self.card
                answer = caller.call("join", mine, session, replaces, insists)
                if isinstance(answer, Welcome):
                    welcome = self._dialled(answer, card, session, caller, mine.facts)
                    return card.name, welcome
            except (OSError, EOFError) as error:
                raise NodeUnreachableError(
                    f"the node at {transport.text(str(place.host), place.port)} ended the "
                    f"conversation: {error or type(error).__name__}",
                    node=wanted,
                ) from error
            finally:
                caller.close()
            assert isinstance(answer, Refuse)
            if answer.why in ("name", "self"):
                raise NameTakenError(
                    f"the cluster at {card.address} has a node {self.node!r} already: start() this "
                    "one with another name=",
                    node=card.name,
                )
            if self._arrived(card, min(deadline, time.monotonic() + _PATIENCE)):
                return card.name, None
            if time.monotonic() >= deadline:
                raise NodeUnreachableError(
                    f"node {card.name!r} was busy joining others for too long", node=card.name
                )
            insists = True
            replaces = answer.session

    def _nearer(self, caller: Caller, card: Card, place: Place, deadline: float) -> Caller:
        """A connection over this machine's own socket, if that is where the node is."""
        if card.local is None or card.machine != self.card.machine:
            return caller
        left = max(0.01, deadline - time.monotonic())
        try:
            near = Caller(replace(place, local=card.local, timeout=left), self.key)
        except NodeError:
            return caller
        caller.close()
        return near

    def _dialled(
        self, answer: Welcome, card: Card, session: str, caller: Caller, told: Mapping[str, Any]
    ) -> Welcome | None:
        # The address is the one it was reached by.
        theirs = replace(answer.card, address=card.address)
        link = Link(self, theirs, session, caller.take())
        for effect in self._ask(Dialled(theirs, session)):
            if isinstance(effect, Close):
                self.end_link(effect.session, effect.reason)
            elif isinstance(effect, Refuse):
                link.stream.shutdown()
                link.stream.close()
                if effect.why == "linked":
                    return None
                raise NameTakenError(
                    f"the node at {card.address} is called {self.node!r} too: start() this one "
                    "with another name=",
                    node=card.name,
                )
        self._begun(link)
        threading.Thread(
            target=link.run, name=f"handoff-{self.node}-link-{link.name}", daemon=True
        ).start()
        if self.card.facts is not told:
            link.tell_facts(dumps(self.card.facts, "facts"))
        return replace(answer, others=self._relayed(answer.others, theirs))

    def _arrived(self, card: Card, deadline: float) -> bool:
        """Whether a link to that life of a node comes up in time."""

        def there() -> bool:
            link = self._by_name.get(card.name)
            return link is not None and link.incarnation == card.incarnation

        with self._changed:
            return self._changed.wait_for(there, max(0.0, deadline - time.monotonic()))

    def dial_transfer(self, link: Link, timeout: float) -> Stream | None:
        """A connection for large values to a peer; None if none can be made."""
        card = link.card
        places = []
        if card.local is not None and link.same_machine:
            places.append(replace(self.place, local=card.local, timeout=timeout))
        if card.address is not None:
            host, port = _reachable(card.address)
            places.append(
                replace(self.place, host=host, port=port, local=None, timeout=min(timeout, _DIAL))
            )
        for place in places:
            try:
                caller = Caller(place, self.key)
            except (HandoffError, OSError):
                continue
            try:
                if caller.call("transfer", link.session):
                    return caller.take()
            except (HandoffError, OSError, EOFError):
                continue
            finally:
                caller.close()
        return None

    # What peers ask of each other.

    def _heard_of(self, peer: Peer, cards: Any) -> None:
        assert isinstance(peer, Link)
        self._tell(Learnt(self._relayed(cards, peer.card)))

    def _asked_to_join(self, peer: Peer, request: Any) -> tuple[Card, ...]:
        assert isinstance(peer, Link)
        cards, seconds = request
        self.join_all(self._relayed(cards, peer.card), time.monotonic() + seconds)
        return self.cards()

    def _relayed(self, cards: Collection[Card], by: Card) -> tuple[Card, ...]:
        """The cards that a peer told of, with addresses as they are to be used here."""
        host = None if by.address is None else transport.parse(by.address)[0]
        found = [seen_from(c, host if c.machine == by.machine else None) for c in cards]
        return tuple([c if self._may_reach(c) else replace(c, address=None) for c in found])

    def _may_reach(self, card: Card) -> bool:
        if card.address is None or card.machine == self.card.machine:
            return True
        return not transport.is_loopback(transport.parse(card.address)[0])

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
        self._ask(Left(name))
        peer.farewell()
        self.end_link(peer.session, "it was left", left=True)
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
            self.connect(record.address, _DIAL)

    def close(self, timeout: float = 2.0) -> None:
        """Take leave of all, and end everything; idempotent.

        Args:
            timeout: seconds for all of it.
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
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


def _reachable(address: str) -> tuple[str, int]:
    """Host and port; all interfaces of this machine are reached by the loopback one."""
    host, port = transport.parse(address)
    if transport.is_wildcard(host):
        host = "::1" if ":" in host else "127.0.0.1"
    return host, port


def _reached(card: Any) -> Card:
    if not isinstance(card, Card):
        raise EOFError("it does not answer as a node does")  # noqa: TRY004  not our type to check
    return card


def seen_from(card: Card, host: str | None) -> Card:
    """``card`` with an address that is of use to whoever reached it, or was reached, at ``host``.

    A node that listens on all interfaces says so, and not by which of them it can be reached.
    """
    if card.address is None:
        return card
    named, port = transport.parse(card.address)
    if host is not None and transport.is_wildcard(named):
        return replace(card, address=transport.text(host, port))
    return card


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
    host, port = transport.parse(listen or "127.0.0.1:0", "listen")
    return Place(name, host, port, tls)

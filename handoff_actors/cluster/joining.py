"""How links come about: dialling one node, and all others that it tells of.

    connect(address) ─► greet ─► are all names different? ─► join ─► a link, and who else is there
                                                              └─► join each of them, have each of
                                                                  them join those it misses

Guarantees: clusters with different nodes of one name are not joined; where that turns out when some
have been joined already, those are left again. Two nodes that cannot reach
each other keep nobody out: whoever connects is told which, and they go on trying.
"""

from __future__ import annotations

import concurrent.futures
import functools
import secrets
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from handoff_actors.cluster import addresses
from handoff_actors.cluster.gateway import Caller, Place
from handoff_actors.cluster.link import Link
from handoff_actors.cluster.membership import Card, Close, Dialled, Learnt, Left, Missed, Refuse
from handoff_actors.cluster.payload import dumps
from handoff_actors.cluster.stream import Stream
from handoff_actors.errors import (
    ConfigurationError,
    HandoffError,
    NameTakenError,
    NodeDownError,
    NodeError,
    NodeUnreachableError,
)
from handoff_actors.events import log

if TYPE_CHECKING:
    from handoff_actors.cluster.mesh import Mesh

SERVICE = "handoff.mesh"

_DIAL = 5.0  # seconds for a dial that nobody waits for
_PATIENCE = 1.0  # seconds for the other side's dial to arrive, before ours insists
_PROBE = 1.0  # seconds for a sign of life of who has a name that another one wants
_THEIRS = 0.5  # the part of the time left that others get to join each other


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to ``greet`` and ``join``: who is here, and the others.

    Attributes:
        card: who answers.
        others: the cards of its peers, with addresses as it sees them.
    """

    card: Card
    others: tuple[Card, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """The answer of a peer that was asked to join others.

    Attributes:
        cards: its peers.
        missed: whom it could not join, by name, and why.
    """

    cards: tuple[Card, ...]
    missed: Mapping[str, str]


class Joining:
    """See the module.

    Args:
        mesh: whose links these become.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._lock = threading.Lock()
        self._dialling: dict[str, int] = {}

    def is_dialling(self, name: str) -> bool:
        """Whether that node is being dialled just now."""
        with self._lock:
            return name in self._dialling

    # A whole cluster.

    def connect(self, address: str, timeout: float) -> str:
        """Join the cluster of the node at ``address``; returns that node's name.

        Raises:
            NodeError: what went wrong.
            ConfigurationError: ``address`` is none, or this node's own.
        """
        mesh = self.mesh
        deadline = time.monotonic() + timeout
        host, port = reachable(address)
        place = replace(mesh.place, host=host, port=port, local=None)
        before = {link.session for link in mesh.links()}
        told: dict[str, None] = {}
        try:
            name, welcome = self._dial(place, deadline)
            told[name] = None
            self._complete(() if welcome is None else welcome.others, deadline, told)
        except NameTakenError:
            # Whoever was joined meanwhile by itself stays: only what this has joined is left.
            for link in mesh.links():
                if link.session not in before and link.name in told:
                    self.leave(link)
            raise
        finally:
            mesh.notifier.flush()
        return name

    def leave(self, link: Link) -> None:
        """Take leave of a peer; it is not dialled again unless somebody connects anew."""
        self.mesh.ask(Left(link.name))
        link.farewell()
        self.mesh.end_link(link.session, "it was left", left=True)

    def _complete(self, cards: Collection[Card], deadline: float, told: dict[str, None]) -> None:
        """Join all of these nodes, have all peers join all others, until nobody is new."""
        mesh = self.mesh
        asked: dict[str, int] = {}
        apart: dict[frozenset[str], str] = {}
        while True:
            told.update(dict.fromkeys(card.name for card in cards))
            missed = self.join_all(cards, deadline)
            for error in missed.values():
                if isinstance(error, NameTakenError):
                    raise error
            apart.update({frozenset((mesh.node, n)): str(e) for n, e in missed.items()})
            mine = mesh.cards()
            cards = []
            jobs = []
            for peer in mesh.peers().values():
                if asked.get(peer.session) == len(mine):
                    continue
                asked[peer.session] = len(mine)
                left = max(0.01, deadline - time.monotonic())
                jobs.append((peer, peer.ask(SERVICE, (mine, left * _THEIRS), left)))
            for peer, job in jobs:
                try:
                    found = job.result(max(0.01, deadline - time.monotonic()) + 1.0)
                    assert isinstance(peer, Link)
                    cards += mesh.relayed(found.cards, peer.card)
                    pairs = {frozenset((peer.name, n)): e for n, e in found.missed.items()}
                    apart.update(pairs)
                except NodeDownError:
                    continue
                except (NodeError, concurrent.futures.TimeoutError) as error:
                    apart[frozenset((mesh.node, peer.name))] = str(error)
            if not jobs or time.monotonic() > deadline:
                break
        for pair, reason in apart.items():
            one, other = sorted(pair)
            log.warning(
                "nodes_apart",
                node=mesh.node,
                one=one,
                other=other,
                error=reason,
                so="values between them go through the node that runs the DAG",
            )

    def join_all(self, cards: Collection[Card], deadline: float) -> dict[str, Exception]:
        """Join those of the nodes that are no peers yet, at once.

        Returns:
            Those that could not be joined, and why; they will be tried again.
        """
        mesh = self.mesh
        jobs = []
        for card in {c.name: c for c in cards}.values():
            if card.name == mesh.node or card.address is None or mesh.has(card.name):
                continue
            done: concurrent.futures.Future[None] = concurrent.futures.Future()
            jobs.append((card, done))
            mesh.carriers.submit(functools.partial(self._join_one, card, done, deadline))
        missed: dict[str, Exception] = {}
        for card, done in jobs:
            try:
                done.result(max(0.01, deadline - time.monotonic()) + 1.0)
            except (HandoffError, concurrent.futures.TimeoutError) as error:
                missed[card.name] = error
                if not isinstance(error, NameTakenError):
                    mesh.tell(Learnt((card,)))
        return missed

    def asked_to_join(self, cards: Collection[Card], seconds: float) -> Joined:
        """A peer wants this node to join these others, within so many seconds."""
        missed = self.join_all(cards, time.monotonic() + seconds)
        return Joined(self.mesh.cards(), {name: str(error) for name, error in missed.items()})

    def _join_one(self, card: Card, done: concurrent.futures.Future[None], deadline: float) -> None:
        try:
            self.dial(card, deadline)
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    def _check_names(self, there: Welcome) -> None:
        """Whether this node's peers and those there can be one cluster.

        This node's own name is no matter here: who has it there may be a life of it that is over,
        and that is found out when it joins.

        Raises:
            NameTakenError: they have different nodes of one name.
        """
        mesh = self.mesh
        for card in there.others:
            link = mesh.link(card.name)
            if link is None or link.incarnation == card.incarnation:
                continue
            if link.ping(_PROBE):
                raise NameTakenError(
                    f"the cluster at {there.card.address} has a node {card.name!r}, and so has "
                    "this one: start() one of the two with another name=",
                    node=card.name,
                )
            mesh.end_link(link.session, "it does not answer")

    def _own_name_taken(self, card: Card) -> NameTakenError:
        return NameTakenError(
            f"the cluster at {card.address} has a node {self.mesh.node!r} already: start() this "
            "one with another name=",
            node=card.name,
        )

    # One node.

    def redial(self, card: Card) -> None:
        """Try to join a node that nobody waits for; on a carrier."""
        try:
            self.dial(card, time.monotonic() + _DIAL)
        except Exception as error:
            log.debug("dial_failed", node=self.mesh.node, peer=card.name, error=str(error))
            self.mesh.tell(Missed(card.name))

    def dial(self, card: Card, deadline: float) -> None:
        """Join the node of that card.

        Raises:
            NodeError: what went wrong.
        """
        mesh = self.mesh
        if mesh.closed or mesh.has(card.name):
            return
        assert card.address is not None
        host, port = reachable(card.address)
        with self._lock:
            self._dialling[card.name] = self._dialling.get(card.name, 0) + 1
        try:
            place = replace(mesh.place, host=host, port=port, local=None)
            self._dial(place, deadline, card.name)
        finally:
            with self._lock:
                self._dialling[card.name] -= 1
                if not self._dialling[card.name]:
                    del self._dialling[card.name]

    def _dial(
        self, place: Place, deadline: float, wanted: str | None = None
    ) -> tuple[str, Welcome | None]:
        """Join whoever is at ``place``; None if it is a peer already."""
        mesh = self.mesh
        replaces: str | None = None
        insists = False
        while True:
            left = deadline - time.monotonic()
            caller = Caller(replace(place, timeout=max(0.01, left)), mesh.key)
            try:
                there = _reached(caller.call("greet"))
                card = seen_from(there.card, place.host)
                there = replace(there, card=card)
                if wanted is not None and card.name != wanted:
                    raise NodeUnreachableError(
                        f"at {card.address} there is {card.name!r} now, not {wanted!r}", node=wanted
                    )
                if card.name in mesh.apart:
                    raise NodeUnreachableError(
                        f"the link to {card.name!r} is cut, by a test", node=card.name
                    )
                if card.incarnation == mesh.incarnation:
                    raise ConfigurationError(f"{card.address} is this node itself")
                known = mesh.link(card.name)
                if known is not None and known.incarnation == card.incarnation:
                    return card.name, None
                if wanted is None:
                    self._check_names(there)
                caller = self._nearer(caller, card, place, deadline)
                session = secrets.token_hex(8)
                mine = mesh.card
                answer = caller.call("join", mine, session, replaces, insists)
                if isinstance(answer, Welcome):
                    welcome = self._dialled(answer, card, session, caller, mine.facts)
                    return card.name, welcome
            except (OSError, EOFError) as error:
                raise NodeUnreachableError(
                    f"the node at {addresses.text(str(place.host), place.port)} ended the "
                    f"conversation: {error or type(error).__name__}",
                    node=wanted,
                ) from error
            finally:
                caller.close()
            assert isinstance(answer, Refuse)
            if answer.why in ("name", "self"):
                raise self._own_name_taken(card)
            if mesh.arrived(card, min(deadline, time.monotonic() + _PATIENCE)):
                return card.name, None
            if time.monotonic() >= deadline:
                raise NodeUnreachableError(
                    f"node {card.name!r} was busy joining others for too long", node=card.name
                )
            insists = True
            replaces = answer.session

    def _nearer(self, caller: Caller, card: Card, place: Place, deadline: float) -> Caller:
        """A connection over this machine's own socket, if that is where the node is."""
        mesh = self.mesh
        if card.local is None or card.machine != mesh.card.machine:
            return caller
        left = max(0.01, deadline - time.monotonic())
        try:
            near = Caller(replace(place, local=card.local, timeout=left), mesh.key)
        except NodeError:
            return caller
        caller.close()
        return near

    def _dialled(
        self, answer: Welcome, card: Card, session: str, caller: Caller, told: Mapping[str, Any]
    ) -> Welcome | None:
        mesh = self.mesh
        # The address is the one it was reached by.
        theirs = replace(answer.card, address=card.address)
        for effect in mesh.ask(Dialled(theirs, session)):
            if isinstance(effect, Close):
                mesh.end_link(effect.session, effect.reason)
            elif isinstance(effect, Refuse):
                if effect.why == "linked":
                    return None
                raise self._own_name_taken(card)
        link = Link(mesh, theirs, session, caller.take())
        mesh.begun(link)
        link.run()
        if mesh.card.facts is not told:
            link.tell_facts(dumps(mesh.card.facts, "facts"))
        return replace(answer, others=mesh.relayed(answer.others, theirs))

    def dial_transfer(self, link: Link, timeout: float) -> Stream | None:
        """A connection for large values to a peer; None if none can be made."""
        mesh, card = self.mesh, link.card
        places = []
        if card.local is not None and link.same_machine:
            places.append(replace(mesh.place, local=card.local, timeout=timeout))
        if card.address is not None:
            host, port = reachable(card.address)
            places.append(
                replace(mesh.place, host=host, port=port, local=None, timeout=min(timeout, _DIAL))
            )
        for place in places:
            try:
                caller = Caller(place, mesh.key)
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


def reachable(address: str) -> tuple[str, int]:
    """Host and port; all interfaces of this machine are reached by the loopback one."""
    host, port = addresses.parse(address)
    if addresses.is_wildcard(host):
        host = "::1" if ":" in host else "127.0.0.1"
    return host, port


def _reached(there: Any) -> Welcome:
    if not isinstance(there, Welcome):
        raise EOFError("it does not answer as a node does")  # noqa: TRY004  not our type to check
    return there


def seen_from(card: Card, host: str | None) -> Card:
    """``card`` with an address that is of use to whoever reached it, or was reached, at ``host``.

    A node that listens on all interfaces says so, and not by which of them it can be reached.
    """
    if card.address is None:
        return card
    named, port = addresses.parse(card.address)
    if host is not None and addresses.is_wildcard(named):
        return replace(card, address=addresses.text(host, port))
    return card

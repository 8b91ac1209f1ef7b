"""Who is up, suspect, down: what a node believes of the others, as a state machine. Pure.

    Offered   somebody dialled us and wants to be a peer    → Accept, Refuse, or Probe first
    Dialled   we dialled somebody, who accepted             → Accept, or Close
    Ended     a link is gone
    Learnt    others told of nodes                          → dialled soon, if missing, and again
    Missed    a dial failed
    Left      the user disconnects from a node              → Close
    Tick      time has passed; how long each link is silent → Suspect, Back, Close, Dial

``handle(event)`` returns the effects, in order, and changes ``members``. Guarantees: one link to
one name; a name that is up is given to no other life; a node that was left is not dialled again; a
silent node is suspect after ``SUSPECT`` of its limit and down after all of it, but never because
this process itself was asleep; a node that went down, or of which others told and that could not be
reached, is dialled again, ever more seldom, until it is there, was left, or ``FORGOTTEN`` seconds
have passed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from handoff_actors.cluster.peers import State

SUSPECT = 0.4
"""The part of the heartbeat limit after which a silent node gets no new work."""
BEATS = 10
"""How many heartbeats there are in a limit."""
FORGOTTEN = 600.0
"""Seconds after which a node that is down is not dialled any more."""
KEPT = 256
"""How many nodes that are down are remembered."""

_FIRST_RETRY = 0.2
_LAST_RETRY = 5.0
_UNTOLD = 20.0
_NO_LINK = 10.0
_LEARNT_DELAY = 1.0  # whoever joins dials everybody itself: give it time


@dataclass(frozen=True, slots=True)
class Card:
    """What a node says of itself to its peers.

    Attributes:
        name: unique among nodes that are up.
        incarnation: of this life.
        address: ``host:port`` of its gateway; None when it cannot be reached from here.
        local: the name of its gateway's socket for the same machine.
        machine: see ``addresses.machine_id``.
        pid: of its process.
        heartbeat: seconds of silence after which it gives others up.
        python: its version.
        version: of this library.
        facts: what it has published.
    """

    name: str
    incarnation: str
    address: str | None
    local: bytes | None
    machine: str
    pid: int
    heartbeat: float
    python: str
    version: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Member:
    """What is believed of one node.

    Attributes:
        card: what it said last.
        state: of it.
        session: of the link, while there is one.
        left: it took its leave, or was left.
        since: when it came into this state, in the machine's time.
        tries: how often it was dialled since it went down.
        due: when it is dialled again; None: never.
    """

    card: Card
    state: State
    session: str | None
    left: bool = False
    since: float = 0.0
    tries: int = 0
    due: float | None = None


# Events.


@dataclass(frozen=True, slots=True)
class Offered:
    """A node wants to be a peer, over a link called ``session``.

    Attributes:
        replaces: the session that it knows to be dead.
        dialling: whether we are dialling it ourselves just now.
        insists: it has waited for our dial in vain.
        probed: the session that was found alive when asked.
    """

    card: Card
    session: str
    replaces: str | None = None
    dialling: bool = False
    insists: bool = False
    probed: str | None = None


@dataclass(frozen=True, slots=True)
class Dialled:
    """We became a peer of that node."""

    card: Card
    session: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A link is gone; ``left``: with a word of farewell."""

    session: str
    left: bool = False
    facts: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Learnt:
    """There are these nodes, we were told."""

    cards: tuple[Card, ...]


@dataclass(frozen=True, slots=True)
class Missed:
    """Dialling that node failed."""

    name: str


@dataclass(frozen=True, slots=True)
class Left:
    """The user leaves that node."""

    name: str


@dataclass(frozen=True, slots=True)
class Tick:
    """It is ``now``, and so long, in seconds, each session has been silent."""

    now: float
    silent: Mapping[str, float]


Event = Offered | Dialled | Ended | Learnt | Missed | Left | Tick


# Effects.


@dataclass(frozen=True, slots=True)
class Accept:
    """The link is the one to that node from now on."""

    session: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """It is not.

    Attributes:
        why: another node has the ``name``; it is our ``self``; there is a link already
            (``linked``); we are ``dialling`` it ourselves, wait for that.
        session: of the link that there is.
    """

    why: Literal["name", "self", "linked", "dialling"]
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask the node behind this session for a sign of life, then offer again."""

    session: str


@dataclass(frozen=True, slots=True)
class Close:
    """End a link."""

    session: str
    reason: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """A peer is silent."""

    session: str


@dataclass(frozen=True, slots=True)
class Back:
    """A silent peer was heard again."""

    session: str


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to that node."""

    card: Card


Effect = Accept | Refuse | Probe | Close | Suspect | Back | Dial


class Membership:
    """The machine; see the module.

    Args:
        name: of this node.
        incarnation: of this life of it.
        heartbeat: seconds of silence after which a peer is given up.
        members: what was believed before, by name.
    """

    def __init__(
        self,
        name: str,
        incarnation: str,
        heartbeat: float,
        members: Mapping[str, Member] | None = None,
    ) -> None:
        self.name = name
        self.incarnation = incarnation
        self.heartbeat = heartbeat
        self.members: dict[str, Member] = dict(members or {})
        self.now = 0.0
        self._ticked: float | None = None
        self._learnt: dict[str, tuple[Card, float]] = {}

    @property
    def interval(self) -> float:
        """Seconds between ticks."""
        return self.heartbeat / BEATS

    def handle(self, event: Event) -> list[Effect]:
        """What is to be done now."""
        match event:
            case Offered():
                return self._offered(event)
            case Dialled():
                return self._dialled(event)
            case Ended():
                return self._ended(event)
            case Learnt():
                return self._note(event.cards)
            case Missed():
                return self._missed(event.name)
            case Left():
                return self._leave(event.name)
            case Tick():
                return self._tick(event)

    def by_session(self, session: str) -> Member | None:
        """Who is behind a link."""
        return next((m for m in self.members.values() if m.session == session), None)

    # Links begin and end.

    def _offered(self, event: Offered) -> list[Effect]:
        card = event.card
        if card.name == self.name:
            return [Refuse("self" if card.incarnation == self.incarnation else "name")]
        member = self.members.get(card.name)
        if member is None or member.session is None:
            if event.dialling and self.name < card.name and not event.insists:
                return [Refuse("dialling")]
            return self._take(card, event.session)
        if member.card.incarnation == card.incarnation:
            if event.replaces != member.session:
                return [Refuse("linked", member.session)]
            return self._replace(member, event, "it had lost the connection")
        same_place = card.address is not None and card.address == member.card.address
        if member.state == "suspect" or same_place:
            return self._replace(member, event, "it was started again")
        if event.probed == member.session:
            return [Refuse("name")]
        return [Probe(member.session)]

    def _replace(self, member: Member, event: Offered, reason: str) -> list[Effect]:
        assert member.session is not None
        close = Close(member.session, reason)
        return [close, *self._take(event.card, event.session)]

    def _take(self, card: Card, session: str) -> list[Effect]:
        self.members[card.name] = Member(card, "up", session, since=self.now)
        self._learnt.pop(card.name, None)
        return [Accept(session)]

    def _dialled(self, event: Dialled) -> list[Effect]:
        member = self.members.get(event.card.name)
        if event.card.name == self.name:
            return [Refuse("name")]
        if member is None or member.session is None:
            return self._take(event.card, event.session)
        if member.card.incarnation == event.card.incarnation:
            return [Refuse("linked", member.session)]
        # It accepted us this very moment; whoever was behind the older link is not it any more.
        close = Close(member.session, "another life of it answers")
        return [close, *self._take(event.card, event.session)]

    def _ended(self, event: Ended) -> list[Effect]:
        member = self.by_session(event.session)
        if member is None:
            return []
        card = member.card if event.facts is None else replace(member.card, facts=event.facts)
        left = member.left or event.left
        due = None if left or card.address is None else self.now + _FIRST_RETRY
        self.members[card.name] = Member(card, "down", None, left, self.now, due=due)
        self._forget()
        return []

    def _leave(self, name: str) -> list[Effect]:
        member = self.members.get(name)
        self._learnt.pop(name, None)
        if member is None:
            return []
        self.members[name] = replace(member, left=True, due=None)
        return [] if member.session is None else [Close(member.session, "it was left")]

    def _forget(self) -> None:
        down = [m for m in self.members.values() if m.session is None]
        for member in sorted(down, key=lambda m: m.since)[: max(0, len(down) - KEPT)]:
            del self.members[member.card.name]

    # What is dialled.

    def _note(self, cards: Iterable[Card]) -> list[Effect]:
        for card in cards:
            if self._wanted(card) and card.name not in self._learnt:
                self._learnt[card.name] = (card, self.now + _LEARNT_DELAY)
        return []

    def _wanted(self, card: Card) -> bool:
        if card.name == self.name or card.address is None:
            return False
        member = self.members.get(card.name)
        if member is None:
            return True
        return member.session is None and not (
            member.left and member.card.incarnation == card.incarnation
        )

    def missing(self, cards: Collection[Card]) -> list[Card]:
        """Which of these nodes are to be dialled."""
        return [card for card in cards if self._wanted(card)]

    def _missed(self, name: str) -> list[Effect]:
        member = self.members.get(name)
        if member is None or member.session is not None or member.left:
            return []
        delay = min(_LAST_RETRY, _FIRST_RETRY * 2.0 ** min(member.tries, 10))
        due = self.now + delay if self.now - member.since < FORGOTTEN else None
        self.members[name] = replace(member, tries=member.tries + 1, due=due)
        return []

    # Time.

    def _tick(self, event: Tick) -> list[Effect]:
        before, self._ticked, self.now = self._ticked, event.now, event.now
        # A tick that comes late tells that this process was asleep, and its peers are not silent.
        asleep = before is None or event.now - before > 3 * self.interval
        effects: list[Effect] = [] if asleep else self._judge(event.silent)
        for name, member in self.members.items():
            if member.due is not None and member.due <= event.now:
                # Should nobody say how that went, it is dialled again.
                self.members[name] = replace(member, due=event.now + _UNTOLD)
                effects.append(Dial(member.card))
        for name, (card, due) in list(self._learnt.items()):
            if due <= event.now:
                del self._learnt[name]
                if self._wanted(card):
                    # Until it is reached it is one that is down: it is dialled again like those.
                    self.members[name] = Member(
                        card, "down", None, since=event.now, due=event.now + _UNTOLD
                    )
                    effects.append(Dial(card))
                    self._forget()
        return effects

    def _judge(self, silent: Mapping[str, float]) -> list[Effect]:
        effects: list[Effect] = []
        for name, member in list(self.members.items()):
            if member.session is None:
                continue
            seconds = silent.get(member.session)
            if seconds is None:
                # Its link never came to be, or went without a word.
                if self.now - member.since > _NO_LINK:
                    self._ended(Ended(member.session))
                continue
            if seconds >= self.heartbeat:
                effects.append(Close(member.session, f"silent for {seconds:.1f} s"))
            elif member.state == "up" and seconds >= SUSPECT * self.heartbeat:
                self.members[name] = replace(member, state="suspect", since=self.now)
                effects.append(Suspect(member.session))
            elif member.state == "suspect" and seconds < SUSPECT * self.heartbeat:
                self.members[name] = replace(member, state="up", since=self.now)
                effects.append(Back(member.session))
        return effects

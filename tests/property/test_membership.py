"""Memberships of several nodes that dial, die, freeze, part and return, in any order."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from handoff_actors.cluster.membership import (
    FORGOTTEN,
    Accept,
    Back,
    Card,
    Close,
    Dial,
    Dialled,
    Effect,
    Ended,
    Learnt,
    Left,
    Membership,
    Missed,
    Offered,
    Probe,
    Refuse,
    Suspect,
    Tick,
)

NAMES = ("a", "b", "c")
LIMIT = 5.0
names = st.sampled_from(NAMES)


def card(name: str, life: int = 1, address: str | None = "x") -> Card:
    where = f"{name}:{life}" if address == "x" else address
    return Card(name, f"{name}{life}", where, None, "m", life, LIMIT, "3", "0")


class World(RuleBasedStateMachine):
    """Nodes, and the network between them: a session is alive, or dead at either end, or both."""

    @initialize()
    def begin(self) -> None:
        self.now = 100.0
        self.lives = dict.fromkeys(NAMES, 1)
        self.nodes = {name: self.born(name) for name in NAMES}
        self.sessions: dict[str, set[str]] = {}  # the ends at which each is not known to be over
        self.silent: dict[str, float] = {}
        self.dials: list[tuple[str, str]] = []  # (who, whom): answered later
        self.answers: list[tuple[str, Card, str, Any]] = []
        self.left: set[tuple[str, str]] = set()
        self.numbers = 0

    def born(self, name: str) -> Membership:
        made = Membership(name, f"{name}{self.lives[name]}", LIMIT)
        made.now = self.now
        return made

    def card(self, name: str) -> Card:
        return card(name, self.lives[name])

    def carry_out(self, name: str, effects: list[Effect]) -> None:
        """What the actor does with effects that nobody asked for."""
        for effect in effects:
            if isinstance(effect, Close):
                self.over(name, effect.session)
            elif isinstance(effect, Dial):
                assert (name, effect.card.name) not in self.left, "a node that was left is dialled"
                self.dials.append((name, effect.card.name))

    def over(self, name: str, session: str, *, left: bool = False) -> None:
        """One end closes; it knows at once, the other will find out."""
        ends = self.sessions.get(session, set())
        if name in ends:
            ends.discard(name)
            self.carry_out(name, self.nodes[name].handle(Ended(session, left)))

    @rule(who=names, whom=names)
    def connect(self, who: str, whom: str) -> None:
        """The user, or a tick, has ``who`` dial ``whom``."""
        self.left.discard((who, whom))
        self.dials.append((who, whom))

    @precondition(lambda self: self.dials)
    @rule(data=st.data(), insists=st.booleans())
    def arrive(self, data: st.DataObject, insists: bool) -> None:
        """A dial reaches its goal, which decides; the answer is under way."""
        who, whom = self.dials.pop(data.draw(st.integers(0, len(self.dials) - 1)))
        member = self.nodes[who].members.get(whom)
        if member is not None and member.session is not None:
            return
        self.numbers += 1
        session = f"s{self.numbers}"
        dialling = any(pair == (whom, who) for pair in self.dials)
        replaces = None
        target = self.nodes[whom]
        there = target.members.get(who)
        if there is not None and insists:
            replaces = there.session
        event = Offered(self.card(who), session, replaces, dialling, insists)
        answer: Any = None
        for _ in range(3):
            for effect in target.handle(event):
                if isinstance(effect, Close):
                    self.over(whom, effect.session)
                elif isinstance(effect, Accept | Refuse):
                    answer = effect
                elif isinstance(effect, Probe):
                    if len(self.sessions[effect.session]) == 2:
                        event = replace(event, probed=effect.session)
                    else:
                        self.over(whom, effect.session)
            if answer is not None:
                break
        assert answer is not None, "it never decides"
        if isinstance(answer, Accept):
            self.sessions[session] = {who, whom}
            self.left.discard((whom, who))  # who comes back by itself is welcome
        self.answers.append((who, self.card(whom), session, answer))

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        """An answer is back at who dialled."""
        index = data.draw(st.integers(0, len(self.answers) - 1))
        who, there, session, answer = self.answers.pop(index)
        machine = self.nodes[who]
        if isinstance(answer, Refuse):
            machine.handle(Missed(there.name))
            return
        if who not in self.sessions[session]:
            return
        for effect in machine.handle(Dialled(there, session)):
            if isinstance(effect, Close):
                self.over(who, effect.session)
            elif isinstance(effect, Refuse):
                self.sessions[session].discard(who)

    @rule(name=names)
    def die(self, name: str) -> None:
        """A process ends, and another life begins under its name."""
        for ends in self.sessions.values():
            ends.discard(name)
        self.lives[name] += 1
        self.nodes[name] = self.born(name)
        self.dials = [d for d in self.dials if d[0] != name]
        self.answers = [a for a in self.answers if a[0] != name]
        self.left = {pair for pair in self.left if pair[0] != name}

    @precondition(lambda self: any(len(e) == 1 for e in self.sessions.values()))
    @rule(data=st.data(), left=st.booleans())
    def notice(self, data: st.DataObject, left: bool) -> None:
        """The other end finds that a session is over."""
        session = data.draw(st.sampled_from([s for s, e in self.sessions.items() if len(e) == 1]))
        (name,) = self.sessions[session]
        self.over(name, session, left=left)

    @precondition(lambda self: any(len(e) == 2 for e in self.sessions.values()))
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        """One end loses a session."""
        session = data.draw(st.sampled_from([s for s, e in self.sessions.items() if len(e) == 2]))
        name = data.draw(st.sampled_from(sorted(self.sessions[session])))
        self.over(name, session)

    @rule(who=names, whom=names)
    def leave(self, who: str, whom: str) -> None:
        """The user leaves a node."""
        if who == whom:
            return
        effects = self.nodes[who].handle(Left(whom))
        member = self.nodes[who].members.get(whom)
        if member is not None:
            self.left.add((who, whom))
            self.dials = [d for d in self.dials if d != (who, whom)]
        for effect in effects:
            assert isinstance(effect, Close)
            self.over(who, effect.session, left=True)

    @rule(who=names, cards=st.lists(names))
    def learn(self, who: str, cards: list[str]) -> None:
        """Others tell of nodes."""
        assert self.nodes[who].handle(Learnt(tuple(self.card(n) for n in cards))) == []
        # Whoever is told anew of another life of a node may dial that.
        for name in cards:
            member = self.nodes[who].members.get(name)
            if member is not None and member.card.incarnation != self.card(name).incarnation:
                self.left.discard((who, name))

    @rule(name=names, step=st.sampled_from([0.5, 0.5, 0.5, 3.0]), silence=st.floats(0, 8))
    def tick(self, name: str, step: float, silence: float) -> None:
        """Time passes at one node."""
        self.now += step
        machine = self.nodes[name]
        before = dict(machine.members)
        ticked = machine._ticked
        silent = {s: silence for s, ends in self.sessions.items() if name in ends}
        effects = machine.handle(Tick(self.now, silent))
        asleep = ticked is None or self.now - ticked > 1.5
        for effect in effects:
            if isinstance(effect, Close | Suspect | Back):
                assert not asleep
            if isinstance(effect, Close):
                assert silence >= LIMIT
            if isinstance(effect, Suspect):
                assert 0.4 * LIMIT <= silence < LIMIT
                assert next(m for m in before.values() if m.session == effect.session).state == "up"
        self.carry_out(name, effects)

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "nodes"):
            return
        for name, machine in self.nodes.items():
            assert name not in machine.members
            sessions = [m.session for m in machine.members.values() if m.session is not None]
            assert len(set(sessions)) == len(sessions)
            for other, member in machine.members.items():
                assert member.card.name == other
                assert (member.session is None) == (member.state == "down")
                if member.session is None:
                    assert member.left or member.due is not None or member.tries >= 0
                else:
                    assert name in self.sessions[member.session], "it keeps a link that is over"

    def teardown(self) -> None:
        """Left alone, all that were not left find each other again."""
        if not hasattr(self, "nodes"):
            return
        for session, ends in list(self.sessions.items()):
            for name in sorted(ends):
                if len(ends) == 1:
                    self.over(name, session)
        for _ in range(60):
            self.now += 0.5
            for name, machine in self.nodes.items():
                silent = {s: 0.0 for s, ends in self.sessions.items() if name in ends}
                self.carry_out(name, machine.handle(Tick(self.now, silent)))
            while self.dials or self.answers:
                if self.dials:
                    self.arrive(_First(), True)  # type: ignore[arg-type]
                else:
                    self.hear(_First())  # type: ignore[arg-type]
            for session, ends in list(self.sessions.items()):
                if len(ends) == 1:
                    self.over(next(iter(ends)), session)
        for name, machine in self.nodes.items():
            for other, member in machine.members.items():
                back = self.nodes[other].members.get(name)
                if member.left or (name, other) in self.left:
                    continue
                if back is not None and (back.left or (other, name) in self.left):
                    continue
                assert member.session is not None, f"{name} never found {other} again"
                assert back is not None
                assert back.session == member.session


class _First:
    """Draws the first of everything."""

    def draw(self, _strategy: Any) -> int:
        return 0


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# Single cases.


def machine(name: str = "a") -> Membership:
    made = Membership(name, f"{name}1", LIMIT)
    made.now = 100.0
    return made


def linked(session: str = "s") -> Membership:
    made = machine()
    assert made.handle(Offered(card("b"), session)) == [Accept(session)]
    return made


def test_a_name_belongs_to_one_life() -> None:
    made = linked()
    assert made.handle(Offered(card("a", 2), "t")) == [Refuse("name")]
    assert made.handle(Offered(card("a"), "t")) == [Refuse("self")]
    assert made.handle(Offered(card("b"), "t")) == [Refuse("linked", "s")]
    assert made.handle(Offered(card("b", 2), "t")) == [Probe("s")]
    assert made.handle(Offered(card("b", 2), "t", probed="s")) == [Refuse("name")]
    made.handle(Ended("s"))
    assert made.handle(Offered(card("b", 2), "t")) == [Accept("t")]


def test_the_same_port_means_that_the_older_life_is_over() -> None:
    made = linked()
    again = replace(card("b", 2), address=card("b").address)
    close, accept = made.handle(Offered(again, "t"))
    assert isinstance(close, Close)
    assert (close.session, accept) == ("s", Accept("t"))


def test_of_two_that_dial_each_other_the_smaller_name_goes_first() -> None:
    assert machine("a").handle(Offered(card("b"), "s", dialling=True)) == [Refuse("dialling")]
    assert machine("c").handle(Offered(card("b"), "s", dialling=True)) == [Accept("s")]
    insists = Offered(card("b"), "s", dialling=True, insists=True)
    assert machine("a").handle(insists) == [Accept("s")]


def test_silence() -> None:
    made = linked()
    assert made.handle(Tick(100.0, {"s": 4.0})) == []  # the first one knows no time before
    assert made.handle(Tick(100.5, {"s": 1.9})) == []
    assert made.handle(Tick(101.0, {"s": 2.0})) == [Suspect("s")]
    assert made.handle(Tick(101.5, {"s": 2.5})) == []
    assert made.handle(Tick(102.0, {"s": 0.1})) == [Back("s")]
    assert made.handle(Tick(109.0, {"s": 7.0})) == []  # it was asleep itself
    (close,) = made.handle(Tick(109.5, {"s": 7.5}))
    assert close == Close("s", "silent for 7.5 s")


def test_a_link_that_never_came_to_be_is_over_in_the_end() -> None:
    made = linked()
    for step in range(30):
        made.handle(Tick(100.0 + step / 2, {}))
    assert made.members["b"].state == "down"


def test_a_node_that_is_down_is_dialled_ever_more_seldom_and_then_forgotten() -> None:
    made = linked()
    made.handle(Ended("s"))
    dialled = []
    for step in range(int(FORGOTTEN + 60) * 2):
        for effect in made.handle(Tick(100.0 + step / 2, {})):
            assert isinstance(effect, Dial)
            dialled.append(step / 2)
            made.handle(Missed("b"))
    gaps = [b - a for a, b in itertools.pairwise(dialled)]
    assert gaps == sorted(gaps)
    assert 4.0 < gaps[-1] <= 5.5
    assert dialled[-1] <= FORGOTTEN + 5


def test_of_nodes_that_are_down_so_many_are_remembered() -> None:
    made = machine()
    for number in range(300):
        made.now += 1
        made.handle(Offered(card(f"n{number}"), f"s{number}"))
        made.handle(Ended(f"s{number}"))
    assert len(made.members) == 256
    assert "n299" in made.members
    assert "n0" not in made.members

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.reasons import Exit
from handoff_actors.actors.server import Actor, Crash
from handoff_actors.actors.specs import ChildSpec, SupervisorFlags
from handoff_actors.actors.supervisor import Supervisor
from handoff_actors.actors.system import ActorSystem
from handoff_actors.actors.table import Table
from handoff_actors.errors import ActorCrashedError, ConfigurationError
from handoff_actors.resources import tracker as module
from handoff_actors.resources.claims import Granted, Infeasible, OwnerGone, Resumed
from handoff_actors.resources.tracker import (
    Available,
    Claims,
    Contention,
    Discover,
    Fits,
    Refused,
    RegisterNode,
    Release,
    ReleaseMany,
    ResourceTracker,
    Resume,
    Suspend,
    Unregister,
    Want,
)

CPU = 1_000_000
ONE = {"cpu": CPU}


class Run(Actor):
    """An owner: puts what it is told on a queue; ends or crashes when told so."""

    def __init__(self) -> None:
        self.told: SimpleQueue[Any] = SimpleQueue()

    def handle(self, message: Any) -> Any:
        if message == "end":
            self.stop(Exit.NORMAL)
        elif isinstance(message, threading.Event):
            message.wait(20)
        elif message == "read what came before":
            return
        else:
            self.told.put(message)


class World:
    """A supervised tracker and its owners."""

    def __init__(self, system: ActorSystem, tracker: Any = None) -> None:
        self.system = system
        self.table: Table[Any, Any] = Table()
        self.contention = Contention()
        self.incarnations: list[ResourceTracker] = []
        self.root = system.start(
            Supervisor(
                [ChildSpec("tracker", lambda: self._tracker(tracker), name="resource_tracker")],
                SupervisorFlags(max_restarts=1000),
            ),
            "root",
        )
        ref = system.names.whereis("resource_tracker")
        assert ref is not None
        self.ref: Ref = ref

    def _tracker(self, tracker: Any) -> ResourceTracker:
        made = ResourceTracker(self.table, self.contention, tracker)
        self.incarnations.append(made)
        return made

    def register(self, node: str, **capabilities: float) -> None:
        self.ref.call(RegisterNode(node, capabilities))

    def run(self, name: str) -> Owner:
        return Owner(self, name)

    def crash(self) -> None:
        """The tracker dies; what is sent from now on is for the next one."""
        self.ref.cast(Crash(RuntimeError("boom")))

    def claims(self) -> list[Any]:
        return self.ref.call(Claims())


class Owner:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.actor = Run()
        self.ref = world.system.start(self.actor)

    def want(self, count: int, amounts: dict[str, int] = ONE, tag: Any = "t", node: str = "a"):
        self.world.ref.cast(Want(self.name, tag, node, amounts, count, self.ref))

    def told(self) -> Any:
        return self.actor.told.get(timeout=20)

    def claim(self) -> int:
        granted = self.told()
        assert isinstance(granted, Granted), granted
        assert granted.owner == self.name
        return granted.claim.id

    def told_nothing(self) -> bool:
        """To be asked after a call to the tracker, which has then told all there was to tell."""
        self.ref.call("read what came before")
        return self.actor.told.empty()


@pytest.fixture
def world(actor_system: ActorSystem) -> Iterator[World]:
    made = World(actor_system)
    made.register("a", cpu=2, memory=100)
    yield made
    stop(made)


def stop(world: World) -> None:
    incarnation = world.root.incarnation
    if incarnation is not None:
        incarnation.exit(Exit.SHUTDOWN)
        assert incarnation.ended.wait(20)


def test_questions(world):
    world.register("b", cpu=0.5)
    assert world.ref.call(Discover()) == {"a": {"cpu": 2, "memory": 100}, "b": {"cpu": 0.5}}
    run = world.run("r")
    run.want(1)
    run.claim()
    assert world.ref.call(Available("a")) == {"cpu": 1, "memory": 100}
    assert world.ref.call(Available("?")) == {}
    assert world.ref.call(Fits("a", {"cpu": 1}))
    assert not world.ref.call(Fits("a", {"cpu": 1.5}))
    assert not world.ref.call(Fits("a", {"gpu": 1}))
    assert not world.ref.call(Fits("?", {}))
    assert [claim.owner for claim in world.claims()] == ["r"]
    with pytest.raises(ConfigurationError, match="'cpu'"):
        world.register("a", cpu=-1)
    assert world.ref.call(Discover())["a"] == {"cpu": 2, "memory": 100}


def test_owners_are_told_as_resources_come_free(world):
    one, two = world.run("one"), world.run("two")
    one.want(2)
    first, second = one.claim(), one.claim()
    two.want(2)
    assert world.claims()
    assert two.told_nothing()
    assert world.contention.waits_besides("a", "one")
    assert not world.contention.waits_besides("a", "two")
    world.ref.cast(ReleaseMany([first, second]))
    two.claim()
    two.claim()
    assert not world.contention.waits_besides("a", "one")


def test_what_can_never_be_is_refused(world):
    run = world.run("r")
    run.want(1, {"cpu": 3 * CPU})
    assert run.told() == Infeasible("r", "t", "a", "cpu", 3.0, 2.0)
    run.want(2, {"memory": 60 * CPU})
    run.claim()
    world.register("a", cpu=2, memory=10)
    assert run.told() == Infeasible("r", "t", "a", "memory", 60.0, 10.0)
    run.want(2, ONE, "u")
    run.claim()
    run.claim()
    run.want(3, ONE, "u")
    world.ref.call(Unregister("a"))
    assert run.told() == Infeasible("r", "u", "a", "cpu", 1.0, 0.0)


def test_a_claim_is_lent_and_had_back(world):
    outer, inner = world.run("outer"), world.run("inner")
    outer.want(1, {"cpu": 2 * CPU})
    lent = outer.claim()
    world.ref.cast(Suspend(lent))
    inner.want(1)
    claim = inner.claim()
    assert [c.owner for c in world.claims()] == ["inner"]
    reply = world.ref.send(Resume(lent))
    world.claims()
    assert not reply.wait(0)
    world.ref.cast(Release(claim))
    assert reply.wait(20)
    assert reply.result() is None
    assert outer.told_nothing()
    assert world.ref.call(Resume(lent)) is None, "it is held: answered at once"
    assert world.ref.call(Resume(999)) is None
    world.ref.cast(Suspend(lent))
    world.ref.cast(Resume(lent))
    assert outer.told() == Resumed("outer", lent)


def test_whoever_waits_to_resume_is_answered_when_the_claim_or_the_tracker_ends(world):
    one, two = world.run("one"), world.run("two")
    replies = []
    for run in (one, two):
        run.want(1, {"cpu": 2 * CPU})
        lent = run.claim()
        world.ref.cast(Suspend(lent))
        replies.append((lent, run))
    three = world.run("three")
    three.want(2)
    three.claim()
    first, second = (world.ref.send(Resume(lent)) for lent, _ in replies)
    world.claims()
    world.ref.cast(Release(replies[0][0]))
    assert first.wait(20)
    assert not second.wait(0)
    stop(world)
    assert second.wait(20)
    with pytest.raises(ActorCrashedError, match="gone"):
        second.result()


def test_a_crash_costs_no_claim_no_place_in_line_and_no_question(world):
    one, two, three = world.run("one"), world.run("two"), world.run("three")
    one.want(2)
    held = [one.claim(), one.claim()]
    two.want(1)
    three.want(1)
    world.crash()
    assert {c.id for c in world.claims()} == set(held)
    assert world.ref.call(Available("a"))["cpu"] == 0
    assert world.contention.waits_besides("a", "one")
    world.crash()
    world.ref.cast(Release(held[0]))
    assert two.claim() not in held
    assert three.told_nothing()
    world.crash()
    world.ref.cast(Release(held[1]))
    three.claim()
    assert one.told_nothing()
    assert len(world.incarnations) == 4


def test_a_resume_is_answered_by_a_later_incarnation(world):
    one, two = world.run("one"), world.run("two")
    one.want(1, {"cpu": 2 * CPU})
    lent = one.claim()
    world.ref.cast(Suspend(lent))
    two.want(1)
    claim = two.claim()
    reply = world.ref.send(Resume(lent))
    world.crash()
    world.claims()
    assert not reply.wait(0)
    world.ref.cast(Release(claim))
    assert reply.wait(20)
    assert reply.result() is None


def test_the_log_gives_way_to_snapshots(world):
    one, two = world.run("one"), world.run("two")
    one.want(1)
    kept = one.claim()
    for _ in range(3 * module.LOGGED):
        two.want(1)
        world.ref.cast(Release(two.claim()))
    world.claims()
    assert len(world.table.view) < module.LOGGED + 10
    assert world.table.view["snapshot"][0] > 0
    world.crash()
    assert [c.id for c in world.claims()] == [kept]
    two.want(1)
    assert two.claim() > kept


def test_an_owner_that_ends_waits_no_more_and_its_workers_release(world):
    one, two, three = world.run("one"), world.run("two"), world.run("three")
    one.want(2)
    held = [one.claim(), one.claim()]
    two.want(2)
    three.want(1)
    world.claims()
    ended_with(one, "end")
    ended_with(two, "end")
    assert {c.id for c in world.claims()} == set(held), "its threads still run"
    world.ref.cast(Release(held[0]))
    three.claim()
    world.ref.cast(Release(held[1]))
    assert [c.owner for c in world.claims()] == ["three"]
    assert not [key for key in world.table.view if key in (("ref", "one"), ("ref", "two"))]


def test_an_owner_that_crashes_is_freed_of_everything(world):
    one, two = world.run("one"), world.run("two")
    one.want(2)
    one.claim(), one.claim()
    two.want(2)
    world.claims()
    ended_with(one, Crash(RuntimeError("boom")))
    two.claim()
    two.claim()
    assert {c.owner for c in world.claims()} == {"two"}


def test_owners_are_watched_by_later_incarnations_too(world):
    one = world.run("one")
    one.want(2)
    one.claim(), one.claim()
    world.crash()
    world.claims()
    ended_with(one, Crash(RuntimeError("boom")))
    assert world.claims() == []


def test_owner_gone_can_be_said(world):
    one = world.run("one")
    one.want(3)
    one.claim(), one.claim()
    world.ref.cast(OwnerGone("one"))
    assert world.claims() == []


def test_a_grant_that_is_not_delivered_goes_back(world):
    one, two = world.run("one"), world.run("two")
    gate = threading.Event()
    one.ref.cast(gate)
    one.ref.cast("end")
    one.want(2)
    assert len(world.claims()) == 2
    gate.set()  # it ends with two grants in its mailbox
    two.want(2)
    two.claim()
    two.claim()
    ended_with(two, "end")
    two.want(1)  # it is gone already
    world.claims()
    assert len(world.claims()) == 2
    late = world.run("late")
    ended_with(late, "end")
    world.ref.cast(Release(world.claims()[0].id))
    late.want(1)
    late.want(0)
    world.claims()
    assert len(world.claims()) == 1


def ended_with(owner: Owner, message: Any) -> None:
    """Returns when the owner is gone; the tracker was told before."""
    gone = threading.Event()
    owner.ref.cast(message)
    owner.ref.when_gone(lambda _reason: gone.set())
    assert gone.wait(20)


# Trackers of the user's own.


class Own:
    """Two cpus on node a, of a user's making."""

    def __init__(self) -> None:
        self.offers = {"a": {"cpu": 2.0}}
        self.used = 0.0
        self.given: list[object] = []
        self.released: list[object] = []
        self.raising: BaseException | None = None
        self.closed = False

    def _maybe_raise(self) -> None:
        if self.raising is not None:
            raise self.raising

    def register(self, node, capabilities):
        self._maybe_raise()
        self.offers[node] = dict(capabilities)

    def capabilities(self):
        self._maybe_raise()
        return self.offers

    def available(self, node):
        self._maybe_raise()
        return {"cpu": self.offers[node]["cpu"] - self.used}

    def request(self, node, req, owner):
        self._maybe_raise()
        cpu = req.cost["cpu"]
        if self.closed or node not in self.offers or self.used + cpu > self.offers[node]["cpu"]:
            return None
        self.used += cpu
        claim = ("theirs", owner, cpu, object())
        self.given.append(claim)
        return claim

    def release(self, claim):
        self.released.append(claim)
        self.used -= claim[2]
        self._maybe_raise()


@pytest.fixture
def own() -> Own:
    return Own()


@pytest.fixture
def theirs(actor_system: ActorSystem, own: Own) -> Iterator[World]:
    made = World(actor_system, own)
    yield made
    stop(made)


def test_a_users_tracker_decides(theirs, own):
    theirs.register("b", cpu=1)
    assert theirs.ref.call(Discover()) == {"a": {"cpu": 2}, "b": {"cpu": 1}}
    one, two = theirs.run("one"), theirs.run("two")
    one.want(3)
    first, second = one.claim(), one.claim()
    assert theirs.ref.call(Available("a")) == {"cpu": 0}
    assert not theirs.ref.call(Fits("a", {"cpu": 1}))
    assert not theirs.ref.call(Fits("?", {"cpu": 1}))
    two.want(1)
    theirs.claims()
    assert theirs.contention.waits_besides("a", "one")
    theirs.ref.cast(Release(first))
    theirs.ref.cast(Release(first))
    third = one.claim()
    theirs.ref.cast(Release(second))
    fourth = two.claim()
    theirs.ref.cast(ReleaseMany([third, fourth]))
    assert theirs.claims() == []
    assert own.used == 0
    assert theirs.ref.call(Fits("a", {"cpu": 2}))
    assert sorted(map(id, own.released)) == sorted(map(id, own.given)), "each once"


def test_owners_take_turns_at_a_users_tracker(theirs):
    theirs.register("a", cpu=1)
    one, two = theirs.run("one"), theirs.run("two")
    one.want(9)
    claim = one.claim()
    two.want(9)
    turns = []
    for _ in range(6):
        theirs.ref.cast(Release(claim))
        [held] = theirs.claims()
        claim = (one if held.owner == "one" else two).claim()
        turns.append(held.owner)
    assert turns in (["one", "two"] * 3, ["two", "one"] * 3)


def test_a_users_tracker_is_polled_while_somebody_waits(theirs, own):
    own.closed = True
    one = theirs.run("one")
    one.want(1)
    theirs.claims()
    assert one.told_nothing()
    own.closed = False  # nobody is told: it is found out by asking again
    one.claim()


def test_what_a_users_tracker_can_never_give_is_refused(theirs):
    one = theirs.run("one")
    one.want(1, {"cpu": 3 * CPU})
    assert one.told() == Infeasible("one", "t", "a", "cpu", 3.0, 2.0)
    one.want(1, ONE, "t", "?")
    assert one.told() == Infeasible("one", "t", "?", "cpu", 1.0, 0.0)
    one.want(2, {"cpu": 2 * CPU})
    one.claim()
    theirs.register("a", cpu=1)
    assert one.told() == Infeasible("one", "t", "a", "cpu", 2.0, 1.0)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_what_a_users_tracker_raises_is_what_the_owner_is_told(theirs, own, error):
    one = theirs.run("one")
    one.want(1)
    claim = one.claim()
    own.raising = error
    one.want(2)
    refused = one.told()
    assert isinstance(refused, Refused)
    assert (refused.owner, refused.tag, refused.error.__cause__) == ("one", "t", error)
    assert type(error).__name__ in str(refused.error)
    for question in (Discover(), Available("a"), Fits("a", {}), RegisterNode("a", {"cpu": 1})):
        with pytest.raises(ConfigurationError, match="resource tracker"):
            theirs.ref.call(question)
    theirs.ref.cast(Release(claim))
    assert theirs.claims() == []
    assert len(theirs.incarnations) == 1, "the tracker lives"


def test_claims_of_a_users_tracker_are_lent_and_had_back(theirs, own):
    outer, inner = theirs.run("outer"), theirs.run("inner")
    outer.want(1, {"cpu": 2 * CPU})
    lent = outer.claim()
    theirs.ref.cast(Suspend(lent))
    inner.want(1)
    claim = inner.claim()
    reply = theirs.ref.send(Resume(lent))
    assert [c.owner for c in theirs.claims()] == ["inner"]
    assert theirs.contention.waits_besides("a", "outer")
    theirs.ref.cast(Release(claim))
    assert reply.wait(20)
    assert own.used == 2
    assert not theirs.contention.waits_besides("a", "outer"), "it is asked for no more"
    theirs.ref.cast(Suspend(lent))
    own.raising = ValueError("no")
    assert theirs.ref.call(Resume(lent)) is None, "its function runs on, come what may"
    own.raising = None
    theirs.ref.cast(Release(lent))
    assert theirs.claims() == []
    assert own.used == 0


def test_a_crash_keeps_what_a_users_tracker_gave(theirs, own):
    one, two = theirs.run("one"), theirs.run("two")
    one.want(2)
    held = [one.claim(), one.claim()]
    two.want(1)
    theirs.crash()
    assert {c.id for c in theirs.claims()} == set(held)
    theirs.ref.cast(Release(held[0]))
    two.claim()
    ended_with(two, Crash(RuntimeError("boom")))
    assert {c.id for c in theirs.claims()} == {held[1]}
    ended_with(one, "end")
    theirs.ref.cast(Release(held[1]))
    assert theirs.claims() == []
    assert own.used == 0
    assert len(own.released) == len(own.given) == 3

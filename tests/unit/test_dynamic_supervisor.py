"""The dynamic supervisor: children that come and go, by the thousand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.dynamic_supervisor import DynamicSupervisor, start_soon
from handoff_actors.actors.reasons import Exit, Reason
from handoff_actors.actors.server import Actor, Crash, IgnoreStart
from handoff_actors.actors.specs import (
    Backoff,
    ChildCounts,
    ChildInfo,
    ChildNotFoundError,
    ChildSpec,
    CountChildren,
    MaxChildrenError,
    StartChild,
    StartFailedError,
    SupervisorFlags,
    TerminateChild,
    WhichChildren,
)
from handoff_actors.actors.supervisor import Supervisor
from handoff_actors.actors.system import ActorSystem
from handoff_actors.actors.table import Table
from handoff_actors.errors import ActorCrashedError, ConfigurationError

Eventually = Callable[..., None]
MANY = SupervisorFlags(max_restarts=10**6)


class Doer(Actor):
    def handle(self, message: Any) -> Any:
        return message(self) if callable(message) else message


class Failing(Actor):
    def init(self) -> None:
        raise ValueError("no start")


class Ignoring(Actor):
    def init(self) -> None:
        raise IgnoreStart


TEMPORARY = ChildSpec("t", Doer, restart="temporary")
TRANSIENT = ChildSpec("r", Doer, restart="transient")


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What stuck handlers wait for; opened before the test's threads are counted."""
    event = threading.Event()
    yield event
    event.set()


def crash(ref: Ref, error: BaseException | None = None) -> None:
    incarnation = ref.incarnation
    assert incarnation is not None
    ref.cast(Crash(error or ValueError("crash")))
    assert incarnation.ended.wait(20)


def stop(ref: Ref) -> None:
    incarnation = ref.incarnation
    assert incarnation is not None
    incarnation.exit(Exit.SHUTDOWN)
    assert incarnation.ended.wait(20)


def test_children_are_known_by_their_refs(actor_system: ActorSystem) -> None:
    sup = actor_system.start(DynamicSupervisor())
    first, second = sup.call(StartChild(TRANSIENT)), sup.call(StartChild(TRANSIENT))
    assert first is not second
    assert sup.call(WhichChildren()) == [
        ChildInfo("r", ref, "running", "worker", 0) for ref in (first, second)
    ]
    sup.call(TerminateChild(first))
    assert first.gone
    assert sup.call(CountChildren()) == ChildCounts(1, 1, 0, 1)
    for unknown in (first, "r", []):
        with pytest.raises(ChildNotFoundError):
            sup.call(TerminateChild(unknown))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("restart", "how", "lives"),
    [
        ("permanent", Exit.NORMAL, True),
        ("transient", Exit.NORMAL, False),
        ("transient", "crash", True),
        ("transient", "kill", True),
        ("temporary", "crash", False),
        ("temporary", "kill", False),
    ],
)
def test_restart_types(actor_system: ActorSystem, restart: Any, how: Any, lives: bool) -> None:
    sup = actor_system.start(DynamicSupervisor(MANY))
    ref = sup.call(StartChild(ChildSpec("c", Doer, restart=restart)))
    if how == "crash":
        crash(ref)
    elif how == "kill":
        ref.incarnation.kill()
    else:
        incarnation = ref.incarnation
        ref.cast(lambda actor: actor.stop(how))
        assert incarnation.ended.wait(20)
    if lives:
        assert ref.call("x", timeout=20) == "x"
        assert [info.ref for info in sup.call(WhichChildren())] == [ref]
    else:
        gone = threading.Event()
        ref.when_gone(lambda _r: gone.set())
        assert gone.wait(20)
        assert sup.call(CountChildren()).specs == 0


def test_a_start_that_fails_or_has_nothing_to_do_stores_nothing(actor_system: ActorSystem) -> None:
    sup = actor_system.start(DynamicSupervisor())
    with pytest.raises(StartFailedError, match="no start"):
        sup.call(StartChild(ChildSpec("f", Failing, name="f")))
    assert actor_system.names.whereis("f") is None
    assert sup.call(StartChild(ChildSpec("i", Ignoring, name="i"))) is None
    assert actor_system.names.whereis("i") is None
    with pytest.raises(ConfigurationError):
        sup.call(StartChild("spec"))  # type: ignore[arg-type]
    assert sup.call(CountChildren()).specs == 0


def test_max_children(actor_system: ActorSystem) -> None:
    sup = actor_system.start(DynamicSupervisor(max_children=2))
    first = sup.call(StartChild(TEMPORARY))
    sup.call(StartChild(TEMPORARY))
    with pytest.raises(MaxChildrenError) as caught:
        sup.call(StartChild(TEMPORARY))
    assert caught.value.max_children == 2
    sup.call(TerminateChild(first))
    assert sup.call(StartChild(TEMPORARY)).call(1) == 1


# Starting without waiting.


def test_a_start_that_nobody_waits_for(actor_system: ActorSystem) -> None:
    sup = actor_system.start(DynamicSupervisor())
    ref = start_soon(actor_system, sup, ChildSpec("c", Doer, restart="temporary", name="c"))
    assert ref.call("sent before it was up") == "sent before it was up"
    assert actor_system.names.whereis("c") is ref
    assert [info.ref for info in sup.call(WhichChildren())] == [ref]


def test_a_handler_that_starts_children_last_hands_its_thread_on(
    actor_system: ActorSystem,
) -> None:
    sup = actor_system.start(DynamicSupervisor())
    desk = actor_system.start(Doer())
    ref = desk.call(lambda _a: start_soon(actor_system, sup, TEMPORARY, follow=True))
    assert ref.call(1) == 1


@pytest.mark.parametrize("start", [Failing, lambda: 1])
def test_the_errors_of_such_a_start(actor_system: ActorSystem, start: Any) -> None:
    sup = actor_system.start(DynamicSupervisor())
    errors: list[BaseException] = []
    ref = start_soon(actor_system, sup, ChildSpec("f", start, name="f"), on_error=errors.append)
    with pytest.raises(StartFailedError):
        ref.call(1)
    assert ref.gone
    assert sup.call(CountChildren()).specs == 0
    assert len(errors) == 1
    assert isinstance(errors[0], StartFailedError)
    assert sup.alive
    quiet = start_soon(actor_system, sup, ChildSpec("f", start))
    with pytest.raises(StartFailedError):
        quiet.call(1)

    def bad(_error: BaseException) -> None:
        raise SystemExit

    with pytest.raises(StartFailedError):
        start_soon(actor_system, sup, ChildSpec("f", start), on_error=bad).call(1)
    assert sup.call(CountChildren()).specs == 0


def test_no_start_is_forgotten_when_the_supervisor_goes(
    actor_system: ActorSystem, gate: threading.Event
) -> None:
    sup = actor_system.start(DynamicSupervisor())
    held = threading.Event()

    class Slow(Actor):
        def init(self) -> None:
            held.set()
            gate.wait(60)
            raise ValueError("too late")

    incarnation = sup.incarnation
    assert incarnation is not None
    start_soon(actor_system, sup, ChildSpec("slow", Slow))
    assert held.wait(20)
    errors: list[BaseException] = []
    queued = start_soon(actor_system, sup, TEMPORARY, on_error=errors.append)
    waiting = queued.send(1)
    incarnation.exit(Exit.SHUTDOWN)
    gate.set()
    assert incarnation.ended.wait(20)
    assert waiting.wait(20)
    assert isinstance(waiting.error, StartFailedError)
    assert errors == [waiting.error]
    with pytest.raises(StartFailedError, match="its supervisor is gone"):
        start_soon(actor_system, sup, TEMPORARY).call(1)


# Budgets.


def test_one_with_a_budget_of_its_own_fails_alone(actor_system: ActorSystem) -> None:
    failed: list[tuple[Ref, Reason]] = []
    sup = actor_system.start(
        DynamicSupervisor(
            SupervisorFlags(max_restarts=0, max_seconds=60),
            on_child_failed=lambda ref, reason: failed.append((ref, reason)),
        )
    )
    run = ChildSpec("run", Doer, restart="transient", counted=False, max_restarts=3)
    weak, strong = sup.call(StartChild(run)), sup.call(StartChild(run))
    for number in range(3):
        crash(weak)
        assert weak.call(number) == number
    last = ValueError("fourth")
    crash(weak, last)
    assert [info.ref for info in sup.call(WhichChildren())] == [strong]
    assert failed == [(weak, last)]
    with pytest.raises(ActorCrashedError, match="fourth"):
        weak.call(1)
    assert strong.call(1) == 1
    crash(strong)
    assert strong.call(2) == 2


def test_counted_deaths_make_it_give_up(actor_system: ActorSystem) -> None:
    sup = actor_system.start(DynamicSupervisor(SupervisorFlags(max_restarts=1)))
    incarnation = sup.incarnation
    assert incarnation is not None
    ref, other = sup.call(StartChild(TRANSIENT)), sup.call(StartChild(TEMPORARY))
    error = ValueError("first")
    crash(ref, error)
    assert ref.call(1) == 1
    crash(ref)
    assert incarnation.ended.wait(20)
    assert incarnation.reason is Exit.SHUTDOWN
    assert ref.gone
    with pytest.raises(ActorCrashedError) as caught:
        other.call(1)
    assert caught.value.reason is error


def test_a_restart_that_fails_is_tried_again_and_counts(actor_system: ActorSystem) -> None:
    starts: list[int] = []

    def start() -> Actor:
        starts.append(1)
        return Failing() if 1 < len(starts) < 5 else Doer()

    sup = actor_system.start(DynamicSupervisor(SupervisorFlags(max_restarts=4)))
    ref = sup.call(StartChild(ChildSpec("c", start)))
    crash(ref)
    assert ref.call(1, timeout=20) == 1
    assert len(starts) == 5
    (info,) = sup.call(WhichChildren())
    assert (info.state, info.restarts) == ("running", 1)


def test_a_restart_with_nothing_to_do_drops_the_child(actor_system: ActorSystem) -> None:
    starts: list[int] = []

    def start() -> Actor:
        starts.append(1)
        return Doer() if len(starts) == 1 else Ignoring()

    sup = actor_system.start(DynamicSupervisor())
    ref = sup.call(StartChild(ChildSpec("c", start)))
    crash(ref)
    assert sup.call(CountChildren()).specs == 0
    assert ref.gone


def test_a_delayed_restart_can_be_terminated(actor_system: ActorSystem) -> None:
    flags = SupervisorFlags(backoff=Backoff(30, 30))
    sup = actor_system.start(DynamicSupervisor(flags))
    ref = sup.call(StartChild(TRANSIENT))
    crash(ref)
    (info,) = sup.call(WhichChildren())
    assert info.state == "restarting"
    sup.call(TerminateChild(ref))
    assert ref.gone
    assert sup.call(CountChildren()).specs == 0


# Stopping.


def test_children_are_stopped_at_once_not_one_after_another(actor_system: ActorSystem) -> None:
    meet = threading.Barrier(8)
    met: list[int] = []

    class Meeting(Actor):
        def terminate(self, reason: Reason) -> None:
            # Passes only if all eight are in terminate() at the same time.
            meet.wait(20)
            met.append(1)

    sup = actor_system.start(DynamicSupervisor())
    refs = [sup.call(StartChild(ChildSpec("m", Meeting, shutdown=30))) for _ in range(8)]
    stop(sup)
    assert len(met) == 8
    assert all(ref.gone for ref in refs)


def test_the_ones_that_do_not_stop_are_abandoned_by_one_deadline(
    actor_system: ActorSystem, gate: threading.Event
) -> None:
    sup = actor_system.start(DynamicSupervisor())
    held = threading.Semaphore(0)
    ended: list[Reason] = []

    class Stuck(Actor):
        def handle(self, message: Any) -> Any:
            held.release()
            gate.wait(60)

    class Fine(Actor):
        def terminate(self, reason: Reason) -> None:
            ended.append(reason)

    stuck = [
        sup.call(StartChild(ChildSpec("s", Stuck, shutdown=limit)))
        for limit in [0.2] * 10 + [0.1] * 10 + [0] * 2
    ]
    for _ in range(5):
        sup.call(StartChild(ChildSpec("f", Fine, shutdown=None)))
    replies = [ref.send("hang") for ref in stuck]
    for _ in stuck:
        assert held.acquire(timeout=20)
    began = time.monotonic()
    stop(sup)
    assert 0.19 < time.monotonic() - began < 2.5  # one after another it would be three seconds
    assert ended == [Exit.SHUTDOWN] * 5
    for reply in replies:
        assert reply.wait(20)
        assert isinstance(reply.error, ActorCrashedError)


# Many.


def test_thousands_of_temporary_children(actor_system: ActorSystem) -> None:
    sup = actor_system.start(DynamicSupervisor())
    refs = [start_soon(actor_system, sup, TEMPORARY) for _ in range(3000)]
    replies = [ref.send(number) for number, ref in enumerate(refs)]
    for number, reply in enumerate(replies):
        assert reply.wait(30)
        assert reply.result() == number
    assert sup.call(CountChildren(), timeout=30).active == 3000
    left = threading.Semaphore(0)
    for number, ref in enumerate(refs):
        ref.when_gone(lambda _r: left.release())
        if number % 3 == 0:
            ref.cast(Crash(ValueError("x")))
        elif number % 3 == 1:
            ref.cast(lambda actor: actor.stop())
    for _ in range(2000):
        assert left.acquire(timeout=30)
    # ``left`` is released before the record is dropped: the call comes after both.
    assert sup.call(CountChildren(), timeout=30).specs == 1000
    stop(sup)
    for _ in range(1000):
        assert left.acquire(timeout=30)
    assert all(ref.gone for ref in refs)


def test_racing_starts_calls_and_deaths_lose_nothing(actor_system: ActorSystem) -> None:
    sup = actor_system.start(DynamicSupervisor(MANY))
    answered: list[int] = []

    def work(who: int) -> None:
        for number in range(150):
            spec = TRANSIENT if number % 2 else TEMPORARY
            ref = start_soon(actor_system, sup, spec)
            before = ref.send("before")
            ref.cast(Crash(ValueError("x")))
            after = ref.send("after")
            assert before.wait(30)
            assert before.result() == "before"
            assert after.wait(30)
            if number % 2:
                assert after.result() == "after"
                sup.call(TerminateChild(ref), timeout=30)
            else:
                assert isinstance(after.error, ActorCrashedError)
            answered.append(who)

    threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answered) == 600
    assert sup.call(CountChildren()).specs == 0


# Its own crash.


@pytest.mark.parametrize("given", [True, False])
def test_a_dynamic_supervisor_that_crashes_costs_no_child(
    actor_system: ActorSystem, given: bool
) -> None:
    table: Table[Any, Any] | None = Table() if given else None
    root = actor_system.start(
        Supervisor(
            [
                ChildSpec(
                    "dyn",
                    lambda: DynamicSupervisor(MANY, table=table),
                    name="dyn",
                    type="supervisor",
                )
            ],
            MANY,
        )
    )
    sup = actor_system.names.whereis("dyn")
    assert sup is not None
    refs = [sup.call(StartChild(TRANSIENT)) for _ in range(10)]
    lives = [ref.incarnation for ref in refs]
    for number in range(20):
        crash(sup)
        crash(refs[0])
        assert refs[0].call(number, timeout=20) == number
    assert [ref.incarnation for ref in refs][1:] == lives[1:]
    assert [info.ref for info in sup.call(WhichChildren())] == refs
    stop(root)
    assert all(ref.gone for ref in refs)
    assert sup.gone

"""OTP's supervisor suite, as far as it applies, and what goes beyond: lasting refs, adoption."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.names import NameTakenError
from handoff_actors.actors.reasons import Exit, Reason
from handoff_actors.actors.server import Actor, Crash, IgnoreStart
from handoff_actors.actors.specs import (
    Backoff,
    ChildAlreadyPresentError,
    ChildAlreadyStartedError,
    ChildCounts,
    ChildInfo,
    ChildNotFoundError,
    ChildRestartingError,
    ChildRunningError,
    ChildSpec,
    CountChildren,
    DeleteChild,
    RestartChild,
    StartChild,
    StartFailedError,
    SupervisorFlags,
    TerminateChild,
    WhichChildren,
)
from handoff_actors.actors.supervision import TryAgain
from handoff_actors.actors.supervisor import Supervisor
from handoff_actors.actors.system import ActorSystem
from handoff_actors.actors.table import StaleIncarnationError, Table
from handoff_actors.errors import ActorCrashedError, RuntimeFailedError

Eventually = Callable[..., None]
MANY = SupervisorFlags(max_restarts=10**6)


class Log:
    """What happened to whom, in order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.failing: set[str] = set()

    def take(self) -> list[tuple[str, str]]:
        lines, self.lines = self.lines, []
        return lines


class Child(Actor):
    """Says when it starts and stops; does what it is told."""

    def __init__(self, name: str, log: Log) -> None:
        self.name, self.log = name, log

    def init(self) -> None:
        if self.name in self.log.failing:
            self.log.lines.append(("failed", self.name))
            raise ValueError(f"{self.name} cannot start")
        self.log.lines.append(("start", self.name))

    def handle(self, message: Any) -> Any:
        return message(self) if callable(message) else message

    def terminate(self, reason: Reason) -> None:
        self.log.lines.append(("stop", self.name))


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What stuck handlers wait for; opened before the test's threads are counted."""
    event = threading.Event()
    yield event
    event.set()


def spec(name: str, log: Log, **options: Any) -> ChildSpec:
    return ChildSpec(name, lambda: Child(name, log), **{"name": name, **options})


def crash(ref: Ref | None, error: BaseException | None = None) -> None:
    """Kill the present incarnation and wait until it has ended."""
    assert ref is not None
    incarnation = ref.incarnation
    assert incarnation is not None
    ref.cast(Crash(error or ValueError("crash")))
    assert incarnation.ended.wait(20)


def leave(ref: Ref | None, reason: Exit) -> None:
    assert ref is not None
    incarnation = ref.incarnation
    assert incarnation is not None
    ref.cast(lambda actor: actor.stop(reason))
    assert incarnation.ended.wait(20)


def states(sup: Ref) -> dict[Any, str]:
    return {info.id: info.state for info in sup.call(WhichChildren())}


def stop(ref: Ref) -> None:
    incarnation = ref.incarnation
    assert incarnation is not None
    incarnation.exit(Exit.SHUTDOWN)
    assert incarnation.ended.wait(20)


# Start and stop.


def test_children_start_in_order_and_stop_in_reverse(actor_system: ActorSystem, log: Log) -> None:
    sup = actor_system.start(Supervisor([spec(n, log) for n in "abc"]), "sup")
    assert log.take() == [("start", n) for n in "abc"]
    assert [info.id for info in sup.call(WhichChildren())] == ["a", "b", "c"]
    assert sup.call(CountChildren()) == ChildCounts(specs=3, active=3, supervisors=0, workers=3)
    refs = [actor_system.names.whereis(n) for n in "abc"]
    stop(sup)
    assert log.take() == [("stop", n) for n in "cba"]
    assert all(ref is not None and ref.gone for ref in refs)
    assert actor_system.names.all() == {}


def test_a_child_that_fails_to_start_takes_the_started_ones_down(
    actor_system: ActorSystem, log: Log
) -> None:
    log.failing.add("c")
    with pytest.raises(StartFailedError, match="could not start c: ValueError: c cannot") as caught:
        actor_system.start(Supervisor([spec(n, log) for n in "abcd"]), "sup")
    assert caught.value.child_id == "c"
    assert isinstance(caught.value.__cause__, ValueError)
    assert log.take() == [
        ("start", "a"),
        ("start", "b"),
        ("failed", "c"),
        ("stop", "b"),
        ("stop", "a"),
    ]
    assert actor_system.names.all() == {}


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_start_raises_is_a_failed_start(
    actor_system: ActorSystem, error: BaseException
) -> None:
    def bad() -> Actor:
        raise error

    with pytest.raises(StartFailedError) as caught:
        actor_system.start(Supervisor([ChildSpec("a", bad)]))
    assert caught.value.__cause__ is error


def test_start_must_make_an_actor(actor_system: ActorSystem) -> None:
    with pytest.raises(StartFailedError, match="no Actor"):
        actor_system.start(Supervisor([ChildSpec("a", lambda: 3)]))  # type: ignore[arg-type,return-value]


def test_a_taken_name_is_a_failed_start(actor_system: ActorSystem, log: Log) -> None:
    other = actor_system.start(Child("x", log), "a")
    with pytest.raises(StartFailedError) as caught:
        actor_system.start(Supervisor([spec("a", log)]))
    assert isinstance(caught.value.__cause__, NameTakenError)
    assert actor_system.names.whereis("a") is other


def test_a_child_that_is_too_slow_to_start(
    actor_system: ActorSystem, gate: threading.Event, log: Log
) -> None:
    class Slow(Actor):
        def init(self) -> None:
            gate.wait(60)

    with pytest.raises(StartFailedError, match="not ready within"):
        actor_system.start(Supervisor([spec("a", log), ChildSpec("b", Slow, start_timeout=0.02)]))
    assert log.take() == [("start", "a"), ("stop", "a")]


@pytest.mark.parametrize(("restart", "kept"), [("permanent", True), ("temporary", False)])
def test_a_child_that_has_nothing_to_do(
    actor_system: ActorSystem, log: Log, restart: Any, kept: bool
) -> None:
    class Ignoring(Actor):
        def init(self) -> None:
            raise IgnoreStart

    ignoring = ChildSpec("i", Ignoring, restart=restart)
    sup = actor_system.start(Supervisor([ignoring, spec("a", log)]))
    assert states(sup) == ({"i": "stopped", "a": "running"} if kept else {"a": "running"})
    if kept:
        assert sup.call(RestartChild("i")) is None
        sup.call(DeleteChild("i"))
    assert sup.call(StartChild(ignoring)) is None
    assert ("i" in states(sup)) is kept


# Restart types.


@pytest.mark.parametrize(
    ("restart", "how", "state"),
    [
        ("permanent", Exit.NORMAL, "running"),
        ("permanent", Exit.SHUTDOWN, "running"),
        ("permanent", "crash", "running"),
        ("permanent", "kill", "running"),
        ("transient", Exit.NORMAL, "stopped"),
        ("transient", Exit.SHUTDOWN, "stopped"),
        ("transient", "crash", "running"),
        ("transient", "kill", "running"),
        ("temporary", Exit.NORMAL, None),
        ("temporary", Exit.SHUTDOWN, None),
        ("temporary", "crash", None),
        ("temporary", "kill", None),
    ],
)
def test_restart_types(
    actor_system: ActorSystem, log: Log, eventually: Eventually, restart: Any, how: Any, state: Any
) -> None:
    sup = actor_system.start(Supervisor([spec("a", log, restart=restart)]))
    ref = actor_system.names.whereis("a")
    assert ref is not None
    first = ref.incarnation
    assert first is not None
    if how == "crash":
        crash(ref)
    elif how == "kill":
        first.kill()
    else:
        leave(ref, how)
    eventually(lambda: states(sup).get("a") == state)
    if state == "running":
        assert ref.call("x") == "x"
        assert ref.incarnation is not first
        (info,) = sup.call(WhichChildren())
        assert info == ChildInfo("a", ref, "running", "worker", 1)
    else:
        assert ref.gone
        assert actor_system.names.whereis("a") is None


def test_the_ref_and_the_name_stay_the_same(actor_system: ActorSystem, log: Log) -> None:
    actor_system.start(Supervisor([spec("a", log)], MANY))
    ref = actor_system.names.whereis("a")
    assert ref is not None
    for number in range(20):
        crash(ref)
        assert actor_system.names.whereis("a") is ref
        assert ref.call(number) == number


def test_hooks_are_told_and_cannot_hurt(actor_system: ActorSystem, log: Log) -> None:
    restarts: list[tuple[str, Reason]] = []
    failed: list[tuple[Ref, Reason]] = []
    error = ValueError("x")

    def on_restart(label: str, reason: Reason) -> None:
        restarts.append((label, reason))
        raise SystemExit

    def on_child_failed(ref: Ref, reason: Reason) -> None:
        failed.append((ref, reason))
        raise KeyboardInterrupt

    sup = actor_system.start(
        Supervisor(
            [spec("a", log), spec("t", log, restart="temporary")],
            on_restart=on_restart,
            on_child_failed=on_child_failed,
        )
    )
    temporary = actor_system.names.whereis("t")
    assert temporary is not None
    crash(actor_system.names.whereis("a"), error)
    crash(temporary, error)
    assert states(sup) == {"a": "running"}
    assert restarts == [("a", error)]
    assert failed == [(temporary, error)]


# Intensity and giving up.


def test_it_gives_up_beyond_its_intensity(actor_system: ActorSystem, log: Log) -> None:
    causes: list[Reason] = []
    sup = actor_system.start(
        Supervisor(
            [spec("a", log), spec("b", log)],
            SupervisorFlags(max_restarts=2),
            on_give_up=causes.append,
        ),
        "sup",
    )
    incarnation = sup.incarnation
    assert incarnation is not None
    ref, other = actor_system.names.whereis("a"), actor_system.names.whereis("b")
    assert ref is not None
    assert other is not None
    first = ValueError("first")
    crash(ref, first)
    assert ref.call(1) == 1
    crash(ref)
    assert ref.call(2) == 2
    ref.cast(Crash(OSError("last")))
    assert incarnation.ended.wait(20)
    assert incarnation.reason is Exit.SHUTDOWN
    assert causes == [first]
    assert incarnation.behaviour.first_cause is first  # type: ignore[attr-defined]
    assert ref.gone
    with pytest.raises(ActorCrashedError, match="first") as caught:
        other.call(1)
    assert caught.value.reason is first
    assert actor_system.names.all() == {}


def test_what_the_give_up_hook_returns_is_what_callers_get(
    actor_system: ActorSystem, log: Log
) -> None:
    failed = RuntimeFailedError("the tree gave up")
    sup = actor_system.start(
        Supervisor(
            [spec("a", log)], SupervisorFlags(max_restarts=0), on_give_up=lambda _cause: failed
        )
    )
    incarnation = sup.incarnation
    assert incarnation is not None
    ref = actor_system.names.whereis("a")
    crash(ref)
    assert incarnation.ended.wait(20)
    with pytest.raises(RuntimeFailedError):
        ref.call(1)  # type: ignore[union-attr]


def test_restarts_outside_the_window_do_not_count(actor_system: ActorSystem, log: Log) -> None:
    flags = SupervisorFlags(max_restarts=1, max_seconds=0.0)
    sup = actor_system.start(Supervisor([spec("a", log)], flags))
    ref = actor_system.names.whereis("a")
    for number in range(10):
        crash(ref)
        assert ref.call(number) == number  # type: ignore[union-attr]
    assert sup.alive


def test_deaths_that_are_not_counted(actor_system: ActorSystem, log: Log) -> None:
    flags = SupervisorFlags(max_restarts=0)
    sup = actor_system.start(Supervisor([spec("a", log, counted=False), spec("b", log)], flags))
    ref = actor_system.names.whereis("a")
    assert ref is not None
    for number in range(10):
        crash(ref)
        assert ref.call(number) == number
    assert states(sup) == {"a": "running", "b": "running"}


def test_a_child_with_a_budget_of_its_own_fails_alone(actor_system: ActorSystem, log: Log) -> None:
    failed: list[Reason] = []
    sup = actor_system.start(
        Supervisor(
            [spec("a", log, counted=False, max_restarts=2), spec("b", log)],
            SupervisorFlags(max_restarts=0, max_seconds=60),
            on_child_failed=lambda _ref, reason: failed.append(reason),
        )
    )
    ref = actor_system.names.whereis("a")
    assert ref is not None
    last = ValueError("the last straw")
    for number in range(2):
        crash(ref)
        assert ref.call(number) == number
    crash(ref, last)
    assert states(sup) == {"a": "stopped", "b": "running"}
    assert failed == [last]
    with pytest.raises(ActorCrashedError, match="last straw"):
        ref.call(1)


def test_a_child_that_fails_to_restart_is_tried_until_the_intensity_is_reached(
    actor_system: ActorSystem, log: Log
) -> None:
    sup = actor_system.start(Supervisor([spec("a", log)], SupervisorFlags(max_restarts=3)))
    incarnation = sup.incarnation
    assert incarnation is not None
    log.failing.add("a")
    log.take()
    crash(actor_system.names.whereis("a"))
    assert incarnation.ended.wait(20)
    assert log.take() == [("stop", "a")] + [("failed", "a")] * 3


def test_a_child_that_recovers_while_it_is_tried_again(actor_system: ActorSystem, log: Log) -> None:
    reasons: list[Reason] = []
    sup = actor_system.start(
        Supervisor([spec("a", log)], MANY, on_restart=lambda _l, reason: reasons.append(reason))
    )
    log.failing.add("a")
    ref = actor_system.names.whereis("a")
    assert ref is not None
    crash(ref)
    waiting = ref.send("was sent while it was down")
    assert states(sup)["a"] == "restarting"  # requests get in between
    log.failing.clear()
    assert waiting.wait(20)
    assert waiting.result() == "was sent while it was down"
    assert states(sup)["a"] == "running"
    assert [str(reason) for reason in reasons] == ["a cannot start"]


def test_terminating_one_that_is_being_restarted_ends_the_loop(
    actor_system: ActorSystem, log: Log
) -> None:
    sup = actor_system.start(Supervisor([spec("a", log)], MANY))
    log.failing.add("a")
    crash(actor_system.names.whereis("a"))
    with pytest.raises(ChildAlreadyStartedError):
        sup.call(StartChild(spec("a", log)))
    with pytest.raises(ChildRestartingError):
        sup.call(RestartChild("a"))
    with pytest.raises(ChildRestartingError):
        sup.call(DeleteChild("a"))
    sup.call(TerminateChild("a"))
    log.take()
    assert states(sup) == {"a": "stopped"}
    sup.call(CountChildren())
    assert log.take() == []


# Strategies.


def test_one_for_one_leaves_the_others_alone(actor_system: ActorSystem, log: Log) -> None:
    sup = actor_system.start(Supervisor([spec(n, log) for n in "abc"]))
    log.take()
    crash(actor_system.names.whereis("b"))
    assert set(states(sup).values()) == {"running"}
    assert log.take() == [("stop", "b"), ("start", "b")]


def test_one_for_all_stops_in_reverse_and_starts_in_order(
    actor_system: ActorSystem, log: Log
) -> None:
    restarted: list[str] = []
    sup = actor_system.start(
        Supervisor(
            [spec(n, log) for n in "abcd"],
            SupervisorFlags("one_for_all"),
            on_restart=lambda label, _reason: restarted.append(label),
        )
    )
    log.take()
    crash(actor_system.names.whereis("b"))
    assert set(states(sup).values()) == {"running"}
    assert log.take() == [
        *[("stop", n) for n in "bdca"],
        *[("start", n) for n in "abcd"],
    ]
    assert restarted == list("abcd")
    assert [info.restarts for info in sup.call(WhichChildren())] == [1, 1, 1, 1]


def test_rest_for_one_restarts_those_after_it(actor_system: ActorSystem, log: Log) -> None:
    sup = actor_system.start(
        Supervisor([spec(n, log) for n in "abcd"], SupervisorFlags("rest_for_one"))
    )
    log.take()
    crash(actor_system.names.whereis("b"))
    assert set(states(sup).values()) == {"running"}
    assert log.take() == [*[("stop", n) for n in "bdc"], *[("start", n) for n in "bcd"]]


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_temporary_siblings_are_not_brought_back(
    actor_system: ActorSystem, log: Log, strategy: Any
) -> None:
    sup = actor_system.start(
        Supervisor(
            [spec("a", log), spec("t", log, restart="temporary"), spec("b", log)],
            SupervisorFlags(strategy),
        )
    )
    temporary = actor_system.names.whereis("t")
    crash(actor_system.names.whereis("a"))
    assert states(sup) == {"a": "running", "b": "running"}
    assert temporary is not None
    assert temporary.gone


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_a_sibling_that_fails_to_restart_is_tried_again(
    actor_system: ActorSystem, log: Log, strategy: Any, eventually: Eventually
) -> None:
    sup = actor_system.start(
        Supervisor([spec(n, log) for n in "abc"], SupervisorFlags(strategy, max_restarts=10**6))
    )
    log.failing.add("b")
    crash(actor_system.names.whereis("a"))
    eventually(lambda: ("failed", "b") in log.lines)
    assert states(sup)["c"] == "restarting"  # down until b is up
    log.failing.clear()
    eventually(lambda: set(states(sup).values()) == {"running"})
    kinds = [line for line in log.take() if line[0] != "failed"]
    assert kinds[-2:] == [("start", "b"), ("start", "c")]


def test_a_group_brings_back_what_had_been_stopped_in_it(
    actor_system: ActorSystem, log: Log
) -> None:
    sup = actor_system.start(
        Supervisor([spec(n, log) for n in "ab"], SupervisorFlags("one_for_all"))
    )
    sup.call(TerminateChild("b"))
    crash(actor_system.names.whereis("a"))
    assert states(sup) == {"a": "running", "b": "running"}
    ref = actor_system.names.whereis("b")
    assert ref is not None
    assert ref.call(1) == 1


# Escalation.


def nested(log: Log, inner: SupervisorFlags, outer: SupervisorFlags, **options: Any) -> Supervisor:
    return Supervisor(
        [
            ChildSpec(
                "inner",
                lambda: Supervisor([spec("a", log), spec("b", log)], inner),
                name="inner",
                type="supervisor",
            ),
            spec("c", log),
        ],
        outer,
        **options,
    )


def test_a_supervisor_that_gives_up_is_restarted_by_its_own(
    actor_system: ActorSystem, log: Log
) -> None:
    reasons: list[tuple[str, Reason]] = []
    sup = actor_system.start(
        nested(
            log,
            SupervisorFlags(max_restarts=0),
            SupervisorFlags(max_restarts=1),
            on_restart=lambda label, reason: reasons.append((label, reason)),
        )
    )
    ref = actor_system.names.whereis("a")
    assert ref is not None
    log.take()
    crash(ref)
    assert ref.call("goes on at the same address", timeout=20)
    assert sup.call(CountChildren()).supervisors == 1
    assert log.take() == [("stop", "a"), ("stop", "b"), ("start", "a"), ("start", "b")]
    assert reasons == [("inner", Exit.SHUTDOWN)]


def test_the_root_that_gives_up_knows_the_first_crash_below(
    actor_system: ActorSystem, log: Log
) -> None:
    causes: list[Reason] = []
    failed = RuntimeFailedError("gave up")

    def on_give_up(cause: Reason) -> Reason:
        causes.append(cause)
        return failed

    sup = actor_system.start(
        nested(
            log,
            SupervisorFlags(max_restarts=0),
            SupervisorFlags(max_restarts=0),
            on_give_up=on_give_up,
        )
    )
    incarnation = sup.incarnation
    assert incarnation is not None
    refs = {name: actor_system.names.whereis(name) for name in ("inner", "a", "b", "c")}
    error = ValueError("the first")
    crash(refs["a"], error)
    assert incarnation.ended.wait(20)
    assert causes == [error]
    for ref in refs.values():
        assert ref is not None
        with pytest.raises(RuntimeFailedError):
            ref.call(1)
    assert actor_system.names.all() == {}


def test_a_transient_supervisor_that_gave_up_is_not_restarted_and_leaves_nothing(
    actor_system: ActorSystem, log: Log
) -> None:
    inner = ChildSpec(
        "inner",
        lambda: Supervisor([spec("a", log)], SupervisorFlags(max_restarts=0)),
        type="supervisor",
        restart="transient",
    )
    sup = actor_system.start(Supervisor([inner, spec("c", log)]))
    ref = actor_system.names.whereis("a")
    assert ref is not None
    error = ValueError("why")
    crash(ref, error)
    reply = ref.send(1)
    assert reply.wait(20)
    assert isinstance(reply.error, ActorCrashedError)
    assert reply.error.reason is error
    assert states(sup) == {"inner": "stopped", "c": "running"}


# Stopping.


@pytest.mark.parametrize("shutdown", [0.02, 0])
def test_a_child_that_does_not_stop_is_abandoned_and_fenced(
    actor_system: ActorSystem, log: Log, gate: threading.Event, shutdown: float
) -> None:
    table: Table[str, int] = Table()
    held, tried = threading.Event(), threading.Event()
    refused: list[BaseException] = []

    class Stuck(Actor):
        def init(self) -> None:
            self.take(table)

        def handle(self, message: Any) -> Any:
            held.set()
            gate.wait(60)
            try:
                return self.commit({"late": 1}, reply="late")
            except StaleIncarnationError as error:
                refused.append(error)
                raise
            finally:
                tried.set()

    sup = actor_system.start(
        Supervisor([spec("a", log), ChildSpec("s", Stuck, name="s", shutdown=shutdown)])
    )
    ref = actor_system.names.whereis("s")
    assert ref is not None
    reply = ref.send("work")
    assert held.wait(20)
    began = time.monotonic()
    stop(sup)
    assert time.monotonic() - began < 10
    assert reply.wait(20)
    assert isinstance(reply.error, ActorCrashedError)
    assert ref.gone
    gate.set()
    assert tried.wait(20)
    assert len(refused) == 1
    assert not table.view
    assert log.take()[-1] == ("stop", "a")


def test_terminate_restart_and_delete(actor_system: ActorSystem, log: Log) -> None:
    sup = actor_system.start(Supervisor([spec("a", log)]))
    old = actor_system.names.whereis("a")
    assert old is not None
    with pytest.raises(ChildRunningError):
        sup.call(RestartChild("a"))
    with pytest.raises(ChildRunningError):
        sup.call(DeleteChild("a"))
    sup.call(TerminateChild("a"))
    sup.call(TerminateChild("a"))
    assert old.gone
    assert actor_system.names.whereis("a") is None
    assert sup.call(CountChildren()).active == 0
    with pytest.raises(ChildAlreadyPresentError):
        sup.call(StartChild(spec("a", log)))
    new = sup.call(RestartChild("a"))
    assert new is actor_system.names.whereis("a")
    assert new is not old
    assert new.call(1) == 1
    sup.call(TerminateChild("a"))
    sup.call(DeleteChild("a"))
    for request in (TerminateChild("a"), RestartChild("a"), DeleteChild("a"), TerminateChild([])):  # type: ignore[arg-type]
        with pytest.raises(ChildNotFoundError):
            sup.call(request)
    assert sup.call(WhichChildren()) == []


def test_terminating_a_temporary_child_drops_it(actor_system: ActorSystem, log: Log) -> None:
    sup = actor_system.start(Supervisor([spec("t", log, restart="temporary")]))
    sup.call(TerminateChild("t"))
    assert sup.call(WhichChildren()) == []


def test_children_can_be_added(actor_system: ActorSystem, log: Log) -> None:
    sup = actor_system.start(Supervisor([spec("a", log)]))
    ref = sup.call(StartChild(spec("b", log)))
    assert ref.call(1) == 1
    with pytest.raises(ChildAlreadyStartedError):
        sup.call(StartChild(spec("b", log)))
    log.failing.add("c")
    with pytest.raises(StartFailedError, match="c cannot start"):
        sup.call(StartChild(spec("c", log)))
    assert list(states(sup)) == ["a", "b"]
    assert actor_system.names.whereis("c") is None
    log.take()
    stop(sup)
    assert log.take() == [("stop", "b"), ("stop", "a")]


def test_a_failed_restart_child_leaves_it_stopped(actor_system: ActorSystem, log: Log) -> None:
    sup = actor_system.start(Supervisor([spec("a", log)]))
    sup.call(TerminateChild("a"))
    log.failing.add("a")
    with pytest.raises(StartFailedError):
        sup.call(RestartChild("a"))
    assert states(sup) == {"a": "stopped"}
    log.failing.clear()
    assert sup.call(RestartChild("a")).call(1) == 1


# Delay.


def test_restarts_are_delayed_more_each_time(
    actor_system: ActorSystem, log: Log, eventually: Eventually
) -> None:
    backoff = Backoff(0.03, 0.06, healthy_after=60)
    sup = actor_system.start(
        Supervisor([spec("a", log)], SupervisorFlags(max_restarts=100, backoff=backoff))
    )
    ref = actor_system.names.whereis("a")
    assert ref is not None
    waited = []
    for number in range(3):
        began = time.monotonic()
        crash(ref)
        assert ref.call(number, timeout=20) == number
        waited.append(time.monotonic() - began)
    # Only lower bounds hold on a busy machine.
    assert waited[0] >= 0.03
    assert waited[1] >= 0.06
    assert waited[2] >= 0.06
    crash(ref)
    assert states(sup) == {"a": "restarting"}
    sup.call(TerminateChild("a"))
    assert sup.call(RestartChild("a")).call(1) == 1
    eventually(lambda: not [t for t in actor_system.timers._heap if t[2].callback is not None])
    (info,) = sup.call(WhichChildren())
    assert info.state == "running"
    assert info.restarts == 3


def test_siblings_of_a_delayed_restart_wait_with_it(
    actor_system: ActorSystem, log: Log, eventually: Eventually
) -> None:
    flags = SupervisorFlags("one_for_all", backoff=Backoff(0.05, 0.05))
    sup = actor_system.start(Supervisor([spec(n, log) for n in "ab"], flags))
    crash(actor_system.names.whereis("b"))
    assert states(sup) == {"a": "restarting", "b": "restarting"}
    eventually(lambda: states(sup) == {"a": "running", "b": "running"})


# The supervisor's own crash.


def under_root(inner: Callable[[], Supervisor], **options: Any) -> Supervisor:
    return Supervisor([ChildSpec("sup", inner, name="sup", type="supervisor", **options)], MANY)


@pytest.mark.parametrize("given", [True, False])
def test_a_supervisor_that_crashes_costs_no_child(
    actor_system: ActorSystem, log: Log, given: bool
) -> None:
    table: Table[Any, Any] | None = Table() if given else None
    root = actor_system.start(
        under_root(lambda: Supervisor([spec(n, log) for n in "abc"], table=table))
    )
    sup = actor_system.names.whereis("sup")
    assert sup is not None
    lives = {n: actor_system.names.whereis(n).incarnation for n in "abc"}  # type: ignore[union-attr]
    log.take()
    crash(sup)
    assert states(sup) == {"a": "running", "b": "running", "c": "running"}
    assert log.take() == []
    for name, life in lives.items():
        ref = actor_system.names.whereis(name)
        assert ref is not None
        assert ref.incarnation is life
    ref = actor_system.names.whereis("b")
    crash(ref)
    assert ref.call(1) == 1  # type: ignore[union-attr]
    assert states(sup)["b"] == "running"
    log.take()
    stop(root)
    assert log.take() == [("stop", n) for n in "cba"]


def test_deaths_while_the_supervisor_is_down_are_seen_to(
    actor_system: ActorSystem, log: Log
) -> None:
    actor_system.start(
        under_root(
            lambda: Supervisor(
                [spec("a", log), spec("b", log), spec("t", log, restart="temporary")], MANY
            )
        )
    )
    sup = actor_system.names.whereis("sup")
    assert sup is not None
    for number in range(20):
        crash(actor_system.names.whereis("a"))
        crash(sup)
        crash(actor_system.names.whereis("b"))
        assert actor_system.names.whereis("a").call(number, timeout=20) == number  # type: ignore[union-attr]
        assert actor_system.names.whereis("b").call(number, timeout=20) == number  # type: ignore[union-attr]
    crash(sup)
    crash(actor_system.names.whereis("t"))
    assert states(sup) == {"a": "running", "b": "running"}


def test_the_history_outlives_a_crash(actor_system: ActorSystem, log: Log) -> None:
    actor_system.start(
        under_root(
            lambda: Supervisor([spec("a", log)], SupervisorFlags(max_restarts=2, max_seconds=60))
        )
    )
    sup = actor_system.names.whereis("sup")
    ref = actor_system.names.whereis("a")
    assert sup is not None
    assert ref is not None
    for number in range(2):
        crash(ref)
        assert ref.call(number) == number
        crash(sup)
        assert states(sup) == {"a": "running"}
    log.take()
    life = sup.incarnation
    assert life is not None
    crash(ref)
    assert life.ended.wait(20)
    assert life.reason is Exit.SHUTDOWN  # it gave up: the two before had been remembered


def test_a_killed_supervisor_is_succeeded_by_one_that_adopts(
    actor_system: ActorSystem, log: Log
) -> None:
    root = actor_system.start(under_root(lambda: Supervisor([spec("a", log)])))
    sup = actor_system.names.whereis("sup")
    assert sup is not None
    life = actor_system.names.whereis("a").incarnation  # type: ignore[union-attr]
    assert sup.incarnation is not None
    sup.incarnation.kill()
    assert states(sup) == {"a": "running"}
    assert actor_system.names.whereis("a").incarnation is life  # type: ignore[union-attr]
    stop(root)
    assert life is not None
    assert life.ended.is_set()


def test_a_root_that_crashes_leaves_no_orphan(actor_system: ActorSystem, log: Log) -> None:
    root = actor_system.start(
        under_root(lambda: Supervisor([spec("a", log), spec("b", log)])), "root"
    )
    refs = [actor_system.names.whereis(n) for n in ("sup", "a", "b")]
    error = ValueError("root")
    log.take()
    crash(root, error)
    assert log.take() == [("stop", "b"), ("stop", "a")]
    for ref in refs:
        assert ref is not None
        with pytest.raises(ActorCrashedError) as caught:
            ref.call(1)
        assert caught.value.reason is error
    assert actor_system.names.all() == {}


def test_a_root_that_crashes_stops_its_children_in_reverse(
    actor_system: ActorSystem, log: Log
) -> None:
    root = actor_system.start(Supervisor([spec(n, log) for n in "abc"]))
    log.take()
    crash(root)
    assert log.take() == [("stop", n) for n in "cba"]


class Fragile:
    """An id whose hash raises a few times, to make a supervisor die of a child's end itself."""

    def __init__(self) -> None:
        self.failures = 0

    def __hash__(self) -> int:
        if self.failures:
            self.failures -= 1
            raise ValueError("hash")
        return 7


def test_an_end_whose_message_was_lost_is_found_by_the_next_incarnation(
    actor_system: ActorSystem, log: Log
) -> None:
    id_ = Fragile()
    child = ChildSpec(id_, lambda: Child("a", log), name="a")

    def construct() -> Supervisor:
        failures, id_.failures = id_.failures, 0
        supervisor = Supervisor([child])
        id_.failures = failures
        return supervisor

    actor_system.start(under_root(construct))
    sup, ref = actor_system.names.whereis("sup"), actor_system.names.whereis("a")
    assert sup is not None
    assert ref is not None
    id_.failures = 2  # the message kills two incarnations, and is dropped then
    crash(ref)
    assert ref.call("restarted", timeout=20) == "restarted"
    assert id_.failures == 0
    assert [info.state for info in sup.call(WhichChildren())] == ["running"]


def test_a_stale_try_again_is_ignored(actor_system: ActorSystem, log: Log) -> None:
    sup = actor_system.start(Supervisor([spec("a", log)], SupervisorFlags(backoff=Backoff(30, 30))))
    crash(actor_system.names.whereis("a"))
    sup.cast(TryAgain("a", ticket=0, failed=False))
    sup.cast(TryAgain("unknown", ticket=0, failed=False))
    assert states(sup) == {"a": "restarting"}


# Messages over restarts.


def test_what_is_queued_while_it_is_down_is_handled_by_the_next(
    actor_system: ActorSystem, log: Log
) -> None:
    actor_system.start(Supervisor([spec("a", log)], MANY))
    ref = actor_system.names.whereis("a")
    assert ref is not None
    held, go = threading.Event(), threading.Event()

    def hold_and_die(_actor: Actor) -> None:
        if not held.is_set():
            held.set()
            go.wait(20)
            raise ValueError("x")

    ref.cast(hold_and_die)
    assert held.wait(20)
    replies = [ref.send(n) for n in range(100)]
    go.set()
    for n, reply in enumerate(replies):
        assert reply.wait(20)
        assert reply.result() == n


def test_the_message_that_kills_two_is_answered_and_the_rest_goes_on(
    actor_system: ActorSystem, log: Log
) -> None:
    actor_system.start(Supervisor([spec("a", log)], MANY))
    ref = actor_system.names.whereis("a")
    assert ref is not None
    deaths: list[int] = []

    def die(_actor: Actor) -> None:
        deaths.append(1)
        raise SystemExit(len(deaths))

    reply, after = ref.send(die), ref.send("after")
    assert reply.wait(20)
    assert isinstance(reply.error, ActorCrashedError)
    assert after.wait(20)
    assert after.result() == "after"
    assert len(deaths) == 2


def test_racing_calls_against_a_dying_child_lose_nothing(
    actor_system: ActorSystem, log: Log
) -> None:
    actor_system.start(Supervisor([spec("a", log)], MANY))
    ref = actor_system.names.whereis("a")
    assert ref is not None
    handled: list[int] = []
    over = threading.Event()

    def ask(who: int) -> None:
        for n in range(who * 10_000, who * 10_000 + 1000):
            assert ref.call(lambda _a, n=n: handled.append(n) or n, timeout=30) == n

    def kill() -> None:
        while not over.is_set():
            life = ref.incarnation
            if life is not None:
                ref.cast(Crash(ValueError("x")))
                life.ended.wait(20)

    killer = threading.Thread(target=kill)
    askers = [threading.Thread(target=ask, args=(who,)) for who in range(3)]
    for thread in (killer, *askers):
        thread.start()
    for thread in askers:
        thread.join()
    over.set()
    killer.join()
    assert len(handled) == 3000  # injected crashes come between messages: none is handled twice
    assert len(set(handled)) == 3000

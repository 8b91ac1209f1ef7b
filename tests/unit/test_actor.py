"""The life of an incarnation: how it starts, dies, is killed, and what becomes of its message."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.mailbox import MailboxClosedError, MailboxTakenError
from handoff_actors.actors.reasons import Exit, Reason, is_abnormal, reason_text
from handoff_actors.actors.server import Actor, Crash, IgnoreStart
from handoff_actors.actors.system import ActorSystem
from handoff_actors.actors.table import StaleIncarnationError, Table
from handoff_actors.errors import ActorCrashedError, ActorTimeoutError

Eventually = Callable[..., None]


class Doer(Actor):
    """Does what the message says; keeps a table if it has one."""

    def __init__(self, table: Table[str, Any] | None = None, last: list[Any] | None = None) -> None:
        self.table = table
        self.last = [] if last is None else last

    def init(self) -> None:
        if self.table is not None:
            self.take(self.table)

    def handle(self, message: Any) -> Any:
        return message(self) if callable(message) else message

    def terminate(self, reason: Reason) -> None:
        self.last.append(reason)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What stuck handlers wait for; opened before the test's threads are counted."""
    event = threading.Event()
    yield event
    event.set()


def stuck(gate: threading.Event, held: threading.Event) -> Callable[[Actor], object]:
    def handler(_self: Actor) -> object:
        held.set()
        gate.wait(60)
        return "late"

    return handler


def test_start_returns_when_init_is_done(actor_system: ActorSystem) -> None:
    class Slow(Actor):
        ready = False

        def init(self) -> None:
            self.ready = True

    behaviour = Slow()
    ref = actor_system.start(behaviour)
    assert behaviour.ready
    assert behaviour.ref is ref
    assert behaviour.system is actor_system
    assert ref.alive


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), IgnoreStart()])
@pytest.mark.parametrize("timeout", [None, 20.0])
def test_what_init_raises_goes_to_the_starter(
    actor_system: ActorSystem, error: BaseException, timeout: float | None
) -> None:
    class Failing(Actor):
        def init(self) -> None:
            raise error

    ref = actor_system.new_ref(None, "Failing")
    with pytest.raises(type(error)) as caught:
        actor_system.incarnate(ref, Failing(), timeout=timeout)
    assert caught.value is error
    assert not ref.alive


def test_init_that_is_too_slow_has_no_effect(
    actor_system: ActorSystem, gate: threading.Event
) -> None:
    table: Table[str, int] = Table()
    last: list[Any] = []

    class Slow(Doer):
        def init(self) -> None:
            gate.wait(60)
            super().init()

    ref = actor_system.new_ref("slow", "Slow")
    with pytest.raises(ActorTimeoutError, match="not ready within"):
        actor_system.incarnate(ref, Slow(table, last), timeout=0.01)
    actor_system.incarnate(ref, Doer(table))
    gate.set()
    assert ref.call(lambda actor: actor.commit({"a": 1}, reply="committed")) == "committed"
    assert ref.call("still the second") == "still the second"


def test_a_late_init_that_succeeds_is_told_to_clean_up(
    actor_system: ActorSystem, gate: threading.Event, eventually: Eventually
) -> None:
    last: list[Any] = []

    class Slow(Doer):
        def init(self) -> None:
            gate.wait(60)

    ref = actor_system.new_ref("slow", "Slow")
    with pytest.raises(ActorTimeoutError):
        actor_system.incarnate(ref, Slow(None, last), timeout=0.01)
    gate.set()
    eventually(lambda: len(last) == 1)
    assert isinstance(last[0], ActorTimeoutError)
    assert not ref.alive


@pytest.mark.parametrize("timeout", [None, 20.0])
def test_no_incarnation_begins_on_an_address_that_is_gone(
    actor_system: ActorSystem, timeout: float | None
) -> None:
    ref, last = actor_system.new_ref(None, "X"), []  # type: ignore[var-annotated]
    ref.close(Exit.SHUTDOWN)
    with pytest.raises(MailboxClosedError):
        actor_system.incarnate(ref, Doer(None, last), timeout=timeout)
    assert not ref.alive
    assert len(last) == 1


def test_two_incarnations_cannot_read_at_once(actor_system: ActorSystem) -> None:
    ref = actor_system.start(Doer())
    first = ref.incarnation
    with pytest.raises(MailboxTakenError):
        actor_system.incarnate(ref, Doer())
    assert ref.incarnation is first
    assert ref.call(1) == 1


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda actor: actor.stop(), Exit.NORMAL),
        (lambda actor: actor.stop(Exit.SHUTDOWN), Exit.SHUTDOWN),
    ],
)
def test_terminate_has_the_last_word(
    actor_system: ActorSystem, end: Callable[[Actor], None], expected: Reason
) -> None:
    last: list[Any] = []
    ref = actor_system.start(Doer(None, last))
    incarnation = ref.incarnation
    assert incarnation is not None
    ref.cast(end)
    assert incarnation.ended.wait(10)
    assert last == [expected]
    assert incarnation.reason is expected


def test_an_exit_overtakes_what_waits_but_not_the_handler_at_work(
    actor_system: ActorSystem, gate: threading.Event
) -> None:
    ref = actor_system.start(Doer())
    incarnation = ref.incarnation
    assert incarnation is not None
    held = threading.Event()
    working = ref.send(stuck(gate, held))
    assert held.wait(10)
    waiting = ref.send("never handled")
    assert incarnation.exit(Exit.SHUTDOWN)
    gate.set()
    assert incarnation.ended.wait(10)
    assert working.wait(10)
    assert working.result() == "late"
    assert waiting.wait(10)
    assert isinstance(waiting.error, ActorCrashedError)
    assert not incarnation.exit(Exit.SHUTDOWN)


def test_terminate_that_raises_ends_it_all_the_same(actor_system: ActorSystem) -> None:
    class Bad(Doer):
        def terminate(self, reason: Reason) -> None:
            raise SystemExit("in terminate")

    ref = actor_system.start(Bad())
    incarnation = ref.incarnation
    assert incarnation is not None
    incarnation.exit(Exit.SHUTDOWN)
    assert incarnation.ended.wait(10)
    assert isinstance(incarnation.reason, SystemExit)
    assert ref.gone


def test_an_on_end_that_raises_does_not_hide_the_end(actor_system: ActorSystem) -> None:
    def bad(_reason: Reason) -> None:
        raise ValueError

    ref = actor_system.new_ref(None, "X")
    incarnation = actor_system.incarnate(ref, Doer(), on_end=bad)
    told: list[Reason] = []
    incarnation.monitors.add(1, lambda _n, reason: told.append(reason))
    incarnation.exit(Exit.NORMAL)
    assert incarnation.ended.wait(10)


def test_signalled_that_raises_is_a_crash(actor_system: ActorSystem) -> None:
    class Bad(Doer):
        def signalled(self) -> None:
            raise KeyboardInterrupt

    ref = actor_system.start(Bad())
    incarnation = ref.incarnation
    assert incarnation is not None
    ref.signal()
    assert incarnation.ended.wait(10)
    assert isinstance(incarnation.reason, KeyboardInterrupt)


def test_an_unknown_message_is_a_crash(actor_system: ActorSystem) -> None:
    ref = actor_system.start(Actor())
    with pytest.raises(ActorCrashedError, match="knows no message"):
        ref.call("what")


# Killing.


def killed(actor_system: ActorSystem, table: Table[str, Any] | None, message: Any) -> Ref:
    ref = actor_system.new_ref("k", "Doer")
    actor_system.incarnate(ref, Doer(table), supervised=True)
    ref.cast(message)
    return ref


def test_a_killed_one_is_fenced(actor_system: ActorSystem, gate: threading.Event) -> None:
    table: Table[str, int] = Table()
    last: list[Any] = []
    held, tried = threading.Event(), threading.Event()
    outcome: list[BaseException] = []

    def commit_late(actor: Actor) -> Any:
        held.set()
        gate.wait(60)
        try:
            return actor.commit({"a": 1}, reply="late")
        except StaleIncarnationError as error:
            outcome.append(error)
            raise
        finally:
            tried.set()

    ref = actor_system.new_ref("k", "Doer")
    incarnation = actor_system.incarnate(ref, Doer(table, last), supervised=True)
    reply = ref.send(commit_late)
    assert held.wait(10)
    waiting = ref.send("for the next one")
    incarnation.kill()
    assert incarnation.ended.is_set()
    assert incarnation.reason is Exit.KILLED
    assert reply.wait(10)
    assert isinstance(reply.error, ActorCrashedError)
    assert reply.error.reason is Exit.KILLED
    gate.set()
    assert tried.wait(10)
    assert len(outcome) == 1  # fenced although nobody has taken the table over yet
    actor_system.incarnate(ref, Doer(table), supervised=True)
    assert waiting.wait(10)
    assert waiting.result() == "for the next one"
    assert ref.call("x") == "x"
    assert not table.view
    assert last == []  # no last word for one that was killed
    incarnation.kill()
    assert ref.call("y") == "y"


def test_a_cast_in_the_hands_of_a_killed_one_is_handled_by_the_next_once(
    actor_system: ActorSystem, gate: threading.Event
) -> None:
    lives: list[int] = []
    held = threading.Event()

    def note(actor: Doer) -> None:
        lives.append(actor._incarnation.number)
        if len(lives) == 1:
            held.set()
            gate.wait(60)
            raise ValueError("a zombie's error puts nothing back a second time")

    ref = actor_system.new_ref(None, "Doer")
    first = actor_system.incarnate(ref, Doer(), supervised=True)
    ref.cast(note)
    assert held.wait(10)
    first.kill()
    second = actor_system.incarnate(ref, Doer(), supervised=True)
    gate.set()
    assert ref.call("after") == "after"
    assert lives == [first.number, second.number]


def test_a_call_that_had_committed_when_it_was_killed_is_answered_from_the_record(
    actor_system: ActorSystem, gate: threading.Event
) -> None:
    table: Table[str, int] = Table()
    held = threading.Event()

    def commit_and_hang(actor: Actor) -> Any:
        answer = actor.commit({"n": table.view.get("n", 0) + 1}, reply="done")
        held.set()
        gate.wait(60)
        return answer

    ref = actor_system.new_ref(None, "Doer")
    first = actor_system.incarnate(ref, Doer(table), supervised=True)
    reply = ref.send(commit_and_hang)
    assert held.wait(10)
    first.kill()
    assert reply.wait(10)
    assert reply.result() == "done"
    actor_system.incarnate(ref, Doer(table), supervised=True)
    assert ref.call("x") == "x"
    assert table.view["n"] == 1


def test_what_an_earlier_message_committed_says_nothing_about_the_one_in_hand(
    actor_system: ActorSystem, gate: threading.Event
) -> None:
    table: Table[str, int] = Table()
    held = threading.Event()
    ref = actor_system.new_ref(None, "Doer")
    first = actor_system.incarnate(ref, Doer(table), supervised=True)
    assert ref.call(lambda actor: actor.commit({"a": 1}, reply="first")) == "first"
    reply = ref.send(stuck(gate, held))
    assert held.wait(10)
    first.kill()
    assert reply.wait(10)
    assert isinstance(reply.error, ActorCrashedError)


# The message in hand of one that crashes.


def lives_of(actor_system: ActorSystem, table: Table[str, Any]) -> Ref:
    """A poor man's supervisor: another incarnation whenever one ends."""
    ref = actor_system.new_ref("again", "Doer")

    def begin(_reason: Reason | None = None) -> None:
        actor_system.incarnate(ref, Doer(table), supervised=True, on_end=begin)

    begin()
    return ref


def test_a_call_under_which_one_died_is_handled_by_the_next(actor_system: ActorSystem) -> None:
    table: Table[str, Any] = Table()
    ref = lives_of(actor_system, table)
    deaths: list[int] = []

    def die_once(_actor: Actor) -> Any:
        if not deaths:
            deaths.append(1)
            raise ValueError("once")
        return "second life"

    assert ref.call(die_once) == "second life"


def test_the_call_that_kills_two_is_answered_with_the_error(actor_system: ActorSystem) -> None:
    table: Table[str, Any] = Table()
    ref = lives_of(actor_system, table)
    deaths: list[int] = []

    def die(_actor: Actor) -> Any:
        deaths.append(1)
        raise ValueError(f"death {len(deaths)}")

    with pytest.raises(ActorCrashedError, match="death 2"):
        ref.call(die)
    assert len(deaths) == 2
    assert ref.call(1) == 1


def test_a_committed_call_is_answered_from_the_record_once(actor_system: ActorSystem) -> None:
    table: Table[str, Any] = Table({"n": 0})
    ref = lives_of(actor_system, table)

    def commit_and_die(actor: Actor) -> Any:
        actor.commit({"n": table.view["n"] + 1}, reply="applied")
        raise ValueError("after the commit")

    assert ref.call(commit_and_die) == "applied"
    assert ref.call(1) == 1
    assert table.view["n"] == 1


def test_a_cast_under_which_one_died_is_handled_by_the_next(actor_system: ActorSystem) -> None:
    ref = lives_of(actor_system, Table())
    deaths: list[int] = []

    def die(times: int) -> Callable[[Actor], None]:
        def handler(_actor: Actor) -> None:
            deaths.append(times)
            if deaths.count(times) <= times:
                raise ValueError("again")

        return handler

    ref.cast(die(1))
    assert ref.call(1) == 1
    assert deaths == [1, 1]
    ref.cast(die(5))  # the cast that kills two is dropped
    assert ref.call(2) == 2
    assert deaths == [1, 1, 5, 5]


def test_a_committed_cast_is_not_handled_again(actor_system: ActorSystem) -> None:
    table: Table[str, Any] = Table({"n": 0})
    ref = lives_of(actor_system, table)

    def commit_and_die(actor: Actor) -> None:
        actor.commit({"n": table.view["n"] + 1})
        raise ValueError("after")

    ref.cast(commit_and_die)
    assert ref.call(1) == 1
    assert table.view["n"] == 1


def test_the_order_of_what_waited_is_kept_over_a_death(actor_system: ActorSystem) -> None:
    ref = lives_of(actor_system, Table())
    seen: list[int] = []

    def note(number: int) -> Callable[[Actor], None]:
        died: list[int] = []

        def handler(_actor: Actor) -> None:
            if number % 10 == 0 and not died:
                died.append(1)
                raise ValueError("once")
            seen.append(number)

        return handler

    for number in range(50):
        ref.cast(note(number))
    ref.call(None)
    assert seen == list(range(50))


def test_a_crash_message_kills_one_life_only(
    actor_system: ActorSystem, eventually: Eventually
) -> None:
    ref = lives_of(actor_system, Table())
    first = ref.incarnation
    assert first is not None
    ref.cast(Crash(ValueError("injected")))
    assert first.ended.wait(10)
    assert ref.call(1) == 1
    second = ref.incarnation
    assert second is not None
    assert second is not first
    assert ref.call(2) == 2
    assert ref.incarnation is second


def test_reasons_in_words() -> None:
    assert reason_text(Exit.KILLED) == "killed"
    assert reason_text(ValueError("first\nsecond")) == "ValueError: first"
    assert "ValueError" in reason_text(ValueError())
    assert [is_abnormal(reason) for reason in (*Exit, SystemExit())] == [
        False,
        False,
        True,
        True,
        True,
    ]

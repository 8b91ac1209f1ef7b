"""Calls and casts: every call is answered once, whatever happens to the actor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Queue
from typing import Any

import pytest

from handoff_actors.actors.calls import Ref, Reply
from handoff_actors.actors.reasons import Exit, Reason
from handoff_actors.actors.server import DEFERRED, Actor, Crash
from handoff_actors.actors.specs import ChildSpec
from handoff_actors.actors.supervisor import Supervisor
from handoff_actors.actors.system import ActorSystem
from handoff_actors.errors import (
    ActorCrashedError,
    ActorTimeoutError,
    AllocationError,
    RuntimeFailedError,
)


class Doer(Actor):
    """Does what the message says."""

    def handle(self, message: Any) -> Any:
        return message(self) if callable(message) else message


def ended(ref: Ref) -> threading.Event:
    incarnation = ref.incarnation
    assert incarnation is not None
    return incarnation.ended


def test_a_call_returns_what_the_handler_returned(actor_system: ActorSystem) -> None:
    ref = actor_system.start(Doer())
    assert ref.call(7) == 7
    assert ref.call(None) is None


def test_messages_of_one_sender_are_handled_in_order(actor_system: ActorSystem) -> None:
    seen: list[int] = []
    ref = actor_system.start(Doer())
    for number in range(1000):
        ref.cast(lambda _s, n=number: seen.append(n))
    assert ref.call(lambda _s: list(seen)) == list(range(1000))


def test_a_handoff_error_is_an_answer_and_no_crash(actor_system: ActorSystem) -> None:
    ref = actor_system.start(Doer())

    def refuse(_self: Actor) -> None:
        raise AllocationError("no", function_id="f")

    with pytest.raises(AllocationError, match="no"):
        ref.call(refuse)
    assert ref.alive
    assert ref.call(1) == 1


def test_no_answer_in_time_and_the_late_one_is_dropped(actor_system: ActorSystem) -> None:
    ref = actor_system.start(Doer(), "slow")
    gate = threading.Event()
    with pytest.raises(ActorTimeoutError, match="slow") as caught:
        ref.call(lambda _s: gate.wait(20) and "late", timeout=0.01)
    assert caught.value.timeout == 0.01
    assert caught.value.name == "slow"
    gate.set()
    assert ref.call("next") == "next"


def test_a_reply_is_given_exactly_once() -> None:
    for _ in range(300):
        reply = Reply()
        go = threading.Barrier(4)
        won: list[object] = []

        def answer(n: int, reply: Reply = reply, go: Any = go, won: list[object] = won) -> None:
            go.wait()
            if reply.set(n) if n % 2 else reply.fail(ValueError(n)):
                won.append(n)

        threads = [threading.Thread(target=answer, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        go.wait()
        assert reply.wait(10)
        for thread in threads:
            thread.join()
        (winner,) = won
        if winner == 1:
            assert reply.result() == 1
        else:
            with pytest.raises(ValueError, match=str(winner)):
                reply.result()


def test_a_deferred_answer_comes_from_elsewhere(actor_system: ActorSystem) -> None:
    askers: list[Reply] = []

    def defer(actor: Actor) -> Any:
        asker = actor.asker()
        assert asker is not None
        askers.append(asker)
        return DEFERRED

    ref = actor_system.start(Doer())
    reply = ref.send(defer)
    assert ref.call("between") == "between"
    assert not reply.wait(0)
    assert askers[0].set("later")
    assert reply.wait(10)
    assert reply.result() == "later"


def test_a_call_to_self_is_refused_at_once(actor_system: ActorSystem) -> None:
    ref = actor_system.start(Doer())
    with pytest.raises(ActorCrashedError, match="called itself") as caught:
        ref.call(lambda actor: actor.ref.call("x"), timeout=20)
    assert caught.value.reason == "calling_self"
    assert ref.call(1) == 1


@pytest.mark.parametrize("timeout", [None, 20.0])
def test_a_call_to_self_in_init_is_refused_at_once(
    actor_system: ActorSystem, timeout: float | None
) -> None:
    class Eager(Actor):
        def init(self) -> None:
            self.ref.call("x", timeout=20)

    ref = actor_system.new_ref(None, "Eager")
    with pytest.raises(ActorCrashedError, match="called itself"):
        actor_system.incarnate(ref, Eager(), timeout=timeout)


@pytest.mark.parametrize(
    "error", [ValueError("bad"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()]
)
def test_whatever_is_raised_kills_that_actor_only(
    actor_system: ActorSystem, error: BaseException
) -> None:
    bystander = actor_system.start(Doer())
    ref = actor_system.start(Doer(), "victim")
    down = ended(ref)

    def die(_self: Actor) -> None:
        raise error

    with pytest.raises(ActorCrashedError, match="victim") as caught:
        ref.call(die)
    assert caught.value.reason is error
    assert caught.value.__cause__ is error
    assert down.wait(10)
    assert ref.gone
    assert bystander.call(1) == 1


def test_a_call_to_one_that_is_gone_fails_at_once_with_the_cause(actor_system: ActorSystem) -> None:
    ref = actor_system.start(Doer(), "d")
    error = ValueError("boom")
    down = ended(ref)
    ref.cast(Crash(error))
    assert down.wait(10)
    with pytest.raises(ActorCrashedError, match="boom") as caught:
        ref.call(1)
    assert caught.value.reason is error
    ref.cast("nothing happens")


def test_what_waits_when_it_goes_is_answered(actor_system: ActorSystem) -> None:
    ref = actor_system.start(Doer())
    gate, held = threading.Event(), threading.Event()

    def hold(_self: Actor) -> None:
        held.set()
        gate.wait(20)
        raise ValueError("boom")

    ref.cast(hold)
    assert held.wait(10)
    replies = [ref.send(n) for n in range(20)]
    gate.set()
    for reply in replies:
        assert reply.wait(10)
        assert isinstance(reply.error, ActorCrashedError)


def test_a_handoff_error_as_the_reason_is_what_callers_get(actor_system: ActorSystem) -> None:
    ref = actor_system.new_ref("x", "X")
    waiting = ref.send(1)
    failed = RuntimeFailedError("the tree gave up")
    ref.close(failed)
    assert waiting.error is failed
    with pytest.raises(RuntimeFailedError):
        ref.call(2)


def test_a_cast_can_learn_that_it_was_not_delivered(actor_system: ActorSystem) -> None:
    told: list[tuple[int, Reason]] = []

    class Letter:
        def __init__(self, number: int) -> None:
            self.number = number

        def undelivered(self, reason: Reason) -> None:
            told.append((self.number, reason))
            raise SystemExit  # must not keep the others from learning it

    ref = actor_system.new_ref(None, "X")
    gone: list[Reason] = []
    ref.when_gone(gone.append)
    ref.cast(Letter(1))
    ref.cast("plain")
    ref.cast(Letter(2))
    ref.close(Exit.SHUTDOWN)
    assert told == [(1, Exit.SHUTDOWN), (2, Exit.SHUTDOWN)]
    assert gone == [Exit.SHUTDOWN]


def test_a_cast_under_which_two_incarnations_died_learns_it(actor_system: ActorSystem) -> None:
    told: Queue[Reason] = Queue()

    class Letter:
        def undelivered(self, reason: Reason) -> None:
            told.put(reason)

    class Fragile(Actor):
        def handle(self, message: Any) -> Any:
            if isinstance(message, Letter):
                raise ZeroDivisionError
            return message

    supervisor = Supervisor([ChildSpec("x", Fragile, name="x")])
    actor_system.start(supervisor)
    ref = actor_system.names.whereis("x")
    assert ref is not None
    ref.cast(Letter())
    assert isinstance(told.get(timeout=10), ZeroDivisionError)
    assert ref.call("alive") == "alive"
    assert told.empty()


def test_watchers_of_the_end_are_all_told_once(actor_system: ActorSystem) -> None:
    ref = actor_system.new_ref(None, "X")
    told: list[object] = []

    def bad(_reason: Reason) -> None:
        raise ValueError

    ref.when_gone(bad)
    ref.when_gone(told.append)
    ref.close(Exit.NORMAL)
    ref.close(Exit.KILLED)
    assert told == [Exit.NORMAL]
    ref.when_gone(told.append)
    assert told == [Exit.NORMAL, Exit.NOPROC]


def test_follow_is_handled_on_the_same_thread_after_the_handler(actor_system: ActorSystem) -> None:
    trace: list[tuple[str, int]] = []
    done = threading.Event()
    second = actor_system.start(Doer())

    def follow(_self: Actor) -> None:
        trace.append(("follow", threading.get_ident()))
        done.set()

    def first(_self: Actor) -> None:
        second.cast(follow, follow=True)
        trace.append(("first", threading.get_ident()))

    actor_system.start(Doer()).cast(first)
    assert done.wait(10)
    assert [name for name, _ in trace] == ["first", "follow"]
    assert trace[0][1] == trace[1][1]


def test_a_call_after_a_follow_cast_does_not_block_it(actor_system: ActorSystem) -> None:
    first, second = actor_system.start(Doer()), actor_system.start(Doer())

    def cast_then_call(_self: Actor) -> Any:
        second.cast("before", follow=True)
        return second.call("after", timeout=10)

    assert first.call(cast_then_call, timeout=20) == "after"


def test_refs_tell_what_they_are(
    actor_system: ActorSystem, eventually: Callable[..., None]
) -> None:
    ref = actor_system.start(Doer(), "me")
    assert repr(ref) == "<Ref me alive>"
    ref.cast(Crash(ValueError()))
    eventually(lambda: ref.gone)
    assert repr(ref) == "<Ref me gone>"
    assert repr(actor_system.new_ref(None, "K")).endswith("down>")


def test_racing_calls_against_dying_actors_lose_nothing(actor_system: ActorSystem) -> None:
    answered = [0] * 4
    for _ in range(100):
        ref = actor_system.start(Doer())
        go = threading.Barrier(5)

        def ask(who: int, ref: Ref = ref, go: threading.Barrier = go) -> None:
            go.wait()
            replies = [ref.send(n) for n in range(25)]
            for n, reply in enumerate(replies):
                assert reply.wait(20), "a call was lost"
                assert isinstance(reply.error, ActorCrashedError) or reply.result() == n
                answered[who] += 1

        threads = [threading.Thread(target=ask, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        go.wait()
        ref.cast(Crash(ValueError("x")))
        for thread in threads:
            thread.join()
    assert answered == [2500] * 4

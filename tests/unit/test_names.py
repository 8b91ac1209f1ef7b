"""Names: unique, and free again before anybody hears of the end."""

from __future__ import annotations

from typing import Any

import pytest

from handoff_actors.actors.names import NameTakenError
from handoff_actors.actors.reasons import Exit
from handoff_actors.actors.server import Actor, Crash
from handoff_actors.actors.system import ActorSystem


class Echo(Actor):
    def handle(self, message: Any) -> Any:
        return message


class Failing(Actor):
    def init(self) -> None:
        raise ValueError("no")


def test_a_name_is_unique_in_its_system_only(actor_system: ActorSystem) -> None:
    first = actor_system.start(Echo(), "echo")
    with pytest.raises(NameTakenError, match="echo"):
        actor_system.start(Echo(), "echo")
    assert actor_system.names.whereis("echo") is first
    assert first.call(1) == 1
    other = ActorSystem("other")
    assert other.start(Echo(), "echo").call(2) == 2
    assert other.close(10) == []


def test_a_failed_start_frees_the_name(actor_system: ActorSystem) -> None:
    with pytest.raises(ValueError, match="no"):
        actor_system.start(Failing(), "name")
    assert actor_system.names.whereis("name") is None
    actor_system.start(Echo(), "name")


def test_the_name_is_free_before_the_watchers_learn(actor_system: ActorSystem) -> None:
    for _ in range(50):
        ref = actor_system.start(Echo(), "n")
        incarnation = ref.incarnation
        assert incarnation is not None
        seen: list[Any] = []
        ref.when_gone(lambda _r, seen=seen: seen.append(actor_system.names.whereis("n")))
        incarnation.monitors.add(
            0, lambda *_, seen=seen: seen.append(actor_system.names.whereis("n"))
        )
        ref.cast(Crash(ValueError("x")))
        assert incarnation.ended.wait(10)
        follower = actor_system.start(Echo(), "n").incarnation
        assert follower is not None
        follower.exit(Exit.NORMAL)
        assert follower.ended.wait(10)
        assert seen[0] is None


def test_only_the_holder_can_free_a_name(actor_system: ActorSystem) -> None:
    ref = actor_system.start(Echo(), "mine")
    stranger = actor_system.new_ref("mine", "Echo")
    actor_system.names.unregister(stranger)
    assert actor_system.names.whereis("mine") is ref
    assert actor_system.names.all() == {"mine": ref}
    actor_system.names.unregister(ref)
    assert actor_system.names.all() == {}

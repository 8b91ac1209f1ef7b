"""Monitors: exactly one ``Down`` each, and none too early."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.links import Down, demonitor, monitor
from handoff_actors.actors.reasons import Exit
from handoff_actors.actors.server import Actor, Crash
from handoff_actors.actors.system import ActorSystem


class Collector(Actor):
    def init(self) -> None:
        self.got: list[Any] = []

    def handle(self, message: Any) -> Any:
        if message == "all":
            return list(self.got)
        self.got.append(message)
        return None


class Doer(Actor):
    def handle(self, message: Any) -> Any:
        return message(self) if callable(message) else message


def end(ref: Ref, how: Any) -> None:
    incarnation = ref.incarnation
    assert incarnation is not None
    if how == "kill":
        incarnation.kill()
    elif isinstance(how, Exit):
        incarnation.exit(how)
    else:
        ref.cast(Crash(how))
    assert incarnation.ended.wait(10)


@pytest.mark.parametrize("how", [Exit.NORMAL, Exit.SHUTDOWN, ValueError("x"), "kill"])
def test_one_down_for_every_kind_of_end(
    actor_system: ActorSystem, how: Any, eventually: Any
) -> None:
    watcher, ref = actor_system.start(Collector()), actor_system.start(Doer())
    number = monitor(ref, watcher)
    end(ref, how)
    reason = Exit.KILLED if how == "kill" else how
    eventually(lambda: watcher.call("all") == [Down(number, ref, reason)])
    assert not demonitor(ref, number)


def test_two_monitors_give_two_downs(actor_system: ActorSystem, eventually: Any) -> None:
    watcher, ref = actor_system.start(Collector()), actor_system.start(Doer())
    numbers = {monitor(ref, watcher), monitor(ref, watcher)}
    assert len(numbers) == 2
    end(ref, Exit.NORMAL)
    eventually(lambda: {down.monitor for down in watcher.call("all")} == numbers)
    assert len(watcher.call("all")) == 2


def test_one_that_is_dead_gives_noproc_at_once(actor_system: ActorSystem) -> None:
    watcher, ref = actor_system.start(Collector()), actor_system.start(Doer())
    end(ref, Exit.NORMAL)
    number = monitor(ref, watcher)
    assert watcher.call("all") == [Down(number, ref, Exit.NOPROC)]


def test_a_monitor_taken_back_is_silent(actor_system: ActorSystem) -> None:
    watcher, ref = actor_system.start(Collector()), actor_system.start(Doer())
    kept = monitor(ref, watcher)
    assert demonitor(ref, monitor(ref, watcher))
    assert not demonitor(ref, 0)
    incarnation = ref.incarnation
    assert incarnation is not None
    fired = threading.Event()
    incarnation.monitors.add(-1, lambda *_: fired.set())
    end(ref, Exit.NORMAL)
    assert fired.wait(10)
    assert [down.monitor for down in watcher.call("all")] == [kept]


def test_down_comes_after_what_the_dead_one_had_sent(actor_system: ActorSystem) -> None:
    for _ in range(50):
        watcher, ref = actor_system.start(Collector()), actor_system.start(Doer())
        fired = threading.Event()
        monitor(ref, watcher)
        assert ref.incarnation is not None
        ref.incarnation.monitors.add(-1, lambda *_, fired=fired: fired.set())

        def send_and_die(_actor: Actor, watcher: Ref = watcher) -> None:
            for number in range(20):
                watcher.cast(number)
            raise ValueError("x")

        ref.cast(send_and_die)
        assert fired.wait(10)
        got = watcher.call("all")
        assert got[:20] == list(range(20))
        assert isinstance(got[20], Down)
        assert len(got) == 21


def test_racing_monitors_against_deaths_give_one_down_each(actor_system: ActorSystem) -> None:
    watcher = actor_system.start(Collector())
    numbers: list[int] = []
    for _ in range(150):
        ref = actor_system.start(Doer())
        go = threading.Barrier(3)
        finished = threading.Event()
        incarnation = ref.incarnation
        assert incarnation is not None
        incarnation.monitors.add(-1, lambda *_, finished=finished: finished.set())

        def watch(ref: Ref = ref, go: threading.Barrier = go) -> None:
            go.wait()
            numbers.extend([monitor(ref, watcher) for _ in range(10)])

        threads = [threading.Thread(target=watch) for _ in range(2)]
        for thread in threads:
            thread.start()
        go.wait()
        ref.cast(Crash(ValueError("x")))
        for thread in threads:
            thread.join()
        assert finished.wait(10)
        # ``finished`` was the first of the callbacks: the rest of them run on the same thread.
        assert incarnation.ended.wait(10)
    deadline = threading.Event()
    for _ in range(2000):
        got = watcher.call("all")
        if len(got) == len(numbers):
            break
        deadline.wait(0.005)
    assert sorted(down.monitor for down in got) == sorted(numbers)

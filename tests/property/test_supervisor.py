"""A live supervisor against a model of OTP's rules, with faults between any two steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.reasons import Exit
from handoff_actors.actors.server import Actor, Crash
from handoff_actors.actors.specs import (
    ChildAlreadyPresentError,
    ChildAlreadyStartedError,
    ChildNotFoundError,
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
from handoff_actors.actors.supervisor import Supervisor
from handoff_actors.actors.system import ActorSystem

IDS = st.sampled_from("abcdef")
RESTARTS = st.sampled_from(["permanent", "transient", "temporary"])
STRATEGIES = st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"])
ENDS = st.sampled_from(["crash", "exit", "kill", "normal", "shutdown"])


@dataclass
class Modelled:
    restart: str
    running: bool = True


class Family(RuleBasedStateMachine):
    """Children that are crashed, killed, stopped, added, deleted; and the supervisor itself."""

    def __init__(self) -> None:
        super().__init__()
        self.system = ActorSystem("model")
        self.starts: dict[str, int] = {}
        self.expected_starts: dict[str, int] = {}
        self.model: dict[str, Modelled] = {}
        self.refs: dict[str, Ref] = {}

    def spec(self, id_: str, restart: Any) -> ChildSpec:
        starts = self.starts

        class Child(Actor):
            def init(self) -> None:
                starts[id_] = starts.get(id_, 0) + 1

            def handle(self, message: Any) -> Any:
                return message(self) if callable(message) else message

        return ChildSpec(id_, Child, restart=restart, name=id_)

    @initialize(strategy=STRATEGIES, restarts=st.lists(RESTARTS, max_size=4))
    def begin(self, strategy: Any, restarts: list[str]) -> None:
        self.strategy = strategy
        specs = [self.spec(id_, restart) for id_, restart in zip("abcd", restarts, strict=False)]
        flags = SupervisorFlags(strategy, max_restarts=10**6)
        family = ChildSpec(
            "family", lambda: Supervisor(specs, flags), name="family", type="supervisor"
        )
        self.root = self.system.start(
            Supervisor([family], SupervisorFlags(max_restarts=10**6)), "root"
        )
        sup = self.system.names.whereis("family")
        assert sup is not None
        self.sup = sup
        for spec in specs:
            self.model[str(spec.id)] = Modelled(spec.restart)
            self.expect_start(str(spec.id))

    def expect_start(self, id_: str) -> None:
        self.expected_starts[id_] = self.expected_starts.get(id_, 0) + 1

    # What the rules say.

    def restarted(self, failed: str) -> None:
        ids = list(self.model)
        if self.strategy == "one_for_one":
            group = [failed]
        elif self.strategy == "one_for_all":
            group = ids
        else:
            group = ids[ids.index(failed) :]
        for id_ in group:
            if id_ != failed and self.model[id_].restart == "temporary":
                del self.model[id_]
            else:
                self.model[id_].running = True
                self.expect_start(id_)

    @rule(id_=IDS, how=ENDS)
    def end(self, id_: str, how: str) -> None:
        child = self.model.get(id_)
        ref = self.system.names.whereis(id_)
        if child is None or not child.running:
            assert ref is None
            return
        assert ref is not None
        incarnation = ref.incarnation
        assert incarnation is not None
        if how == "kill":
            incarnation.kill()
        elif how in {"crash", "exit"}:
            ref.cast(Crash(ValueError("x") if how == "crash" else SystemExit(1)))
        else:
            reason = Exit.NORMAL if how == "normal" else Exit.SHUTDOWN
            ref.cast(lambda actor: actor.stop(reason))
        assert incarnation.ended.wait(20)
        abnormal = how in {"crash", "exit", "kill"}
        if child.restart == "permanent" or (child.restart == "transient" and abnormal):
            self.restarted(id_)
        elif child.restart == "temporary":
            del self.model[id_]
        else:
            child.running = False

    @rule(id_=IDS)
    def terminate(self, id_: str) -> None:
        child = self.model.get(id_)
        if child is None:
            with pytest.raises(ChildNotFoundError):
                self.sup.call(TerminateChild(id_))
            return
        self.sup.call(TerminateChild(id_))
        child.running = False
        if child.restart == "temporary":
            del self.model[id_]

    @rule(id_=IDS)
    def restart(self, id_: str) -> None:
        child = self.model.get(id_)
        if child is None or child.running:
            with pytest.raises(ChildNotFoundError if child is None else ChildRunningError):
                self.sup.call(RestartChild(id_))
            return
        assert self.sup.call(RestartChild(id_)) is self.system.names.whereis(id_)
        child.running = True
        self.expect_start(id_)

    @rule(id_=IDS)
    def delete(self, id_: str) -> None:
        child = self.model.get(id_)
        if child is None or child.running:
            with pytest.raises(ChildNotFoundError if child is None else ChildRunningError):
                self.sup.call(DeleteChild(id_))
            return
        self.sup.call(DeleteChild(id_))
        del self.model[id_]

    @rule(id_=IDS, restart=RESTARTS)
    def add(self, id_: str, restart: str) -> None:
        child = self.model.get(id_)
        if child is not None:
            kind = ChildAlreadyStartedError if child.running else ChildAlreadyPresentError
            with pytest.raises(kind):
                self.sup.call(StartChild(self.spec(id_, restart)))
            return
        assert self.sup.call(StartChild(self.spec(id_, restart))).call(id_) == id_
        self.model[id_] = Modelled(restart)
        self.expect_start(id_)

    @rule(id_=st.sampled_from("xyz"))
    def add_one_that_fails(self, id_: str) -> None:
        class Failing(Actor):
            def init(self) -> None:
                raise KeyboardInterrupt

        with pytest.raises(StartFailedError):
            self.sup.call(StartChild(ChildSpec(id_, Failing, name=id_)))

    @rule(killed=st.booleans())
    def the_supervisor_itself(self, killed: bool) -> None:
        incarnation = self.sup.incarnation
        if incarnation is None:
            return  # still between two lives
        if killed:
            incarnation.kill()
        else:
            self.sup.cast(Crash(ValueError("supervisor")))
        assert incarnation.ended.wait(20)

    @rule()
    def the_supervisor_and_a_child_at_once(self) -> None:
        running = [id_ for id_, child in self.model.items() if child.running]
        incarnation = self.sup.incarnation
        if not running or incarnation is None or self.strategy != "one_for_one":
            return
        ref = self.system.names.whereis(running[-1])
        assert ref is not None
        assert ref.incarnation is not None
        life = ref.incarnation
        self.sup.cast(Crash(ValueError("supervisor")))
        ref.cast(Crash(ValueError("child")))
        assert incarnation.ended.wait(20)
        assert life.ended.wait(20)
        if self.model[running[-1]].restart == "temporary":
            del self.model[running[-1]]
        else:
            self.expect_start(running[-1])

    # What must hold after every step.

    @invariant()
    @precondition(lambda self: hasattr(self, "sup"))
    def agrees(self) -> None:
        infos = self.sup.call(WhichChildren(), timeout=20)
        assert [(info.id, info.state) for info in infos] == [
            (id_, "running" if child.running else "stopped") for id_, child in self.model.items()
        ]
        assert self.starts == self.expected_starts
        counts = self.sup.call(CountChildren())
        assert counts.active == sum(child.running for child in self.model.values())
        names = {name for name in self.system.names.all() if len(name) == 1}
        assert names == {id_ for id_, child in self.model.items() if child.running}
        for info in infos:
            if info.state == "running":
                assert info.ref is self.system.names.whereis(str(info.id))
                assert info.ref is not None
                assert info.ref.call(info.id, timeout=20) == info.id
                known = self.refs.get(str(info.id))
                if known is not None and known is not info.ref:
                    assert known.gone  # two addresses of one child never live at once
                self.refs[str(info.id)] = info.ref

    def teardown(self) -> None:
        if hasattr(self, "root"):
            lives = [ref.incarnation for ref in self.system.names.all().values() if ref.incarnation]
            incarnation = self.root.incarnation
            assert incarnation is not None
            incarnation.exit(Exit.SHUTDOWN)
            assert incarnation.ended.wait(20)
            assert all(life.ended.wait(20) for life in lives)
            assert self.system.names.all() == {}
            assert all(ref.gone for ref in self.refs.values())
        assert self.system.close(20) == []
        assert self.system.carriers.threads() == []


TestFamily = Family.TestCase
TestFamily.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

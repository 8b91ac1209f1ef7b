"""Every method of every actor is once the place where it crashes: before it, and after it.

``tests/soak/lines.py`` does the same for every line, which takes minutes.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors.actors.calls import current
from handoff_actors.actors.dynamic_supervisor import DynamicSupervisor
from handoff_actors.execution.executor import DistributedExecutor
from handoff_actors.execution.runner import Runner
from handoff_actors.resources.tracker import ResourceTracker
from handoff_actors.results.distributed import DistributedResultStore
from handoff_actors.results.locations import DataLocationRegistry
from handoff_actors.results.store import ResultStore
from handoff_actors.testing import InjectedCrash
from tests.soak.lines import scenario

ACTORS: list[type] = [
    Runner,
    DistributedExecutor,
    ResultStore,
    ResourceTracker,
    DataLocationRegistry,
    DistributedResultStore,
    DynamicSupervisor,
]


class Once:
    """Raises the first time it is asked on an actor's thread."""

    def __init__(self) -> None:
        self.fired = False

    def __call__(self, where: str) -> None:
        if not self.fired and current.incarnation is not None:
            self.fired = True
            raise InjectedCrash(where)


def sabotaged(method: Any, after: bool, once: Once) -> Any:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not after:
            once(f"before {method.__qualname__}")
        result = method(*args, **kwargs)
        if after:
            once(f"after {method.__qualname__}")
        return result

    return call


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("actor", ACTORS, ids=lambda actor: actor.__name__)
def test_an_actor_crashes_around_each_of_its_methods(
    make_runtime: Any, monkeypatch: pytest.MonkeyPatch, actor: type, after: bool
) -> None:
    fired = 0
    for name, method in list(vars(actor).items()):
        if not isinstance(method, types.FunctionType) or name in ("__init__", "terminate"):
            continue
        runtime = make_runtime(capabilities={"cpu": 2}, max_restarts=1000)
        once = Once()
        with monkeypatch.context() as patch:
            patch.setattr(actor, name, sabotaged(method, after, once))
            problems = list(scenario(runtime))
        fired += once.fired
        assert not problems, (name, problems)
        runtime.stop()
    assert fired, "nothing crashed"


def test_a_runner_that_never_starts_fails_its_run_only(
    make_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime(max_restarts=3)
    one = handoff.new("d").add_function(handoff.Function("f", (), lambda: 1))
    one.add_function(handoff.Function("g", ("f",), lambda f: f))  # a single one needs no runner
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "init", lambda self: (_ for _ in ()).throw(ValueError("never")))
        with pytest.raises(handoff.ActorCrashedError) as caught:
            runtime.execute(one, timeout=10)
    assert "never" in str(caught.value)
    assert runtime.execute(one).results["f"] == 1
    assert runtime.running

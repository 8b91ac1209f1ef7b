"""``handoff.testing.crash``: actors die when told to, and runs do not notice."""

from __future__ import annotations

import pytest

import handoff_actors as handoff
from handoff_actors.testing import InjectedCrash, crash


@pytest.fixture
def runtime():
    with handoff.Runtime() as runtime:
        yield runtime


def test_a_crashed_actor_is_restarted(runtime, eventually):
    runtime.store_value("dag", "id", 42)
    crash("result_store", runtime=runtime)
    eventually(lambda: runtime.status().restarts == {"result_store": 1})
    assert runtime.get_local_value("dag", "id") == 42


def test_the_error_is_the_reason(runtime, eventually):
    reasons = []
    runtime.subscribe(reasons.append, [handoff.events.ActorCrashed])
    crash("resource_tracker", ValueError("mine"), runtime)
    crash("resource_tracker", runtime=runtime)
    eventually(lambda: len(reasons) == 2)
    assert "mine" in reasons[0].reason
    assert InjectedCrash.__name__ in reasons[1].reason


def test_the_default_runtime(eventually):
    with pytest.raises(handoff.NotStartedError):
        crash("result_store")
    with handoff.start():
        crash("result_store")
        eventually(lambda: handoff.status().restarts.get("result_store") == 1)


def test_an_unknown_name_lists_the_known(runtime):
    with pytest.raises(handoff.ConfigurationError) as caught:
        crash("nobody", runtime=runtime)
    assert "'nobody'" in str(caught.value)
    assert "distributed_executor" in str(caught.value)
    assert "resource_tracker" in str(caught.value)


def test_an_error_that_is_none(runtime):
    with pytest.raises(handoff.ConfigurationError, match="not 'boom'"):
        crash("result_store", "boom", runtime)

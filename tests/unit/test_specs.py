"""Specifications refuse what cannot be used, and say which value it is."""

from __future__ import annotations

import math
from typing import Any

import pytest

from handoff_actors.actors.dynamic_supervisor import DynamicSupervisor
from handoff_actors.actors.server import Actor
from handoff_actors.actors.specs import Backoff, ChildSpec, SupervisorFlags
from handoff_actors.actors.supervisor import Supervisor
from handoff_actors.errors import ConfigurationError


def test_defaults_are_otps() -> None:
    spec = ChildSpec("a", Actor)
    assert (spec.restart, spec.shutdown, spec.type, spec.counted) == (
        "permanent",
        5.0,
        "worker",
        True,
    )
    assert ChildSpec("a", Actor, type="supervisor").shutdown is None
    assert ChildSpec("a", Actor, type="supervisor", shutdown=2).shutdown == 2
    assert ChildSpec("a", Actor, shutdown=None).shutdown is None
    flags = SupervisorFlags()
    assert (flags.strategy, flags.max_restarts, flags.max_seconds) == ("one_for_one", 3, 5.0)


def test_labels() -> None:
    assert ChildSpec("a", Actor, name="n").label == "n"
    assert ChildSpec("a", Actor).label == "a"
    assert ChildSpec(("a", 1), Actor).label == "('a', 1)"


@pytest.mark.parametrize(
    "bad",
    [
        {"id": []},
        {"start": None},
        {"restart": "always"},
        {"restart": []},
        {"shutdown": -2},
        {"shutdown": math.nan},
        {"shutdown": math.inf},
        {"shutdown": "5"},
        {"shutdown": True},
        {"type": "actor"},
        {"name": ""},
        {"name": 3},
        {"start_timeout": -1},
        {"start_timeout": "soon"},
        {"max_restarts": 1},
        {"max_restarts": -1, "counted": False},
        {"max_restarts": 1.5, "counted": False},
    ],
)
def test_a_child_spec_names_the_wrong_field(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        ChildSpec(**{"id": "a", "start": Actor, **bad})


@pytest.mark.parametrize(
    "bad",
    [
        {"strategy": "all"},
        {"max_restarts": -1},
        {"max_restarts": 1.0},
        {"max_restarts": True},
        {"max_seconds": -1},
        {"max_seconds": math.nan},
        {"backoff": 1.0},
    ],
)
def test_flags_name_the_wrong_field(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        SupervisorFlags(**bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"initial": -1},
        {"initial": math.inf},
        {"maximum": 0.5},
        {"factor": 0.5},
        {"healthy_after": -1},
    ],
)
def test_backoff_names_the_wrong_field(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        Backoff(**{"initial": 1.0, "maximum": 2.0, **bad})


def test_supervisors_refuse_what_they_cannot_use() -> None:
    spec = ChildSpec("a", Actor)
    with pytest.raises(ConfigurationError, match="two children have the id 'a'"):
        Supervisor([spec, spec])
    with pytest.raises(ConfigurationError, match="children must be ChildSpecs"):
        Supervisor(["a"])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="flags"):
        Supervisor([spec], {"max_restarts": 1})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="table"):
        Supervisor([spec], table={})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="one_for_one"):
        DynamicSupervisor(SupervisorFlags("one_for_all"))
    with pytest.raises(ConfigurationError, match="max_children"):
        DynamicSupervisor(max_children=-1)

"""When to restart, whom, how soon, and when to give up."""

from __future__ import annotations

import pytest

from handoff_actors.actors.reasons import Exit, Reason
from handoff_actors.actors.restart_policy import (
    RestartIntensity,
    affected,
    delay,
    is_expected_stop,
    must_restart,
    next_streak,
)
from handoff_actors.actors.specs import Backoff, Restart, Strategy


@pytest.mark.parametrize(
    ("restart", "reason", "expected"),
    [
        ("permanent", Exit.NORMAL, True),
        ("permanent", Exit.SHUTDOWN, True),
        ("permanent", ValueError(), True),
        ("transient", Exit.NORMAL, False),
        ("transient", Exit.SHUTDOWN, False),
        ("transient", Exit.KILLED, True),
        ("transient", Exit.NOPROC, True),
        ("transient", SystemExit(), True),
        ("temporary", Exit.NORMAL, False),
        ("temporary", Exit.KILLED, False),
        ("temporary", ValueError(), False),
    ],
)
def test_the_restart_table(restart: Restart, reason: Reason, expected: bool) -> None:
    assert must_restart(restart, reason) is expected


def test_intensity_one_dies_at_the_second_in_the_window_which_is_inclusive() -> None:
    intensity = RestartIntensity(1, 5.0)
    assert not intensity.record(10.0)
    assert intensity.record(15.0)
    assert intensity.history == (10.0, 15.0)
    assert not RestartIntensity(1, 5.0, [10.0]).record(15.001)


def test_intensity_nought_dies_at_the_first() -> None:
    assert RestartIntensity(0, 5.0).record(0.0)
    assert RestartIntensity(0, 0.0).record(0.0)


def test_the_history_goes_on_where_it_was() -> None:
    first = RestartIntensity(3, 5.0)
    for now in (1.0, 2.0, 3.0):
        assert not first.record(now)
    assert RestartIntensity(3, 5.0, first.history).record(4.0)


@pytest.mark.parametrize(
    ("strategy", "stop", "start"),
    [
        ("one_for_one", (), ("b",)),
        ("one_for_all", ("d", "c", "a"), ("a", "b", "c", "d")),
        ("rest_for_one", ("d", "c"), ("b", "c", "d")),
    ],
)
def test_who_is_affected(strategy: Strategy, stop: tuple[str, ...], start: tuple[str, ...]) -> None:
    assert affected(strategy, ["a", "b", "c", "d"], "b") == (stop, start)


def test_the_delay_doubles_up_to_its_cap_and_begins_anew_after_healthy_time() -> None:
    backoff = Backoff(0.1, 1.0, factor=2.0, healthy_after=3.0)
    assert [delay(backoff, n) for n in range(1, 7)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert delay(backoff, 100_000) == 1.0
    assert next_streak(backoff, 0, 0.0) == 1
    assert next_streak(backoff, 4, 2.999) == 5
    assert next_streak(backoff, 4, 3.0) == 1


@pytest.mark.parametrize(
    ("restart", "shutdown", "reason", "expected"),
    [
        ("permanent", 5.0, Exit.SHUTDOWN, True),
        ("permanent", 5.0, Exit.NORMAL, False),
        ("transient", 5.0, Exit.NORMAL, True),
        ("permanent", 5.0, Exit.KILLED, False),
        ("permanent", 0, Exit.KILLED, True),
        ("temporary", None, ValueError(), False),
    ],
)
def test_which_ends_of_an_ordered_stop_are_worth_a_log_line(
    restart: Restart, shutdown: float | None, reason: Reason, expected: bool
) -> None:
    assert is_expected_stop(restart, shutdown, reason) is expected

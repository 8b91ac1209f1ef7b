"""The restart policy holds its invariants for any history."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from handoff_actors.actors.restart_policy import RestartIntensity, affected, delay, next_streak
from handoff_actors.actors.specs import Backoff, Strategy

STRATEGIES: st.SearchStrategy[Strategy] = st.sampled_from(
    ["one_for_one", "one_for_all", "rest_for_one"]
)


class Intensity(RuleBasedStateMachine):
    """``RestartIntensity`` against counting all that ever happened."""

    @initialize(max_restarts=st.integers(0, 5), tenths=st.integers(0, 40))
    def begin(self, max_restarts: int, tenths: int) -> None:
        self.limit, self.window = max_restarts, tenths / 8
        self.real = RestartIntensity(max_restarts, self.window)
        self.now = 100.0
        self.all: list[float] = []

    @rule(eighths=st.integers(0, 48))
    def wait(self, eighths: int) -> None:
        self.now += eighths / 8

    @rule()
    def crash(self) -> None:
        self.all.append(self.now)
        recent = [at for at in self.all if at >= self.now - self.window]
        assert self.real.record(self.now) == (len(recent) > self.limit)
        assert self.real.history == tuple(recent)

    @rule()
    def taken_over(self) -> None:
        self.real = RestartIntensity(self.limit, self.window, self.real.history)

    @invariant()
    def in_order(self) -> None:
        if hasattr(self, "real"):
            assert list(self.real.history) == sorted(self.real.history)


TestIntensity = Intensity.TestCase


@given(STRATEGIES, st.lists(st.integers(), min_size=1, unique=True), st.data())
def test_the_group_is_stopped_in_reverse_and_started_in_order(
    strategy: Strategy, ids: list[int], data: st.DataObject
) -> None:
    failed = data.draw(st.sampled_from(ids))
    stop, start = affected(strategy, ids, failed)
    assert failed in start
    assert failed not in stop
    assert set(start) == {failed, *stop}
    assert list(start) == [id_ for id_ in ids if id_ in start]
    assert list(stop) == [id_ for id_ in reversed(ids) if id_ in stop]
    before = ids[: ids.index(failed)]
    assert (strategy == "one_for_all") or not set(stop) & set(before)


@given(
    st.floats(0.001, 10),
    st.floats(0, 100),
    st.floats(1, 10),
    st.floats(0, 10),
    st.lists(st.floats(0, 20), max_size=30),
)
def test_delays_never_shrink_in_a_row_and_never_pass_the_cap(
    initial: float, more: float, factor: float, healthy: float, lives: list[float]
) -> None:
    backoff = Backoff(initial, initial + more, factor, healthy)
    streak, last = 0, 0.0
    for alive_for in lives:
        streak = next_streak(backoff, streak, alive_for)
        wait = delay(backoff, streak)
        assert initial <= wait <= backoff.maximum
        if alive_for >= healthy:
            assert wait == initial
        else:
            assert wait >= last
        last = wait

"""Which values stay, and for how long."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import Function
from tests.functions import Gate, diamond, fails_until, single, wait_for


@pytest.mark.parametrize("synchronous", [False, True])
@pytest.mark.parametrize(
    ("keep", "kept"),
    [("all", "abcd"), ("sinks", "d"), (["b"], "b"), (["a", "d"], "ad"), ([], ""), (("c",), "c")],
)
def test_keep(runtime: handoff.Runtime, keep: Any, kept: str, synchronous: bool) -> None:
    result = runtime.execute(diamond("d"), keep=keep, synchronous=synchronous)
    assert sorted(result.results) == sorted(kept)
    assert len(result.results) == len(kept)
    for name in "abcd":
        if name in kept:
            assert runtime.get_local_value("d", name) == result.results[name]
        else:
            with pytest.raises(KeyError):
                result.results[name]
            with pytest.raises(handoff.ValueNotFoundError):
                result.results[name]
            with pytest.raises(handoff.ValueNotFoundError):
                runtime.get_local_value("d", name)
            with pytest.raises(handoff.ResultTimeoutError):
                runtime.get_result("d", name, 30)


class Value:
    """Something that can be seen to be freed."""


class Made:
    """Makes values, and knows which are alive."""

    def __init__(self) -> None:
        self.values: weakref.WeakSet[Value] = weakref.WeakSet()

    def __call__(self, *_: Any) -> Value:
        value = Value()
        self.values.add(value)
        return value

    def alive(self) -> int:
        gc.collect()
        return len(self.values)


@pytest.fixture
def made() -> Made:
    return Made()


@pytest.mark.parametrize("synchronous", [False, True])
def test_values_not_kept_are_freed_as_their_last_consumer_ends(
    runtime: handoff.Runtime, synchronous: bool, made: Made
) -> None:
    alive: list[int] = []

    def code(*_: Any) -> Value:
        alive.append(made.alive())
        return made()

    dag = handoff.new()
    for i in range(50):
        dag.add_function(Function(i, [i - 1] if i else [], code))
    result = runtime.execute(dag, keep="sinks", synchronous=synchronous)
    assert max(alive) <= 6
    assert list(result.results) == [49]
    wait_for(lambda: made.alive() == 1)


def test_release_frees(runtime: handoff.Runtime, made: Made) -> None:
    result = runtime.execute(single(made), dag_id="d")
    assert made.alive() == 1
    result.release()
    wait_for(lambda: made.alive() == 0)
    with pytest.raises(handoff.ValueNotFoundError):
        runtime.get_local_value("d", "f")


def test_old_runs_are_released_unless_somebody_holds_their_result(
    make_runtime: Any, made: Made
) -> None:
    runtime = make_runtime(max_retained_runs=3)
    held = runtime.execute(single(made), dag_id="held")
    for i in range(20):
        runtime.execute(single(made), dag_id=i)
    wait_for(lambda: made.alive() <= 4)
    assert isinstance(held.results["f"], Value)
    assert isinstance(runtime.get_local_value("held", "f"), Value)
    assert isinstance(runtime.get_local_value(19, "f"), Value)
    with pytest.raises(handoff.ValueNotFoundError):
        runtime.get_local_value(0, "f")
    wait_for(lambda: len(runtime.status().runs) <= 4)
    del held
    gc.collect()
    for i in range(20, 24):
        runtime.execute(single(made), dag_id=i)
    wait_for(lambda: made.alive() <= 3)


def test_what_is_no_more_retained_cannot_be_had_from_the_next_call_on(make_runtime: Any) -> None:
    runtime = make_runtime(max_retained_runs=2)
    reads: list[Callable[[Any], object]] = [
        lambda i: runtime.get_value(i, "f"),
        lambda i: runtime.get_local_value(i, "f"),
        lambda i: runtime.lookup_data_location(i, "f"),
    ]
    for i in range(30):
        runtime.execute(single(lambda: 1), dag_id=i)
        if i >= 2:
            with pytest.raises(handoff.ValueNotFoundError):
                reads[i % 3](i - 2)
        assert runtime.synchronize(i, ["f"]) == {"f": 1}
        assert len(runtime.status().runs) <= 2


def test_nothing_is_retained_when_asked_so(make_runtime: Any, made: Made) -> None:
    runtime = make_runtime(max_retained_runs=0)
    result = runtime.execute(single(made))
    assert isinstance(result.results["f"], Value)
    del result
    runtime.execute(single(lambda: 1))
    wait_for(lambda: made.alive() == 0)
    wait_for(lambda: len(runtime.status().runs) <= 1)


def test_failed_and_cancelled_runs_are_released_too(make_runtime: Any, made: Made) -> None:
    runtime = make_runtime(max_retained_runs=2)
    for i in range(10):
        dag = single(made).add_function(Function("g", ["f"], fails_until(99), max_retries=0))
        run = runtime.submit(dag, dag_id=i)
        run.exception(10)
        del run, dag
    wait_for(lambda: made.alive() <= 2)
    wait_for(lambda: len(runtime.status().runs) <= 2)


def test_run_again_never_sees_old_values(runtime: handoff.Runtime) -> None:
    numbers = iter(range(100))
    gate = Gate()
    dag = handoff.new("d").add_function(Function("n", (), lambda: next(numbers)))
    dag.add_function(Function("m", ["n"], lambda n: n * 10))
    first = runtime.execute(dag)
    runtime.store_value("d", "mine", "kept")
    slow = handoff.new("d").add_function(Function("n", (), gate))
    run = runtime.submit(slow)
    assert gate.entered.wait(10)
    for old in ("n", "m"):
        with pytest.raises(handoff.ValueNotFoundError):
            runtime.get_local_value("d", old)
    gate.open.set()
    run.result(10)
    assert runtime.get_local_value("d", "n") == "through"
    assert dict(first.results) == {"n": 0, "m": 0}, "an ExecutionResult means its own run"
    second = runtime.execute(dag)
    assert dict(second.results) == {"n": 1, "m": 10}
    assert runtime.get_result("d", "m") == 10
    first.release()
    assert runtime.get_result("d", "m") == 10
    assert dict(second.results) == {"n": 1, "m": 10}


def test_stored_under_the_id_of_a_function(runtime: handoff.Runtime) -> None:
    runtime.store_value("d", "n", "old")
    seen: list[Any] = []
    dag = handoff.new("d").add_function(Function("n", (), lambda: "new"))
    dag.add_function(Function("m", ["n"], seen.append))
    result = runtime.execute(dag)
    assert seen == ["new"]
    assert result.results["n"] == "new"
    assert runtime.get_result("d", "n") == "new"

"""Rubbish for every public call: refused where it is given, at no cost to the runtime."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import handoff_actors as handoff


class WithoutRepr:
    """May be hashed and compared, and cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class WithoutHash:
    """Cannot be hashed, whatever one expects."""

    def __hash__(self) -> int:
        raise RuntimeError("no hash")


RUBBISH: list[Any] = [
    None,
    True,
    -1,
    1.5,
    float("nan"),
    float("inf"),
    10**400,
    1e300,
    "",
    "\0",
    b"x",
    [],
    {},
    {"cpu": float("nan")},
    {1: 1},
    (),
    set(),
    object(),
    object,
    1j,
    ...,
    WithoutRepr(),
    WithoutHash(),
    threading.Lock(),
]
REFUSALS = (handoff.HandoffError, TypeError, ValueError, OSError, RuntimeError)

CALLS: dict[str, Callable[[Any], object]] = {
    "store_result dag": lambda bad: handoff.store_result(bad, "a", 1),
    "store_result id": lambda bad: handoff.store_result("d", bad, 1),
    "store_result node": lambda bad: handoff.store_result("d", "a", 1, bad),
    "store_value": lambda bad: handoff.store_value("d", bad, 1),
    "get_result dag": lambda bad: handoff.get_result(bad, "a", 0.0),
    "get_result id": lambda bad: handoff.get_result("d", bad, 0.0),
    "get_value dag": lambda bad: handoff.get_value(bad, "a"),
    "get_value id": lambda bad: handoff.get_value("d", bad),
    "get_value node": lambda bad: handoff.get_value("d", "a", bad),
    "get_local_value": lambda bad: handoff.get_local_value("d", bad),
    "synchronize": lambda bad: handoff.synchronize("d", [bad]),
    "synchronize ids": lambda bad: handoff.synchronize("d", bad),
    "register_data_location": lambda bad: handoff.register_data_location("d", "x", bad),
    "lookup_data_location": lambda bad: handoff.lookup_data_location("d", bad),
    "clear": handoff.clear,
    "register_node": lambda bad: handoff.register_node("other", bad),
    "resources_available": lambda bad: handoff.resources_available(bad, bad),
    "connect": handoff.connect,
    "disconnect": handoff.disconnect,
    "node_info": handoff.node_info,
    "subscribe": lambda bad: handoff.subscribe(bad).cancel(),
    "subscribe kinds": lambda bad: handoff.subscribe(print, bad).cancel(),
    "execute": handoff.execute,
    "execute dag_id": lambda bad: handoff.execute(one(), dag_id=bad),
    "execute timeout": lambda bad: handoff.execute(one(), timeout=bad),
    "execute keep": lambda bad: handoff.execute(one(), keep=bad),
    "execute inputs": lambda bad: handoff.execute(one(), inputs=bad),
    "execute strategy": lambda bad: handoff.execute(one(), allocation_strategy=bad),
    "execute concurrency": lambda bad: handoff.execute(one(), max_concurrency=bad),
    "stream": handoff.stream,
}


def one() -> handoff.DAG:
    return handoff.new().add_function(handoff.Function("a", (), lambda: 1))


def refusal(call: Callable[[Any], object], bad: Any) -> Exception | None:
    try:
        call(bad)
    except REFUSALS as error:
        return error
    return None


@pytest.mark.parametrize("call", CALLS)
def test_rubbish_is_refused_by_the_caller_and_crashes_nothing(
    call: str, default: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runtime = default.start(max_restarts=0)
    default.store_value("d", "a", 1)
    for bad in RUBBISH:
        error = refusal(CALLS[call], bad)
        if isinstance(error, RuntimeError) and not isinstance(error, handoff.HandoffError):
            assert str(error) in ("no repr", "no hash")  # its own, on the caller's thread
        assert error is None or str(error)
    assert default.execute(one(), timeout=10.0).results == {"a": 1}
    assert not runtime.status().restarts


@pytest.mark.parametrize(
    "option",
    ["listen", "insecure", "isolation", "max_workers", "max_seconds", "heartbeat_timeout"],
)
def test_options_of_no_sense_are_refused(option: str) -> None:
    for bad in RUBBISH[2:]:
        if option == "max_workers" and bad == 10**400:
            continue  # no limit to speak of
        if option in ("max_seconds", "heartbeat_timeout") and bad == 1.5:
            continue
        with pytest.raises(handoff.ConfigurationError, match=option):
            handoff.Runtime(**{option: bad})


@pytest.mark.parametrize("field", ["timeout", "retry_delay", "batch_timeout"])
@pytest.mark.parametrize("seconds", [1e300, 10**400, float("inf"), float("nan"), -1, "1"])
def test_times_that_no_clock_can_hold_are_refused(field: str, seconds: Any) -> None:
    batch = {"batch_size": 2} if field == "batch_timeout" else {}
    with pytest.raises(handoff.InvalidFunctionError, match=field):
        handoff.Function("f", (), print, **{field: seconds}, **batch)


@pytest.mark.parametrize("make", [handoff.DAG, handoff.Argument, handoff.Collocated])
@pytest.mark.parametrize("bad", [WithoutRepr(), WithoutHash(), []])
def test_ids_that_cannot_be_shown_or_kept_are_refused(make: Callable[[Any], Any], bad: Any) -> None:
    with pytest.raises(handoff.InvalidDAGError, match="must"):
        make(bad)
    with pytest.raises(handoff.InvalidFunctionError, match="must"):
        handoff.Function(bad, (), print)


def test_get_result_may_wait_for_ever(default: Any) -> None:
    default.start()
    for timeout in (float("inf"), 10**300):
        default.store_value("d", timeout, "there")
        assert default.get_result("d", timeout, timeout) == "there"
    with pytest.raises(handoff.ConfigurationError, match="timeout"):
        default.get_result("d", "a", float("nan"))


def test_a_dump_leaves_descriptors_alone(default: Any) -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(TypeError):
            default.dump(writing)
        os.fstat(writing)
    finally:
        os.close(reading)
        os.close(writing)


def test_a_push_into_a_closed_pipeline_says_that_nothing_is_lost(default: Any) -> None:
    default.start()
    dag = handoff.new()
    dag.add_function(handoff.Function("x", type="input"))
    dag.add_function(handoff.Function("y", ["x"], lambda x: x))
    pipeline = default.stream(dag)
    pipeline.push(1)
    pipeline.close()
    with pytest.raises(handoff.PipelineStoppedError, match="can still be taken out"):
        pipeline.push(2)
    assert list(pipeline) == [1]


class WithoutText(Exception):
    """An exception of a user that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_an_exception_whose_text_raises_fails_its_function_only(
    default: Any, isolation: str
) -> None:
    def fails() -> None:
        raise WithoutText

    runtime = default.start(max_restarts=0, max_workers=1)
    dag = handoff.new()
    dag.add_function(handoff.Function("f", (), fails, max_retries=0, isolation=isolation))
    with pytest.raises(handoff.FunctionFailedError, match="its text cannot be had") as failed:
        default.execute(dag)
    assert type(failed.value.__cause__).__name__ == "WithoutText"
    assert not runtime.status().restarts

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


class WithoutTruth:
    """Its ``==`` answers what is neither true nor false, as arrays and columns of tables do."""

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")


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


NUMBERS: list[Any] = [True, 7, 1.5, 10**400]
NO_MAPPINGS: list[Any] = [*NUMBERS, "cpu", ["cpu"], {"cpu": "1"}, {"cpu": -1}, {7: 1}]
NO_LISTS: list[Any] = [*NUMBERS, "abc", b"abc", object()]
NO_NAMES: list[Any] = [*NUMBERS, "", b"n", ["n"], {}, object(), WithoutHash()]
NO_IDS: list[Any] = [[], {}, set(), WithoutHash(), WithoutTruth(), ([],)]
NO_SECONDS: list[Any] = [True, "1", [], float("nan"), 1j, object()]
NO_COUNTS: list[Any] = [True, 0, -1, 1.5, "1", [], float("inf")]
NO_DAGS: list[Any] = [None, *NO_LISTS]

WRONG: dict[str, tuple[list[Any], Callable[[Any], object]]] = {
    "execute": (NO_DAGS, handoff.execute),
    "submit": (NO_DAGS, handoff.submit),
    "stream": (NO_DAGS, handoff.stream),
    "add_function": (NO_DAGS, handoff.new().add_function),
    "new": (NO_IDS, handoff.new),
    "inputs": ([*NUMBERS, "x", [], {"a": 1}], lambda bad: handoff.submit(one(), inputs=bad)),
    "dag_id": (NO_IDS, lambda bad: handoff.submit(one(), dag_id=bad)),
    "strategy": (NO_NAMES, lambda bad: handoff.submit(one(), allocation_strategy=bad)),
    "max_retries": ([True, -1, 1.5, "1"], lambda bad: handoff.submit(one(), max_retries=bad)),
    "max_concurrency": (NO_COUNTS, lambda bad: handoff.submit(one(), max_concurrency=bad)),
    "timeout": ([0, -1, *NO_SECONDS], lambda bad: handoff.submit(one(), timeout=bad)),
    "keep": ([None, *NO_LISTS, ["b"], [[]]], lambda bad: handoff.submit(one(), keep=bad)),
    "progress": ([7, "", [], "yes"], lambda bad: handoff.submit(one(), progress=bad)),
    "synchronous": ([None, 1, "no", []], lambda bad: handoff.submit(one(), synchronous=bad)),
    "checkpoint": ([True, 7, [], ""], lambda bad: handoff.submit(one(), checkpoint=bad)),
    "max_pending": (NO_COUNTS, lambda bad: handoff.stream(line(), max_pending=bad)),
    "max_demand": (NO_COUNTS, lambda bad: handoff.stream(line(), max_demand=bad)),
    "min_demand": ([-1, 9, "1"], lambda bad: handoff.stream(line(), max_demand=9, min_demand=bad)),
    "join_timeout": ([-1, *NO_SECONDS], lambda bad: handoff.stream(line(), join_timeout=bad)),
    "stream timeout": ([-1, *NO_SECONDS], lambda bad: handoff.stream(line(), timeout=bad)),
    "register_node": ([None, *NO_NAMES], lambda bad: handoff.register_node(bad, {"cpu": 1})),
    "capabilities": ([None, *NO_MAPPINGS], lambda bad: handoff.register_node("n", bad)),
    "register_local_node": ([None, *NO_MAPPINGS], handoff.register_local_node),
    "requirements": ([None, *NO_MAPPINGS], lambda bad: handoff.resources_available("n", bad)),
    "store_result dag_id": (NO_IDS, lambda bad: handoff.store_result(bad, "a", 1)),
    "store_result id": (NO_IDS, lambda bad: handoff.store_result("d", bad, 1)),
    "origin_node": (NO_NAMES, lambda bad: handoff.store_result("d", "a", 1, bad)),
    "get_result dag_id": (NO_IDS, lambda bad: handoff.get_result(bad, "a")),
    "get_result id": (NO_IDS, lambda bad: handoff.get_result("d", bad)),
    "get_result timeout": (NO_SECONDS, lambda bad: handoff.get_result("d", "a", bad)),
    "store_value dag_id": (NO_IDS, lambda bad: handoff.store_value(bad, "a", 1)),
    "store_value id": (NO_IDS, lambda bad: handoff.store_value("d", bad, 1)),
    "get_local_value": (NO_IDS, lambda bad: handoff.get_local_value("d", bad)),
    "get_value": (NO_IDS, lambda bad: handoff.get_value("d", bad)),
    "from_node": (NO_NAMES, lambda bad: handoff.get_value("d", "a", bad)),
    "synchronize": (NO_IDS, lambda bad: handoff.synchronize(bad, ["a"])),
    "ids": ([None, *NO_LISTS, [[]]], lambda bad: handoff.synchronize("d", bad)),
    "location node": ([None, *NO_NAMES], lambda bad: handoff.register_data_location("d", "a", bad)),
    "location id": (NO_IDS, lambda bad: handoff.register_data_location("d", bad, "n")),
    "lookup": (NO_IDS, lambda bad: handoff.lookup_data_location("d", bad)),
    "clear": (NO_IDS, handoff.clear),
    "connect": ([None, *NO_NAMES, "no port", ":", "h:x"], handoff.connect),
    "connect timeout": (
        [None, 0, -1, float("inf"), *NO_SECONDS],
        lambda bad: handoff.connect("127.0.0.1:9", bad),
    ),
    "disconnect": ([None, *NO_NAMES], handoff.disconnect),
    "start_nodes": ([None, 10**9, *NO_COUNTS], handoff.start_nodes),
    "nodes' capabilities": (
        NO_MAPPINGS,
        lambda bad: handoff.start_nodes(1, capabilities=bad),
    ),
    "nodes' names": ([*NO_LISTS, [7], [""], []], lambda bad: handoff.start_nodes(1, names=bad)),
    "node_info": (NO_NAMES, handoff.node_info),
    "subscribe": ([None, *NO_LISTS], handoff.subscribe),
    "kinds": ([*NO_LISTS, [int], [7]], lambda bad: handoff.subscribe(print, bad)),
    "collect_logs": ([True, "loud", 1.5, []], handoff.collect_logs),
    "rate": (
        [None, 0, -1, "1", float("nan"), 10**400],
        lambda bad: handoff.collect_logs(rate=bad),
    ),
    "crash": ([None, *NO_NAMES], handoff.testing.crash),
}


def line() -> handoff.DAG:
    dag = handoff.new().add_function(handoff.Function("x", type="input"))
    return dag.add_function(handoff.Function("y", ["x"], lambda x: x))


def test_every_argument_of_a_wrong_type_is_a_typed_error_that_harms_nobody(default: Any) -> None:
    gate, begun = threading.Event(), threading.Event()
    waits = handoff.new().add_function(
        handoff.Function("f", (), lambda: (begun.set(), gate.wait(30.0)), cost={"cpu": 1})
    )
    runtime = default.start(max_restarts=0, capabilities={"cpu": 1}, listen="127.0.0.1:0")
    run = default.submit(waits)
    try:
        assert begun.wait(10.0)
        for name, (values, call) in WRONG.items():
            for bad in values:
                with pytest.raises(Exception) as refused:
                    call(bad)
                what = f"{name}: {type(bad).__name__}"
                assert isinstance(refused.value, handoff.HandoffError), what
                assert str(refused.value), what
    finally:
        gate.set()
    assert run.result(10.0).results["f"] == (None, True)
    assert not runtime.status().restarts
    assert len(runtime.status().runs) == 1
    with default.stream(line(), max_pending=1) as pipeline:
        pipeline.push(1)
        for bad in NO_SECONDS:
            with pytest.raises(handoff.ConfigurationError, match="timeout"):
                pipeline.push(2, timeout=bad)
        pipeline.close()
        assert list(pipeline) == [1]


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
@pytest.mark.parametrize("bad", [WithoutRepr(), WithoutHash(), WithoutTruth(), []])
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

"""Crashes of the runtime's own actors: nothing a user can see, and an honest end at the limit."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import Function
from handoff_actors.actors.server import Crash
from handoff_actors.testing import crash
from tests.functions import wait_for

NAMES = [
    "result_store",
    "resource_tracker",
    "data_location_registry",
    "worker_supervisor",
    "execution_supervisor",
    "pipeline_supervisor",
    "distributed_executor",
    "distributed_result_store",
]


@pytest.fixture
def tough(make_runtime: Any) -> handoff.Runtime:
    """A runtime that survives as many crashes as a test wants."""
    return make_runtime(capabilities={"cpu": 2}, max_restarts=1_000_000)  # type: ignore[no-any-return]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    made = threading.Event()
    yield made
    made.set()


def crash_and_wait(runtime: handoff.Runtime, name: str) -> None:
    """Crash it, and wait until its restart was counted."""
    before = runtime.status().restarts.get(name, 0)
    crash(name, runtime=runtime)
    wait_for(lambda: runtime.status().restarts.get(name, 0) > before)


def work(dag_id: Any = None, n: int = 40, cost: float = 0.5) -> handoff.DAG:
    """A DAG whose last function knows whether everything before it ran and came through."""
    dag = handoff.new(dag_id)
    dag.add_function(Function("x", type="input"))
    for i in range(n):
        dag.add_function(
            Function(i, ["x", *range(max(0, i - 3), i)], lambda x, *a: (sum(a) + x) % 1009,
                     cost={"cpu": cost} if i % 2 else None))  # fmt: skip
    return dag


def expected(x: int, n: int = 40) -> dict[int, int]:
    values: list[int] = []
    for i in range(n):
        values.append((sum(values[max(0, i - 3) : i]) + x) % 1009)
    return dict(enumerate(values))


def all_calls_work(runtime: handoff.Runtime, key: Any) -> None:
    """Every kind of call, with what was stored before still there."""
    me = runtime.node()
    assert runtime.get_local_value("kept", "x") == "value"
    assert runtime.get_value("kept", "y") == "result"
    assert runtime.lookup_data_location("kept", "y") == me
    assert runtime.lookup_data_location("kept", "z") == "elsewhere"
    assert runtime.discover_nodes()["ghost"] == {"gpu": 1}
    assert runtime.resources_available("ghost", {"gpu": 1})
    assert runtime.get_result("before", 39) == expected(7)[39]
    assert runtime.synchronize("kept", ["x", "y"]) == {"x": "value", "y": "result"}
    result = runtime.execute(work(("after", key)), inputs={"x": 3})
    assert dict(result.results) == expected(3)
    assert not runtime.status().claims


def prepare(runtime: handoff.Runtime) -> None:
    runtime.store_value("kept", "x", "value")
    runtime.store_result("kept", "y", "result")
    runtime.register_data_location("kept", "z", "elsewhere")
    runtime.register_node("ghost", {"gpu": 1})
    runtime.execute(work("before"), inputs={"x": 7})


@pytest.mark.parametrize("name", NAMES)
def test_an_idle_actor_crashes(tough: handoff.Runtime, name: str) -> None:
    prepare(tough)
    for i in range(4):
        crash_and_wait(tough, name)
        all_calls_work(tough, i)
    assert tough.status().restarts == {name: 4}


@pytest.mark.parametrize("name", NAMES)
def test_an_actor_crashes_and_is_called_at_once(tough: handoff.Runtime, name: str) -> None:
    prepare(tough)
    for i in range(20):
        crash(name, runtime=tough)
        all_calls_work(tough, i)
    wait_for(lambda: tough.status().restarts.get(name) == 20)


@pytest.mark.parametrize("name", NAMES)
def test_an_actor_crashes_while_runs_are_in_progress(
    tough: handoff.Runtime, name: str, spawn: Any, claims_at_zero: Any
) -> None:
    calls: dict[Any, int] = {}
    lock = threading.Lock()

    def once(key: Any, *args: Any) -> int:
        with lock:
            calls[key] = calls.get(key, 0) + 1
        time.sleep(0.0005)
        return len(args)

    def run(number: int) -> dict[Any, Any]:
        dag = handoff.new(number)
        for i in range(30):
            dag.add_function(
                Function(i, [i - 1] if i % 5 else [], functools.partial(once, (number, i)),
                         cost={"cpu": 1} if i % 3 else None))  # fmt: skip
        return dict(tough.execute(dag).results)

    running = [spawn(functools.partial(run, number)) for number in range(6)]
    crashes = 0
    while not all(r.done() for r in running) and crashes < 60:
        crash_and_wait(tough, name)
        crashes += 1
    for results in [r.result(15) for r in running]:
        assert results == {i: 1 if i % 5 else 0 for i in range(30)}
    assert set(calls.values()) == {1}, "nothing finished ever runs again"
    assert crashes
    claims_at_zero(tough)


def test_all_actors_crash_in_turn_under_load(
    tough: handoff.Runtime, spawn: Any, claims_at_zero: Any
) -> None:
    prepare(tough)
    stop = threading.Event()

    def caller(number: int) -> int:
        done = 0
        while not stop.is_set():
            x = number * 1000 + done
            result = tough.execute(work((number, done)), inputs={"x": x})
            assert dict(result.results) == expected(x)
            done += 1
        return done

    callers = [spawn(functools.partial(caller, number)) for number in range(4)]
    for i in range(10 * len(NAMES)):
        crash_and_wait(tough, NAMES[i % len(NAMES)])
    stop.set()
    assert min(c.result(15) for c in callers) > 0
    claims_at_zero(tough)
    all_calls_work(tough, "end")


def test_a_waiting_get_result_survives(
    tough: handoff.Runtime, spawn: Any, gate: threading.Event
) -> None:
    dag = handoff.new("d").add_function(Function("f", (), lambda: gate.wait(20)))
    run = tough.submit(dag)
    waiting = [spawn(lambda: tough.get_result("d", "f", 20)) for _ in range(5)]
    stored = [spawn(lambda: tough.get_result("other", "x", 20)) for _ in range(5)]
    for _ in range(3):
        for name in NAMES:
            crash_and_wait(tough, name)
    gate.set()
    assert [w.result(10) for w in waiting] == [True] * 5
    run.result(10)
    tough.store_value("other", "x", 9)
    assert [w.result(10) for w in stored] == [9] * 5


def test_claims_survive_a_crash_of_the_tracker(
    tough: handoff.Runtime, gate: threading.Event, claims_at_zero: Any
) -> None:
    running = tough.submit(
        handoff.new().add_function(Function("f", (), lambda: gate.wait(20), cost={"cpu": 1.5})),
        dag_id="holder",
    )
    wait_for(lambda: tough.status().claims)
    waiting = tough.submit(
        handoff.new().add_function(Function("f", (), lambda: 1, cost={"cpu": 1}))
    )
    for _ in range(5):
        crash_and_wait(tough, "resource_tracker")
        claims = tough.status().claims
        assert [(c.dag_id, dict(c.amounts)) for c in claims] == [("holder", {"cpu": 1.5})]
        assert not tough.resources_available(tough.node(), {"cpu": 1})
        assert not waiting.done()
    gate.set()
    assert waiting.result(10).results["f"] == 1
    running.result(10)
    claims_at_zero(tough)


@pytest.mark.parametrize("name", [*NAMES, "run:d"])
def test_cancel_right_after_a_crash(
    tough: handoff.Runtime, name: str, gate: threading.Event, claims_at_zero: Any
) -> None:
    started = threading.Event()
    dag = handoff.new("d").add_function(
        Function("f", (), lambda: (started.set(), gate.wait(20)), cost={"cpu": 1})
    )
    run = tough.submit(dag)
    assert started.wait(10)
    crash(name, runtime=tough)
    assert run.cancel()
    with pytest.raises(handoff.RunCancelledError):
        run.result(5)
    gate.set()
    claims_at_zero(tough)
    wait_for(lambda: [r.state for r in tough.status().runs] == ["cancelled"])


# Runners.


def test_a_crashed_runner_runs_nothing_finished_twice(
    tough: handoff.Runtime, claims_at_zero: Any
) -> None:
    calls: list[int] = []
    reached = [threading.Event() for _ in range(100)]
    go = [threading.Event() for _ in range(100)]

    def code(i: int, *_: Any) -> int:
        calls.append(i)
        reached[i].set()
        go[i].wait(20)
        return i

    dag = handoff.new("d")
    for i in range(100):
        dag.add_function(
            Function(i, [i - 1] if i else [], functools.partial(code, i),
                     cost={"cpu": 1} if i % 2 else None))  # fmt: skip
    run = tough.submit(dag)
    for i in range(100):
        assert reached[i].wait(10)
        if i % 10 == 5:
            crash("run:d", runtime=tough)
        go[i].set()
    assert dict(run.result(10).results) == {i: i for i in range(100)}
    assert calls == list(range(100))
    claims_at_zero(tough)


def test_a_crashed_runner_keeps_retries_and_their_count(tough: handoff.Runtime) -> None:
    attempts: list[int] = []

    def code() -> int:
        attempts.append(handoff.current().attempt)
        crash("run:d", runtime=tough)
        raise ValueError("always")

    dag = handoff.new("d").add_function(Function("f", (), code, retry_delay=0.02))
    with pytest.raises(handoff.FunctionFailedError) as caught:
        tough.execute(dag, timeout=15)
    assert attempts == [1, 2, 3, 4]
    assert caught.value.attempts == 4


def test_a_crashed_runner_keeps_timeouts(tough: handoff.Runtime, gate: threading.Event) -> None:
    started = threading.Event()

    def code() -> None:
        started.set()
        gate.wait(20)

    dag = handoff.new("d").add_function(Function("f", (), code, timeout=0.2, max_retries=0))
    run = tough.submit(dag)
    assert started.wait(10)
    crash("run:d", runtime=tough)
    with pytest.raises(handoff.FunctionTimeoutError):
        run.result(10)
    run = tough.submit(handoff.new("e").add_function(Function("f", (), code)), timeout=0.2)
    crash("run:e", runtime=tough)
    with pytest.raises(handoff.ExecutionTimeoutError):
        run.result(10)


def test_a_crashed_runner_keeps_as_completed_and_progress(
    tough: handoff.Runtime, gate: threading.Event
) -> None:
    dag = handoff.new("d").add_function(Function("a", (), lambda: 1))
    dag.add_function(Function("b", ["a"], lambda a: gate.wait(20)))
    dag.add_function(Function("c", ["b"], lambda b: 3))
    run = tough.submit(dag)
    finished = run.as_completed(timeout=10)
    assert next(finished) == ("a", 1)
    for _ in range(3):
        crash_and_wait(tough, "run:d")
    assert run.progress().finished == 1
    gate.set()
    assert list(finished) == [("b", True), ("c", 3)]


def test_restarts_of_runs_that_have_ended_are_shown(
    tough: handoff.Runtime, gate: threading.Event
) -> None:
    dag = handoff.new("d").add_function(Function("f", (), lambda: gate.wait(20)))
    run = tough.submit(dag)
    crash_and_wait(tough, "run:d")
    crash_and_wait(tough, "run:d")
    gate.set()
    run.result(10)
    assert tough.status().restarts == {"run:d": 2}


def test_a_run_whose_runner_keeps_crashing_fails_alone(
    make_runtime: Any, gate: threading.Event, claims_at_zero: Any
) -> None:
    runtime = make_runtime(capabilities={"cpu": 4}, max_restarts=3, max_seconds=60.0)
    wait = Function("f", (), lambda: gate.wait(20), cost={"cpu": 1})
    doomed = runtime.submit(handoff.new("doomed").add_function(wait))
    other = runtime.submit(handoff.new("other").add_function(wait))
    while not doomed.done():
        try:
            crash("run:doomed", runtime=runtime)
        except handoff.ConfigurationError:
            break
    with pytest.raises(handoff.HandoffError) as caught:
        doomed.result(10)
    assert not isinstance(caught.value, handoff.RuntimeFailedError)
    assert not other.done()
    gate.set()
    assert other.result(10).results["f"] is True
    claims_at_zero(runtime)
    assert runtime.execute(work("doomed"), inputs={"x": 1}).results[39] == expected(1)[39]
    assert set(runtime.status().restarts) == {"run:doomed"}


def test_crashes_with_worker_processes(make_runtime: Any, spawn: Any, claims_at_zero: Any) -> None:
    runtime = make_runtime(isolation="process", capabilities={"cpu": 2}, max_restarts=1_000_000)

    def run(number: int) -> dict[Any, Any]:
        dag = handoff.new(number)
        for i in range(20):
            dag.add_function(
                Function(i, [i - 1] if i else [], lambda *a: time.sleep(0.005) or sum(a) + 1,
                         cost={"cpu": 1}, max_crashes=0))  # fmt: skip
        return dict(runtime.execute(dag).results)

    running = [spawn(functools.partial(run, number)) for number in range(4)]
    i = 0
    names = [*NAMES, "run:0", "run:3"]
    while not all(r.done() for r in running) and i < 60:
        with contextlib.suppress(handoff.ConfigurationError):
            crash(names[i % len(names)], runtime=runtime)
        runtime.status()
        time.sleep(0.005)
        i += 1
    for r in running:
        assert r.result(15) == {i: i + 1 for i in range(20)}
    claims_at_zero(runtime)


# Past the limit.


@pytest.mark.parametrize("name", NAMES)
def test_past_the_limit_everybody_is_told(
    make_runtime: Any, name: str, spawn: Any, gate: threading.Event
) -> None:
    told: list[BaseException] = []
    was_told = threading.Event()

    def on_failure(error: BaseException) -> None:
        told.append(error)
        was_told.set()

    runtime = make_runtime(
        max_restarts=2, max_seconds=60.0, on_failure=on_failure, capabilities={"cpu": 1}
    )
    first = KeyError("the first cause")
    running = [
        runtime.submit(
            handoff.new(n).add_function(Function("f", (), lambda: gate.wait(20), cost={"cpu": 1}))
        )
        for n in range(3)
    ]
    executing = spawn(lambda: runtime.execute(handoff.new().add_function(
        Function("f", (), lambda: gate.wait(20)))))  # fmt: skip
    reading = spawn(lambda: runtime.get_result("nobody", "x", 60))
    wait_for(lambda: len(runtime.status().runs) == 4)
    for i in range(3):
        with contextlib.suppress(handoff.HandoffError):
            crash(name, first if i == 0 else None, runtime=runtime)
            runtime.status()
    for run in running:
        with pytest.raises(handoff.RuntimeFailedError):
            run.result(10)
    with pytest.raises(handoff.RuntimeFailedError) as caught:
        executing.result(10)
    assert caught.value.cause is first
    with pytest.raises(handoff.RuntimeFailedError):
        reading.result(10)
    assert was_told.wait(10)
    assert len(told) == 1
    assert isinstance(told[0], handoff.RuntimeFailedError)
    calls: list[Callable[[], Any]] = [
        lambda: runtime.execute(work(), inputs={"x": 1}),
        lambda: runtime.submit(work(), inputs={"x": 1}),
        runtime.status,
        lambda: runtime.get_local_value("a", "b"),
        lambda: runtime.get_result("a", "b", 5),
        lambda: runtime.store_value("a", "b", 1),
        runtime.discover_nodes,
        runtime.node_info,
    ]
    for call in calls:
        with pytest.raises(handoff.RuntimeFailedError):
            call()
    gate.set()
    runtime.stop()
    with pytest.raises(handoff.NotStartedError):
        runtime.status()
    runtime.start()
    assert dict(runtime.execute(work(), inputs={"x": 5}).results) == expected(5)
    assert not runtime.status().restarts
    assert len(told) == 1


def test_no_restarts_at_all(make_runtime: Any) -> None:
    runtime = make_runtime(max_restarts=0)
    crash("result_store", runtime=runtime)
    wait_for(lambda: not runtime.running)
    with pytest.raises(handoff.RuntimeFailedError):
        runtime.get_local_value("a", "b")
    runtime.stop()
    runtime.start()
    runtime.store_value("a", "b", 1)
    assert runtime.get_local_value("a", "b") == 1


def test_an_on_failure_that_raises_or_stops_the_runtime(make_runtime: Any) -> None:
    box: list[handoff.Runtime] = []
    done = threading.Event()

    def on_failure(error: BaseException) -> None:
        box[0].stop()
        box[0].start()
        done.set()
        raise ValueError("and it raises too")

    box.append(make_runtime(max_restarts=0, on_failure=on_failure))
    crash("resource_tracker", runtime=box[0])
    assert done.wait(15)
    assert dict(box[0].execute(work(), inputs={"x": 5}).results) == expected(5)


def test_the_default_runtime_starts_again_after_it_failed(default: Any) -> None:
    first = default.start(max_restarts=0)
    crash("distributed_executor")
    wait_for(lambda: not first.running)
    with pytest.raises(handoff.RuntimeFailedError):
        default.execute(work(), inputs={"x": 1})
    default.stop()
    second = default.start(max_restarts=0)
    assert dict(default.execute(work(), inputs={"x": 5}).results) == expected(5)
    crash("distributed_executor")
    wait_for(lambda: not second.running)
    assert default.start() is not second, "start() alone replaces what has failed"
    assert dict(default.execute(work(), inputs={"x": 6}).results) == expected(6)


def test_crashes_far_apart_are_survived_for_ever(make_runtime: Any) -> None:
    runtime = make_runtime(max_restarts=1, max_seconds=0.05)
    for _ in range(6):
        crash_and_wait(runtime, "result_store")
        time.sleep(0.06)  # it is the time between two crashes that counts
    assert runtime.running
    assert runtime.status().restarts == {"result_store": 6}


def test_many_crashed_runs_do_not_count_against_the_runtime(
    make_runtime: Any, claims_at_zero: Any
) -> None:
    runtime = make_runtime(max_restarts=2, max_seconds=60.0, capabilities={"cpu": 2})
    for i in range(12):
        gate = threading.Event()
        run = runtime.submit(
            handoff.new(i).add_function(
                Function("f", (), lambda gate=gate: gate.wait(20), cost={"cpu": 1})
            )
        )
        crash_and_wait(runtime, f"run:{i}")
        gate.set()
        assert run.result(10).results["f"] is True
    assert runtime.running
    claims_at_zero(runtime)


# The tool itself.


@pytest.mark.parametrize(
    "error", [None, ValueError("mine"), SystemExit(1), KeyboardInterrupt(), GeneratorExit()]
)
def test_what_an_actor_crashes_with(tough: handoff.Runtime, error: Any) -> None:
    before = tough.status().restarts.get("result_store", 0)
    tough.store_value("d", "x", 1)
    crash("result_store", error, runtime=tough)
    assert tough.get_local_value("d", "x") == 1
    wait_for(lambda: tough.status().restarts.get("result_store", 0) == before + 1)
    assert threading.main_thread().is_alive()


def test_crash_refuses_what_it_cannot_do(tough: handoff.Runtime, default: Any) -> None:
    with pytest.raises(handoff.ConfigurationError, match="result_store"):
        crash("nobody", runtime=tough)
    with pytest.raises(handoff.ConfigurationError):
        crash("result_store", "not an error", runtime=tough)  # type: ignore[arg-type]
    with pytest.raises(handoff.NotStartedError):
        crash("result_store")
    default.start()
    handoff.testing.crash("result_store")
    wait_for(lambda: default.status().restarts == {"result_store": 1})


def test_events_tell_of_crashes(tough: handoff.Runtime) -> None:
    from handoff_actors import events

    seen: list[Any] = []
    there = threading.Event()
    with tough.subscribe(lambda e: (seen.append(e), there.set()), [events.ActorCrashed]):
        crash("result_store", KeyError("why"), runtime=tough)
        assert there.wait(10)
    (event,) = seen
    assert (event.name, event.restarted) == ("result_store", True)
    assert "why" in event.reason


def counted(runtime: handoff.Runtime) -> list[float]:
    """When the restarts were that count against the limit of the runtime's own supervisor."""
    incarnation = runtime._root.incarnation
    assert incarnation is not None
    behaviour: Any = incarnation.behaviour
    return [at for at, _ in behaviour._restarts]


def test_actors_that_crash_at_once_cost_one_restart_each(tough: handoff.Runtime) -> None:
    for name in reversed(NAMES):
        crash(name, runtime=tough)
    wait_for(lambda: len(tough.status().restarts) == len(NAMES))
    assert tough.status().restarts == dict.fromkeys(NAMES, 1)
    assert len(counted(tough)) == len(NAMES)


@pytest.mark.parametrize("name", ["distributed_executor", "distributed_result_store"])
def test_an_actor_that_crashes_as_the_runtime_stops_costs_one_restart(
    tough: handoff.Runtime, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, restarts = tough._refs[name], tough._restarts
    settle = tough._settle_runs

    def crash_first(error: Any) -> None:
        """What ``stop()`` does before it ends the tree, while users find no runtime any more."""
        if not restarts:
            assert not tough.running
            ref.cast(Crash(ValueError("just now")))
            wait_for(lambda: restarts.get(name))
            assert len(counted(tough)) == 1
        settle(error)

    monkeypatch.setattr(tough, "_settle_runs", crash_first)
    tough.stop()
    assert restarts == {name: 1}

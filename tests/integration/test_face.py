"""The face: every function on the default runtime, on objects, awaitable; its errors; its life."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import Function
from tests.functions import wait_for


def chain(dag: handoff.DAG | None = None) -> handoff.DAG:
    dag = handoff.new() if dag is None else dag
    dag.add_function(Function("a", (), lambda: 1))
    dag.add_function(Function("b", ["a"], lambda a: a + 1))
    dag.add_function(Function("c", ["a", "b"], lambda a, b: a + b))
    return dag


def gated(gate: threading.Event, dag_id: Any = None, **options: Any) -> handoff.DAG:
    """A DAG whose only function waits for the gate; it gives up after 20 s."""
    return handoff.new(dag_id).add_function(Function("wait", (), lambda: gate.wait(20), **options))


# Life.


def test_the_four_names_a_newcomer_needs(default: Any) -> None:
    default.start()
    dag = default.new()
    dag.add_function(default.Function("a", (), lambda: 20))
    dag.add_function(default.Function("b", ["a"], lambda a: a + 1))
    result = default.execute(dag)
    assert dict(result.results) == {"a": 20, "b": 21}
    assert result.dag_id == dag.id


def test_start_again_returns_the_running_runtime(default: Any) -> None:
    first = default.start(max_retries=1, name="one")
    assert default.start() is first
    assert default.start(max_retries=1, name="one") is first


def test_start_with_other_options_names_them(default: Any) -> None:
    first = default.start(max_retries=1)
    with pytest.raises(handoff.AlreadyStartedError) as caught:
        default.start(max_retries=2, max_retained_runs=7)
    assert sorted(caught.value.options) == ["max_retained_runs", "max_retries"]
    assert "max_retries" in str(caught.value)
    assert default.start() is first


def test_start_with_bad_options_while_running(default: Any) -> None:
    default.start()
    with pytest.raises(handoff.ConfigurationError):
        default.start(max_retries=-1)
    default.execute(chain())


def test_stop_is_idempotent_and_may_come_first(default: Any) -> None:
    default.stop()
    default.stop()
    default.start()
    default.stop()
    default.stop()
    runtime = handoff.Runtime()
    runtime.stop()
    runtime.start()
    runtime.stop()
    runtime.stop()


def test_a_runtime_object_starts_again(leaks: Any) -> None:
    runtime = handoff.Runtime()
    for _ in range(5):
        assert runtime.start() is runtime
        assert runtime.start() is runtime
        assert runtime.execute(chain()).results["c"] == 3
        runtime.stop()


def test_start_as_a_context_manager_stops(default: Any) -> None:
    with default.start() as runtime:
        assert isinstance(runtime, handoff.Runtime)
        default.execute(chain())
    with pytest.raises(handoff.NotStartedError):
        default.execute(chain())
    with default.start():
        default.execute(chain())


def test_a_hundred_starts_and_stops(leaks: Any) -> None:
    for _ in range(100):
        with handoff.Runtime():
            pass


def test_a_new_default_runtime_knows_nothing_of_the_old(default: Any) -> None:
    default.start()
    default.execute(chain(), dag_id="x")
    default.store_value("x", "mine", 1)
    default.stop()
    default.start()
    with pytest.raises(handoff.ValueNotFoundError):
        default.get_local_value("x", "a")
    with pytest.raises(handoff.ValueNotFoundError):
        default.get_local_value("x", "mine")


CALLS: dict[str, Callable[[Any], Any]] = {
    "submit": lambda h: h.submit(chain()),
    "execute": lambda h: h.execute(chain()),
    "execute_distributed": lambda h: h.execute_distributed(chain()),
    "execute_local": lambda h: h.execute_local(chain()),
    "execute synchronous": lambda h: h.execute(chain(), synchronous=True),
    "register_node": lambda h: h.register_node("n", {"cpu": 1}),
    "register_local_node": lambda h: h.register_local_node({"cpu": 1}),
    "discover_nodes": lambda h: h.discover_nodes(),
    "resources_available": lambda h: h.resources_available("n", {"cpu": 1}),
    "store_result": lambda h: h.store_result("d", "f", 1),
    "get_result": lambda h: h.get_result("d", "f", 0.01),
    "store_value": lambda h: h.store_value("d", "f", 1),
    "get_local_value": lambda h: h.get_local_value("d", "f"),
    "get_value": lambda h: h.get_value("d", "f"),
    "synchronize": lambda h: h.synchronize("d", ["f"]),
    "register_data_location": lambda h: h.register_data_location("d", "f", "n"),
    "lookup_data_location": lambda h: h.lookup_data_location("d", "f"),
    "clear": lambda h: h.clear("d"),
    "nodes": lambda h: h.nodes(),
    "connect": lambda h: h.connect("127.0.0.1:1", 0.1),
    "disconnect": lambda h: h.disconnect("n"),
    "node_info": lambda h: h.node_info(),
    "status": lambda h: h.status(),
    "subscribe": lambda h: h.subscribe(print),
}


@pytest.mark.parametrize("name", [*CALLS, "node"])
def test_calls_before_start_and_after_stop(default: Any, name: str) -> None:
    call = CALLS.get(name, lambda h: h.node())
    with pytest.raises(handoff.NotStartedError, match=r"start\(\)"):
        call(default)
    default.start()
    default.stop()
    with pytest.raises(handoff.NotStartedError, match=r"start\(\)"):
        call(default)


@pytest.mark.parametrize("name", CALLS)
def test_calls_on_a_runtime_that_is_not_running(name: str) -> None:
    runtime = handoff.Runtime()
    with pytest.raises(handoff.NotStartedError):
        CALLS[name](runtime)
    with runtime:
        pass
    with pytest.raises(handoff.NotStartedError):
        CALLS[name](runtime)


def test_what_needs_no_runtime(default: Any) -> None:
    dag = default.new("mine")
    assert dag.id == "mine"
    chain(dag).validate()
    assert "a" in dag.to_mermaid()
    assert default.new().id != default.new().id


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""},
        {"name": 3},
        {"capabilities": {"cpu": -1}},
        {"capabilities": {"cpu": float("nan")}},
        {"capabilities": {"cpu": float("inf")}},
        {"capabilities": {"cpu": "2"}},
        {"capabilities": {3: 2}},
        {"capabilities": 3},
        {"isolation": "fibre"},
        {"max_workers": 0},
        {"max_workers": -1},
        {"max_workers": 1.5},
        {"max_workers": True},
        {"max_retries": -1},
        {"max_retries": "3"},
        {"max_retries": None},
        {"allocator": "best"},
        {"allocator": 3},
        {"allocator": 3.5},
        {"resource_tracker": 3.5},
        {"max_retained_runs": -1},
        {"max_restarts": -1},
        {"max_seconds": 0},
        {"max_seconds": float("nan")},
        {"heartbeat_timeout": -1},
        {"node_return_timeout": "long"},
        {"shutdown_timeout": -1},
        {"shutdown_timeout": float("inf")},
        {"on_failure": 3},
        {"authkey": 3},
        {"colour": "red"},
    ],
    ids=repr,
)
def test_bad_options_are_refused_by_name(default: Any, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(handoff.ConfigurationError, match=name):
        handoff.Runtime(**options)
    with pytest.raises(handoff.ConfigurationError, match=name):
        default.start(**options)
    with pytest.raises(handoff.NotStartedError):
        default.status()


def test_the_authkey_is_in_no_text(make_runtime: Any) -> None:
    runtime = make_runtime(authkey="deadbeef" * 8)
    assert runtime.authkey == "deadbeef" * 8
    texts = [repr(runtime), str(runtime.status()), repr(runtime.status()), repr(runtime.options)]
    texts.append(json.dumps(runtime.status().to_dict(), default=repr))
    assert not [text for text in texts if "deadbeef" in text]


def test_the_authkey_comes_from_the_environment_or_is_made(monkeypatch: Any) -> None:
    monkeypatch.setenv("HANDOFF_AUTHKEY", "ab" * 32)
    assert handoff.Runtime().authkey == "ab" * 32
    monkeypatch.delenv("HANDOFF_AUTHKEY")
    one, other = handoff.Runtime().authkey, handoff.Runtime().authkey
    assert one != other
    assert len(bytes.fromhex(one)) >= 32


def test_the_default_capabilities_are_the_machines(make_runtime: Any) -> None:
    found = make_runtime().node_info().capabilities
    assert found["cpu"] == len(os.sched_getaffinity(0))
    assert found["memory"] > 100


# Two runtimes; who is asked inside a function.


def test_two_runtimes_are_independent(make_runtime: Any) -> None:
    one, two = make_runtime(name="one"), make_runtime(name="two")
    one.store_value("d", "x", 1)
    two.store_value("d", "x", 2)
    assert one.get_local_value("d", "x") == 1
    assert two.get_local_value("d", "x") == 2
    runs = [runtime.submit(chain(), dag_id="same") for runtime in (one, two)]
    assert [run.result(10).results["c"] for run in runs] == [3, 3]
    assert [run.result().allocations["c"] for run in runs] == ["one", "two"]
    one.stop()
    assert two.execute(chain()).results["c"] == 3


def test_inside_a_function_the_module_means_its_runtime(make_runtime: Any, default: Any) -> None:
    default.start(name="the_default")
    own = make_runtime(name="own")
    dag = handoff.new().add_function(Function("who", (), lambda: handoff.node()))
    assert own.execute(dag).results["who"] == "own"
    assert default.execute(dag).results["who"] == "the_default"
    assert own.execute(dag, synchronous=True).results["who"] == "own"
    default.stop()
    assert own.execute(dag).results["who"] == "own"


def test_inside_a_coroutine_the_module_means_its_runtime(make_runtime: Any) -> None:
    async def who() -> str:
        await asyncio.sleep(0)
        return handoff.node()

    own = make_runtime(name="own")
    dag = handoff.new().add_function(Function("who", (), who))
    assert own.execute(dag).results["who"] == "own"
    assert own.execute(dag, synchronous=True).results["who"] == "own"


def test_current_tells_where_the_code_is(make_runtime: Any) -> None:
    runtime = make_runtime(name="here")
    seen: list[tuple[Any, ...]] = []

    def look() -> None:
        context = handoff.current()
        seen.append((context.dag_id, context.function_id, context.attempt, context.node))
        assert not context.cancelled()
        if context.attempt == 1:
            raise ValueError("once more")

    dag = handoff.new("d").add_function(Function("f", (), look))
    runtime.execute(dag)
    assert seen == [("d", "f", 1, "here"), ("d", "f", 2, "here")]
    seen.clear()
    runtime.execute(dag, synchronous=True)
    assert seen == [("d", "f", 1, "here"), ("d", "f", 2, "here")]


def test_current_outside_a_function(default: Any) -> None:
    with pytest.raises(handoff.HandoffError, match="function"):
        handoff.current()


def test_start_and_stop_inside_a_function_do_not_break_the_run(default: Any) -> None:
    default.start(shutdown_timeout=1.0)
    started = threading.Event()

    def stops() -> None:
        started.set()
        handoff.stop()

    run = default.submit(handoff.new().add_function(Function("f", (), stops)))
    assert started.wait(10)
    done, _ = concurrent.futures.wait([run], 10)
    assert done, "a function that stops the runtime must not hang its caller"
    default.stop()
    default.start()
    default.execute(chain())


# Every function, once and seriously.


def test_resources(runtime: handoff.Runtime) -> None:
    me = runtime.node()
    assert runtime.discover_nodes() == {me: {"cpu": 2, "memory": 1000}}
    assert runtime.resources_available(me, {"cpu": 2})
    assert not runtime.resources_available(me, {"cpu": 2.000001})
    assert not runtime.resources_available(me, {"gpu": 1})
    assert runtime.resources_available(me, {})
    assert not runtime.resources_available("nobody", {})
    assert not runtime.resources_available("nobody", {"cpu": 1})
    runtime.register_node("other", {"gpu": 4})
    assert runtime.discover_nodes()["other"] == {"gpu": 4}
    assert runtime.resources_available("other", {"gpu": 4})
    runtime.register_local_node({"tpu": 1})
    assert runtime.discover_nodes()[me] == {"tpu": 1}, "replaces what was there"
    assert runtime.node_info().capabilities == {"tpu": 1}


def test_registering_again_keeps_what_is_in_use(runtime: handoff.Runtime) -> None:
    gate, me = threading.Event(), runtime.node()
    run = runtime.submit(gated(gate, cost={"cpu": 2}))
    try:
        wait_for(lambda: not runtime.resources_available(me, {"cpu": 1}))
        runtime.register_local_node({"cpu": 3, "memory": 1000})
        assert runtime.resources_available(me, {"cpu": 1})
        assert not runtime.resources_available(me, {"cpu": 2})
        runtime.register_local_node({"cpu": 1})
        assert not runtime.resources_available(me, {"cpu": 0.1})
    finally:
        gate.set()
    run.result(10)
    wait_for(lambda: runtime.resources_available(me, {"cpu": 1}))
    assert not runtime.status().claims


@pytest.mark.parametrize(
    "capabilities", [{"cpu": -1}, {"cpu": float("nan")}, {"cpu": "1"}, {1: 1}, 7, None], ids=repr
)
def test_bad_capabilities(runtime: handoff.Runtime, capabilities: Any) -> None:
    before = runtime.discover_nodes()
    with pytest.raises(handoff.ConfigurationError):
        runtime.register_local_node(capabilities)
    with pytest.raises(handoff.ConfigurationError):
        runtime.register_node("n", capabilities)
    with pytest.raises(handoff.ConfigurationError):
        runtime.resources_available(runtime.node(), capabilities)
    assert runtime.discover_nodes() == before
    assert not runtime.status().restarts


@pytest.mark.parametrize("name", ["", 3, None, ["n"]], ids=repr)
def test_bad_node_names(runtime: handoff.Runtime, name: Any) -> None:
    with pytest.raises(handoff.ConfigurationError):
        runtime.register_node(name, {"cpu": 1})
    with pytest.raises(handoff.ConfigurationError):
        runtime.register_data_location("d", "x", name)
    assert not runtime.resources_available(name if name is not None else "", {"cpu": 1})
    assert not runtime.status().restarts


def test_values(runtime: handoff.Runtime) -> None:
    me = runtime.node()
    runtime.store_value("d", "x", [1])
    assert runtime.get_local_value("d", "x") == [1]
    assert runtime.get_value("d", "x") == [1]
    assert runtime.get_value("d", "x", me) == [1]
    assert runtime.get_result("d", "x") == [1]
    runtime.store_result("d", "y", None)
    assert runtime.get_result("d", "y") is None
    assert runtime.lookup_data_location("d", "y") == me
    runtime.store_result("d", "z", 3, "elsewhere")
    assert runtime.lookup_data_location("d", "z") == "elsewhere"
    assert runtime.get_local_value("d", "z") == 3
    assert runtime.synchronize("d", ["x", "y", "z", "nothing"]) == {"x": [1], "y": None, "z": 3}
    runtime.register_data_location("d", "w", "never_seen")
    assert runtime.lookup_data_location("d", "w") == "never_seen"
    runtime.clear("d")
    for name in "xyzw":
        with pytest.raises(handoff.ValueNotFoundError):
            runtime.get_local_value("d", name)
        with pytest.raises(handoff.ValueNotFoundError):
            runtime.lookup_data_location("d", name)
    runtime.clear("d")
    runtime.clear("never there")


def test_values_that_are_not_there(runtime: handoff.Runtime) -> None:
    for call in (
        lambda: runtime.get_local_value("d", "x"),
        lambda: runtime.get_value("d", "x"),
        lambda: runtime.get_value("d", "x", runtime.node()),
        lambda: runtime.lookup_data_location("d", "x"),
    ):
        with pytest.raises(handoff.ValueNotFoundError) as caught:
            call()
        assert isinstance(caught.value, LookupError)
        assert (caught.value.dag_id, caught.value.value_id) == ("d", "x")
    with pytest.raises(handoff.NodeDownError):
        runtime.get_value("d", "x", "nobody")
    started = time.monotonic()
    with pytest.raises(handoff.ResultTimeoutError) as late:
        runtime.get_result("d", "x", timeout=0.05)
    assert time.monotonic() - started < 2
    assert isinstance(late.value, TimeoutError)
    with pytest.raises(handoff.ResultTimeoutError):
        runtime.get_result("d", "x", 0)


def test_a_value_with_a_location_elsewhere_but_kept_here(runtime: handoff.Runtime) -> None:
    runtime.register_data_location("d", "x", "a_dead_node")
    with pytest.raises(handoff.NodeDownError):
        runtime.get_value("d", "x")
    runtime.store_value("d", "x", 5)
    assert runtime.get_value("d", "x") == 5


@pytest.mark.parametrize("bad", [["list"], {}, {1}], ids=repr)
def test_unhashable_ids_are_an_error_not_a_crash(runtime: handoff.Runtime, bad: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: runtime.store_value(bad, "x", 1),
        lambda: runtime.store_value("d", bad, 1),
        lambda: runtime.store_result("d", bad, 1),
        lambda: runtime.get_local_value(bad, "x"),
        lambda: runtime.get_value("d", bad),
        lambda: runtime.get_result("d", bad, 0.1),
        lambda: runtime.get_result(bad, "x", 0.1),
        lambda: runtime.synchronize("d", [bad]),
        lambda: runtime.register_data_location("d", bad, "n"),
        lambda: runtime.lookup_data_location(bad, "x"),
        lambda: runtime.clear(bad),
        lambda: runtime.submit(chain(), dag_id=bad),
        lambda: runtime.node_info(bad),
        lambda: runtime.resources_available(bad, {"cpu": 1}),
        lambda: runtime.submit(chain(), keep=[bad]),
    ]
    for call in calls:
        with contextlib.suppress(handoff.ConfigurationError, TypeError, handoff.NodeError):
            call()
    assert not runtime.status().restarts, "no argument of a user's may crash an actor"
    assert runtime.execute(chain()).results["c"] == 3


def test_get_result_of_a_run(runtime: handoff.Runtime, spawn: Any) -> None:
    gate = threading.Event()
    dag = gated(gate, "d").add_function(Function("next", ["wait"], lambda _: "done"))
    run = runtime.submit(dag)
    waiting = [spawn(lambda: runtime.get_result("d", "next", 20)) for _ in range(8)]
    gate.set()
    assert [w.result(20) for w in waiting] == ["done"] * 8
    run.result(10)
    assert runtime.get_result("d", "next", 0) == "done"
    assert runtime.get_local_value("d", "next") == "done"
    assert runtime.lookup_data_location("d", "next") == runtime.node()


def test_get_result_ends_at_once_when_the_run_ended_without_it(
    runtime: handoff.Runtime, spawn: Any
) -> None:
    gate = threading.Event()

    def fails(_: Any) -> None:
        raise ValueError("no")

    dag = gated(gate, "d")
    dag.add_function(Function("bad", ["wait"], fails, max_retries=0))
    dag.add_function(Function("never", ["bad"], lambda x: x))
    run = runtime.submit(dag)
    waiting = spawn(lambda: runtime.get_result("d", "never", 60))
    gate.set()
    with pytest.raises(handoff.ResultTimeoutError):
        waiting.result(10)
    with pytest.raises(handoff.FunctionFailedError):
        run.result(10)
    started = time.monotonic()
    with pytest.raises(handoff.ResultTimeoutError):
        runtime.get_result("d", "never", 60)
    assert time.monotonic() - started < 5
    assert runtime.get_result("d", "wait", 1) is True, "what had finished stays readable"


def test_clear_refuses_while_it_runs(runtime: handoff.Runtime) -> None:
    gate = threading.Event()
    run = runtime.submit(gated(gate, "d"))
    with pytest.raises(handoff.AlreadyRunningError) as caught:
        runtime.clear("d")
    assert caught.value.dag_id == "d"
    gate.set()
    run.result(10)
    runtime.clear("d")
    with pytest.raises(handoff.ValueNotFoundError):
        runtime.get_local_value("d", "wait")


def test_nodes_on_one_node(runtime: handoff.Runtime) -> None:
    assert runtime.nodes() == []
    info = runtime.node_info()
    assert info == runtime.node_info(runtime.node())
    assert (info.name, info.pid, info.state) == (runtime.node(), os.getpid(), "up")
    assert info.version == handoff.__version__
    assert info.python.startswith("3.")
    with pytest.raises(handoff.NodeDownError):
        runtime.node_info("nobody")
    with pytest.raises(handoff.NodeDownError):
        runtime.disconnect("nobody")
    with pytest.raises(handoff.NodeUnreachableError):
        runtime.connect("127.0.0.1:1", 0.2)


def test_status_for_people_and_machines(runtime: handoff.Runtime) -> None:
    gate = threading.Event()
    run = runtime.submit(gated(gate, "the run", cost={"cpu": 1.5}))
    wait_for(lambda: runtime.status().claims)
    status = runtime.status()
    names = {actor.name for actor in status.tree.children}
    assert names >= {
        "result_store",
        "resource_tracker",
        "data_location_registry",
        "worker_supervisor",
        "execution_supervisor",
        "pipeline_supervisor",
        "distributed_executor",
        "distributed_result_store",
    }
    assert [(c.dag_id, dict(c.amounts)) for c in status.claims] == [("the run", {"cpu": 1.5})]
    assert [(r.dag_id, r.state) for r in status.runs] == [("the run", "running")]
    assert "the run" in str(status)
    text = json.dumps(status.to_dict(), default=str)
    assert "the run" in text
    gate.set()
    run.result(10)
    wait_for(lambda: not runtime.status().claims)
    assert [(r.dag_id, r.state, r.finished) for r in runtime.status().runs] == [
        ("the run", "succeeded", 1)
    ]


def test_the_run_has_an_actor_while_it_runs(runtime: handoff.Runtime) -> None:
    gate = threading.Event()
    run = runtime.submit(gated(gate, "d"))

    def names(actor: Any) -> set[str]:
        return {actor.name}.union(*(names(child) for child in actor.children))

    wait_for(lambda: "run:d" in names(runtime.status().tree))
    gate.set()
    run.result(10)
    wait_for(lambda: "run:d" not in names(runtime.status().tree))


def test_subscribe(runtime: handoff.Runtime) -> None:
    from handoff_actors import events

    seen: list[Any] = []
    finished = threading.Event()

    def on_event(event: Any) -> None:
        seen.append(event)
        assert threading.current_thread() is not threading.main_thread()
        if isinstance(event, events.RunFinished):
            finished.set()
        raise RuntimeError("a subscriber that raises harms nobody")

    with runtime.subscribe(on_event):
        runtime.execute(chain(), dag_id="d")
        assert finished.wait(10)
    kinds = [type(event) for event in seen]
    assert kinds[0] is events.RunStarted
    assert kinds[-1] is events.RunFinished
    done = [i for e in seen if isinstance(e, events.FunctionsFinished) for i in e.function_ids]
    assert sorted(done) == ["a", "b", "c"]
    count = len(seen)
    runtime.execute(chain())
    assert len(seen) == count, "a cancelled subscription hears nothing"


def test_subscribe_to_some_kinds(runtime: handoff.Runtime) -> None:
    from handoff_actors import events

    seen: list[Any] = []
    finished = threading.Event()

    def exits(event: Any) -> None:
        raise SystemExit(f"ends nothing but its own call, on {event}")

    with (
        runtime.subscribe(exits),
        runtime.subscribe(seen.append, [events.RunFinished]),
        runtime.subscribe(lambda _: finished.set(), [events.RunFinished]),
    ):
        runtime.execute(chain(), dag_id="d")
        assert finished.wait(10)
    assert [(type(e), e.dag_id, e.state) for e in seen] == [(events.RunFinished, "d", "succeeded")]


def test_a_slow_subscriber_slows_nobody(runtime: handoff.Runtime) -> None:
    release = threading.Event()
    with runtime.subscribe(lambda _: release.wait(20)):
        try:
            for _ in range(20):
                assert runtime.execute(chain()).results["c"] == 3
        finally:
            release.set()


@pytest.mark.parametrize("bad", [(3, None), (print, 3), (print, [3])], ids=repr)
def test_bad_subscriptions(runtime: handoff.Runtime, bad: tuple[Any, Any]) -> None:
    with pytest.raises((handoff.ConfigurationError, TypeError)):
        runtime.subscribe(*bad)


def test_execute_local_ignores_costs_and_pins(runtime: handoff.Runtime) -> None:
    dag = handoff.new()
    dag.add_function(Function("a", (), lambda: 1, cost={"gpu": 99}, node="far_away"))
    dag.add_function(Function("b", ["a"], lambda a: a + 1, node=handoff.Collocated("a")))
    with pytest.raises(handoff.AllocationError):
        runtime.execute(dag)
    result = runtime.execute_local(dag)
    assert dict(result.results) == {"a": 1, "b": 2}
    assert set(result.allocations.values()) == {runtime.node()}
    assert not runtime.status().claims


def test_execute_distributed_is_execute(runtime: handoff.Runtime) -> None:
    assert dict(runtime.execute_distributed(chain()).results) == {"a": 1, "b": 2, "c": 3}


def test_the_result(runtime: handoff.Runtime, tmp_path: Any) -> None:
    result = runtime.execute(chain(), dag_id="d")
    assert result.dag_id == "d"
    assert set(result.allocations) == set(result.timings) == {"a", "b", "c"}
    assert all(t.start >= 0 and t.duration >= 0 for t in result.timings.values())
    assert result.timings["b"].start >= result.timings["a"].start + result.timings["a"].duration
    result.to_chrome_trace(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    ran = {e["name"] for e in trace["traceEvents"] if e.get("cat") == "function"}
    assert ran == {"a", "b", "c"}  # beside waits, which a busy machine makes
    assert result.results["c"] == 3
    assert "zzz" not in result.results
    with pytest.raises(KeyError):
        result.results["zzz"]
    with result:
        pass
    with pytest.raises(handoff.ValueNotFoundError):
        result.results["c"]
    result.release()


def test_the_run_is_a_future(runtime: handoff.Runtime) -> None:
    gate = threading.Event()
    run = runtime.submit(gated(gate, "d"))
    assert isinstance(run, concurrent.futures.Future)
    assert run.dag_id == "d"
    assert not run.done()
    assert run.running()
    called: list[Any] = []
    run.add_done_callback(called.append)
    with pytest.raises(TimeoutError):
        run.result(0.01)
    with pytest.raises(TimeoutError):
        run.exception(0.01)
    assert run.progress().total == 1
    assert run.progress().finished == 0
    assert run.progress().state == "running"
    gate.set()
    done, pending = concurrent.futures.wait([run], 10)
    assert done == {run}
    assert not pending
    assert called == [run]
    assert run.exception() is None
    assert next(concurrent.futures.as_completed([run])) is run
    assert run.progress().finished == 1
    assert run.progress().state == "succeeded"
    assert not run.cancel()
    assert not run.cancelled()


# Errors.


def test_bad_dags(runtime: handoff.Runtime) -> None:
    missing = handoff.new().add_function(Function("a", ["b"], lambda b: b))
    with pytest.raises(handoff.MissingFunctionError) as one:
        runtime.submit(missing)
    assert (one.value.function_id, one.value.missing) == ("a", "b")
    cyclic = handoff.new()
    cyclic.add_function(Function("a", ["b"], lambda b: b))
    cyclic.add_function(Function("b", ["a"], lambda a: a))
    with pytest.raises(handoff.CyclicDependencyError) as two:
        runtime.execute(cyclic)
    assert sorted(two.value.cycle) == ["a", "b"] or sorted(set(two.value.cycle)) == ["a", "b"]
    with pytest.raises(handoff.DuplicateFunctionError):
        chain().add_function(Function("a", (), lambda: 1))
    with pytest.raises(handoff.InvalidFunctionError):
        runtime.submit(chain().add_function(Function("d", ["a"], lambda: 1)))
    assert not runtime.status().runs


@pytest.mark.parametrize(
    "options",
    [
        {"inputs": {"nobody": 1}},
        {"inputs": {"a": 1}},
        {"inputs": 3},
        {"allocation_strategy": "best"},
        {"allocation_strategy": 3},
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"max_concurrency": 0},
        {"max_concurrency": -3},
        {"max_concurrency": "2"},
        {"timeout": -1},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": "1"},
        {"keep": "some"},
        {"keep": ["nobody"]},
        {"keep": 3},
        {"progress": "yes please"},
    ],
    ids=repr,
)
def test_bad_arguments_of_a_run(runtime: handoff.Runtime, options: dict[str, Any]) -> None:
    (name,) = options
    for call in (runtime.submit, runtime.execute):
        with pytest.raises((handoff.ConfigurationError, handoff.InvalidDAGError), match=name):
            call(chain(), **options)
    assert not runtime.status().runs
    assert runtime.execute(chain()).results["c"] == 3


@pytest.mark.parametrize("dag", [None, 3, "dag", {}, Function("a", (), int)], ids=repr)
def test_what_is_no_dag(runtime: handoff.Runtime, dag: Any) -> None:
    for call in (runtime.submit, runtime.execute, runtime.execute_local):
        with pytest.raises((handoff.HandoffError, TypeError)) as caught:
            call(dag)
        assert "DAG" in str(caught.value)
    assert not runtime.status().runs


def test_unknown_arguments_of_a_run(runtime: handoff.Runtime) -> None:
    for call in (runtime.submit, runtime.execute, runtime.execute_local):
        with pytest.raises(TypeError, match="colour"):
            call(chain(), colour="red")
    with pytest.raises(TypeError, match="local"):
        runtime.execute(chain(), local=True)
    with pytest.raises(TypeError, match="wait"):
        runtime.execute(chain(), wait=True)


def test_infeasible_at_once(runtime: handoff.Runtime) -> None:
    for cost, resource, most in (({"cpu": 3}, "cpu", 2), ({"gpu": 1}, "gpu", 0)):
        dag = handoff.new().add_function(Function("big", (), lambda: 1, cost=cost))
        for call in (runtime.submit, runtime.execute):
            with pytest.raises(handoff.AllocationError) as caught:
                call(dag)
            error = caught.value
            assert (error.function_id, error.resource) == ("big", resource)
            assert (error.asked, error.most) == (cost[resource], most)
            assert "big" in str(error)
            assert resource in str(error)
    pinned = handoff.new().add_function(Function("far", (), lambda: 1, node="never_seen"))
    with pytest.raises(handoff.AllocationError, match="never_seen"):
        runtime.submit(pinned)
    assert not runtime.status().claims


def test_a_cost_that_can_no_longer_be_met_fails(runtime: handoff.Runtime) -> None:
    gate = threading.Event()
    dag = gated(gate).add_function(Function("big", ["wait"], lambda _: 1, cost={"memory": 900}))
    run = runtime.submit(dag)
    runtime.register_local_node({"cpu": 2, "memory": 500})
    gate.set()
    with pytest.raises(handoff.AllocationError, match="memory"):
        run.result(10)


def test_already_running(runtime: handoff.Runtime) -> None:
    gate = threading.Event()
    run = runtime.submit(gated(gate, "d"))
    for call in (runtime.submit, runtime.execute):
        with pytest.raises(handoff.AlreadyRunningError) as caught:
            call(chain(), dag_id="d")
        assert caught.value.dag_id == "d"
    with pytest.raises(handoff.AlreadyRunningError):
        runtime.execute(chain(), dag_id="d", synchronous=True)
    gate.set()
    run.result(10)
    assert runtime.execute(chain(), dag_id="d").results["c"] == 3


def test_one_dag_in_many_runs_at_once(runtime: handoff.Runtime) -> None:
    dag = chain()
    runs = [runtime.submit(dag, dag_id=i) for i in range(50)]
    assert [run.result(20).results["c"] for run in runs] == [3] * 50


def test_the_same_dag_submitted_twice_at_once(runtime: handoff.Runtime) -> None:
    gate = threading.Event()
    dag = gated(gate)
    run = runtime.submit(dag)
    with pytest.raises(handoff.AlreadyRunningError):
        runtime.submit(dag)
    gate.set()
    run.result(10)
    runtime.execute(dag)


def test_a_failure_has_its_cause_its_function_and_its_traceback(runtime: handoff.Runtime) -> None:
    class Odd(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__("odd")
            self.sum = one + two

    def fails() -> None:
        raise Odd(1, 2)

    dag = handoff.new("d").add_function(Function("f", (), fails, max_retries=1))
    with pytest.raises(handoff.FunctionFailedError) as caught:
        runtime.execute(dag)
    error = caught.value
    assert (error.dag_id, error.function_id, error.attempts) == ("d", "f", 2)
    assert error.node == runtime.node()
    assert isinstance(error.__cause__, Odd)
    assert error.__cause__.sum == 3
    frames = []
    traceback = error.__cause__.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert "fails" in frames


def test_errors_survive_pickling(runtime: handoff.Runtime) -> None:
    import pickle

    def fails() -> None:
        raise ValueError("x")

    dag = handoff.new("d").add_function(Function("f", (), fails, max_retries=0))
    with pytest.raises(handoff.FunctionFailedError) as caught:
        runtime.execute(dag)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is handoff.FunctionFailedError
    assert (copy.dag_id, copy.function_id, copy.attempts) == ("d", "f", 1)
    assert str(copy) == str(caught.value)


# Threads, loops, scripts.


def test_many_callers_on_many_threads(
    runtime: handoff.Runtime, claims_at_zero: Any, together: Any
) -> None:
    def work(number: int) -> int:
        dag = handoff.new(number)
        dag.add_function(Function("a", (), lambda: number, cost={"cpu": 1}))
        dag.add_function(Function("b", ["a"], lambda a: a * 2, cost={"cpu": 0.5}))
        return int(runtime.execute(dag).results["b"])

    calls = [functools.partial(work, number) for number in range(100)]
    assert together(calls) == [n * 2 for n in range(100)]
    claims_at_zero(runtime)


def test_submit_from_a_thread_that_ends(runtime: handoff.Runtime) -> None:
    gate, runs = threading.Event(), []
    thread = threading.Thread(target=lambda: runs.append(runtime.submit(gated(gate))))
    thread.start()
    thread.join(10)
    gate.set()
    assert runs[0].result(10).results["wait"] is True


def test_stop_from_another_thread_answers_those_who_wait(
    leaks: Any, spawn: Any, request: pytest.FixtureRequest
) -> None:
    runtime = handoff.Runtime(shutdown_timeout=1.0).start()
    gate = threading.Event()
    request.addfinalizer(gate.set)
    executing = [spawn(lambda n=n: runtime.execute(gated(gate, n))) for n in range(3)]
    reading = spawn(lambda: runtime.get_result("nothing", "x", 60))
    wait_for(lambda: len(runtime.status().runs) == 3)
    stopping = spawn(runtime.stop)
    for run in executing:
        with pytest.raises((handoff.RunCancelledError, handoff.NotStartedError)):
            run.result(10)
    with pytest.raises(handoff.HandoffError):
        reading.result(10)
    gate.set()
    stopping.result(10)


def test_concurrent_starts_and_stops_of_the_default(default: Any, together: Any) -> None:
    def work(number: int) -> None:
        for _ in range(10):
            default.start()
            with contextlib.suppress(handoff.HandoffError):
                default.execute(chain(), dag_id=object())
            if number % 2:
                default.stop()

    together([functools.partial(work, number) for number in range(4)])


def test_await_a_run(runtime: handoff.Runtime) -> None:
    async def main() -> Any:
        result = await runtime.submit(chain())
        again = await asyncio.wait_for(runtime.submit(chain()), 10)
        many = await asyncio.gather(*(runtime.submit(chain(), dag_id=i) for i in range(10)))
        return result.results["c"], again.results["c"], [r.results["c"] for r in many]

    assert asyncio.run(main()) == (3, 3, [3] * 10)


def test_await_a_run_that_fails_or_is_done(runtime: handoff.Runtime) -> None:
    def fails() -> None:
        raise ValueError("x")

    async def main() -> None:
        with pytest.raises(handoff.FunctionFailedError):
            await runtime.submit(handoff.new().add_function(Function("f", (), fails)))
        run = runtime.submit(chain())
        run.result(10)
        assert (await run).results["c"] == 3

    asyncio.run(main())


def test_aio_has_the_same_names_and_never_blocks_the_loop(default: Any) -> None:
    from handoff_actors import aio

    for name in CALLS:
        assert callable(getattr(aio, name.split()[0])), name
    gate = threading.Event()

    async def main() -> None:
        await aio.start()
        waiting = asyncio.ensure_future(aio.execute(gated(gate)))
        beats = 0
        while not waiting.done():
            await asyncio.sleep(0.001)
            beats += 1
            if beats == 20:
                gate.set()
        assert beats >= 20
        assert (await waiting).results["wait"] is True
        run = await aio.submit(chain(), dag_id="d")
        assert (await run).results["c"] == 3
        await aio.store_value("d", "x", 1)
        assert await aio.get_value("d", "x") == 1
        assert await aio.get_result("d", "c") == 3
        with pytest.raises(handoff.ResultTimeoutError):
            await aio.get_result("d", "never", 0.05)
        assert await aio.node() == handoff.node()
        assert (await aio.status()).runs
        await aio.stop()
        with pytest.raises(handoff.NotStartedError):
            await aio.execute(chain())

    asyncio.run(main())


def test_aio_cancelling_the_task_cancels_the_run(default: Any) -> None:
    from handoff_actors import aio

    gate = threading.Event()

    async def main() -> None:
        await aio.start()
        task = asyncio.ensure_future(aio.execute(gated(gate, "d")))
        while not default.status().runs:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while default.status().runs[0].state == "running":
            await asyncio.sleep(0.001)
        assert default.status().runs[0].state == "cancelled"
        gate.set()
        await aio.stop()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_cells_of_a_notebook(default: Any) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    cells = [
        "import handoff_actors as handoff\nhandoff.start(max_retries=1)",
        "dag = handoff.new('nb')\n@dag.function\ndef one():\n    return 1",
        "@dag.function\ndef two(one):\n    return one + 1",
        "out = handoff.execute(dag).results['two']",
    ]
    for cell in [*cells, *cells]:
        exec(cell, space)
    assert space["out"] == 2


def test_a_forked_child_has_no_runtime(default: Any) -> None:
    runtime, gate = default.start(), threading.Event()
    run = default.submit(gated(gate))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(20)
            for call in (default.status, runtime.status, lambda: default.execute(chain())):
                try:
                    call()
                except handoff.NotStartedError:
                    continue
                os._exit(2)
            default.stop()
            default.start()
            code = 0 if default.execute(chain()).results["c"] == 3 else 3
            default.stop()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    gate.set()
    assert run.result(10).results["wait"] is True
    assert default.execute(chain()).results["c"] == 3


def test_ctrl_c_in_a_blocking_execute_cancels_the_run(popen: Any) -> None:
    process = popen(
        """
        import threading
        import handoff_actors as handoff

        handoff.start(shutdown_timeout=1)
        dag = handoff.new("d")
        here = threading.Event()

        @dag.function
        def waits():
            print("started", flush=True)
            while not handoff.current().cancelled():
                here.wait(0.01)
            print("left\\n", end="", flush=True)  # in one piece, beside the other thread's

        try:
            handoff.execute(dag)
        except KeyboardInterrupt:
            states = [r.state for r in handoff.status().runs]
            print(f"interrupted {states}\\n", end="", flush=True)
        dag = handoff.new().add_function(handoff.Function("a", (), lambda: 1))
        print(handoff.execute(dag).results["a"], flush=True)
        handoff.stop()
        """
    )
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert sorted(out.split("\n")) == sorted(["left", "interrupted ['cancelled']", "1", ""])
    assert err == ""


def test_a_script_without_main_guard(script: Any) -> None:
    done = script(
        """
        print("imported")
        import handoff_actors as handoff

        class Point:
            def __init__(self, x):
                self.x = x

        handoff.start()
        dag = handoff.new()
        dag.add_function(handoff.Function("a", (), lambda: Point(3)))
        dag.add_function(handoff.Function("b", ["a"], lambda p: p.x + 1))
        print(handoff.execute(dag).results["b"])
        """
    )
    assert done.stdout == "imported\n4\n"
    assert done.stderr == ""


@pytest.mark.parametrize("how", ["thread", "coroutine"])
def test_the_interpreter_exits_quickly_with_runs_in_progress(script: Any, how: str) -> None:
    started = time.monotonic()
    done = script(
        f"""
        import asyncio, threading
        import handoff_actors as handoff

        handoff.start(shutdown_timeout=0.5)
        started = threading.Event()

        def thread():
            started.set()
            threading.Event().wait(600)

        async def coroutine():
            started.set()
            await asyncio.sleep(600)

        runs = [
            handoff.submit(handoff.new().add_function(handoff.Function("f", (), {how})))
            for _ in range(3)
        ]
        assert started.wait(20)
        handoff.get_result
        """
    )
    assert time.monotonic() - started < 60  # they wait for ten minutes
    assert done.stdout == done.stderr == ""


def test_the_interpreter_exits_by_an_exception_with_runs_in_progress(script: Any) -> None:
    done = script(
        """
        import threading
        import handoff_actors as handoff

        handoff.start(shutdown_timeout=0.3)
        dag = handoff.new().add_function(
            handoff.Function("f", (), lambda: threading.Event().wait(60)))
        handoff.submit(dag)
        raise SystemExit(7)
        """,
        check=False,
    )
    assert done.returncode == 7
    assert done.stdout == done.stderr == ""


def test_other_threads_that_wait_do_not_keep_the_interpreter(script: Any) -> None:
    done = script(
        """
        import threading
        import handoff_actors as handoff

        handoff.start(shutdown_timeout=0.3)
        dag = handoff.new().add_function(
            handoff.Function("f", (), lambda: threading.Event().wait(60)))
        run = handoff.submit(dag)

        def wait():
            try:
                run.result()
            except handoff.RunCancelledError:
                pass

        threading.Thread(target=wait, daemon=True).start()
        """
    )
    assert done.stdout == done.stderr == ""


def test_progress_callables(runtime: handoff.Runtime) -> None:
    seen: list[Any] = []
    ended = threading.Event()

    def on_progress(progress: Any) -> None:
        seen.append(progress)
        if progress.finished == progress.total:
            ended.set()

    runtime.execute(chain(), progress=on_progress)
    assert ended.wait(10)
    assert all(isinstance(p, handoff.Progress) for p in seen)
    counts = [p.finished for p in seen]
    assert counts == sorted(counts)
    assert counts[-1] == 3


def test_a_progress_callable_that_raises(runtime: handoff.Runtime) -> None:
    def on_progress(_: Any) -> None:
        raise RuntimeError("no")

    assert runtime.execute(chain(), progress=on_progress).results["c"] == 3
    assert runtime.execute(chain(), progress=on_progress).results["c"] == 3


def test_progress_of_a_run_that_is_refused_leaves_nothing(runtime: handoff.Runtime) -> None:
    threads = threading.active_count()
    gate = threading.Event()
    run = runtime.submit(gated(gate, "d"))
    for _ in range(3):
        with pytest.raises(handoff.AlreadyRunningError):
            runtime.execute(chain(), dag_id="d", progress=lambda _: None)
    gate.set()
    run.result(10)
    wait_for(lambda: threading.active_count() <= threads + 2)

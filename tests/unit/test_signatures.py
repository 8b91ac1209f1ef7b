"""The public face has the names, parameters and defaults of its design, everywhere it appears."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import errors
from handoff_actors.options import START_DEFAULTS, StartOptions
from handoff_actors.runtime import STREAM_DEFAULTS, SUBMIT_DEFAULTS, StreamOptions, SubmitOptions

RUN = (
    "dag, *, inputs=None, dag_id=None, allocation_strategy=None, max_retries=None, "
    "max_concurrency=None, timeout=None, keep='all', progress=None, synchronous=False, "
    "checkpoint=None"
)
START = (
    "*, name=None, capabilities=None, listen=None, authkey=None, tls=None, insecure=False, "
    "isolation='thread', max_workers=None, max_retries=3, allocator=None, resource_tracker=None, "
    "max_retained_runs=256, max_restarts=3, max_seconds=5.0, heartbeat_timeout=5.0, "
    "node_return_timeout=30.0, shutdown_timeout=5.0, on_failure=None, "
    "memory_limit=None, spill_directory=None"
)
FACE = {
    "new": "id=None",
    "execute": RUN,
    "execute_distributed": RUN,
    "execute_local": RUN,
    "submit": RUN,
    "stream": "dag, *, max_pending=1000, max_demand=None, min_demand=None, join_timeout=None, "
    "timeout=None, nodes=None",
    "register_node": "node, capabilities",
    "register_local_node": "capabilities",
    "discover_nodes": "",
    "resources_available": "node, requirements",
    "store_result": "dag_id, function_id, result, origin_node=None",
    "get_result": "dag_id, id, timeout=5.0",
    "store_value": "dag_id, id, value",
    "get_local_value": "dag_id, id",
    "get_value": "dag_id, id, from_node=None",
    "synchronize": "dag_id, ids",
    "register_data_location": "dag_id, data_id, node",
    "lookup_data_location": "dag_id, data_id",
    "clear": "dag_id",
    "node": "",
    "nodes": "",
    "connect": "address, timeout=5.0",
    "disconnect": "node",
    "start_nodes": "n, *, capabilities=None, names=None",
    "node_info": "name=None",
    "status": "",
    "current": "",
    "subscribe": "callback, kinds=None",
}
FUNCTION = (
    "id, args=(), code=None, *, extra_args=(), extra_kwargs=None, cost=None, node=None, "
    "type='regular', argument_inclusion='variadic', max_retries=None, retry_delay=0.0, "
    "max_crashes=3, timeout=None, isolation=None, init=None, parallelism=1, batch_size=None, "
    "batch_timeout=None, version=None"
)


def shape(call: Any) -> list[tuple[str, Any, bool]]:
    """Name, default and whether it goes by keyword only, of each parameter."""
    return [
        (p.name, p.default, p.kind is p.KEYWORD_ONLY)
        for p in inspect.signature(call).parameters.values()
        if p.name != "self"
    ]


def wanted(text: str) -> list[tuple[str, Any, bool]]:
    scope: dict[str, Any] = {}
    exec(f"def call({text}): ...", scope)
    return shape(scope["call"])


@pytest.mark.parametrize("name", FACE)
@pytest.mark.parametrize("where", ["module", "Runtime", "aio"])
def test_a_call_is_as_designed(where: str, name: str) -> None:
    owner: Any = {"module": handoff, "Runtime": handoff.Runtime, "aio": handoff.aio}[where]
    assert shape(getattr(owner, name)) == wanted(FACE[name])
    assert inspect.getdoc(getattr(owner, name))


@pytest.mark.parametrize("call", [handoff.start, handoff.Runtime, handoff.aio.start])
def test_the_options_of_start(call: Any) -> None:
    assert shape(call) == wanted(START)


@pytest.mark.parametrize(
    ("typed", "defaults"),
    [
        (SubmitOptions, SUBMIT_DEFAULTS),
        (StreamOptions, STREAM_DEFAULTS),
        (StartOptions, START_DEFAULTS),
    ],
)
def test_options_have_types_and_defaults(typed: Any, defaults: Any) -> None:
    assert list(typed.__annotations__) == list(defaults)


def test_stop_and_current() -> None:
    for call in (
        handoff.stop, handoff.aio.stop, handoff.Runtime.stop, handoff.Runtime.start, handoff.current
    ):  # fmt: skip
        assert shape(call) == []
    assert handoff.Subscription is handoff.events.Subscription


def test_what_a_dag_is_made_of() -> None:
    assert shape(handoff.Function) == wanted(FUNCTION)
    assert shape(handoff.Argument) == wanted("id, serialization_fn=None, deserialization_fn=None")
    assert shape(handoff.Collocated) == wanted("id")
    assert shape(handoff.DAG)[0][:2] == ("id", None)
    for name in ("id", "functions", "add_function", "function", "validate", "to_mermaid", "to_dot"):
        assert hasattr(handoff.DAG, name)
    one = handoff.Function("f", (), lambda: None)
    for name in ("id", "args", "code"):
        assert hasattr(one, name)


def test_what_a_run_and_its_outcome_have() -> None:
    for name in ("result", "done", "progress", "cancel", "as_completed", "__await__"):
        assert hasattr(handoff.Run, name)
    with handoff.Runtime(capabilities={"cpu": 1}) as runtime:
        dag = handoff.DAG("d").add_function(handoff.Function("f", (), lambda: 1))
        run = runtime.submit(dag)
        result = run.result(10)
        assert run.dag_id == result.dag_id == "d"
        assert dict(result.results) == {"f": 1}
        assert result.allocations == {"f": runtime.node()}
        assert set(result.timings) == {"f"}
        for name in ("to_chrome_trace", "release", "__enter__", "__exit__"):
            assert hasattr(result, name)
        status = runtime.status()
        for name in ("tree", "restarts", "nodes", "claims", "runs", "to_dict"):
            assert hasattr(status, name)
        fields = [f.name for f in dataclasses.fields(handoff.NodeInfo)]
        assert fields[:8] == [
            "name", "address", "pid", "state", "capabilities", "available", "python", "version",
        ]  # fmt: skip
        assert all(c in "0123456789abcdef" for c in runtime.authkey)


HIERARCHY = {
    "SpillError": "HandoffError",
    "NotStartedError": "HandoffError",
    "AlreadyStartedError": "HandoffError",
    "RuntimeFailedError": "HandoffError",
    "ConfigurationError": "HandoffError",
    "InvalidDAGError": "HandoffError ValueError",
    "MissingFunctionError": "InvalidDAGError",
    "CyclicDependencyError": "InvalidDAGError",
    "DuplicateFunctionError": "InvalidDAGError",
    "InvalidFunctionError": "InvalidDAGError",
    "MissingInputError": "InvalidDAGError",
    "AllocationError": "HandoffError",
    "AlreadyRunningError": "HandoffError",
    "ExecutionError": "HandoffError",
    "FunctionFailedError": "ExecutionError",
    "FunctionCrashedError": "ExecutionError",
    "FunctionTimeoutError": "ExecutionError",
    "SerializationError": "ExecutionError",
    "RunCancelledError": "ExecutionError CancelledError",
    "ExecutionTimeoutError": "ExecutionError TimeoutError",
    "ValueNotFoundError": "HandoffError LookupError",
    "ResultTimeoutError": "HandoffError TimeoutError",
    "NodeError": "HandoffError",
    "NodeDownError": "NodeError",
    "NodeUnreachableError": "NodeError",
    "AuthenticationError": "NodeError",
    "IncompatibleNodeError": "NodeError",
    "ActorError": "HandoffError",
    "ActorCrashedError": "ActorError",
    "ActorTimeoutError": "ActorError",
    "PipelineError": "HandoffError",
    "ItemFailedError": "PipelineError",
    "PipelineFullError": "PipelineError TimeoutError",
    "PipelineStoppedError": "PipelineError",
}


@pytest.mark.parametrize("name", HIERARCHY)
def test_errors_are_where_the_design_has_them(name: str) -> None:
    error = getattr(handoff, name)
    assert error is getattr(errors, name)
    assert name in handoff.__all__
    above = {base.__name__ for base in error.__mro__}
    assert set(HIERARCHY[name].split()) <= above


def test_all_that_is_said_to_be_there_is() -> None:
    for name in handoff.__all__:
        assert getattr(handoff, name) is not None
    assert set(dir(handoff)) >= set(handoff.__all__)
    for name in [*FACE, "start", "stop"]:
        assert name in handoff.__all__
        assert inspect.iscoroutinefunction(getattr(handoff.aio, name)), name

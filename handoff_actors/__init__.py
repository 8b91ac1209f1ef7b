"""DAGs of Python functions on an actor runtime that is supervised the way Erlang/OTP is.

    import handoff_actors as handoff

    handoff.start()
    dag = handoff.new()
    dag.add_function(handoff.Function("a", (), lambda: 1))
    dag.add_function(handoff.Function("b", ["a"], lambda a: a + 1))
    handoff.execute(dag).results["b"]  # 2

The functions of this module act on the default runtime, which ``start()`` makes; inside a function
of a DAG they act on the runtime that runs it. ``Runtime`` objects have the same methods, and
``aio`` the same names, awaitable.

Layers, each importing only those below: ``cli``, this face, ``testing`` → ``runtime`` →
``pipeline`` → ``execution`` → ``results`` → ``cluster``, ``resources`` → ``actors``, ``graph`` →
``events`` → ``errors``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from handoff_actors._version import __version__
from handoff_actors.dask_graph import dask_get
from handoff_actors.default import (
    clear,
    collect_logs,
    connect,
    disconnect,
    discover_nodes,
    dump,
    execute,
    execute_distributed,
    execute_local,
    get_local_value,
    get_result,
    get_value,
    lookup_data_location,
    new,
    node,
    node_info,
    nodes,
    register_data_location,
    register_local_node,
    register_node,
    resources_available,
    start,
    start_nodes,
    status,
    stop,
    store_result,
    store_value,
    stream,
    submit,
    subscribe,
    synchronize,
)
from handoff_actors.errors import (
    ActorCrashedError,
    ActorError,
    ActorTimeoutError,
    AllocationError,
    AlreadyRunningError,
    AlreadyStartedError,
    AuthenticationError,
    CheckpointError,
    ConfigurationError,
    CrashedAttempt,
    CyclicDependencyError,
    DuplicateFunctionError,
    ExecutionError,
    ExecutionTimeoutError,
    FunctionCrashedError,
    FunctionFailedError,
    FunctionTimeoutError,
    HandoffError,
    IncompatibleNodeError,
    InvalidDAGError,
    InvalidFunctionError,
    ItemFailedError,
    MissingFunctionError,
    MissingInputError,
    NameTakenError,
    NodeDownError,
    NodeError,
    NodeUnreachableError,
    NotStartedError,
    PipelineError,
    PipelineFullError,
    PipelineStoppedError,
    ResultTimeoutError,
    RunCancelledError,
    RuntimeFailedError,
    SerializationError,
    SpillError,
    ValueNotFoundError,
)
from handoff_actors.events import Subscription
from handoff_actors.execution.context import Context, current
from handoff_actors.execution.result import ExecutionResult, Timing
from handoff_actors.execution.run import Progress, Run
from handoff_actors.futures import Executor
from handoff_actors.graph.dag import DAG
from handoff_actors.graph.function import Argument, Collocated, Function
from handoff_actors.resources.allocator import (
    Allocator,
    FirstAvailable,
    LoadBalanced,
    Request,
)
from handoff_actors.resources.capabilities import NodeCapacity
from handoff_actors.resources.claims import Claim
from handoff_actors.resources.tracker import Tracker
from handoff_actors.runtime import Runtime
from handoff_actors.status import MemoryStatus, NodeInfo, RuntimeStatus

if TYPE_CHECKING:
    from handoff_actors import aio, events, testing
    from handoff_actors import logs as logs
    from handoff_actors.pipeline.handle import Pipeline

__all__ = [
    "DAG",
    "ActorCrashedError",
    "ActorError",
    "ActorTimeoutError",
    "AllocationError",
    "Allocator",
    "AlreadyRunningError",
    "AlreadyStartedError",
    "Argument",
    "AuthenticationError",
    "CheckpointError",
    "Claim",
    "Collocated",
    "ConfigurationError",
    "Context",
    "CrashedAttempt",
    "CyclicDependencyError",
    "DuplicateFunctionError",
    "ExecutionError",
    "ExecutionResult",
    "ExecutionTimeoutError",
    "Executor",
    "FirstAvailable",
    "Function",
    "FunctionCrashedError",
    "FunctionFailedError",
    "FunctionTimeoutError",
    "HandoffError",
    "IncompatibleNodeError",
    "InvalidDAGError",
    "InvalidFunctionError",
    "ItemFailedError",
    "LoadBalanced",
    "MemoryStatus",
    "MissingFunctionError",
    "MissingInputError",
    "NameTakenError",
    "NodeCapacity",
    "NodeDownError",
    "NodeError",
    "NodeInfo",
    "NodeUnreachableError",
    "NotStartedError",
    "Pipeline",
    "PipelineError",
    "PipelineFullError",
    "PipelineStoppedError",
    "Progress",
    "Request",
    "ResultTimeoutError",
    "Run",
    "RunCancelledError",
    "Runtime",
    "RuntimeFailedError",
    "RuntimeStatus",
    "SerializationError",
    "SpillError",
    "Subscription",
    "Timing",
    "Tracker",
    "ValueNotFoundError",
    "__version__",
    "aio",
    "clear",
    "collect_logs",
    "connect",
    "current",
    "dask_get",
    "disconnect",
    "discover_nodes",
    "dump",
    "events",
    "execute",
    "execute_distributed",
    "execute_local",
    "get_local_value",
    "get_result",
    "get_value",
    "lookup_data_location",
    "new",
    "node",
    "node_info",
    "nodes",
    "register_data_location",
    "register_local_node",
    "register_node",
    "resources_available",
    "start",
    "start_nodes",
    "status",
    "stop",
    "store_result",
    "store_value",
    "stream",
    "submit",
    "subscribe",
    "synchronize",
    "testing",
]


def __getattr__(name: str) -> Any:
    # asyncio, streams and the fault kit cost import time that most programs need not pay.
    if name in ("aio", "events", "logs", "testing"):
        import importlib

        return importlib.import_module(f"handoff_actors.{name}")
    if name == "Pipeline":
        from handoff_actors.pipeline.handle import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""The default runtime, and the functions of the face that act on it.

Inside a function of a DAG they act on the runtime that runs the function; from a worker process
they are forwarded to it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Unpack

from handoff_actors.errors import AlreadyStartedError, HandoffError, NotStartedError
from handoff_actors.events import Event, Subscription
from handoff_actors.execution.context import place
from handoff_actors.execution.result import ExecutionResult
from handoff_actors.execution.run import Run
from handoff_actors.graph.dag import DAG
from handoff_actors.options import START_DEFAULTS, StartOptions
from handoff_actors.runtime import (
    STREAM_DEFAULTS,
    SUBMIT_DEFAULTS,
    Runtime,
    StreamOptions,
    SubmitOptions,
)
from handoff_actors.signatures import shown
from handoff_actors.status import NodeInfo, RuntimeStatus

if TYPE_CHECKING:
    from handoff_actors.pipeline.handle import Pipeline

_lock = threading.RLock()
_default: Runtime | None = None


def _forked() -> None:
    """In a forked child no runtime is running, and whoever held the lock is not there."""
    global _lock, _default
    _lock = threading.RLock()
    _default = None


os.register_at_fork(after_in_child=_forked)


def _runtime() -> Any:
    here = place.get()
    if here is not None:
        return here.home()
    runtime = _default
    if runtime is None:
        raise NotStartedError("no runtime is running here: call handoff.start() first")
    return runtime


def running() -> Runtime | None:
    """The default runtime, if it is running."""
    runtime = _default
    return runtime if runtime is not None and runtime.running else None


@shown(START_DEFAULTS)
def start(**options: Unpack[StartOptions]) -> Runtime:
    """Start the default runtime; see ``Runtime`` for the options.

    Again with no or equal options it returns the running one, so that a notebook's cell can be run
    again.

    Raises:
        AlreadyStartedError: it runs with other options; ``.options`` names them.
        ConfigurationError: an option has a value that cannot be used.
    """
    global _default
    with _lock:
        if _default is not None and _default.running:
            if options:
                wanted = Runtime(**options).options
                different = _default.options.differences(wanted)
                if different:
                    raise AlreadyStartedError(
                        f"a runtime is running with other {', '.join(different)}: stop() it first, "
                        "or make a Runtime of your own",
                        options=different,
                    )
            return _default
        if _default is not None:
            _default.stop()
        _default = None
        _default = Runtime(**options).start()
        return _default


def stop() -> None:
    """Stop the default runtime. Idempotent, also before ``start()``."""
    global _default
    with _lock:
        runtime, _default = _default, None
    if runtime is not None:
        runtime.stop()


def new(id: Hashable = None) -> DAG:  # noqa: A002
    """An empty DAG; needs no runtime."""
    return DAG(id)


@shown(SUBMIT_DEFAULTS)
def submit(dag: DAG, **options: Unpack[SubmitOptions]) -> Run:
    """Begin to run a DAG; see ``Runtime.submit``."""
    run: Run = _runtime().submit(dag, **options)
    return run


@shown(SUBMIT_DEFAULTS)
def execute(dag: DAG, **options: Unpack[SubmitOptions]) -> ExecutionResult:
    """Run a DAG and wait for its outcome; see ``Runtime.submit`` for the arguments."""
    result: ExecutionResult = _runtime().execute(dag, **options)
    return result


@shown(SUBMIT_DEFAULTS)
def execute_distributed(dag: DAG, **options: Unpack[SubmitOptions]) -> ExecutionResult:
    """The same as ``execute``."""
    return execute(dag, **options)


@shown(SUBMIT_DEFAULTS)
def execute_local(dag: DAG, **options: Unpack[SubmitOptions]) -> ExecutionResult:
    """As ``execute``, with everything on this node, costs and pins ignored."""
    result: ExecutionResult = _runtime().execute_local(dag, **options)
    return result


def submit_local(dag: DAG, **options: Unpack[SubmitOptions]) -> Run:
    """As ``submit``, with everything on this node, costs and pins ignored."""
    run: Run = _runtime().submit_local(dag, **options)
    return run


@shown(STREAM_DEFAULTS)
def stream(dag: DAG, **options: Unpack[StreamOptions]) -> Pipeline:
    """Make a pipeline of a DAG; see ``Runtime.stream`` for the arguments."""
    if not isinstance(runtime := _runtime(), Runtime):
        raise HandoffError(
            "stream() works in the process of its runtime, not in a worker process: give the "
            "function that calls it isolation='thread'"
        )
    return runtime.stream(dag, **options)


def register_node(node: str, capabilities: Mapping[str, float]) -> None:
    """Say what a node offers; see ``Runtime.register_node``."""
    _runtime().register_node(node, capabilities)


def register_local_node(capabilities: Mapping[str, float]) -> None:
    """Say what this node offers."""
    _runtime().register_local_node(capabilities)


def discover_nodes() -> dict[str, dict[str, float]]:
    """What each known node offers, this one included."""
    found: dict[str, dict[str, float]] = _runtime().discover_nodes()
    return found


def resources_available(node: str, requirements: Mapping[str, float]) -> bool:
    """Whether the node has so much free now; False for an unknown node."""
    return bool(_runtime().resources_available(node, requirements))


def store_result(
    dag_id: Hashable, function_id: Hashable, result: Any, origin_node: str | None = None
) -> None:
    """Keep a value here and register where it is."""
    _runtime().store_result(dag_id, function_id, result, origin_node)


def get_result(dag_id: Hashable, id: Hashable, timeout: float | None = 5.0) -> Any:  # noqa: A002
    """A value, as soon as it is there; see ``Runtime.get_result``."""
    return _runtime().get_result(dag_id, id, timeout)


def store_value(dag_id: Hashable, id: Hashable, value: Any) -> None:  # noqa: A002
    """Keep a value on this node."""
    _runtime().store_value(dag_id, id, value)


def get_local_value(dag_id: Hashable, id: Hashable) -> Any:  # noqa: A002
    """A value that is on this node; see ``Runtime.get_local_value``."""
    return _runtime().get_local_value(dag_id, id)


def get_value(dag_id: Hashable, id: Hashable, from_node: str | None = None) -> Any:  # noqa: A002
    """A value, wherever it is; see ``Runtime.get_value``."""
    return _runtime().get_value(dag_id, id, from_node)


def synchronize(dag_id: Hashable, ids: Iterable[Hashable]) -> dict[Hashable, Any]:
    """The values among ``ids`` that can be had, by id."""
    found: dict[Hashable, Any] = _runtime().synchronize(dag_id, ids)
    return found


def register_data_location(dag_id: Hashable, data_id: Hashable, node: str) -> None:
    """Say on which node a value is."""
    _runtime().register_data_location(dag_id, data_id, node)


def lookup_data_location(dag_id: Hashable, data_id: Hashable) -> str:
    """The node a value is on; see ``Runtime.lookup_data_location``."""
    return str(_runtime().lookup_data_location(dag_id, data_id))


def clear(dag_id: Hashable) -> None:
    """Forget the values of a DAG; see ``Runtime.clear``."""
    _runtime().clear(dag_id)


def node() -> str:
    """This node's name."""
    return str(_runtime().node())


def nodes() -> list[str]:
    """The other nodes that are up."""
    found: list[str] = _runtime().nodes()
    return found


def connect(address: str, timeout: float = 5.0) -> str:
    """Join the cluster of the node at ``address``; see ``Runtime.connect``."""
    return str(_runtime().connect(address, timeout))


def disconnect(node: str) -> None:
    """Leave a node; see ``Runtime.disconnect``."""
    _runtime().disconnect(node)


def start_nodes(
    n: int,
    *,
    capabilities: Mapping[str, float] | None = None,
    names: Iterable[str] | None = None,
) -> list[str]:
    """Start node processes on this machine; see ``Runtime.start_nodes``."""
    found: list[str] = _runtime().start_nodes(n, capabilities=capabilities, names=names)
    return found


def collect_logs(level: str | int | None = "info", rate: float = 500.0) -> None:
    """Log here what the other nodes log; see ``Runtime.collect_logs``."""
    _runtime().collect_logs(level, rate)


def node_info(name: str | None = None) -> NodeInfo:
    """What is known of a node; None is this one."""
    info: NodeInfo = _runtime().node_info(name)
    return info


def status() -> RuntimeStatus:
    """A snapshot of the tree, restarts, nodes, claims, runs and workers."""
    snapshot: RuntimeStatus = _runtime().status()
    return snapshot


def dump(path: str | os.PathLike[str]) -> None:
    """Write one JSON file for a bug report; without a runtime it tells of the process only."""
    if place.get() is None and _default is None:
        from handoff_actors.bug_report import write

        write(path, None)
        return
    _runtime().dump(path)


def subscribe(
    callback: Callable[[Event], object], kinds: Iterable[type[Event]] | None = None
) -> Subscription:
    """Call ``callback(event)`` as things happen; see ``Runtime.subscribe``."""
    subscription: Subscription = _runtime().subscribe(callback, kinds)
    return subscription

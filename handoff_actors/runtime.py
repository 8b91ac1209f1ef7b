"""Runtime: all that can be asked of a supervised runtime; its life is in ``life``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypedDict, Unpack

from handoff_actors._version import __version__
from handoff_actors.actors.calls import Ref
from handoff_actors.errors import (
    ConfigurationError,
    HandoffError,
    NodeDownError,
    NodeUnreachableError,
    ResultTimeoutError,
    ValueNotFoundError,
    describe,
)
from handoff_actors.events import Event, Subscription
from handoff_actors.execution.admission import prepare
from handoff_actors.execution.context import place
from handoff_actors.execution.executor import Admit, Discard
from handoff_actors.execution.run import ExecutionResult, Progress, Run, RunHandle
from handoff_actors.execution.synchronous import run_here
from handoff_actors.execution.workers.roster import Workers
from handoff_actors.execution.workers.supervisor import Describe
from handoff_actors.graph.dag import DAG
from handoff_actors.life import Life
from handoff_actors.resources.allocator import Allocator
from handoff_actors.resources.capabilities import MICRO, NodeCapacity, to_micro
from handoff_actors.resources.tracker import (
    Available as AvailableResources,
)
from handoff_actors.resources.tracker import (
    Claims,
    Discover,
    Fits,
    RegisterNode,
)
from handoff_actors.results.distributed import (
    ClearEverywhere,
    Fetch,
    Locate,
    StoreResult,
    Synchronize,
)
from handoff_actors.results.locations import RegisterLocation
from handoff_actors.results.store import Await, Get, GetMany, GiveUp, Put
from handoff_actors.status import ActorStatus, ClaimStatus, NodeInfo, RunStatus, RuntimeStatus


class SubmitOptions(TypedDict, total=False):
    """The keyword arguments of ``submit`` and ``execute``; see ``Runtime.submit``."""

    inputs: Mapping[Hashable, Any] | None
    dag_id: Hashable
    allocation_strategy: str | Allocator | None
    max_retries: int | None
    max_concurrency: int | None
    timeout: float | None
    keep: str | Iterable[Hashable]
    progress: bool | Callable[[Progress], object] | None
    synchronous: bool
    checkpoint: str | None


_AT_ONCE = 0.1
"""Seconds: a shorter timeout of ``get_result`` means: if it is there now."""

_DEFAULTS: dict[str, Any] = {
    "inputs": None,
    "dag_id": None,
    "allocation_strategy": None,
    "max_retries": None,
    "max_concurrency": None,
    "timeout": None,
    "keep": "all",
    "progress": None,
    "synchronous": False,
    "checkpoint": None,
}


def _complete(options: SubmitOptions) -> dict[str, Any]:
    unknown = options.keys() - _DEFAULTS.keys()
    if unknown:
        raise TypeError(f"there is no argument {sorted(unknown)[0]!r}")
    return {**_DEFAULTS, **options}


def _hashable(*ids: Any) -> None:
    """Refuse ids before they reach an actor, which could not keep them."""
    for id_ in ids:
        try:
            hash(id_)
        except Exception as error:
            raise ConfigurationError(f"an id must be hashable, not {describe(id_)}") from error


class Runtime(Life):
    """A supervised runtime. Independent of any other in the process. A context manager too.

    Args:
        name: of this node; None makes one from the host's name and the process id.
        capabilities: what it offers: resource name to amount; None is ``cpu``, the usable cores,
            and ``memory``, MB.
        isolation: of functions that do not say: ``"thread"`` or ``"process"``.
        max_workers: of threads and of processes; None is max(32, cores) and the cores.
        max_retries: of functions that do not say.
        allocator: a strategy's name or an ``Allocator``; None is ``"first_available"``.
        resource_tracker: a ``Tracker`` of one's own; None is the built-in.
        max_retained_runs: how many finished runs stay readable by ``dag_id``.
        max_restarts: how many crashes of its actors within ``max_seconds`` it survives.
        max_seconds: seconds.
        shutdown_timeout: seconds that ``stop()`` gives to code that is still running.
        on_failure: called with the ``RuntimeFailedError`` when the tree gave up.
        authkey: hex digits; None reads ``HANDOFF_AUTHKEY``, else makes one.

    Raises:
        ConfigurationError: an option has a value that cannot be used.
    """

    # Running DAGs.

    def new(self, id: Hashable = None) -> DAG:  # noqa: A002
        """An empty DAG."""
        return DAG(id)

    def submit(self, dag: DAG, **options: Unpack[SubmitOptions]) -> Run:
        """Begin to run a DAG; what is wrong with it is raised here.

        Args:
            dag: what to run.
            inputs: the values of its inputs, by id.
            dag_id: what the run is called; None is the DAG's own id.
            allocation_strategy: a name or an ``Allocator``; None is the runtime's.
            max_retries: of functions that do not say; None is the runtime's.
            max_concurrency: how many functions may run at once; None is no limit but the workers.
            timeout: seconds for all of it.
            keep: ``"all"``, ``"sinks"``, or the ids whose values stay; others are freed as their
                last consumer ends.
            progress: True shows a progress bar on a terminal; a callable gets a ``Progress`` as
                functions finish.
            synchronous: run one function after another on this thread, before this returns.
            checkpoint: not available in this version.

        Returns:
            A future of its ``ExecutionResult``.

        Raises:
            InvalidDAGError: the DAG cannot be run.
            AllocationError: a function needs more than any node has.
            AlreadyRunningError: a run of this ``dag_id`` is in progress.
            SerializationError: what must leave the process cannot.
            ConfigurationError: an argument has a value that cannot be used.
        """
        return self._submit(dag, **_complete(options), local=False, wait=True)

    def _submit(
        self, dag: DAG, *, synchronous: bool, progress: Any, wait: bool, **options: Any
    ) -> Run:
        executor = self._ref("distributed_executor")
        run, data = prepare(self, dag, next(self._keys), **options)
        if progress:
            from handoff_actors.progress import show

            show(self, data, run, progress)
        if wait or synchronous:
            try:
                executor.call(Admit(data, run, here=synchronous))
            except HandoffError as error:
                run.settle(None, error)
                raise
        else:
            executor.cast(Admit(data, run))
        if synchronous:
            try:
                run_here(data, self)
            finally:
                if data.state == "running":
                    data.state = "failed"
                self._desk.finish(data)
        return run

    def execute(self, dag: DAG, **options: Unpack[SubmitOptions]) -> ExecutionResult:
        """Run a DAG and wait for its outcome; see ``submit`` for the arguments.

        Ctrl-C cancels the run.

        Raises:
            ExecutionError: how it ended, if it did not succeed; and what ``submit`` raises.
        """
        return self._execute(dag, options, local=False)

    def execute_distributed(self, dag: DAG, **options: Unpack[SubmitOptions]) -> ExecutionResult:
        """The same as ``execute``."""
        return self._execute(dag, options, local=False)

    def execute_local(self, dag: DAG, **options: Unpack[SubmitOptions]) -> ExecutionResult:
        """As ``execute``, with everything on this node, costs and pins ignored."""
        return self._execute(dag, options, local=True)

    def submit_local(self, dag: DAG, **options: Unpack[SubmitOptions]) -> Run:
        """As ``submit``, with everything on this node, costs and pins ignored."""
        return self._submit(dag, **_complete(options), local=True, wait=True)

    def _execute(self, dag: DAG, options: SubmitOptions, *, local: bool) -> ExecutionResult:
        run = self._submit(dag, **_complete(options), local=local, wait=False)
        try:
            return run.result()
        except KeyboardInterrupt:
            run.cancel()
            raise
        finally:
            if options.get("progress"):
                # The bar is drawn to its end before the caller prints anything.
                self.events.flush()

    # Resources.

    def register_node(self, node: str, capabilities: Mapping[str, float]) -> None:
        """Say what a node offers; replaces what was there. What is in use stays in use."""
        to_micro(capabilities, f"the capabilities of node {describe(node)}")
        if not isinstance(node, str) or not node:
            raise ConfigurationError(f"a node's name is a non-empty str, not {describe(node)}")
        self._ref("resource_tracker").call(RegisterNode(node, dict(capabilities)))
        self._offered = {**self._offered, node: dict(capabilities)}

    def register_local_node(self, capabilities: Mapping[str, float]) -> None:
        """Say what this node offers."""
        self.register_node(self._name, capabilities)

    def discover_nodes(self) -> dict[str, dict[str, float]]:
        """What each known node offers, this one included."""
        found: dict[str, dict[str, float]] = self._ref("resource_tracker").call(Discover())
        return found

    def resources_available(self, node: str, requirements: Mapping[str, float]) -> bool:
        """Whether the node has so much free now; False for an unknown node."""
        to_micro(requirements, "the requirements")
        return bool(self._ref("resource_tracker").call(Fits(node, dict(requirements))))

    def offered(self) -> Mapping[str, Mapping[str, float]]:
        """What each node was registered with; no call, for the check at admission."""
        return self._offered

    def capacities(self) -> dict[str, NodeCapacity]:
        """This node's capacity, for allocators."""
        tracker = self._ref("resource_tracker")
        free: Mapping[str, float] = tracker.call(AvailableResources(self._name))
        return {self._name: NodeCapacity(free, self._offered.get(self._name, {}))}

    @property
    def workers(self) -> Workers:
        """The roster of its workers."""
        self._ref("worker_supervisor")
        return self._workers

    # Values.

    def store_result(
        self, dag_id: Hashable, function_id: Hashable, result: Any, origin_node: str | None = None
    ) -> None:
        """Keep a value here and register where it is: ``origin_node``, or here."""
        _hashable(dag_id, function_id)
        self._ref("distributed_result_store").call(
            StoreResult(dag_id, function_id, result, origin_node)
        )

    def get_result(self, dag_id: Hashable, id: Hashable, timeout: float | None = 5.0) -> Any:  # noqa: A002
        """A value, as soon as it is there.

        Args:
            dag_id: whose newest run it is of.
            id: of the function, or of a stored value.
            timeout: seconds; None waits without limit.

        Raises:
            ResultTimeoutError: it did not come; at once if the run ended without it.
        """
        store = self._ref("result_store")
        _hashable(dag_id, id)
        if timeout is not None and timeout < _AT_ONCE:
            # The way to the store and back takes longer than so short a wait.
            found = store.call(GetMany(dag_id, (id,)))
            if found:
                return found[id]
        here = place.get()
        loan = None if here is None else here.lend()
        try:
            reply = store.send(Await(dag_id, id))
            if not reply.wait(timeout):
                store.cast(GiveUp(reply))
                raise ResultTimeoutError(
                    f"value {id!r} of DAG {dag_id!r} did not come within {timeout} s",
                    dag_id=dag_id,
                    value_id=id,
                )
            return reply.result()
        finally:
            if here is not None:
                here.reclaim(loan)

    def store_value(self, dag_id: Hashable, id: Hashable, value: Any) -> None:  # noqa: A002
        """Keep a value on this node."""
        _hashable(dag_id, id)
        self._ref("result_store").call(Put(dag_id, id, value))

    def get_local_value(self, dag_id: Hashable, id: Hashable) -> Any:  # noqa: A002
        """A value that is on this node.

        Raises:
            ValueNotFoundError: it is not.
        """
        _hashable(dag_id, id)
        return self._ref("result_store").call(Get(dag_id, id))

    def get_value(self, dag_id: Hashable, id: Hashable, from_node: str | None = None) -> Any:  # noqa: A002
        """A value, fetched from ``from_node`` or from wherever it is.

        Raises:
            ValueNotFoundError: nobody has it.
            NodeDownError: ``from_node`` is not connected.
        """
        _hashable(dag_id, id)
        return self._ref("distributed_result_store").call(Fetch(dag_id, id, from_node))

    def synchronize(self, dag_id: Hashable, ids: Iterable[Hashable]) -> dict[Hashable, Any]:
        """The values among ``ids`` that can be had, by id."""
        ids = tuple(ids)
        _hashable(dag_id, *ids)
        found: dict[Hashable, Any] = self._ref("distributed_result_store").call(
            Synchronize(dag_id, ids)
        )
        return found

    def register_data_location(self, dag_id: Hashable, data_id: Hashable, node: str) -> None:
        """Say on which node a value is; any name may be registered."""
        if not isinstance(node, str) or not node:
            raise ConfigurationError(f"a node's name is a non-empty str, not {describe(node)}")
        _hashable(dag_id, data_id)
        self._ref("data_location_registry").call(RegisterLocation(dag_id, data_id, node))

    def lookup_data_location(self, dag_id: Hashable, data_id: Hashable) -> str:
        """The node a value is on.

        Raises:
            ValueNotFoundError: nobody knows.
        """
        _hashable(dag_id, data_id)
        return str(self._ref("distributed_result_store").call(Locate(dag_id, data_id)))

    def clear(self, dag_id: Hashable) -> None:
        """Forget the values of a DAG, and where they are.

        Raises:
            AlreadyRunningError: a run of it is in progress.
        """
        _hashable(dag_id)
        self._ref("distributed_executor").call(Discard(dag_id))
        self._ref("distributed_result_store").call(ClearEverywhere(dag_id))

    # Nodes.

    def node(self) -> str:
        """This node's name."""
        return self._name

    def nodes(self) -> list[str]:
        """The other nodes that are up."""
        self._ref("resource_tracker")
        return []

    def connect(self, address: str, timeout: float = 5.0) -> str:
        """Join the cluster of the node at ``address``.

        Raises:
            NodeUnreachableError: nothing answers there within ``timeout`` seconds.
        """
        self._ref("resource_tracker")
        raise NodeUnreachableError(
            f"node {self._name} has no gateway in this version, so it cannot join {address!r} "
            f"(within {timeout} s or ever)",
            node=str(address),
        )

    def disconnect(self, node: str) -> None:
        """Leave a node.

        Raises:
            NodeDownError: it is not connected.
        """
        self._ref("resource_tracker")
        raise NodeDownError(f"node {node!r} is not connected to {self._name}", node=node)

    def node_info(self, name: str | None = None) -> NodeInfo:
        """What is known of a node; None is this one.

        Raises:
            NodeDownError: no such node is known.
        """
        tracker = self._ref("resource_tracker")
        if name is not None and name != self._name:
            raise NodeDownError(f"node {name!r} is not connected to {self._name}", node=name)
        return NodeInfo(
            self._name,
            None,
            os.getpid(),
            "up",
            dict(self._offered.get(self._name, {})),
            dict(tracker.call(AvailableResources(self._name))),
            ".".join(map(str, sys.version_info[:3])),
            __version__,
        )

    # How it is doing.

    def status(self) -> RuntimeStatus:
        """A snapshot of the tree, restarts, nodes, claims, runs and workers."""
        tracker = self._ref("resource_tracker")
        entries = dict(self._runs.view)
        runs = [
            RunStatus(e.data.dag_id, e.data.state, e.data.finished, e.data.plan.n)
            for e in entries.values()
        ]
        claims = [
            ClaimStatus(
                claim.node,
                entries[claim.owner].data.dag_id if claim.owner in entries else claim.owner,
                {name: amount / MICRO for name, amount in claim.amounts.items()},
            )
            for claim in tracker.call(Claims())
        ]
        workers = self._ref("worker_supervisor").call(Describe())
        return RuntimeStatus(
            self._tree(), dict(self._restarts), [self.node_info()], claims, runs, workers
        )

    def _tree(self) -> ActorStatus:
        assert self._system is not None
        runs = [
            _actor(name, ref)
            for name, ref in self._system.names.all().items()
            if name.startswith("run:")
        ]
        children = [
            _actor(name, ref, runs if name == "execution_supervisor" else ())
            for name, ref in self._refs.items()
        ]
        return _actor("supervisor", self._root, children)

    def subscribe(
        self, callback: Callable[[Event], object], kinds: Iterable[type[Event]] | None = None
    ) -> Subscription:
        """Call ``callback(event)`` as things happen, on a thread of its own.

        Args:
            callback: what it raises is logged.
            kinds: the classes of events it wants; None is all.
        """
        self._ref("resource_tracker")
        if not callable(callback):
            raise ConfigurationError(f"a subscriber is callable, not {describe(callback)}")
        wanted = None if kinds is None else tuple(kinds)
        for kind in wanted or ():
            if not (isinstance(kind, type) and issubclass(kind, Event)):
                raise ConfigurationError(f"kinds are classes of events, not {describe(kind)}")
        return self.events.subscribe(callback, wanted)

    def whereis(self, name: str) -> Ref | None:
        """The actor of that name, for fault injection."""
        self._ref("resource_tracker")
        assert self._system is not None
        return self._system.names.whereis(name)

    # For code in worker processes.

    def _forwarded(self, name: str, arguments: Any) -> Any:
        """Carry out what code in a worker process asked for."""
        args, kwargs = arguments
        if name.startswith("_") or not callable(getattr(type(self), name, None)):
            raise AttributeError(f"a worker process cannot ask its runtime for {name!r}")
        answer = getattr(self, name)(*args, **kwargs)
        if isinstance(answer, Run):
            self._submitted[answer.key] = answer
            return RunHandle(answer.key, answer.dag_id)
        return answer

    def ask_run(self, key: int, what: str, *args: Any) -> Any:
        """Ask a run that was submitted from a worker process."""
        run = self._submitted.get(key)
        entry = self._runs.view.get(key)
        if run is None and entry is not None and entry.data.over:
            run = Run(entry.data.dag_id)
            run.bind(entry.data)
            self._desk.answer(entry.data, run)
        if run is None or what not in ("result", "done", "cancel", "progress"):
            raise ValueNotFoundError(
                f"run {key} was not submitted from a worker process of this runtime",
                dag_id=None,
                value_id=key,
            )
        return getattr(run, what)(*args)

    def __repr__(self) -> str:
        state = "failed" if self._failure else "running" if self._system else "stopped"
        return f"<Runtime {self._name}: {state}>"


def _actor(name: str, ref: Ref, children: Sequence[ActorStatus] = ()) -> ActorStatus:
    return ActorStatus(name, "up" if ref.alive else "down", len(ref.mailbox), tuple(children))

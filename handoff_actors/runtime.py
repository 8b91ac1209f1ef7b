"""Runtime: all that can be asked of a supervised runtime.

Running DAGs is here; its values, its nodes and its status are in ``runtime_values``,
``runtime_nodes`` and ``runtime_status``, its life in ``life``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from handoff_actors.actors.reasons import Exit
from handoff_actors.errors import (
    AlreadyRunningError,
    ConfigurationError,
    HandoffError,
    ValueNotFoundError,
    describe,
)
from handoff_actors.execution.admission import prepare, usual_options
from handoff_actors.execution.context import Context, current
from handoff_actors.execution.executor import Admit
from handoff_actors.execution.result import ExecutionResult
from handoff_actors.execution.run import Progress, Run, RunHandle
from handoff_actors.execution.run_data import RunData, RunOptions
from handoff_actors.execution.synchronous import run_here
from handoff_actors.execution.workers.processes import Submitted
from handoff_actors.execution.workers.roster import Workers
from handoff_actors.graph.dag import DAG
from handoff_actors.options import START_DEFAULTS
from handoff_actors.resources.allocator import Allocator
from handoff_actors.runtime_status import Status
from handoff_actors.signatures import parameters, shown

if TYPE_CHECKING:
    from handoff_actors.cluster.peers import Cluster
    from handoff_actors.pipeline.handle import Pipeline
    from handoff_actors.pipeline.nodes import Nodes as StagesOverNodes


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


class StreamOptions(TypedDict, total=False):
    """The keyword arguments of ``stream``; see ``Runtime.stream``."""

    max_pending: int
    max_demand: int | None
    min_demand: int | None
    join_timeout: float | None
    timeout: float | None
    nodes: Collection[str] | None


SUBMIT_DEFAULTS: dict[str, Any] = {
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


STREAM_DEFAULTS: dict[str, Any] = {
    "max_pending": 1000,
    "max_demand": None,
    "min_demand": None,
    "join_timeout": None,
    "timeout": None,
    "nodes": None,
}


def _complete(options: SubmitOptions) -> Mapping[str, Any]:
    if not options:
        return SUBMIT_DEFAULTS
    unknown = options.keys() - SUBMIT_DEFAULTS.keys()
    if unknown:
        raise TypeError(f"there is no argument {sorted(unknown)[0]!r}")
    return {**SUBMIT_DEFAULTS, **options}


class Runtime(Status):
    """A supervised runtime. Independent of any other in the process. A context manager too.

    Args:
        name: of this node; None makes one from the host's name and the process id.
        capabilities: what it offers: resource name to amount; None is ``cpu``, the usable cores,
            and ``memory``, MB.
        listen: ``"host:port"`` where other nodes can connect; None listens on loopback, and only
            once that is needed.
        authkey: of the cluster, hex digits; None reads ``HANDOFF_AUTHKEY``, else makes one.
        tls: ``{"certfile": ..., "keyfile": ..., "cafile": ...}``, paths of PEM files; None is none.
        insecure: whether it may listen for other machines without key or certificates.
        isolation: of functions that do not say: ``"thread"`` or ``"process"``.
        max_workers: of threads and of processes; None is max(32, cores) and the cores.
        max_retries: of functions that do not say.
        allocator: a strategy's name or an ``Allocator``; None is ``"first_available"``.
        resource_tracker: a ``Tracker`` of one's own; None is the built-in.
        max_retained_runs: how many finished runs stay readable by ``dag_id``.
        max_restarts: how many crashes of its actors within ``max_seconds`` it survives.
        max_seconds: seconds.
        heartbeat_timeout: seconds of silence after which another node is given up.
        node_return_timeout: seconds that functions pinned to a lost node wait for its return.
        shutdown_timeout: seconds that ``stop()`` gives to code that is still running.
        on_failure: called with the ``RuntimeFailedError`` when the tree gave up.
        memory_limit: how much memory the values of its runs and those stored may take: bytes, or
            text as ``"2 GB"``; what is more goes to disk and is read back where it is needed. None
            is no limit.
        spill_directory: where on disk; None is the system's directory for temporary files.

    Raises:
        ConfigurationError: an option has a value that cannot be used.
    """

    _stages: tuple[Any, StagesOverNodes] | None = None
    __signature__ = inspect.Signature(parameters(START_DEFAULTS))

    # Running DAGs.

    def new(self, id: Hashable = None) -> DAG:  # noqa: A002
        """An empty DAG."""
        return DAG(id)

    @shown(SUBMIT_DEFAULTS)
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
            checkpoint: the path of a file that keeps results as functions finish. The same call
                goes on from there after whatever ended this process; what has changed since, by
                content, runs again. Only give it files that you trust: they are pickles.

        Returns:
            A future of its ``ExecutionResult``.

        Raises:
            InvalidDAGError: the DAG cannot be run.
            AllocationError: a function needs more than any node has.
            AlreadyRunningError: a run of this ``dag_id`` is in progress.
            SerializationError: what must leave the process cannot.
            CheckpointError: the checkpoint is in use, damaged, or no checkpoint.
            ConfigurationError: an argument has a value that cannot be used.
        """
        return self._submit(dag, options, local=False, wait=True)

    def submit_soon(self, dag: DAG, **options: Unpack[SubmitOptions]) -> Run:
        """As ``submit``, without waiting for the run's admission: its errors come by the run."""
        return self._submit(dag, options, local=False, wait=False)

    def _submit(self, dag: DAG, options: SubmitOptions, *, local: bool, wait: bool) -> Run:
        run, data, synchronous = self._make(dag, options, local)
        self._admit(run, data, synchronous, wait)
        return run

    @functools.cached_property
    def usual(self) -> tuple[Mapping[str, Any], RunOptions]:
        """The arguments of a run when none are given, and how it is run then on one node."""
        return SUBMIT_DEFAULTS, usual_options(self.options)

    def _make(self, dag: DAG, options: SubmitOptions, local: bool) -> tuple[Run, RunData, bool]:
        """A run that nobody knows of yet, and whether it is to be run by its caller."""
        given = _complete(options)
        synchronous, progress = given["synchronous"], given["progress"]
        if not isinstance(synchronous, bool):
            raise ConfigurationError(
                f"synchronous must be True or False, not {describe(synchronous)}"
            )
        self._ref("distributed_executor")
        run, data = prepare(self, dag, next(self._keys), given, local)
        try:
            if not (synchronous or local) and (hub := self.hub()) is not None:
                hub.send_abroad(data)
            if (checkpoint := given["checkpoint"]) is not None:
                from handoff_actors.execution.restoring import restore

                restore(checkpoint, dag, data, run, self._workers)
            if self.telemetry is not None:
                self.telemetry.began(data, run)
            if progress is not None and progress is not False:
                from handoff_actors.progress import show

                show(self, data, run, progress)
        except BaseException as error:  # Ctrl-C too: what follows the run must let go of it
            run.settle(None, error)
            data.leave_nodes()
            raise
        return run, data, synchronous

    def _admit(self, run: Run, data: RunData, synchronous: bool, wait: bool) -> None:
        executor = self._ref("distributed_executor")
        if wait or synchronous:
            try:
                executor.call(Admit(data, run, here=synchronous))
            except BaseException as error:
                # It may have been admitted all the same, and nobody would know it.
                if not isinstance(error, HandoffError):
                    run.cancel()
                    raise
                run.end(error)
                if isinstance(error, AlreadyRunningError):
                    data.leave_nodes()
                raise
        else:
            executor.cast(Admit(data, run))
        if synchronous:
            try:
                run_here(data, self)
            finally:
                if data.state == "running":
                    data.state = "failed"
                keeper = data.checkpoint
                self._desk.finish(data)
                if keeper is not None:
                    keeper.join()
                data.ref.close(Exit.NORMAL)

    @shown(SUBMIT_DEFAULTS)
    def execute(self, dag: DAG, **options: Unpack[SubmitOptions]) -> ExecutionResult:
        """Run a DAG and wait for its outcome; see ``submit`` for the arguments.

        Ctrl-C cancels the run.

        Raises:
            ExecutionError: how it ended, if it did not succeed; and what ``submit`` raises.
        """
        return self._execute(dag, options, local=False)

    @shown(SUBMIT_DEFAULTS)
    def execute_distributed(self, dag: DAG, **options: Unpack[SubmitOptions]) -> ExecutionResult:
        """The same as ``execute``."""
        return self._execute(dag, options, local=False)

    @shown(SUBMIT_DEFAULTS)
    def execute_local(self, dag: DAG, **options: Unpack[SubmitOptions]) -> ExecutionResult:
        """As ``execute``, with everything on this node, costs and pins ignored."""
        return self._execute(dag, options, local=True)

    def submit_local(self, dag: DAG, **options: Unpack[SubmitOptions]) -> Run:
        """As ``submit``, with everything on this node, costs and pins ignored."""
        return self._submit(dag, options, local=True, wait=True)

    def stream(
        self,
        dag: DAG,
        *,
        max_pending: int = 1000,
        max_demand: int | None = None,
        min_demand: int | None = None,
        join_timeout: float | None = None,
        timeout: float | None = None,
        nodes: Collection[str] | None = None,
    ) -> Pipeline:
        """Make a pipeline of a DAG: stages that stay, through which items flow in order.

        It has begun when this returns: claims are held (cost x parallelism, for its life), every
        worker has run ``init``.

        Args:
            dag: with at least one input, into which items are pushed.
            max_pending: items that may be pushed and not taken out.
            max_demand: unfinished items that a stage asks of its producers; None: any number.
            min_demand: when so few of them are left it asks for more; None is half of it.
            join_timeout: seconds an item waits for all arguments of a function, from the first on;
                then its output is an ``ItemFailedError``.
            timeout: seconds to wait for the claims; None is as long as it takes.
            nodes: names of the nodes that its stages may be on, but for pinned ones; None is all.

        Raises:
            InvalidDAGError: the DAG cannot be run, or has no input.
            AllocationError: the claims are more than there is, or did not come in time.
            SerializationError: what must leave the process cannot.
            PipelineError: a worker could not begin; what ``init`` raised is the ``__cause__``.
            ConfigurationError: an argument has a value that cannot be used.
        """
        from handoff_actors.pipeline.opening import open_pipeline
        from handoff_actors.progress.items import follow_items

        return open_pipeline(
            self,
            dag,
            max_pending=max_pending,
            max_demand=max_demand,
            min_demand=min_demand,
            join_timeout=join_timeout,
            timeout=timeout,
            nodes=nodes,
            follow=follow_items,
        )

    def stages(self) -> StagesOverNodes:
        """What it has of the stages of pipelines over several nodes."""
        from handoff_actors.pipeline.nodes import Nodes
        from handoff_actors.pipeline.opening import open_pipeline
        from handoff_actors.progress.items import follow_items

        def open_here(dag: DAG, **options: Any) -> Pipeline:
            return open_pipeline(
                self,
                dag,
                max_demand=None,
                min_demand=None,
                join_timeout=None,
                follow=follow_items,
                **options,
            )

        def capacity() -> tuple[Any, Any]:
            found = self.capacities()[self._name]
            return dict(found.free), dict(found.total)

        with self._lock:
            if self._stages is None or self._stages[0] is not self._system:
                nodes = Nodes(self._name, open_here, capacity, self.workers.carriers.submit)
                self._stages = self._system, nodes
            return self._stages[1]

    @staticmethod
    def current() -> Context:
        """The attempt that calls this, whichever runtime runs it; see ``handoff.current``."""
        return current()

    def nodes_known(self) -> list[str]:
        """The other nodes that were ever seen."""
        return [] if self._mesh is None else sorted(self._mesh.known())

    def _serve_cluster(self, mesh: Cluster) -> None:
        super()._serve_cluster(mesh)
        self.stages().serve(mesh)

    def _execute(
        self,
        dag: DAG,
        options: SubmitOptions,
        *,
        local: bool,
        submitted: Submitted | None = None,
    ) -> ExecutionResult:
        run, data, synchronous = self._make(dag, options, local)
        try:
            self._admit(run, data, synchronous, wait=False)
            if submitted is not None:
                submitted(run)
            return run.result()
        except KeyboardInterrupt:
            run.cancel()
            raise
        finally:
            if options.get("progress"):
                # The bar is drawn to its end before the caller prints anything.
                self.events.flush()

    @property
    def workers(self) -> Workers:
        """The roster of its workers."""
        self._ref("worker_supervisor")
        return self._workers

    # For code in worker processes.

    def _forwarded(self, name: str, arguments: Any, submitted: Submitted | None) -> Any:
        """Carry out what code in a worker process asked for."""
        args, kwargs = arguments
        if name.startswith("_") or not callable(getattr(type(self), name, None)):
            raise AttributeError(f"a worker process cannot ask its runtime for {name!r}")
        if name in ("execute", "execute_distributed", "execute_local"):

            def execute(dag: DAG, **options: Unpack[SubmitOptions]) -> ExecutionResult:
                local = name == "execute_local"
                return self._execute(dag, options, local=local, submitted=submitted)

            return execute(*args, **kwargs)
        answer = getattr(self, name)(*args, **kwargs)
        if isinstance(answer, Run):
            self._submitted[answer.key] = answer
            if submitted is not None:
                submitted(answer)
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

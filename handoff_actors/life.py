"""The life of a runtime: its supervision tree, how it starts, stops, and gives up.

    Supervisor
    ├─ result_store          ├─ resource_tracker        ├─ data_location_registry
    ├─ worker_supervisor     ├─ execution_supervisor    ├─ pipeline_supervisor
    ├─ distributed_executor  └─ distributed_result_store

Everything that must survive a crash of these is made here, before they are: tables, the roster of
workers, the desk where runs are answered.
"""

from __future__ import annotations

import abc
import atexit
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from handoff_actors._version import __version__
from handoff_actors.actors.calls import Ref
from handoff_actors.actors.dynamic_supervisor import DynamicSupervisor
from handoff_actors.actors.names import Names
from handoff_actors.actors.reasons import Exit, Reason, reason_text
from handoff_actors.actors.server import Actor
from handoff_actors.actors.specs import ChildSpec, SupervisorFlags
from handoff_actors.actors.supervisor import Supervisor
from handoff_actors.actors.system import ActorSystem
from handoff_actors.actors.table import Table
from handoff_actors.errors import (
    ConfigurationError,
    NotStartedError,
    RuntimeFailedError,
    describe,
)
from handoff_actors.events import ActorCrashed, EventBus, RuntimeFailed, log
from handoff_actors.execution.executor import Desk, DistributedExecutor, Entry
from handoff_actors.execution.failures import stopped_error
from handoff_actors.execution.run import Run
from handoff_actors.execution.run_data import FREED, RunData
from handoff_actors.execution.workers.processes import Submitted
from handoff_actors.execution.workers.roster import Workers
from handoff_actors.execution.workers.supervisor import WorkerSupervisor
from handoff_actors.options import START_DEFAULTS, Options, StartOptions
from handoff_actors.resources.allocator import by_name
from handoff_actors.resources.capabilities import to_micro
from handoff_actors.resources.machine import machine_capabilities
from handoff_actors.resources.tracker import (
    Contention,
    ResourceTracker,
)
from handoff_actors.results.distributed import (
    DistributedResultStore,
)
from handoff_actors.results.locations import DataLocationRegistry
from handoff_actors.results.store import Available, ResultStore

if TYPE_CHECKING:
    from handoff_actors.execution.nodes.hub import Hub
    from handoff_actors.results.budget import Budget
    from handoff_actors.results.remote import RemoteStore
    from handoff_actors.telemetry import Telemetry

_running: weakref.WeakSet[Life] = weakref.WeakSet()
_names = itertools.count(1)

NAMES = (
    "result_store",
    "resource_tracker",
    "data_location_registry",
    "worker_supervisor",
    "execution_supervisor",
    "pipeline_supervisor",
    "distributed_executor",
    "distributed_result_store",
)


def _forked() -> None:
    """In a forked child: its threads are not there, so nothing of the runtime is."""
    for runtime in list(_running):
        runtime._forget()  # noqa: SLF001  the same class
    _running.clear()


os.register_at_fork(after_in_child=_forked)


def _stop_all() -> None:
    for runtime in list(_running):
        runtime.stop()


atexit.register(_stop_all)


def key_bytes(key: str | bytes) -> bytes:
    """The bytes of a key that is given as hex digits, as any other text, or as bytes."""
    if isinstance(key, bytes):
        return key
    try:
        return bytes.fromhex(key)
    except ValueError:
        return key.encode()


class Life(abc.ABC):
    """A supervision tree; see ``Runtime``, which adds what can be asked of it.

    Attributes:
        telemetry: what tells OpenTelemetry of it, or None.
    """

    telemetry: Telemetry | None = None

    def __init__(self, **options: Unpack[StartOptions]) -> None:
        unknown = options.keys() - START_DEFAULTS.keys()
        if unknown:
            raise ConfigurationError(
                f"start() has no option {sorted(unknown)[0]!r}; there are "
                f"{', '.join(START_DEFAULTS)}"
            )
        self.options = Options(**options)
        by_name(self.options.allocator, "allocator")
        if self.options.capabilities is not None:
            to_micro(self.options.capabilities, "capabilities")
        self._lock = threading.RLock()
        self._system: ActorSystem | None = None
        self._failure: RuntimeFailedError | None = None
        number = next(_names)
        suffix = "" if number == 1 else f"-{number}"
        self._name = self.options.name or f"{os.uname().nodename}-{os.getpid()}{suffix}"
        self.authkey = self._authkey()
        self.events = EventBus()
        self._hub: Hub | None = None
        self.pipelines: dict[str, Any] = {}
        self._far: RemoteStore | None = None

    def _authkey(self) -> str:
        key = self.options.authkey or os.environ.get("HANDOFF_AUTHKEY") or os.urandom(32)
        return key_bytes(key).hex()

    # Its life.

    def start(self) -> Self:
        """Start the tree; returns when all of it is up. Nothing happens if it runs already."""
        with self._lock:
            if self._system is not None:
                return self
            self._failure = None
            self.events = EventBus()
            self._restarts: dict[str, int] = {}
            self._keys = itertools.count(1)
            self._submitted: weakref.WeakValueDictionary[int, Run] = weakref.WeakValueDictionary()
            options = self.options
            system = ActorSystem(f"handoff-{self._name}")
            self._contention = Contention()
            self.pipelines = {}
            self._budget = self._make_budget(system)
            self._workers = Workers(
                system,
                self._name,
                max_workers=options.max_workers,
                isolation=options.isolation,
                events=self.events,
                contention=self._contention,
                runtime=self,
                forward=self._forwarded,
                budget=self._budget,
            )
            self._runs: Table[int, Entry] = Table()
            self._desk = Desk(self._workers, self._runs, options.max_retained_runs)
            self._offered: dict[str, dict[str, float]] = {}
            self._prepare_cluster()
            self._system = system
            try:
                system.timers.open()
                self._root = system.start(
                    Supervisor(
                        self._children(system.names),
                        SupervisorFlags("one_for_one", options.max_restarts, options.max_seconds),
                        on_restart=self._on_restart,
                        on_give_up=self._on_give_up,
                    ),
                    "supervisor",
                )
                refs = self._refs = {name: system.names.known(name) for name in NAMES}
                self._workers.tracker = refs["resource_tracker"]
                self._workers.on_available(self._on_available)
                self._desk.executor = refs["distributed_executor"]
                self._desk.store = refs["result_store"]
                self.register_local_node(
                    machine_capabilities() if options.capabilities is None else options.capabilities
                )
                if options.listen is not None:
                    self.cluster()
            except BaseException:
                self._close_cluster()
                self._system = None
                system.close(0.1)
                raise
            _running.add(self)
            if "opentelemetry" in sys.modules:
                self._instrument()
        log.info("runtime_started", node=self._name, version=__version__)
        return self

    def _make_budget(self, system: ActorSystem) -> Budget | None:
        """What counts the memory of values, if that is limited."""
        limit = self.options.memory_bytes
        if limit is None:
            return None
        from handoff_actors.results.budget import Budget

        directory = self.options.spill_directory
        return Budget(
            limit,
            None if directory is None else os.fspath(directory),
            system.carriers.submit,
            self.events,
            log.bind(node=self._name),
        )

    def _instrument(self) -> None:
        """Tell OpenTelemetry, which the program has imported, how it goes."""
        try:
            from handoff_actors.telemetry import Telemetry

            self.telemetry = Telemetry(cast("Any", self))
        except Exception as error:
            # Another version of its API, or a provider that raises: work comes first.
            log.warning("telemetry_failed", node=self._name, error=describe(error))

    def _children(self, names: Names) -> list[ChildSpec]:
        """What the tree is of; a child finds those before it by ``names``, as long as it is."""
        options = self.options
        restarts, seconds = options.max_restarts, options.max_seconds
        store_table: Table[Any, Any] = Table()
        tracker_table: Table[Any, Any] = Table()
        location_table: Table[Any, Any] = Table()
        flags = SupervisorFlags("one_for_one", restarts, seconds)

        def spec(name: str, start: Callable[[], Actor], **more: Any) -> ChildSpec:
            return ChildSpec(name, start, name=name, **more)

        supervisor = {"type": "supervisor", "shutdown": options.shutdown_timeout + 1.0}
        return [
            spec("result_store", lambda: ResultStore(store_table, self._desk.runs)),
            spec(
                "resource_tracker",
                lambda: ResourceTracker(
                    tracker_table, contention=self._contention, tracker=options.resource_tracker
                ),
            ),
            spec("data_location_registry", lambda: DataLocationRegistry(location_table)),
            spec(
                "worker_supervisor",
                lambda: WorkerSupervisor(self._workers, options.shutdown_timeout),
                **supervisor,
            ),
            spec(
                "execution_supervisor",
                lambda: DynamicSupervisor(flags, on_restart=self._on_restart),
                **supervisor,
            ),
            spec(
                "pipeline_supervisor",
                lambda: DynamicSupervisor(flags, on_restart=self._on_restart),
                **supervisor,
            ),
            spec(
                "distributed_executor",
                lambda: DistributedExecutor(
                    self._desk, names.known("execution_supervisor"), restarts, seconds
                ),
            ),
            spec(
                "distributed_result_store",
                lambda: DistributedResultStore(
                    self._name,
                    names.known("result_store"),
                    names.known("data_location_registry"),
                ),
            ),
        ]

    def stop(self) -> None:
        """Cancel what runs and end everything, in order. Idempotent, also before ``start()``.

        Code that is still running gets ``shutdown_timeout`` seconds; a thread that does not end
        then is abandoned (a daemon, named in the log), a process is killed.
        """
        with self._lock:
            system, self._system = self._system, None
            if system is None:
                return
            _running.discard(self)
            self.telemetry = None
            if self._hub is not None:
                self._hub.close()
                self._hub = self._far = None
            deadline = time.monotonic() + self.options.shutdown_timeout
            self._settle_runs(stopped_error)
            for line in list(self.pipelines.values()):
                line.stop("was stopped with its runtime")
            if not self._contains_current_thread(system):
                self.events.flush(0.2)
            self._close_cluster()
            root = self._root.incarnation
            if root is not None and root.exit(Exit.SHUTDOWN):
                root.ended.wait(self.options.shutdown_timeout + 3.0)
            # Some may have been admitted while the tree was going down.
            self._settle_runs(stopped_error)
            for line in list(self.pipelines.values()):
                line.bury(line.error())
            abandoned = system.close(max(0.2, deadline - time.monotonic()))
            self._runs = Table()
            held = self._desk.disband()
            if self._budget is not None:
                self._budget.close(held, FREED)
            self.events.close()
        if abandoned:
            log.warning("threads_abandoned", node=self._name, threads=abandoned)
        log.info("runtime_stopped", node=self._name)

    @staticmethod
    def _contains_current_thread(system: ActorSystem) -> bool:
        return system.carriers.carries_current_thread()

    def _settle_runs(self, error: Callable[[Hashable], BaseException]) -> None:
        """Answer every run that has no answer yet."""
        for entry in list(self._runs.view.values()):
            if entry.run is not None:
                entry.data.stopping = True
                entry.run.settle(None, error(entry.data.dag_id))

    def _forget(self) -> None:
        """After a fork: be as if never started."""
        self._lock = threading.RLock()
        self._system = None
        self.events = EventBus()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether it is started, and its tree has not given up."""
        return self._system is not None and self._failure is None

    def _on_restart(self, name: str, reason: Reason) -> None:
        self._restarts[name] = self._restarts.get(name, 0) + 1
        log.warning("actor_restarted", node=self._name, actor=name, reason=reason_text(reason))
        self.events.publish(ActorCrashed(name=name, reason=reason_text(reason), restarted=True))

    def _on_give_up(self, cause: Reason) -> Reason:
        error = RuntimeFailedError(
            f"the runtime {self._name} gave up: its actors crashed more than "
            f"{self.options.max_restarts} times in {self.options.max_seconds} s, first of "
            f"{reason_text(cause)}; stop() it and start() again",
            cause=cause if isinstance(cause, BaseException) else None,
        )
        if isinstance(cause, BaseException):
            error.__cause__ = cause
        self._failure = error
        self._settle_runs(lambda _dag_id: error)
        for line in list(self.pipelines.values()):
            line.bury(error)
        log.error("runtime_failed", node=self._name, reason=str(error))
        self.events.publish(RuntimeFailed(reason=str(error)))
        if self.options.on_failure is not None:
            callback = self.options.on_failure
            threading.Thread(
                target=lambda: self._tell_failure(callback, error),
                name="handoff-failure",
                daemon=True,
            ).start()
        return error

    @staticmethod
    def _tell_failure(
        callback: Callable[[BaseException], object], error: RuntimeFailedError
    ) -> None:
        try:
            callback(error)
        except Exception as raised:
            log.error("on_failure_raised", error=describe(raised), exc_info=raised)

    @property
    def name(self) -> str:
        """What its node is or will be called; ``node()`` says so while it runs."""
        return self._name

    def _must_run(self) -> None:
        if self._system is None:
            raise NotStartedError(
                f"runtime {self._name} is not running: call start() first (in a forked child too)"
            )

    def _ref(self, name: str) -> Ref:
        self._must_run()
        if self._failure is not None:
            raise self._failure
        return self._refs[name]

    @abc.abstractmethod
    def _prepare_cluster(self) -> None:
        """Check whether and how it may listen; part of the start."""

    @abc.abstractmethod
    def cluster(self) -> Any:
        """This node among the others; opens its gateway if it is not open."""

    @abc.abstractmethod
    def _close_cluster(self) -> None:
        """Leave all other nodes, and end those it started; part of the end."""

    @abc.abstractmethod
    def register_local_node(self, capabilities: Mapping[str, float]) -> None:
        """Say what this node offers; part of the start."""

    @abc.abstractmethod
    def _forwarded(self, name: str, arguments: Any, submitted: Submitted | None) -> Any:
        """Carry out what code in a worker process asked for."""

    def _on_available(self, data: RunData, indices: Sequence[int]) -> None:
        ids = tuple(data.plan.ids[i] for i in indices)
        self._refs["result_store"].cast(Available(data, ids))

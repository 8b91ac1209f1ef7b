"""All the workers of a runtime, and what they need of it: a plain object that outlives every actor.

The worker supervisor looks after it; runners make their queues here. It knows where the tracker
is, so that queues and lanes ask for claims and give them back in one place.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.system import ActorSystem
from handoff_actors.events import EventBus, Log, log
from handoff_actors.execution.crew import Lane
from handoff_actors.execution.queues import Queue
from handoff_actors.execution.run_data import RunData
from handoff_actors.execution.run_state import find_links
from handoff_actors.execution.workers.permits import Permits, Unlimited
from handoff_actors.execution.workers.process_lane import ProcessLane
from handoff_actors.execution.workers.processes import Forward, Processes
from handoff_actors.execution.workers.thread import ThreadLane
from handoff_actors.graph.plan import LaneClass
from handoff_actors.resources.claims import Claim, Release, Resume, Suspend
from handoff_actors.resources.tracker import Contention, Want

if TYPE_CHECKING:
    from handoff_actors.checkpoint.keeper import Keeper
    from handoff_actors.execution.workers.coroutine import CoroutineWorker
    from handoff_actors.resources.capabilities import NodeCapacity
    from handoff_actors.results.budget import Budget


def usable_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0))


class Workers:
    """See the module.

    Args:
        system: whose carriers run the thread lanes.
        node: this node's name.
        max_workers: of each kind; None is max(32, cores) threads and as many processes as cores.
        isolation: of functions that do not say.
        events: where workers tell what happens to them.
        tracker: where claims come from.
        contention: what the tracker publishes about who waits.
        store: where results are waited for.
        runtime: the runtime, for code that calls it from inside functions.
        forward: carries out what code in a worker process asks of the runtime.
        budget: of the memory for values, if it is limited.
    """

    def __init__(
        self,
        system: ActorSystem,
        node: str,
        *,
        max_workers: int | None,
        isolation: str,
        events: EventBus,
        contention: Contention,
        runtime: Any,
        forward: Forward,
        budget: Budget | None = None,
    ) -> None:
        self.system = system
        self.node = node
        self.isolation = isolation
        self.cores = usable_cores()
        self.carriers = system.carriers
        self.timers = system.timers
        self.events = events
        self.log: Log = log.bind(node=node)
        self.thread_permits = Permits(max_workers or max(32, self.cores))
        self.process_permits = Permits(max_workers or self.cores)
        self.coroutine_permits = Unlimited()
        self.budget = budget
        self.processes = Processes(self, max_workers or self.cores, forward)
        self._coroutines: CoroutineWorker | None = None
        self._closed = False
        self.abandoned: set[ThreadLane] = set()
        self.keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()
        self.tracker: Ref | None = None
        self.store: Ref | None = None
        self._contention = contention
        self._lock = threading.Lock()
        self._runtime = weakref.ref(runtime)
        self._available: Callable[[RunData, list[int]], None] | None = None

    def runtime(self) -> Any:
        """The runtime these workers belong to."""
        return self._runtime()

    @property
    def coroutines(self) -> CoroutineWorker:
        """The event loop, made when first needed."""
        from handoff_actors.execution.workers.coroutine import CoroutineWorker

        with self._lock:
            if self._coroutines is None:
                self._coroutines = CoroutineWorker(self.system.name, self._closed)
            return self._coroutines

    # Queues of a run.

    def queues(self, data: RunData) -> list[Queue]:
        """The queues of a new run, one for each class of its plan; sets its links too."""
        queues: list[Queue] = []
        eligible: list[bool] = []
        for number, kind in enumerate(data.plan.classes):
            isolation = kind.isolation or data.options.isolation
            plain = not (kind.is_async or kind.timed or kind.stateful)
            eligible.append(isolation == "thread" and plain)
            queues.append(self._queue(data, number, kind, isolation))
        data.links = find_links(data.plan, eligible) if any(eligible) else None
        return queues

    def _queue(self, data: RunData, number: int, kind: LaneClass, isolation: str) -> Queue:
        if isolation == "process":
            return Queue(data, number, kind, self, self._process_lane, self.process_permits)
        if kind.is_async:
            # asyncio costs import time that only those who use it should pay.
            from handoff_actors.execution.workers.coroutine import CoroutineQueue

            return CoroutineQueue(data, number, kind, self)
        return Queue(data, number, kind, self, self._thread_lane, self.thread_permits)

    def _thread_lane(self, queue: Queue, claim: Claim | None) -> Lane:
        return ThreadLane(queue, claim, self)

    def _process_lane(self, queue: Queue, claim: Claim | None) -> Lane:
        return ProcessLane(queue, claim, self)

    # Claims.

    def want(self, queue: Queue, count: int) -> None:
        """Ask for so many claims of the queue's cost, those held included."""
        data = queue.data
        assert self.tracker is not None
        assert data.ref is not None
        assert queue.kind.cost is not None
        self.tracker.cast(
            Want(data.key, queue.number, self.node, queue.kind.cost, count, data.ref), follow=True
        )

    def release(self, claim: Claim) -> None:
        """Give a claim back."""
        assert self.tracker is not None
        self.tracker.cast(Release(claim.id), follow=True)

    def suspend(self, claim: Claim) -> None:
        """Lend a claim's resources to others."""
        assert self.tracker is not None
        self.tracker.cast(Suspend(claim.id))

    def resume(self, claim: Claim) -> None:
        """Get a lent claim's resources back; blocks until they are there."""
        assert self.tracker is not None
        self.tracker.call(Resume(claim.id), timeout=None)

    def claims_contended(self, owner: int) -> bool:
        """Whether a run other than ``owner`` waits for resources of this node."""
        return self._contention.waits_besides(self.node, owner)

    def capacities(self) -> Mapping[str, NodeCapacity]:
        """What this node offers and has free, for allocators."""
        runtime = self.runtime()
        return runtime.capacities() if runtime is not None else {}

    # For runners.

    def available(self, data: RunData, indices: list[int]) -> None:
        """Values somebody waits for in the result store have come."""
        if self._available is not None:
            self._available(data, indices)

    def on_available(self, callback: Callable[[RunData, list[int]], None]) -> None:
        """Who is told of values that are waited for."""
        self._available = callback

    # For the supervisor and status().

    def describe(self) -> dict[str, Any]:
        """Counts for ``status()``."""
        return {
            "threads": {"busy": self.thread_permits.in_use, "limit": self.thread_permits.limit},
            "processes": self.processes.describe(),
            "coroutines": 0 if self._coroutines is None else self._coroutines.in_flight,
            "abandoned_threads": [
                {"dag_id": lane.queue.data.dag_id, "function_id": lane.context().function_id}
                for lane in list(self.abandoned)
            ],
        }

    def close(self, timeout: float) -> None:
        """End processes and the event loop; threads end with the system's carriers."""
        with self._lock:
            self._closed = True
            loop = self._coroutines
        closing = None
        if loop is not None:
            closing = threading.Thread(target=loop.close, args=(timeout,), daemon=True)
            closing.start()
        self.processes.close(timeout)
        for keeper in list(self.keepers):
            keeper.join(timeout)
        if closing is not None:
            closing.join(timeout)

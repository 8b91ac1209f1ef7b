"""The worker processes of a runtime, as its lanes see them: one pool, made when first needed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol, cast

from handoff_actors.errors import CrashedAttempt, HandoffError
from handoff_actors.events import WorkerLost, WorkerStarted
from handoff_actors.execution.run_data import RunData
from handoff_actors.execution.workers.exits import WorkerLost as WorkerGone
from handoff_actors.graph.calls import Call, values_taken
from handoff_actors.graph.plan import Plan

if TYPE_CHECKING:
    from handoff_actors.execution.run import Run
    from handoff_actors.execution.workers.process import ProcessPool, ProcessWorker
    from handoff_actors.execution.workers.process_lane import ProcessLane
    from handoff_actors.execution.workers.roster import Workers

Submitted = Callable[["Run"], object]
Forward = Callable[[str, Any, Submitted | None], Any]


class Lender(Protocol):
    """Whom a worker process serves: when its code waits for other functions, this lends."""

    def lend(self) -> Any:
        """What it holds is others' meanwhile."""

    def reclaim(self, loan: Any) -> None:
        """The wait is over; blocks until it has it again."""

    def work(self) -> tuple[Hashable, tuple[Hashable, ...]]:
        """The run or pipeline it works for, and the functions that the process has."""


_PLAIN = frozenset({int, float, str, bytes, bool, type(None)})
"""What always crosses."""


class Processes:
    """See the module.

    Args:
        workers: the roster this belongs to.
        limit: how many processes at most.
        forward: carries out what code in a worker asks of the runtime: name, ``(args, kwargs)``,
            and who is told of a run that it submits.
    """

    def __init__(self, workers: Workers, limit: int, forward: Forward) -> None:
        self._workers = workers
        self._limit = limit
        self._forward = forward
        self._lock = threading.Lock()
        self._pool: ProcessPool | None = None
        self._closed = False
        self._keys = count(1)
        self.lanes: dict[int, Lender] = {}
        self._taught: dict[int, tuple[int, list[int]]] = {}

    def pool(self) -> ProcessPool:
        """The pool of processes.

        Raises:
            HandoffError: they were stopped.
        """
        with self._lock:
            if self._closed:
                raise HandoffError("the worker processes were stopped with their runtime")
            if self._pool is None:
                from handoff_actors.execution.workers.process import ProcessPool

                self._pool = ProcessPool(
                    self._workers.system.name,
                    self._workers.node,
                    self._limit,
                    self._requested,
                    self._started,
                    self._lost,
                )
            return self._pool

    def _started(self, pid: int) -> None:
        self._workers.log.info("worker_started", pid=pid)
        self._workers.events.publish(WorkerStarted(node=self._workers.node, pid=pid))

    def _lost(self, crash: CrashedAttempt) -> None:
        self._workers.log.warning("worker_lost", pid=crash.pid, reason=crash.reason)
        self._workers.events.publish(
            WorkerLost(node=crash.node, pid=crash.pid, reason=crash.reason)
        )

    def _requested(
        self,
        worker: ProcessWorker,
        token: int,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Code in a worker calls the library: what it holds is lent while it waits."""
        lane = self.lanes.get(worker.pid)
        loan = None if lane is None else lane.lend()
        try:
            submitted = getattr(lane, "submitted", None)
            return self._forward(
                name, (args, kwargs), None if submitted is None else partial(submitted, token)
            )
        finally:
            if lane is not None:
                lane.reclaim(loan)

    def check(self, plan: Plan, isolation: str, dag_id: Hashable) -> None:
        """Refuse a plan with code that has to run in a process and cannot be sent there.

        Raises:
            SerializationError: names the function, and what of its code it is.
        """
        wanted: list[int] = []
        for number, kind in enumerate(plan.classes):
            if (kind.isolation or isolation) == "process":
                wanted.append(number)
        if not wanted:
            return
        from handoff_actors.execution.workers.process import check_call

        checked: set[int] = set()
        for i in range(plan.n):
            if plan.class_of[i] in wanted:
                code = plan.codes[i]
                call = plan.calls.get(i)
                if call is None or _is_positional(call):
                    extra = () if call is None else call.extra_args
                    if id(code) in checked and _PLAIN.issuperset(map(type, extra)):
                        continue
                    checked.add(id(code))
                    call = Call(plan.ids[i], code, (), extra)
                check_call(call, dag_id)

    def begin(self, worker: ProcessWorker, lane: ProcessLane) -> None:
        """The worker serves this lane from now on; it forgets the code of another run."""
        self.lanes[worker.pid] = lane
        run = lane.queue.data.key
        before, keys = self._taught.get(worker.pid, (run, []))
        if before != run:
            worker.forget(keys)
            keys = []
        self._taught[worker.pid] = (run, keys)

    def adopt(self, worker: ProcessWorker, lender: Lender) -> None:
        """The worker serves something that is no lane of a run; it forgets the code of runs."""
        self.lanes[worker.pid] = lender
        _, keys = self._taught.pop(worker.pid, (0, []))
        worker.forget(keys)

    @contextlib.contextmanager
    def taught(self, worker: ProcessWorker, call: Call) -> Iterator[int]:
        """Teach the worker a call for as long as the context lasts; yields its number.

        Raises:
            SerializationError: the code cannot be sent.
            WorkerLost: the process is dead.
        """
        key = next(self._keys)
        worker.teach(key, call)
        try:
            yield key
        finally:
            if worker.reusable:
                with contextlib.suppress(WorkerGone):
                    worker.forget([key])

    def end(self, worker: ProcessWorker) -> None:
        """The worker serves its lane no more."""
        self.lanes.pop(worker.pid, None)
        if not worker.alive:
            self._taught.pop(worker.pid, None)

    def teach(self, worker: ProcessWorker, data: RunData, i: int) -> int:
        """Make sure that the worker knows the code of function ``i``; returns its number.

        Raises:
            SerializationError: the code cannot be sent.
        """
        key, call = self._key(data, i)
        if not worker.knows(key):
            worker.teach(key, call)
            self._taught[worker.pid][1].append(key)
        return key

    def _key(self, data: RunData, i: int) -> tuple[int, Call]:
        """The number under which workers know the code of function ``i``.

        Functions of the same code that differ only in the values of their positional arguments
        share one, so that a worker learns it once.

        Returns:
            The number, and what to teach a worker that does not know it.
        """
        plan = data.plan
        plain = plan.plain[i]
        call = None if plain is not None else plan.calls[i]
        positional = call is None or _is_positional(call)
        count = len(plain) if plain is not None else len(plan.functions[i].args)
        extra = 0 if call is None else len(call.extra_args)
        mark: Any = (id(plan.codes[i]), count + extra, plan.class_of[i]) if positional else i
        known = data.code_keys.get(mark)
        if known is None:
            taught = plan.call(i)
            if positional:
                sources = tuple(range(count + extra))
                taught = Call(taught.id, taught.code, sources, is_async=taught.is_async)
            known = data.code_keys[mark] = (next(self._keys), taught)
        return known

    def values(self, data: RunData, i: int) -> tuple[Any, ...] | dict[int, Any]:
        """The values function ``i`` needs, in the order or under the indices of its taught call."""
        plan, values = data.plan, data.values
        plain = plan.plain[i]
        if plain is not None:
            return tuple([values[d] for d in plain])
        call = plan.calls[i]
        if _is_positional(call):
            args = [values[cast("int", source)] for source in call.sources]
            return (*args, *call.extra_args)
        return {d: values[d] for d in values_taken(call)}

    def victims(self) -> list[tuple[int, Hashable, tuple[Hashable, ...]]]:
        """Processes that are ready, those at work first: pid, and the run and functions it has."""
        pool = self._pool
        ready = set() if pool is None else pool.ready()
        busy = []
        for pid, lane in list(self.lanes.items()):
            dag_id, ids = lane.work()
            if pid in ready and ids:
                busy.append((pid, dag_id, ids))
        idle = ready.difference(pid for pid, *_ in busy)
        return busy + [(pid, None, ()) for pid in sorted(idle)]

    def describe(self) -> dict[str, Any]:
        """Counts for ``status()``."""
        pool = self._pool
        busy = self._workers.process_permits.in_use
        return {"busy": busy, "limit": self._limit, **({} if pool is None else pool.describe())}

    def close(self, timeout: float) -> None:
        """End all of them."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close(timeout)


def _is_positional(call: Call) -> bool:
    """Whether all there is to the call are positional arguments that are there before it."""
    return not (
        call.extra_kwargs or call.as_list or call.init is not None or call.batching
    ) and all(source.__class__ is int for source in call.sources)

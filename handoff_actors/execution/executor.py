"""DistributedExecutor: the front desk. It admits runs, starts their runners, keeps the finished.

It keeps no replies: whoever waits holds the ``Run``, and the table holds it too while the run goes
on. ``finish`` answers a run, whoever calls it and however often: the state of the future is the
guard of exactly one answer.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.reasons import Reason
from handoff_actors.actors.server import Actor
from handoff_actors.actors.table import Table
from handoff_actors.errors import (
    AlreadyRunningError,
    HandoffError,
)
from handoff_actors.events import RunFinished, RunStarted
from handoff_actors.execution.failures import stopped_error
from handoff_actors.execution.result import ExecutionResult
from handoff_actors.execution.run import Run
from handoff_actors.execution.run_data import RunData
from handoff_actors.execution.starting import Starter
from handoff_actors.execution.workers.roster import Workers
from handoff_actors.results.store import Begin, Ended, Runs

_SWEEP = 0.005
"""Seconds until what is left of runs that have ended is seen to, many at once."""
_LOOK_AGAIN = 0.5
"""Seconds between looks at results that keep more runs than ``max_retained_runs``."""


class Admit(NamedTuple):
    """Run this; raises AlreadyRunningError.

    With ``here``, whoever asks runs it and will call ``Desk.finish``.
    """

    data: RunData
    run: Run
    here: bool = False

    def undelivered(self, reason: Reason) -> None:
        """There is no executor any more."""
        error = reason if isinstance(reason, HandoffError) else stopped_error(self.data.dag_id)
        self.run.settle(None, error)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Runs have had their answers since the last time."""


@dataclass(frozen=True, slots=True)
class Prune:
    """See whether results that kept their runs are still in use."""


@dataclass(frozen=True, slots=True)
class Release:
    """Forget a finished run and its values."""

    key: int


@dataclass(frozen=True, slots=True)
class Discard:
    """Forget the newest run of this DAG; raises AlreadyRunningError."""

    dag_id: Hashable


class Entry(NamedTuple):
    """What the table has of a run: ``run`` only while it goes on; ``here`` as in ``Admit``."""

    data: RunData
    run: Run | None
    here: bool = False


class Desk:
    """What the executor shares with the runs themselves, and with no other actor.

    Args:
        workers: the runtime's.
        table: of runs by key; outlives the executor.
        max_retained: how many finished runs are kept, besides those whose result is in use.
    """

    def __init__(self, workers: Workers, table: Table[int, Entry], max_retained: int) -> None:
        self.workers = workers
        self.table = table
        self.max_retained = max_retained
        self.ended: deque[int] = deque()
        self.sweeping = False
        self.released: SimpleQueue[int] = SimpleQueue()
        self.results: dict[int, weakref.ref[ExecutionResult]] = {}
        self.executor: Ref | None = None
        self.store: Ref | None = None
        self.runs = Runs()

    def finish(self, data: RunData) -> None:
        """Answer the run; called by its runner when it has its outcome.

        A run with a checkpoint has its answer once all is in the file.
        """
        if data.checkpoint is None or not data.checkpoint.close(lambda: self._tell(data)):
            self._tell(data)

    def _tell(self, data: RunData) -> None:
        entry = self.table.view.get(data.key)
        run = entry.run if entry is not None else None
        events = self.workers.events
        if events.active:
            error = None if data.error is None else str(data.error)
            events.publish(RunFinished(dag_id=data.dag_id, state=data.state, error=error))
        if data.watched and self.store is not None:
            self.store.cast(Ended(data), follow=True)
        for listener in data.listeners:
            listener.put(None)
        data.listeners = ()
        if run is not None:
            self.answer(data, run)
        self.leave(data.key)

    def leave(self, key: int) -> None:
        """The run has its answer; what is left to do for it can wait for a moment."""
        self.ended.append(key)
        if not self.sweeping:
            self.sweeping = True
            self.workers.timers.call_later(_SWEEP, self._sweep)

    def settle(self) -> None:
        """See to it that what is retained is no more than it may be, for who asks for it now."""
        if self.ended and self.executor is not None and len(self.table.view) > self.max_retained:
            self.executor.call(Sweep())

    def _sweep(self) -> None:
        self.sweeping = False
        if self.executor is not None:
            self.executor.cast(Sweep())

    def answer(self, data: RunData, run: Run) -> None:
        """Give the run's future its result or error."""
        if data.error is not None:
            run.settle(None, data.error)
            return
        result = ExecutionResult(data, self._release)
        key, released = data.key, self.released
        # A finalizer may run anywhere: it does nothing but put a name on a queue.
        self.results[key] = weakref.ref(result, lambda _: released.put(key))
        run.settle(result, None)

    def disband(self) -> list[tuple[ExecutionResult, list[Any]]]:
        """Forget all runs: the runtime has ended.

        Returns:
            The results that somebody holds, and the values that can be read by them.
        """
        entries, self.table = self.table.view, Table()
        self.runs.newest.clear()
        lists = {key: entry.data.values for key, entry in entries.items()}
        for data in [entry.data for entry in entries.values() if entry.data.over]:
            data.close()
        del entries  # as long as it is there, it holds results too
        found = [(key, result()) for key, result in list(self.results.items())]
        return [(r, lists[key]) for key, r in found if r is not None and key in lists]

    def _release(self, data: RunData) -> None:
        data.release()
        if self.executor is not None:
            self.executor.cast(Release(data.key))

    def fail(self, data: RunData, error: BaseException) -> None:
        """The run can go on no more, whatever its runner was about to do."""
        if data.state == "running":
            data.state, data.error, data.stopping = "failed", error, True
            for queue in data.queues:
                queue.stop()
        self.finish(data)


class DistributedExecutor(Actor):
    """See the module.

    Args:
        desk: what it shares with the runs.
        supervisor: of the runners: a ``DynamicSupervisor``.
        max_restarts: how often a runner may crash within ``max_seconds``.
        max_seconds: seconds.
    """

    def __init__(self, desk: Desk, supervisor: Ref, max_restarts: int, max_seconds: float) -> None:
        self.desk = desk
        self.supervisor = supervisor
        self.max_restarts = max_restarts
        self.max_seconds = max_seconds

    def init(self) -> None:
        """Index the runs that the table has."""
        self.view: Mapping[int, Entry] = self.take(self.desk.table)
        self.starter = Starter(self.desk, self.system, self.supervisor, self.max_restarts)
        self.newest = self.desk.runs.newest
        self.retained: OrderedDict[int, None] = OrderedDict()
        self.held: set[int] = set()
        self.looking = False
        for key in sorted(self.view):
            entry = self.view[key]
            self.newest[entry.data.dag_id] = entry.data
            if entry.run is None:
                self.retained[key] = None
            elif entry.run.done() and entry.data.over:
                self.desk.leave(key)
            else:
                # The one before may have died between admitting it and telling of it.
                self._tell_store(entry.data)
                if not entry.data.begun and not entry.here:
                    self.starter.begin(entry.data, self._free_name(entry.data))
        if len(self.retained) > self.desk.max_retained:
            # The one before may have died before it came to them, or knew who holds them.
            self.ref.cast(Prune())

    def handle(self, message: Any) -> Any:
        """See the messages."""
        if isinstance(message, Admit):
            return self._admit(message)
        if isinstance(message, Sweep):
            return self._sweep()
        if isinstance(message, Prune):
            self.looking = False
            return self._prune()
        if isinstance(message, Release):
            return self._forget(message.key)
        if isinstance(message, Discard):
            return self._discard(message.dag_id)
        return super().handle(message)

    def _running(self, dag_id: Hashable) -> bool:
        newest = self.newest.get(dag_id)
        entry = None if newest is None else self.view.get(newest.key)
        return entry is not None and entry.run is not None and not entry.run.done()

    def _admit(self, message: Admit) -> None:
        data, run = message.data, message.run
        if self._running(data.dag_id):
            error = AlreadyRunningError(
                f"DAG {data.dag_id!r} is running: wait for it, cancel it, or run this one under "
                "another dag_id=",
                dag_id=data.dag_id,
            )
            if self.asker() is None:
                run.settle(None, error)
                data.leave_nodes()
                return
            raise error
        self.commit({data.key: Entry(data, run, message.here)})
        self.newest[data.dag_id] = data
        desk = self.desk
        self._tell_store(data)
        if desk.workers.events.active:
            desk.workers.events.publish(RunStarted(dag_id=data.dag_id, functions=data.plan.n))
        if not message.here:
            self.starter.begin(data, self._free_name(data))

    def _tell_store(self, data: RunData) -> None:
        """If somebody waits for a value of this DAG, it is this run's."""
        if data.dag_id in self.desk.runs.awaited and self.desk.store is not None:
            self.desk.store.cast(Begin(data))

    def _free_name(self, data: RunData) -> str:
        """The name of the run's runner.

        An earlier run of the same DAG that was cancelled and is just ending gives its name up; that
        of another DAG whose id reads the same, as 1 and "1" do, keeps it.
        """
        names = self.system.names
        holder = names.whereis(data.name)
        if holder is None or holder is data.ref:
            return data.name
        for entry in self.view.values():
            if entry.data.ref is holder and entry.run is not None and entry.run.done():
                names.unregister(holder)
                return data.name
        return f"{data.name}#{data.key}"

    def _sweep(self) -> None:
        """See to the runs that have ended."""
        ended = self.desk.ended
        entries: dict[int, Entry] = {}
        while ended:
            key = ended.popleft()
            entry = self.view.get(key)
            if entry is not None:
                entry.data.close()
                entries[key] = Entry(entry.data, None)
        self.commit(entries)
        self.retained.update(dict.fromkeys(entries))
        self._prune()

    def _prune(self) -> None:
        """Release the oldest finished runs beyond the limit whose results nobody holds."""
        desk = self.desk
        results = desk.results
        while True:
            try:
                key = desk.released.get_nowait()
            except Empty:
                break
            results.pop(key, None)
            if key in self.held:
                self.held.discard(key)
                self._forget(key)
        while len(self.retained) > desk.max_retained:
            key, _ = self.retained.popitem(last=False)
            result = results.get(key)
            if result is None or result() is None:
                self._forget(key)
            else:
                self.held.add(key)
        if self.held and not self.looking:
            self.looking = True
            self.system.timers.send_after(_LOOK_AGAIN, self.ref, Prune())

    def _forget(self, key: int) -> None:
        entry = self.view.get(key)
        if entry is None or (entry.run is not None and not entry.run.done()):
            return
        self.commit(deletions=[key])
        entry.data.leave_nodes()
        self.retained.pop(key, None)
        self.held.discard(key)
        self.desk.results.pop(key, None)
        if self.newest.get(entry.data.dag_id) is entry.data:
            del self.newest[entry.data.dag_id]

    def _discard(self, dag_id: Hashable) -> None:
        if self._running(dag_id):
            raise AlreadyRunningError(
                f"DAG {dag_id!r} is running: its values cannot be cleared before it ends",
                dag_id=dag_id,
            )
        newest = self.newest.get(dag_id)
        if newest is not None:
            data = self.view[newest.key].data
            self._forget(newest.key)
            data.release()

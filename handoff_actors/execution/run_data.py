"""What of a run outlives its runner: values, outcomes not yet looked at, queues and their workers.

The runner (an actor that may crash and be restarted) is the only one that commits values; workers
put what happened into ``done`` and ``reports`` and signal it. An entry leaves those queues only
after the commit, so a runner that dies half-way through a step forgets nothing.
"""

from __future__ import annotations

import contextvars
import threading
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.reasons import Exit
from handoff_actors.actors.timers import Timer
from handoff_actors.errors import ValueNotFoundError
from handoff_actors.execution.run_state import History
from handoff_actors.execution.trail import Trail
from handoff_actors.graph.function import Function
from handoff_actors.graph.plan import Plan
from handoff_actors.results.elsewhere import Elsewhere, Placeholder, Unread

if TYPE_CHECKING:
    from handoff_actors.checkpoint.keeper import Keeper
    from handoff_actors.execution.nodes.abroad import Abroad
    from handoff_actors.execution.queues import Queue
    from handoff_actors.execution.run import Run
    from handoff_actors.execution.solo import Solo
    from handoff_actors.results.budget import Budget


class _Absent(Placeholder):
    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def __reduce__(self) -> str:
        return self._name  # there is one of each


MISSING: Final = _Absent("MISSING")
"""There is no value yet."""
FREED: Final = _Absent("FREED")
"""There was a value that nobody needed any more."""


@dataclass(frozen=True, slots=True)
class Distant(Unread):
    """A value of a run that whoever asked for it has to read, on a thread that may wait."""

    data: RunData
    index: int

    @property
    def is_here(self) -> bool:
        """Whether reading it takes no other node."""
        value = self.data.peek(self.index)
        return not isinstance(value, Elsewhere) or value.is_here

    def read(self) -> Any:
        """The value.

        Raises:
            ValueNotFoundError: it was freed meanwhile.
        """
        value = self.data.read(self.index)
        if value is FREED:
            id_ = self.data.plan.ids[self.index]
            raise ValueNotFoundError(
                f"value {id_!r} of DAG {self.data.dag_id!r} was freed when its last consumer had "
                "ended: name it in keep=",
                dag_id=self.data.dag_id,
                value_id=id_,
            )
        return value


_NO_TIME: Final = array("d", [0.0])
_NO_ATTEMPT: Final = array("I", [0])
_NONE: Final[frozenset[int]] = frozenset()
_WORK: Final = frozenset(
    ("done", "reports", "histories", "dispatched", "retrying", "suspects", "code_keys")
)
_beginning: Final = threading.Lock()
_NO_CONTEXT: Final = contextvars.Context()
_NOWHERE: Final[deque[Any]] = deque(maxlen=0)
"""Where workers that end after their run leave what nobody wants."""
_ENDED: Final = Ref(None, "a run that has ended")
_ENDED.close(Exit.NORMAL)


class RunOptions(NamedTuple):
    """How to run a DAG; see ``execute`` for each."""

    max_retries: int = 3
    max_concurrency: int | None = None
    timeout: float | None = None
    keep: str | tuple[Hashable, ...] = "all"
    isolation: str = "thread"
    allocator: Any = None
    ignore_costs: bool = False


class RunData:
    """See the module.

    Attributes:
        key: unique in the runtime; what the runtime knows a run by, as ``dag_id`` comes again.
        values: per value index; ``MISSING`` until committed.
        starts: per function, ``time.perf_counter()`` when it began; 0.0 before.
        ends: the same for its end.
        trail: who ran what, and what was tried in vain.
        functions: those of the DAG, inline ones too; for pictures.
        done: ``(token, value)`` of attempts that returned, not yet committed.
        budget: of the memory for its values, if that is limited.
        reports: other events for the run state, not yet handled.
        histories: of functions that have failed, as committed.
        dispatched: per function the number of the last attempt handed to a queue. Queues and
            workers outlive the runner and lose nothing, so this tells what a dead runner owed.
        links: see ``run_state.find_links``.
        stopping: nobody wants results any more; workers leave.
        watched: indices somebody waits for in the result store.
        suspects: functions that were in a batch when their worker process died: to be run singly.
        code_keys: under which numbers worker processes know the code of functions.
        listeners: queues that get the index of each function as it finishes.
        ref: where it is addressed; messages wait there until somebody reads them.
        begun: whether its functions have been handed to workers, or to a runner that will.
        solo: runs its only function, if there is but one.
        away: what there is beside it when it may use other nodes.
        checkpoint: keeps its results in a file, if it is to.
        restored: some of its functions had finished in an earlier life, by its checkpoint.
    """

    __slots__ = (
        "__weakref__",
        "_working",
        "away",
        "begun",
        "budget",
        "checkpoint",
        "code_keys",
        "context",
        "dag_id",
        "dispatched",
        "done",
        "ends",
        "error",
        "finished",
        "functions",
        "histories",
        "incarnation",
        "key",
        "lanes",
        "links",
        "listeners",
        "lock",
        "name",
        "node",
        "options",
        "plan",
        "queues",
        "ref",
        "reports",
        "restored",
        "retrying",
        "run",
        "solo",
        "starts",
        "state",
        "stopping",
        "submitted",
        "suspects",
        "timer",
        "trail",
        "values",
        "watched",
    )

    done: deque[tuple[int, Any]]
    reports: deque[Any]
    histories: dict[int, History]
    dispatched: array[int]
    retrying: set[int]
    suspects: set[int]
    code_keys: dict[Any, tuple[int, Any]]

    def __init__(
        self,
        key: int,
        dag_id: Hashable,
        plan: Plan,
        inputs: Mapping[Hashable, Any],
        options: RunOptions,
        node: str,
        run: Run,
    ) -> None:
        self.key = key
        self.dag_id = dag_id
        self.name = f"run:{dag_id}"
        self.plan = plan
        self.options = options
        self.node = node
        self.values: list[Any] = [MISSING] * (plan.n + plan.n_inputs)
        for i in range(plan.n, plan.n + plan.n_inputs):
            self.values[i] = inputs[plan.ids[i]]
        self.starts = _NO_TIME * plan.n
        self.ends = _NO_TIME * plan.n
        self.trail = Trail(plan.n)
        self.functions: Mapping[Hashable, Function] | None = None
        self.submitted = 0.0
        self.timer: Timer | None = None
        self.budget: Budget | None = None
        self.links: list[int] | None = None
        self.queues: Sequence[Queue] = ()
        self.lock = threading.Lock()
        self.lanes = 0
        self.finished = 0
        self.stopping = False
        self.state = "running"
        self.error: BaseException | None = None
        self.watched: frozenset[int] = _NONE
        self.listeners: Sequence[SimpleQueue[int | None]] = ()
        self.incarnation = 0
        self.away: Abroad | None = None
        self.checkpoint: Keeper | None = None
        self.restored = False
        self._working = False
        self.ref = Ref(None, self.name)
        self.begun = False
        self.solo: Solo | None = None
        self.run: Callable[[], Run | None] = weakref.ref(run)
        self.context = contextvars.copy_context()

    if not TYPE_CHECKING:  # for it there would be no attribute then that is not there

        def __getattr__(self, name: str) -> Any:
            if name not in _WORK:
                raise AttributeError(f"a RunData has no {name}")
            self._begin_work()
            return object.__getattribute__(self, name)

    def _begin_work(self) -> None:
        """Make what lanes and a runner leave to each other, which many short runs never have."""
        with _beginning:
            if self._working:
                return
            self.done = deque()
            self.reports = deque()
            self.histories = {}
            self.dispatched = _NO_ATTEMPT * self.plan.n
            self.retrying = set()
            self.suspects = set()
            self.code_keys = {}
            self._working = True

    def limit(self, budget: Budget | None) -> None:
        """Have its values count, and go to disk when they are too many; before it begins."""
        if budget is None:
            return
        from handoff_actors.results.budget import Kept

        plan, dag_id = self.plan, self.dag_id

        def name(index: int) -> str:
            what = "result of function" if index < plan.n else "input"
            return f"{what} {plan.ids[index]!r} of DAG {dag_id!r}"

        self.budget = budget
        self.values = Kept(budget, self.values, plan.n, name)

    def peek(self, index: int) -> Any:
        """What is in the place of a value: it, or what stands for it. Never blocks."""
        return list.__getitem__(self.values, index)

    def deliverer(self) -> Callable[[tuple[int, Any]], object]:
        """What a worker calls with ``(token, value)``, on the thread that ran the code."""
        return self.limited(self.done.append)

    def limited(
        self, put: Callable[[tuple[int, Any]], object]
    ) -> Callable[[tuple[int, Any]], object]:
        """``put``, and a thread that makes more values than there may be sees them to disk."""
        budget = self.budget
        if budget is None:
            return put

        def deliver(entry: tuple[int, Any]) -> None:
            put(entry)
            if budget.over:
                # Whoever waits for it need not wait for the disk.
                self.ref.signal()
                budget.relieve()

        return deliver

    def report(self, event: Any) -> None:
        """Leave an event for the runner, and have it looked at on this thread if it can be."""
        self.reports.append(event)
        self.ref.signal()

    def succeeded(self) -> bytearray:
        """Per function whether its value was committed."""
        return bytearray(value is not MISSING for value in self.values[: self.plan.n])

    # For the result store.

    @property
    def over(self) -> bool:
        """Whether no more values will come."""
        return self.state != "running"

    def lookup(self, id_: Hashable) -> tuple[str, Any]:
        """``("there", value)``, or None with why not: coming, freed, never, or unknown."""
        i = self.plan.index.get(id_)
        if i is None:
            return "unknown", None
        value = self.peek(i)
        if value is MISSING:
            return ("never" if self.over else "coming"), None
        if isinstance(value, Elsewhere):
            value = Distant(self, i)
        return ("freed", None) if value is FREED else ("there", value)

    def read(self, index: int) -> Any:
        """A value that is there, on whatever node, or ``FREED``; blocks while it is fetched."""
        value = self.values[index]
        if isinstance(value, Elsewhere):
            self.bring((index,))
            value = self.values[index]
        return value

    def resolve(self, index: int, value: Any) -> Any:
        """A value itself, where ``value`` may say that it is on another node; blocks.

        Raises:
            LookupError: it was freed there.
        """
        if isinstance(value, Elsewhere):
            value = self.read(index)
        if value is FREED or value is MISSING:
            raise LookupError(index)
        return value

    def bring(self, indices: Iterable[int]) -> None:
        """Have values here that are on other nodes, many at once; blocks.

        Raises:
            Exception: why the first of those that cannot be had cannot.
        """
        places = ((i, self.peek(i)) for i in indices)
        distant = [i for i, v in places if isinstance(v, Elsewhere) and not v.on_disk]
        if distant and self.away is not None:
            self.away.bring(distant)

    def made_at(self, id_: Hashable) -> str | None:
        """The node that made a value, if it is there."""
        if self.lookup(id_)[0] != "there":
            return None
        index = self.plan.index[id_]
        return self.node if self.away is None else self.away.made.get(index, self.node)

    def watch(self, id_: Hashable) -> None:
        """Have the runner tell the store when this value comes."""
        if not self.over:
            self.watched |= {self.plan.index.get(id_, -1)}

    def close(self) -> None:
        """The run has its answer: keep the values and drop what was needed to make them.

        Hundreds of finished runs are retained, and the garbage collector walks them all.
        """
        self.queues = ()
        self.context = _NO_CONTEXT
        self.done = self.reports = _NOWHERE
        self.retrying = self.suspects = set()
        self.watched = _NONE
        self.code_keys = {}
        self.links = self.solo = None
        self.checkpoint = None
        self.ref = _ENDED
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def release(self) -> None:
        """Forget all values; nobody may read them any more."""
        self.values = [FREED] * len(self.values)
        self.leave_nodes()

    def leave_nodes(self) -> None:
        """What other nodes have of it is wanted no more."""
        if self.away is not None:
            self.away.release()

    def __repr__(self) -> str:
        return (
            f"<RunData {self.key} of {self.dag_id!r}: {self.finished}/{self.plan.n} {self.state}>"
        )

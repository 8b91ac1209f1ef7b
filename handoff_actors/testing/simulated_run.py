"""One run in a ``SimulatedCluster``: the library's own run state, and where its values are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from handoff_actors.execution.lossy_state import LossyState
from handoff_actors.execution.run_state import keep_mask
from handoff_actors.graph.dag import DAG
from handoff_actors.graph.plan import Plan
from handoff_actors.resources.node_index import Cost, cost_key

_MODULUS = 1_000_003

Seconds = float | Mapping[Hashable, float] | Callable[[Hashable], float]
Bytes = int | Mapping[Hashable, int] | Callable[[Hashable], int]


class SimulatedRun:
    """See the module.

    Args:
        number: of the run.
        dag: what it runs; of its code only the shape is looked at.
        seconds: how long each function takes: one number, a mapping by id, or a callable.
        sizes: the bytes of each result, in the same way.
        keep: as of ``execute``.
        max_retries: as of ``execute``.

    Attributes:
        state: ``"running"``, ``"succeeded"`` or ``"failed"``.
        began: when it was submitted, virtual seconds.
        ended: when it ended, or None.
        attempts: how many were begun.
        where: the node and life that have each value, by index; absent where nobody has it.
    """

    def __init__(
        self,
        number: int,
        dag: DAG,
        seconds: Seconds,
        sizes: Bytes,
        keep: Any,
        max_retries: int,
    ) -> None:
        plan = dag.plan()
        self.number = number
        self.plan: Plan = plan
        self.seconds = list(map(_table(seconds), plan.ids[: plan.n]))
        self.sizes = list(map(_table(sizes), plan.ids[: plan.n]))
        self.core = LossyState(plan, max_retries, keep_mask(plan, keep), None)
        self.kept = keep_mask(plan, keep)
        self.costs: list[Cost] = [cost_key(kind.cost or {}) for kind in plan.classes]
        self.amounts: list[Mapping[str, int]] = [dict(cost) for cost in self.costs]
        self.state = "running"
        self.began = 0.0
        self.ended: float | None = None
        self.attempts = 0
        self.placed: dict[int, str] = {}
        self.where: dict[int, tuple[str, int]] = {}

    def inputs(self, i: int) -> list[int]:
        """The values that function ``i`` takes and that functions made."""
        return [d for d in self.plan.deps[i] if d < self.plan.n]

    def value(self, i: int, values: Iterable[int]) -> int:
        """What function ``i`` makes of its inputs: a number in which all of them show."""
        total = i + 1
        for value in values:
            total = (total * 31 + value) % _MODULUS
        return total

    def expected(self) -> list[int]:
        """The sequential evaluation."""
        found: list[int] = []
        for i in range(self.plan.n):
            found.append(self.value(i, [found[d] for d in self.inputs(i)]))
        return found

    @property
    def makespan(self) -> float:
        """Virtual seconds it took."""
        assert self.ended is not None, "it has not ended"
        return self.ended - self.began

    def lower_bound(self, total: Mapping[str, int]) -> float:
        """No schedule is shorter: the critical path, or the work over the capacity.

        Args:
            total: what all nodes offer together, in micro-units.
        """
        longest: list[float] = []
        work: dict[str, float] = {}
        for i in range(self.plan.n):
            longest.append(self.seconds[i] + max((longest[d] for d in self.inputs(i)), default=0.0))
            for name, amount in self.costs[self.plan.class_of[i]]:
                work[name] = work.get(name, 0.0) + amount * self.seconds[i]
        bounds = [amount / total[name] for name, amount in work.items() if total.get(name)]
        return max([*bounds, max(longest, default=0.0)])

    def __repr__(self) -> str:
        return f"<SimulatedRun {self.number}: {self.state}, {self.core.remaining} left>"


def _table(given: Any) -> Callable[[Hashable], Any]:
    if isinstance(given, Mapping):
        return given.__getitem__
    return lambda id_: given(id_) if callable(given) else given

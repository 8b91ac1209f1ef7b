"""Where functions may run: the check at admission, and the allocator's say as they get ready."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from handoff_actors.errors import AllocationError, amounts_text, describe
from handoff_actors.execution.run_data import RunData
from handoff_actors.graph.plan import LaneClass, Plan
from handoff_actors.resources.allocator import Request, check_allocation
from handoff_actors.resources.capabilities import MICRO

if TYPE_CHECKING:
    from handoff_actors.execution.workers.roster import Workers


def check_feasible(
    plan: Plan, node: str, offered: Mapping[str, Mapping[str, float]], dag_id: Hashable
) -> None:
    """Refuse a plan of which a function can never run.

    Args:
        plan: what is to be run.
        node: this node's name.
        offered: what each node known here offers in all.
        dag_id: for the message.

    Raises:
        AllocationError: a pin names an unknown node, or a cost is more than any node has.
    """
    for number, kind in enumerate(plan.classes):
        if kind.pin is not None and kind.pin != node:
            id_ = _first(plan, number)
            known = ", ".join(offered) or "none"
            raise AllocationError(
                f"function {id_!r} of DAG {dag_id!r} is pinned to node {kind.pin!r}, which is not "
                f"connected (nodes: {known}): connect it, or change node=",
                function_id=id_,
                resource=None,
                asked=None,
                most=None,
            )
        for resource, amount in (kind.cost or {}).items():
            most = offered.get(node, {}).get(resource, 0)
            asked = amount / MICRO
            if asked > most + 0.5 / MICRO:
                id_ = _first(plan, number)
                raise AllocationError(
                    f"function {id_!r} of DAG {dag_id!r} needs {resource}={asked:g}, and the most "
                    f"any node has is {most:g} (node {node} offers "
                    f"{amounts_text(offered.get(node, {}))}): lower its cost, or start or register "
                    "a larger node",
                    function_id=id_,
                    resource=resource,
                    asked=asked,
                    most=most,
                )


def _first(plan: Plan, number: int) -> Hashable:
    return plan.ids[plan.class_of.index(number)] if number in plan.class_of else None


class Placement:
    """Asks an allocator of the user's own about each attempt that becomes ready.

    Args:
        data: the run.
        workers: the runtime's.

    Attributes:
        waiting: attempts that the allocator left out; they are in its next question.
    """

    def __init__(self, data: RunData, workers: Workers) -> None:
        self.data = data
        self.workers = workers
        self.waiting: list[int] = []

    def place(self, ready: list[int]) -> list[int]:
        """The attempts among ``ready`` and those left out before that may run here now.

        Raises:
            AllocationError: the allocator raised, or its answer cannot be used.
        """
        plan, n = self.data.plan, self.data.plan.n
        tokens, self.waiting = self.waiting + ready, []
        asked: dict[Hashable, int] = {}
        requests: list[Request] = []
        placed: list[int] = []
        for token in tokens:
            kind = plan.classes[plan.class_of[token % n]]
            if kind.pin is not None:
                placed.append(token)
                continue
            id_ = plan.ids[token % n]
            asked[id_] = token
            requests.append(Request(id_, _cost(kind), {self.data.node: self._bytes(token % n)}))
        if not requests:
            return placed
        nodes = self.workers.capacities()
        try:
            answer: Any = self.data.options.allocator.allocate(requests, nodes)
            check_allocation(answer, requests, nodes)
        except AllocationError:
            raise
        except BaseException as error:
            raise AllocationError(
                f"the allocator {describe(self.data.options.allocator)} raised "
                f"{type(error).__name__}: {error}",
                function_id=requests[0].id,
                resource=None,
                asked=None,
                most=None,
            ) from error
        for id_, token in asked.items():
            (placed if id_ in answer else self.waiting).append(token)
        return placed

    def _bytes(self, i: int) -> int:
        return sum(sys.getsizeof(self.data.values[d]) for d in self.data.plan.deps[i])


def _cost(kind: LaneClass) -> dict[str, float]:
    return {name: amount / MICRO for name, amount in (kind.cost or {}).items()}

"""Where functions may run: the check at admission, and the allocator's say as they get ready."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from handoff_actors.errors import AllocationError, amounts_text, describe, text_of
from handoff_actors.execution.run_data import RunData
from handoff_actors.graph.plan import LaneClass, Plan
from handoff_actors.resources.allocator import Request, check_allocation
from handoff_actors.resources.capabilities import MICRO, NodeCapacity
from handoff_actors.results.sizes import size_of

if TYPE_CHECKING:
    from handoff_actors.execution.workers.roster import Workers


def check_feasible(
    plan: Plan,
    node: str,
    offered: Mapping[str, Mapping[str, float]],
    dag_id: Hashable,
    others: Mapping[str, Mapping[str, float] | None] = MappingProxyType({}),
) -> None:
    """Refuse a plan of which a function can never run.

    Args:
        plan: what is to be run.
        node: this node's name.
        offered: what each node known here offers in all.
        dag_id: for the message.
        others: the other nodes that were ever seen, and what they offer, if that is known.

    Raises:
        AllocationError: a pin names a node that was never seen, or a cost is more than any node
            has.
    """
    for number, kind in enumerate(plan.classes):
        if kind.pin is None and kind.group is None and not kind.cost:
            continue
        nodes: Mapping[str, Mapping[str, float] | None]
        nodes = {node: offered.get(node, {}), **others}
        if kind.pin is not None:
            if kind.pin not in nodes:
                id_ = _first(plan, number)
                known = ", ".join({**offered, **others}) or "none"
                raise AllocationError(
                    f"function {id_!r} of DAG {dag_id!r} is pinned to node {kind.pin!r}, which is "
                    f"not connected (nodes: {known}): connect it, or change node=",
                    function_id=id_,
                    resource=None,
                    asked=None,
                    most=None,
                )
            nodes = {kind.pin: nodes[kind.pin]}
        elif kind.group is not None:
            costs = {plan.class_of[i]: None for i in plan.groups[kind.group]}
            fit = {
                name: has
                for name, has in nodes.items()
                if has is None or not any(_lacking(plan.classes[c].cost or {}, has) for c in costs)
            }
            if fit:
                continue
        if kind.cost:
            _check_cost(plan, number, kind.cost, nodes, dag_id)


def _lacking(cost: Mapping[str, int], has: Mapping[str, float]) -> str | None:
    """The first resource of which there is too little."""
    for resource, amount in cost.items():
        if amount / MICRO > has.get(resource, 0) + 0.5 / MICRO:
            return resource
    return None


def _check_cost(
    plan: Plan,
    number: int,
    cost: Mapping[str, int],
    nodes: Mapping[str, Mapping[str, float] | None],
    dag_id: Hashable,
) -> None:
    lacks: dict[str, str] = {}
    for name, has in nodes.items():
        resource = None if has is None else _lacking(cost, has)
        if resource is None:
            return
        lacks[name] = resource
    # The resource of which no node has enough, if there is one, says most.
    most = {r: max((has or {}).get(r, 0) for has in nodes.values()) for r in cost}
    short = [r for r in cost if cost[r] / MICRO > most[r] + 0.5 / MICRO]
    resource = short[0] if short else next(iter(lacks.values()))
    asked = cost[resource] / MICRO
    id_ = _first(plan, number)
    offers = "; ".join(f"node {n} offers {amounts_text(has or {})}" for n, has in nodes.items())
    raise AllocationError(
        f"function {id_!r} of DAG {dag_id!r} needs {resource}={asked:g}, and the most any node "
        f"has is {most[resource]:g} ({offers}): lower its cost, or start or register a larger node",
        function_id=id_,
        resource=resource,
        asked=asked,
        most=most[resource],
    )


def _first(plan: Plan, number: int) -> Hashable:
    return plan.ids[plan.class_of.index(number)] if number in plan.class_of else None


def ask_allocator(
    allocator: Any,
    requests: Sequence[Request],
    nodes: Mapping[str, NodeCapacity],
    *,
    check: bool = True,
) -> Mapping[Hashable, str]:
    """What an allocator answers.

    Args:
        allocator: a strategy.
        requests: the questions, at least one.
        nodes: what there is.
        check: whether the answer is to be looked at; the built-in ones need not.

    Raises:
        AllocationError: it raised, or its answer cannot be used.
    """
    try:
        answer: Any = allocator.allocate(requests, nodes)
        if check:
            check_allocation(answer, requests, nodes)
    except AllocationError:
        raise
    except BaseException as error:
        raise AllocationError(
            f"the allocator {describe(allocator)} raised {type(error).__name__}: {text_of(error)}",
            function_id=requests[0].id,
            resource=None,
            asked=None,
            most=None,
        ) from error
    return answer  # type: ignore[no-any-return]  # it was checked


def check_portable(plan: Plan, node: str, dag_id: Hashable) -> None:
    """Refuse a plan with code that is pinned to another node and cannot be sent there.

    Raises:
        SerializationError: names the function, and what of its code it is.
    """
    away = {k for k, kind in enumerate(plan.classes) if kind.pin is not None and kind.pin != node}
    if not away:
        return
    from handoff_actors.execution.nodes.lessons import CodeBook

    book = CodeBook(plan, dag_id)
    for i in range(plan.n):
        if plan.class_of[i] in away:
            if plan.plain[i] is None:
                book.call(i)
            else:
                book.number(i)


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
        answer = ask_allocator(self.data.options.allocator, requests, self.workers.capacities())
        for id_, token in asked.items():
            (placed if id_ in answer else self.waiting).append(token)
        return placed

    def _bytes(self, i: int) -> int:
        return sum(size_of(self.data.peek(d)) for d in self.data.plan.deps[i])


def _cost(kind: LaneClass) -> dict[str, float]:
    return {name: amount / MICRO for name, amount in (kind.cost or {}).items()}

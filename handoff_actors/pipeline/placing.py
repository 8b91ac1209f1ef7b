"""On which nodes the stages of a pipeline are: what is pinned, what is collocated, what must fit.

A stage that costs nothing and is not pinned is here, where its items come from, or on the first of
the nodes it may be on. The others go where the allocator says; what finds nothing free goes to the
first node that could ever have it, and waits there for its claim.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from handoff_actors.errors import AllocationError, NodeError, amounts_text
from handoff_actors.execution.placement import ask_allocator
from handoff_actors.graph.plan import Plan
from handoff_actors.resources.allocator import Request, by_name
from handoff_actors.resources.capabilities import MICRO, NodeCapacity, to_micro

if TYPE_CHECKING:
    from handoff_actors.pipeline.crew import Crew, Worker
    from handoff_actors.pipeline.nodes import Nodes

Amounts = dict[str, int]


class Site(Protocol):
    """What placing needs of the runtime."""

    options: Any

    def node(self) -> str:
        """Its node's name."""

    def nodes(self) -> list[str]:
        """The other nodes."""

    def capacities(self) -> Mapping[str, NodeCapacity]:
        """What is free."""

    def stages(self) -> Nodes:
        """What it has of stages over nodes."""


def capacities(site: Site, among: Container[str] | None = None) -> dict[str, NodeCapacity]:
    """What each node has free and offers, this one first; nodes that do not answer are left out.

    Args:
        site: the runtime.
        among: the nodes that are asked for; None is all.
    """
    here = site.node()
    found = {here: site.capacities()[here]} if among is None or here in among else {}
    for name in site.nodes():
        if among is not None and name not in among:
            continue
        try:
            free, total = site.stages().capacity_of(name)
        except NodeError:
            continue
        found[name] = NodeCapacity(free, total)
    return found


def costs(plan: Plan) -> list[Amounts]:
    """What each stage claims: its cost, times its workers; micro-units."""
    found: list[Amounts] = []
    for function in plan.functions[: plan.n]:
        cost = to_micro(function.cost or {}, "the cost")
        found.append({r: a * function.parallelism for r, a in cost.items() if a})
    return found


def place(
    plan: Plan, site: Site, dag_id: Hashable, nodes: Mapping[str, NodeCapacity]
) -> dict[int, str]:
    """The node of each stage: what its pin says, else one of ``nodes``.

    Raises:
        AllocationError: no node could ever have a stage.
    """
    first_node, wanted = next(iter(nodes)), costs(plan)
    placed: dict[int, str] = {}
    requests: list[Request] = []
    units: dict[Hashable, tuple[int, ...]] = {}
    for unit in _units(plan):
        pin = _pin(plan, unit[0])
        need = _sum([wanted[i] for i in unit])
        if pin is not None or not need:
            placed.update(dict.fromkeys(unit, pin or first_node))
            continue
        first = plan.ids[unit[0]]
        units[first] = unit
        requests.append(Request(first, {r: a / MICRO for r, a in need.items()}))
    if requests:
        answer = ask_allocator(by_name(site.options.allocator), requests, nodes)
        for request in requests:
            node = answer.get(request.id) or could_fit(request.cost, nodes)
            if node is None:
                raise _too_much(dag_id, request, nodes)
            placed.update(dict.fromkeys(units[request.id], node))
    return placed


def could_fit(cost: Mapping[str, float], nodes: Mapping[str, NodeCapacity]) -> str | None:
    """The first node that offers so much in all."""
    for name, has in nodes.items():
        if all(a <= has.total.get(r, 0.0) + 0.5 / MICRO for r, a in cost.items()):
            return name
    return None


def _too_much(
    dag_id: Hashable, request: Request, nodes: Mapping[str, NodeCapacity]
) -> AllocationError:
    best = {r: max(has.total.get(r, 0.0) for has in nodes.values()) for r in request.cost}
    lacking = [r for r in request.cost if request.cost[r] > best[r] + 0.5 / MICRO]
    resource = lacking[0] if lacking else next(iter(request.cost))
    offers = "; ".join(f"node {n} offers {amounts_text(has.total)}" for n, has in nodes.items())
    return AllocationError(
        f"pipeline {dag_id!r} needs {resource}={request.cost[resource]:g} for function "
        f"{request.id!r} (cost x parallelism, held for the pipeline's life), and {offers}: lower "
        "cost or parallelism",
        function_id=request.id,
        resource=resource,
        asked=request.cost[resource],
        most=best[resource],
    )


def _units(plan: Plan) -> list[tuple[int, ...]]:
    """Stages that go together."""
    together = set(plan.group_of)
    return [g for g in plan.groups if g] + [(i,) for i in range(plan.n) if i not in together]


def _pin(plan: Plan, i: int) -> str | None:
    group = plan.group_of.get(i)
    if group is not None:
        return plan.group_pins[group]
    node = plan.functions[i].node
    return node if isinstance(node, str) else None


def _sum(amounts: Sequence[Amounts]) -> Amounts:
    total: Amounts = {}
    for each in amounts:
        for resource, amount in each.items():
            total[resource] = total.get(resource, 0) + amount
    return total


@dataclass
class Bundle:
    """What all stages of a pipeline claim at a node, by the first of them that is opened there.

    Attributes:
        amounts: micro-units.
        held: one of them has asked for it.
        lost: the node has gone since: each claims for itself from now on.
    """

    amounts: Amounts
    held: bool = False
    lost: bool = False


@dataclass
class Placed:
    """Where one stage that is not here may be; see ``remote``.

    Attributes:
        site: the runtime.
        bundle: of its node at first.
        own: what it claims when it is opened again.
        timeout: seconds to wait for the first claim.
        moves: it may go to another node.
        among: the nodes it may go to; None is all.
        node_return_timeout: seconds to wait for a node.
        opened: it was, before.
    """

    site: Site
    bundle: Bundle
    own: Amounts
    timeout: float | None
    moves: bool
    among: Container[str] | None
    node_return_timeout: float
    opened: bool = False

    @property
    def claim(self) -> Amounts:
        """What to claim with the next opening; it is asked once for each."""
        bundle, again = self.bundle, self.opened
        self.opened = True
        if again or bundle.lost:
            return self.own
        if bundle.held:
            return {}
        bundle.held = True
        return bundle.amounts

    def lost(self) -> None:
        """The node has gone, with all that was claimed there."""
        self.bundle.lost = True

    def worker(self, crew: Crew, number: int) -> Worker:
        """Who stands for its workers."""
        from handoff_actors.pipeline.remote import RemoteWorker

        return RemoteWorker(crew, number, self.site.stages(), self)

    def find_node(self, crew: Crew) -> str | None:
        """A node that could have it now: one with room, else one that could ever have it."""
        nodes = capacities(self.site, self.among)
        cost = {r: a / MICRO for r, a in self.own.items()}
        request = Request(crew.id, cost)
        try:
            answer = ask_allocator(by_name(self.site.options.allocator), [request], nodes)
        except AllocationError:
            answer = {}
        return answer.get(crew.id) or could_fit(cost, nodes)


def send_away(
    plan: Plan,
    crews: Sequence[Crew],
    where: Mapping[int, str],
    site: Site,
    timeout: float | None,
    among: Container[str] | None,
) -> tuple[dict[str, Amounts], list[Crew | None]]:
    """Send stages to their nodes.

    Args:
        plan: the plan.
        crews: what stands for each stage.
        where: the node of each stage.
        site: the runtime.
        timeout: seconds to wait for the claims.
        among: the nodes that a stage may go to later; None is all.

    Returns:
        What is claimed here, and the order in which stages elsewhere begin: node by node in the
        order of names, this one (None) in its place. So no two pipelines wait for each other.
    """
    here, wanted = site.node(), costs(plan)
    by_node: dict[str, list[int]] = {here: []}
    for i, node in where.items():
        by_node.setdefault(node, []).append(i)
    steps: list[Crew | None] = []
    for node in sorted(by_node):
        if node == here:
            steps.append(None)
            continue
        bundle = Bundle(_sum([wanted[i] for i in by_node[node]]))
        for i in sorted(by_node[node]):
            moves = _pin(plan, i) is None
            wait = site.options.node_return_timeout
            placed = Placed(site, bundle, wanted[i], timeout, moves, among, wait)
            crews[i].send_away(node, placed)
            steps.append(crews[i])
    total = _sum([wanted[i] for i in by_node[here]])
    return ({here: total} if total else {}), steps

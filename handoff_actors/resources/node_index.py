"""Many nodes, kept in the order in which a placement asks for them. Pure.

The built-in allocators look at every node each time they are asked. This answers the same question
for one request at a time, and gives the same answers, but remembers between questions:

* ``first_available`` descends a tree of the largest free amounts, in the order of the nodes;
* ``load_balanced`` keeps a heap for each cost that was ever asked for.

So a decision, and each change of a node, takes O(log nodes) for each different cost, and no scan
of them. What runs over nodes are placed by, and the simulator. Property tests compare it with the
allocators.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush

Cost = tuple[tuple[str, int], ...]
"""A cost in micro-units, as sorted pairs without zeros."""

_GARBAGE = 4
"""A heap may have so many entries for each node before it is made anew."""


def cost_key(cost: Mapping[str, int]) -> Cost:
    """A cost in micro-units as it is asked for."""
    return tuple(sorted(pair for pair in cost.items() if pair[1] > 0))


class _Node:
    __slots__ = ("free", "name", "order", "total", "version")

    def __init__(self, name: str, order: int) -> None:
        self.name = name
        self.order = order
        self.version = 0
        self.total: dict[str, int] = {}
        self.free: dict[str, int] = {}

    def fits(self, cost: Cost) -> bool:
        free = self.free
        for name, amount in cost:  # noqa: SIM110  a generator costs three times as much here
            if amount > free.get(name, 0):
                return False
        return True

    def fullest(self, cost: Cost) -> float:
        """The share in use of the fullest resource once ``cost`` is taken."""
        taken = dict(cost)
        return max(
            [
                (total - self.free.get(name, 0) + taken.get(name, 0)) / total
                for name, total in self.total.items()
                if total > 0
            ],
            default=0.0,
        )


class NodeIndex:
    """See the module. Nodes keep the order in which they came; amounts are micro-units."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        self._slots: list[_Node | None] = []
        self._leaves = 1
        self._trees: dict[str, list[int]] = {}
        self._heaps: dict[Cost, list[tuple[float, int, int, _Node]]] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, name: object) -> bool:
        return name in self._nodes

    # What nodes do.

    def offer(
        self, name: str, total: Mapping[str, int], free: Mapping[str, int] | None = None
    ) -> None:
        """A node is there, or offers something else; ``free`` is what of it nobody holds."""
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = _Node(name, len(self._slots))
            self._slots.append(node)
            if len(self._slots) > self._leaves:
                self._grow()
        node.total = dict(total)
        node.free = dict(total if free is None else free)
        self._changed(node, {*node.total, *node.free, *self._trees})

    def remove(self, name: str) -> None:
        """A node is gone; unknown ones are ignored."""
        node = self._nodes.pop(name, None)
        if node is None:
            return
        self._slots[node.order] = None
        node.version += 1
        for resource in self._trees:
            self._lift(resource, node.order, 0)
        if len(self._slots) > 16 and len(self._slots) > 2 * len(self._nodes):
            self._renumber()

    def take(self, name: str, cost: Cost) -> None:
        """Something of this cost was placed on the node, whether it fits or not."""
        self._change(name, cost, -1)

    def give(self, name: str, cost: Cost) -> None:
        """It is over; a node that is gone is ignored."""
        self._change(name, cost, 1)

    def free(self, name: str) -> dict[str, int]:
        """What is free on a node."""
        return dict(self._nodes[name].free)

    def _change(self, name: str, cost: Cost, sign: int) -> None:
        node = self._nodes.get(name)
        if node is not None and cost:
            for resource, amount in cost:
                node.free[resource] = node.free.get(resource, 0) + sign * amount
            self._changed(node, [resource for resource, _ in cost])

    def _changed(self, node: _Node, resources: Mapping[str, int] | set[str] | list[str]) -> None:
        node.version += 1
        for resource in resources:
            self._lift(resource, node.order, node.free.get(resource, 0))
        for cost, heap in self._heaps.items():
            if node.fits(cost):
                heappush(heap, (node.fullest(cost), node.order, node.version, node))
                if len(heap) > 64 and len(heap) > _GARBAGE * len(self._nodes):
                    self._heaps[cost] = self._heap(cost)

    # The tree: at each inner place the most that any node below it has free.

    def _lift(self, resource: str, order: int, amount: int) -> None:
        tree = self._trees.get(resource)
        if tree is None:
            tree = self._trees[resource] = [0] * (2 * self._leaves)
        at = order + self._leaves
        tree[at] = amount
        at //= 2
        while at:
            most = max(tree[2 * at], tree[2 * at + 1])
            if tree[at] == most:
                return
            tree[at] = most
            at //= 2

    def _grow(self) -> None:
        while self._leaves < len(self._slots):
            self._leaves *= 2
        resources, self._trees = list(self._trees), {}
        for resource in resources:
            tree = self._trees[resource] = [0] * (2 * self._leaves)
            for node in self._nodes.values():
                tree[self._leaves + node.order] = node.free.get(resource, 0)
            for at in range(self._leaves - 1, 0, -1):
                tree[at] = max(tree[2 * at], tree[2 * at + 1])

    def _renumber(self) -> None:
        """Close the gaps that nodes which are gone have left."""
        self._slots = list(self._nodes.values())
        for order, node in enumerate(self._slots):
            assert node is not None
            node.order = order
            node.version += 1
        self._leaves = 1
        self._grow()
        self._heaps = {cost: self._heap(cost) for cost in self._heaps}

    # Questions.

    def first_available(self, cost: Cost) -> str | None:
        """The first node, in the order they came, that has so much free."""
        trees = []
        for resource, amount in cost:
            tree = self._trees.get(resource)
            if tree is None or tree[1] < amount:
                return None
            trees.append((tree, amount))
        stack = [1]
        while stack:
            at = stack.pop()
            if any(tree[at] < amount for tree, amount in trees):
                continue
            if at < self._leaves:
                stack += (2 * at + 1, 2 * at)
                continue
            order = at - self._leaves
            node = self._slots[order] if order < len(self._slots) else None
            if node is not None:
                return node.name
        return None

    def load_balanced(self, cost: Cost, inputs: Mapping[str, int] | None = None) -> str | None:
        """The node least used after taking it; on a tie that with most input bytes, then the first.

        Args:
            cost: what it takes.
            inputs: the bytes of its arguments, by node.
        """
        heap = self._heaps.get(cost)
        if heap is None:
            heap = self._heaps[cost] = self._heap(cost)
        while heap:
            share, order, version, node = heap[0]
            if version == node.version:
                break
            heappop(heap)
        else:
            return None
        best, rank = node, ((inputs or {}).get(node.name, 0), -order)
        for name, size in (inputs or {}).items():
            other = self._nodes.get(name)
            if (
                other is not None
                and (size, -other.order) > rank
                and other.fits(cost)
                and other.fullest(cost) == share
            ):
                best, rank = other, (size, -other.order)
        return best.name

    def _heap(self, cost: Cost) -> list[tuple[float, int, int, _Node]]:
        heap = [
            (node.fullest(cost), node.order, node.version, node)
            for node in self._nodes.values()
            if node.fits(cost)
        ]
        heapify(heap)
        return heap

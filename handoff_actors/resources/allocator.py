"""Which node a function goes to: strategies, pure.

An allocator proposes; the ledger of the node it names disposes. Guarantees of the two built in: one
call never places more on a node than is free there, and the same question gets the same answer.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from typing import Protocol, runtime_checkable

from handoff_actors.errors import AllocationError, ConfigurationError, amounts_text, describe
from handoff_actors.resources.capabilities import MICRO, Capabilities, NodeCapacity

_Key = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Request(Mapping[str, float]):
    """A function that is ready and wants a place. It reads as the mapping of its cost, too.

    Attributes:
        id: whatever the caller tells its requests apart by.
        cost: units by resource.
        inputs: bytes of its arguments by the node that has them.
    """

    id: Hashable
    cost: Capabilities = field(default_factory=dict)
    inputs: Mapping[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.cost[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.cost)

    def __len__(self) -> int:
        return len(self.cost)

    def __bool__(self) -> bool:
        return True


@runtime_checkable
class Allocator(Protocol):
    """A strategy: pure, and quick, since it is asked whenever functions become ready."""

    def allocate(
        self, requests: Sequence[Request], nodes: Mapping[str, NodeCapacity]
    ) -> Mapping[Hashable, str]:
        """Place what can be placed now.

        Args:
            requests: oldest first.
            nodes: capacities by name, this node first.

        Returns:
            Request id to node; what is left out waits and is asked for again.
        """
        ...


class _Room:
    """What is free on one node while a call places on it, in micro-units."""

    __slots__ = ("free", "name", "order", "total", "version")

    def __init__(self, name: str, order: int, capacity: NodeCapacity) -> None:
        self.name = name
        self.order = order
        self.free = {name: round(amount * MICRO) for name, amount in capacity.free.items()}
        self.total = {name: round(amount * MICRO) for name, amount in capacity.total.items()}
        self.version = 0

    def fits(self, key: _Key) -> bool:
        free = self.free
        return all(amount <= free.get(name, 0) for name, amount in key)

    def take(self, key: _Key) -> None:
        for name, amount in key:
            self.free[name] -= amount
        self.version += 1

    def fullest(self, key: _Key) -> float:
        """The share in use of the fullest resource once ``key`` is taken: 0 is idle, 1 is full."""
        free = {**self.free}
        for name, amount in key:
            free[name] -= amount
        shares = [
            (total - free.get(name, 0)) / total for name, total in self.total.items() if total > 0
        ]
        return max(shares, default=0.0)


def _keys(requests: Sequence[Request]) -> list[_Key]:
    """The cost of each in micro-units; costs that are one object are counted once."""
    known: dict[int, _Key] = {}
    keys = []
    for request in requests:
        key = known.get(id(request.cost))
        if key is None:
            pairs = ((name, round(amount * MICRO)) for name, amount in request.cost.items())
            key = known[id(request.cost)] = tuple(sorted(pair for pair in pairs if pair[1] > 0))
        keys.append(key)
    return keys


class FirstAvailable:
    """The first node that fits."""

    def __repr__(self) -> str:
        return "FirstAvailable()"

    def allocate(
        self, requests: Sequence[Request], nodes: Mapping[str, NodeCapacity]
    ) -> dict[Hashable, str]:
        """See ``Allocator``. Takes O(requests + nodes x different costs)."""
        rooms = [_Room(name, i, capacity) for i, (name, capacity) in enumerate(nodes.items())]
        placed: dict[Hashable, str] = {}
        start: dict[_Key, int] = {}  # a node only fills up: where a cost did not fit it never will
        for request, key in zip(requests, _keys(requests), strict=True):
            at = start.get(key, 0)
            while at < len(rooms) and not rooms[at].fits(key):
                at += 1
            start[key] = at
            if at < len(rooms):
                rooms[at].take(key)
                placed[request.id] = rooms[at].name
        return placed


class LoadBalanced:
    """The node least used after taking it; on a tie the one with most input bytes, then the first.

    How much a node is used is the share of its fullest resource.
    """

    def __repr__(self) -> str:
        return "LoadBalanced()"

    def allocate(
        self, requests: Sequence[Request], nodes: Mapping[str, NodeCapacity]
    ) -> dict[Hashable, str]:
        """See ``Allocator``. Takes O((requests + nodes) x different costs x log nodes) at worst."""
        rooms = {name: _Room(name, i, capacity) for i, (name, capacity) in enumerate(nodes.items())}
        heaps: dict[_Key, _Heap] = {}
        placed: dict[Hashable, str] = {}
        for request, key in zip(requests, _keys(requests), strict=True):
            heap = heaps.get(key)
            if heap is None:
                heap = heaps[key] = _Heap(key, rooms.values())
            best = heap.best(request.inputs, rooms)
            if best is not None:
                best.take(key)
                placed[request.id] = best.name
        return placed


class _Heap:
    """The nodes that fit one cost, least used first. Use only grows: entries are renewed late."""

    __slots__ = ("entries", "key")

    def __init__(self, key: _Key, rooms: Collection[_Room]) -> None:
        self.key = key
        self.entries = [
            (room.fullest(key), room.order, room.version, room) for room in rooms if room.fits(key)
        ]
        heapify(self.entries)

    def best(self, inputs: Mapping[str, int], rooms: Mapping[str, _Room]) -> _Room | None:
        entries, key = self.entries, self.key
        while entries:
            share, order, version, room = entries[0]
            if version == room.version:
                break
            if room.fits(key):
                heapreplace(entries, (room.fullest(key), order, room.version, room))
            else:
                heappop(entries)
        else:
            return None
        best, rank = room, (inputs.get(room.name, 0), -order)
        for name, size in inputs.items():  # only nodes with bytes can win a tie against the first
            other = rooms.get(name)
            if (
                other is not None
                and (size, -other.order) > rank
                and other.fits(key)
                and other.fullest(key) == share
            ):
                best, rank = other, (size, -other.order)
        return best


_STRATEGIES: dict[str, type[FirstAvailable | LoadBalanced]] = {
    "first_available": FirstAvailable,
    "load_balanced": LoadBalanced,
}


def by_name(strategy: str | Allocator | None, what: str = "allocation_strategy") -> Allocator:
    """The allocator of this name; an allocator stays what it is; None is ``first_available``.

    Args:
        strategy: what was given.
        what: the argument it was given as, for the message.

    Raises:
        ConfigurationError: no such name, or an object without ``allocate``.
    """
    if strategy is None:
        return FirstAvailable()
    if isinstance(strategy, str):
        found = _STRATEGIES.get(strategy)
        if found is not None:
            return found()
    elif isinstance(strategy, type):
        raise ConfigurationError(f"{what}: {describe(strategy)} is a class: give an instance of it")
    elif callable(getattr(strategy, "allocate", None)):
        return strategy
    raise ConfigurationError(
        f"{what}: unknown strategy {describe(strategy)}: give "
        + ", ".join(map(repr, _STRATEGIES))
        + " or an object with allocate(requests, nodes)"
    )


def place_free(requests: Sequence[Request], nodes: Collection[str]) -> dict[Hashable, str]:
    """Place requests without cost: where most input bytes are, on a tie the first node.

    Args:
        requests: their ``cost`` is not looked at.
        nodes: names (a mapping by name does), this node first; none places nothing.
    """
    if not nodes:
        return {}
    first = next(iter(nodes))
    order = {name: i for i, name in enumerate(nodes)}
    placed: dict[Hashable, str] = {}
    for request in requests:
        best, rank = first, (request.inputs.get(first, 0), 0)
        for name, size in request.inputs.items():
            at = order.get(name)
            if at is not None and (size, -at) > rank:
                best, rank = name, (size, -at)
        placed[request.id] = best
    return placed


def check_allocation(
    answer: object, requests: Sequence[Request], nodes: Mapping[str, NodeCapacity]
) -> dict[Hashable, str]:
    """Check what a user's allocator answered.

    Returns:
        The answer as a dict.

    Raises:
        AllocationError: it is no mapping, names an unknown request or node, or places more on a
            node than is free there; ``function_id`` is the request's id.
    """
    if not isinstance(answer, Mapping):
        raise _wrong(None, f"answered {describe(answer)}; a mapping of request id to node is due")
    asked = {request.id: key for request, key in zip(requests, _keys(requests), strict=True)}
    rooms: dict[str, _Room] = {}
    checked: dict[Hashable, str] = {}
    for request_id, node in answer.items():
        key = asked.get(request_id)
        if key is None:
            raise _wrong(request_id, f"placed {describe(request_id)}, which was not asked for")
        placed = f"placed {describe(request_id)} on {describe(node)}"
        if not isinstance(node, str) or node not in nodes:
            given = describe(list(nodes))
            raise _wrong(request_id, f"{placed}, which is not among its nodes {given}")
        room = rooms.get(node)
        if room is None:
            room = rooms[node] = _Room(node, 0, nodes[node])
        for name, amount in key:
            free = room.free.get(name, 0)
            if amount > free:
                left = {name: amount / MICRO for name, amount in room.free.items()}
                raise _wrong(
                    request_id,
                    f"{placed}, where {name}={amount / MICRO:g} does not fit: beside what it "
                    f"placed there before, {amounts_text(left)} is free",
                    name,
                    amount / MICRO,
                    free / MICRO,
                )
        room.take(key)
        checked[request_id] = node
    return checked


def _wrong(
    request_id: Hashable,
    what: str,
    resource: str | None = None,
    asked: float | None = None,
    most: float | None = None,
) -> AllocationError:
    return AllocationError(
        f"the allocator {what}; what it leaves out of its answer waits",
        function_id=request_id,
        resource=resource,
        asked=asked,
        most=most,
    )

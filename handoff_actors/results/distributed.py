"""DistributedResultStore: values wherever they are.

It asks the store of this node first, then the registry where else the value is. It holds no state,
so its crash costs nothing but the question in hand, which is asked again.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.server import Actor
from handoff_actors.errors import NodeDownError, ValueNotFoundError
from handoff_actors.results.locations import ClearLocations, LookUp, RegisterLocation
from handoff_actors.results.store import Clear, Get, GetMany, Put


@dataclass(frozen=True, slots=True)
class Fetch:
    """A value, from ``from_node`` or from wherever it is known to be."""

    dag_id: Hashable
    id: Hashable
    from_node: str | None


@dataclass(frozen=True, slots=True)
class Synchronize:
    """A mapping of those among ``ids`` that can be had."""

    dag_id: Hashable
    ids: Sequence[Hashable]


@dataclass(frozen=True, slots=True)
class StoreResult:
    """Keep a value here and register where it is."""

    dag_id: Hashable
    id: Hashable
    value: Any
    origin_node: str | None


@dataclass(frozen=True, slots=True)
class Locate:
    """The node of a value: registered, or this one if it has it."""

    dag_id: Hashable
    id: Hashable


@dataclass(frozen=True, slots=True)
class ClearEverywhere:
    """Forget a DAG's values and their locations."""

    dag_id: Hashable


class DistributedResultStore(Actor):
    """See the module.

    Args:
        node: this node's name.
        store: of this node.
        registry: of locations.
    """

    def __init__(self, node: str, store: Ref, registry: Ref) -> None:
        self.node = node
        self.store = store
        self.registry = registry

    def handle(self, message: Any) -> Any:
        """See the messages."""
        if isinstance(message, Fetch):
            return self._fetch(message)
        if isinstance(message, Synchronize):
            return self.store.call(GetMany(message.dag_id, message.ids))
        if isinstance(message, StoreResult):
            self.store.call(Put(message.dag_id, message.id, message.value))
            node = message.origin_node or self.node
            self.registry.call(RegisterLocation(message.dag_id, message.id, node))
            return None
        if isinstance(message, Locate):
            return self._locate(message)
        if isinstance(message, ClearEverywhere):
            self.store.call(Clear(message.dag_id))
            self.registry.call(ClearLocations(message.dag_id))
            return None
        return super().handle(message)

    def _fetch(self, message: Fetch) -> Any:
        node = message.from_node
        if node is None or node == self.node:
            try:
                return self.store.call(Get(message.dag_id, message.id))
            except ValueNotFoundError:
                node = node or self._registered(message)
                if node is None or node == self.node:
                    raise
        raise NodeDownError(
            f"value {message.id!r} of DAG {message.dag_id!r} is on node {node!r}, which is not "
            f"connected to {self.node}",
            node=node,
        )

    def _registered(self, message: Fetch) -> str | None:
        try:
            return str(self.registry.call(LookUp(message.dag_id, message.id)))
        except ValueNotFoundError:
            return None

    def _locate(self, message: Locate) -> str:
        try:
            return str(self.registry.call(LookUp(message.dag_id, message.id)))
        except ValueNotFoundError:
            if self.store.call(GetMany(message.dag_id, [message.id])):
                return self.node
            raise

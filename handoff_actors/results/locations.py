"""DataLocationRegistry: on which node a value is. Any name may be registered, known or not."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from handoff_actors.actors.server import Actor
from handoff_actors.actors.table import Table
from handoff_actors.errors import ValueNotFoundError


@dataclass(frozen=True, slots=True)
class RegisterLocation:
    """The value is on ``node``."""

    dag_id: Hashable
    id: Hashable
    node: str


@dataclass(frozen=True, slots=True)
class LookUp:
    """The node of a value. Raises ValueNotFoundError."""

    dag_id: Hashable
    id: Hashable


@dataclass(frozen=True, slots=True)
class ClearLocations:
    """Forget the values of a DAG."""

    dag_id: Hashable


class DataLocationRegistry(Actor):
    """See the module.

    Args:
        table: ``(dag_id, value id)`` to node.
    """

    def __init__(self, table: Table[tuple[Hashable, Hashable], str]) -> None:
        self._state = table

    def init(self) -> None:
        """Take the table and index it by DAG."""
        self.view: Mapping[tuple[Hashable, Hashable], str] = self.take(self._state)
        self.ids: dict[Hashable, set[Hashable]] = {}
        for dag_id, id_ in self.view:
            self.ids.setdefault(dag_id, set()).add(id_)

    def handle(self, message: Any) -> Any:
        """See the messages."""
        if isinstance(message, RegisterLocation):
            self.commit({(message.dag_id, message.id): message.node})
            self.ids.setdefault(message.dag_id, set()).add(message.id)
            return None
        if isinstance(message, LookUp):
            try:
                return self.view[message.dag_id, message.id]
            except KeyError:
                raise ValueNotFoundError(
                    f"no node is known to have value {message.id!r} of DAG {message.dag_id!r}",
                    dag_id=message.dag_id,
                    value_id=message.id,
                ) from None
        if isinstance(message, ClearLocations):
            ids = self.ids.pop(message.dag_id, set())
            self.commit(deletions=[(message.dag_id, id_) for id_ in ids])
            return None
        return super().handle(message)

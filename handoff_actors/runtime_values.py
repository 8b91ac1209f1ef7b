"""What a runtime can be asked about values: store, fetch, locate, clear."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from handoff_actors.errors import (
    ConfigurationError,
    ResultTimeoutError,
    ValueNotFoundError,
    describe,
)
from handoff_actors.execution.context import place
from handoff_actors.execution.executor import Discard
from handoff_actors.execution.run_data import Distant
from handoff_actors.life import Life
from handoff_actors.results.distributed import (
    ClearEverywhere,
    Fetch,
    Locate,
    StoreResult,
    Synchronize,
)
from handoff_actors.results.locations import RegisterLocation
from handoff_actors.results.store import Await, Get, GetMany, GiveUp, Put

_AT_ONCE = 0.1
"""Seconds: a shorter timeout of ``get_result`` means: if it is there now."""


def _hashable(*ids: Any) -> None:
    """Refuse ids before they reach an actor, which could not keep them."""
    for id_ in ids:
        try:
            hash(id_)
        except Exception as error:
            raise ConfigurationError(f"an id must be hashable, not {describe(id_)}") from error


def _read(value: Any) -> Any:
    """A value that a run has made on another node is fetched by whoever asked, not by an actor."""
    return value.read() if isinstance(value, Distant) else value


class Values(Life):
    """Part of ``Runtime``: values by DAG and id."""

    def store_result(
        self, dag_id: Hashable, function_id: Hashable, result: Any, origin_node: str | None = None
    ) -> None:
        """Keep a value here and register where it is: ``origin_node``, or here."""
        _hashable(dag_id, function_id)
        self._ref("distributed_result_store").call(
            StoreResult(dag_id, function_id, result, origin_node)
        )

    def get_result(self, dag_id: Hashable, id: Hashable, timeout: float | None = 5.0) -> Any:  # noqa: A002
        """A value, as soon as it is there.

        Args:
            dag_id: whose newest run it is of.
            id: of the function, or of a stored value.
            timeout: seconds; None waits without limit.

        Raises:
            ResultTimeoutError: it did not come; at once if the run ended without it.
        """
        store = self._ref("result_store")
        _hashable(dag_id, id)
        if timeout is not None and timeout < _AT_ONCE:
            # The way to the store and back takes longer than so short a wait.
            found = store.call(GetMany(dag_id, (id,)))
            if found:
                return _read(found[id])
        here = place.get()
        loan = None if here is None else here.lend()
        try:
            reply = store.send(Await(dag_id, id))
            if not reply.wait(timeout):
                store.cast(GiveUp(reply))
                raise ResultTimeoutError(
                    f"value {id!r} of DAG {dag_id!r} did not come within {timeout} s",
                    dag_id=dag_id,
                    value_id=id,
                )
            return _read(reply.result())
        finally:
            if here is not None:
                here.reclaim(loan)

    def store_value(self, dag_id: Hashable, id: Hashable, value: Any) -> None:  # noqa: A002
        """Keep a value on this node."""
        _hashable(dag_id, id)
        self._ref("result_store").call(Put(dag_id, id, value))

    def get_local_value(self, dag_id: Hashable, id: Hashable) -> Any:  # noqa: A002
        """A value that is on this node.

        Raises:
            ValueNotFoundError: it is not.
        """
        _hashable(dag_id, id)
        found = self._ref("result_store").call(Get(dag_id, id))
        if isinstance(found, Distant) and not found.is_here:
            raise ValueNotFoundError(
                f"value {id!r} of DAG {dag_id!r} is on another node: use get_value() to fetch it",
                dag_id=dag_id,
                value_id=id,
            )
        return _read(found)

    def get_value(self, dag_id: Hashable, id: Hashable, from_node: str | None = None) -> Any:  # noqa: A002
        """A value, fetched from ``from_node`` or from wherever it is.

        Raises:
            ValueNotFoundError: nobody has it.
            NodeDownError: ``from_node`` is not connected.
        """
        _hashable(dag_id, id)
        return _read(self._ref("distributed_result_store").call(Fetch(dag_id, id, from_node)))

    def synchronize(self, dag_id: Hashable, ids: Iterable[Hashable]) -> dict[Hashable, Any]:
        """The values among ``ids`` that can be had, by id."""
        ids = tuple(ids)
        _hashable(dag_id, *ids)
        found: dict[Hashable, Any] = self._ref("distributed_result_store").call(
            Synchronize(dag_id, ids)
        )
        return found

    def register_data_location(self, dag_id: Hashable, data_id: Hashable, node: str) -> None:
        """Say on which node a value is; any name may be registered."""
        if not isinstance(node, str) or not node:
            raise ConfigurationError(f"a node's name is a non-empty str, not {describe(node)}")
        _hashable(dag_id, data_id)
        self._ref("data_location_registry").call(RegisterLocation(dag_id, data_id, node))

    def lookup_data_location(self, dag_id: Hashable, data_id: Hashable) -> str:
        """The node a value is on.

        Raises:
            ValueNotFoundError: nobody knows.
        """
        _hashable(dag_id, data_id)
        return str(self._ref("distributed_result_store").call(Locate(dag_id, data_id)))

    def clear(self, dag_id: Hashable) -> None:
        """Forget the values of a DAG, and where they are.

        Raises:
            AlreadyRunningError: a run of it is in progress.
        """
        _hashable(dag_id)
        self._ref("distributed_executor").call(Discard(dag_id))
        self._ref("distributed_result_store").call(ClearEverywhere(dag_id))

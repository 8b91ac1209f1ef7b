"""What a runtime can be asked about values: store, fetch, locate, clear."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from handoff_actors.actors.calls import Reply
from handoff_actors.arguments import check_ids, check_node, items_of, patience
from handoff_actors.errors import (
    NodeDownError,
    NodeUnreachableError,
    ResultTimeoutError,
    ValueNotFoundError,
)
from handoff_actors.execution.context import place
from handoff_actors.execution.executor import Discard
from handoff_actors.execution.run_data import MISSING
from handoff_actors.life import Life
from handoff_actors.results.distributed import (
    ClearEverywhere,
    Fetch,
    Locate,
    StoreResult,
    Synchronize,
)
from handoff_actors.results.elsewhere import Cell, Unread
from handoff_actors.results.locations import LookUp, RegisterLocation
from handoff_actors.results.store import Await, Get, GetMany, GiveUp, Put

_FIRST_LOOK, _LONGEST_LOOK = 0.01, 0.2
"""Seconds between two questions to the other nodes for a value that is waited for."""
_AT_ONCE = 0.1
"""Seconds: a shorter timeout of ``get_result`` means: if it is there now."""


def _read(value: Any) -> Any:
    """What is on another node, or on disk, is fetched by whoever asked for it, not by an actor."""
    # A proxy's ``__class__`` may raise: it is not asked.
    return value.read() if issubclass(type(value), Unread) else value


class Values(Life):
    """Part of ``Runtime``: values by DAG and id."""

    def store_result(
        self, dag_id: Hashable, function_id: Hashable, result: Any, origin_node: str | None = None
    ) -> None:
        """Keep a value here and register where it is: ``origin_node``, or here."""
        check_ids(dag_id, function_id)
        if origin_node is not None:
            check_node(origin_node)
        self._ref("distributed_result_store").call(
            StoreResult(dag_id, function_id, self._kept(dag_id, function_id, result), origin_node)
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
        check_ids(dag_id, id)
        self._desk.settle()
        timeout = patience(timeout)
        if timeout is not None and timeout < _AT_ONCE:
            # The way to the store and back takes longer than so short a wait.
            found = store.call(GetMany(dag_id, (id,)))
            if found:
                return _read(found[id])
        here = place.get()
        loan = None if here is None else here.lend()
        try:
            reply = store.send(Await(dag_id, id))
            if self._far is not None and dag_id not in self._desk.runs.newest:
                found = self._await_elsewhere(reply, dag_id, id, timeout)
                if found:
                    store.cast(GiveUp(reply))
                    return found[id]
            elif not reply.wait(timeout):
                store.cast(GiveUp(reply))
                raise _too_late(dag_id, id, timeout)
            return _read(reply.result())
        finally:
            if here is not None:
                here.reclaim(loan)

    def _await_elsewhere(
        self, reply: Reply, dag_id: Hashable, id_: Hashable, timeout: float | None
    ) -> dict[Hashable, Any]:
        """Wait for a value of a DAG that is not run here: the other nodes are asked, now and then.

        Returns:
            It, if another node has it; nothing once ``reply`` is there.
        """
        assert self._far is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_LOOK
        while True:
            left = pause if deadline is None else min(pause, deadline - time.monotonic())
            if reply.wait(max(0.0, left)):
                return {}
            found = self._far.from_all(dag_id, (id_,))
            if found:
                return found
            if deadline is not None and time.monotonic() >= deadline:
                self._ref("result_store").cast(GiveUp(reply))
                raise _too_late(dag_id, id_, timeout)
            pause = min(pause * 2.0, _LONGEST_LOOK)

    def store_value(self, dag_id: Hashable, id: Hashable, value: Any) -> None:  # noqa: A002
        """Keep a value on this node."""
        check_ids(dag_id, id)
        self._ref("result_store").call(Put(dag_id, id, self._kept(dag_id, id, value)))

    def _kept(self, dag_id: Hashable, id_: Hashable, value: Any) -> Any:
        """What is stored for a value: it, or where it is counted and may go to disk."""
        budget = self._workers.budget
        if budget is None:
            return value
        from handoff_actors.results.budget import Kept

        return Cell(Kept(budget, [value], 0, lambda _: f"value {id_!r} of DAG {dag_id!r}"))

    def get_local_value(self, dag_id: Hashable, id: Hashable) -> Any:  # noqa: A002
        """A value that is on this node.

        Raises:
            ValueNotFoundError: it is not.
        """
        check_ids(dag_id, id)
        store = self._ref("result_store")
        self._desk.settle()
        try:
            found = store.call(Get(dag_id, id))
        except ValueNotFoundError:
            made = self._made_for_others(dag_id, id)
            if made is MISSING:
                raise
            return made
        if self._makes(dag_id, id) not in (None, self._name):
            raise ValueNotFoundError(
                f"value {id!r} of DAG {dag_id!r} is on another node: use get_value() to fetch it",
                dag_id=dag_id,
                value_id=id,
            )
        return _read(found)

    def _made_for_others(self, dag_id: Hashable, id_: Hashable) -> Any:
        """What a run of another node has made here, if that is its newest; else ``MISSING``."""
        hub = self._hub
        if hub is None or self._far is None:
            return MISSING
        value, goes_on = hub.made_here(dag_id, id_)
        if value is MISSING or goes_on or self._far.locate(dag_id, id_) == self._name:
            return value
        return MISSING

    def get_value(self, dag_id: Hashable, id: Hashable, from_node: str | None = None) -> Any:  # noqa: A002
        """A value, fetched from ``from_node`` or from wherever it is.

        Raises:
            ValueNotFoundError: nobody has it.
            NodeDownError: ``from_node`` is not connected.
        """
        check_ids(dag_id, id)
        if from_node is not None:
            check_node(from_node)
        store = self._ref("distributed_result_store")
        self._desk.settle()
        far = self._far
        if far is None:
            return _read(store.call(Fetch(dag_id, id, from_node)))
        if from_node is None or from_node == self._name or self._makes(dag_id, id) == from_node:
            found = self._values_here(dag_id, (id,))
            if id in found:
                return found[id]
            made = self._made_for_others(dag_id, id)
            if made is not MISSING:
                return made
        node = from_node or self._registered(dag_id, id)
        if node is not None and node != self._name:
            found = far.from_node(node, dag_id, (id,))
            if id not in found and far.locate(dag_id, id) == node:
                found = far.from_all(dag_id, (id,))  # whose run made it there knows the way
        elif node is None:
            found = far.from_all(dag_id, (id,))
        if id not in found:
            where = "any node" if node is None else f"node {node}"
            raise ValueNotFoundError(
                f"value {id!r} of DAG {dag_id!r} is not on {where}", dag_id=dag_id, value_id=id
            )
        return found[id]

    def _values_here(self, dag_id: Hashable, ids: Sequence[Hashable]) -> dict[Hashable, Any]:
        """The values among ``ids`` that this node's store and runs have, read."""
        found = self._ref("result_store").call(GetMany(dag_id, ids))
        return {id_: _read(value) for id_, value in found.items()}

    def _registered(self, dag_id: Hashable, id_: Hashable) -> str | None:
        try:
            return str(self._ref("data_location_registry").call(LookUp(dag_id, id_)))
        except ValueNotFoundError:
            return None

    def synchronize(self, dag_id: Hashable, ids: Iterable[Hashable]) -> dict[Hashable, Any]:
        """The values among ``ids`` that can be had, by id."""
        ids = items_of("ids", ids, "ids")
        check_ids(dag_id, *ids)
        store = self._ref("distributed_result_store")
        self._desk.settle()
        found: dict[Hashable, Any] = store.call(Synchronize(dag_id, ids))
        found = {id_: _read(value) for id_, value in found.items()}
        far = self._far
        if far is not None and len(found) < len(ids):
            homes: dict[str, list[Hashable]] = {}
            for id_ in ids:
                node = None if id_ in found else self._registered(dag_id, id_)
                if node is not None and node != self._name:
                    homes.setdefault(node, []).append(id_)
            for node, some in homes.items():
                with contextlib.suppress(NodeDownError, NodeUnreachableError):
                    found.update(far.from_node(node, dag_id, some))
            left = [id_ for id_ in ids if id_ not in found]
            if left:
                found.update(far.from_all(dag_id, left))
        return found

    def register_data_location(self, dag_id: Hashable, data_id: Hashable, node: str) -> None:
        """Say on which node a value is; any name may be registered."""
        check_node(node)
        check_ids(dag_id, data_id)
        self._ref("data_location_registry").call(RegisterLocation(dag_id, data_id, node))

    def lookup_data_location(self, dag_id: Hashable, data_id: Hashable) -> str:
        """The node a value is on.

        Raises:
            ValueNotFoundError: nobody knows.
        """
        check_ids(dag_id, data_id)
        self._ref("distributed_result_store")
        self._desk.settle()
        node = self._locate_here(dag_id, data_id)
        if node is None and self._far is not None:
            node = self._far.locate(dag_id, data_id)
        if node is None:
            raise ValueNotFoundError(
                f"no node is known to have value {data_id!r} of DAG {dag_id!r}",
                dag_id=dag_id,
                value_id=data_id,
            )
        return node

    def _makes(self, dag_id: Hashable, id_: Hashable) -> str | None:
        """The node on which the newest run of this node has made a value."""
        run = self._desk.runs.newest.get(dag_id)
        return None if run is None else run.made_at(id_)

    def _locate_here(self, dag_id: Hashable, id_: Hashable) -> str | None:
        """The node of a value, as far as this one knows."""
        try:
            node = str(self._ref("distributed_result_store").call(Locate(dag_id, id_)))
        except ValueNotFoundError:
            return None
        made_at = self._makes(dag_id, id_)
        return made_at if made_at is not None and node == self._name else node

    def clear(self, dag_id: Hashable) -> None:
        """Forget the values of a DAG, and where they are.

        Raises:
            AlreadyRunningError: a run of it is in progress.
        """
        check_ids(dag_id)
        self._clear_here(dag_id)
        if self._far is not None:
            self._far.clear(dag_id)

    def _clear_here(self, dag_id: Hashable) -> None:
        self._ref("distributed_executor").call(Discard(dag_id))
        self._ref("distributed_result_store").call(ClearEverywhere(dag_id))


def _too_late(dag_id: Hashable, id_: Hashable, timeout: float | None) -> ResultTimeoutError:
    return ResultTimeoutError(
        f"value {id_!r} of DAG {dag_id!r} did not come within {timeout} s",
        dag_id=dag_id,
        value_id=id_,
    )

"""ResultStore: the values of this node, and those who wait for them.

Values come from two sides: the newest run of each DAG brings its own (the store reads them where the
run keeps them), and users store some. What a user stored last wins over the run's, but a new run of
the DAG starts clean of older values of its functions.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from handoff_actors.actors.calls import Reply
from handoff_actors.actors.server import DEFERRED, Actor
from handoff_actors.actors.table import Table
from handoff_actors.errors import ResultTimeoutError, ValueNotFoundError


class RunValues(Protocol):
    """What the store needs to know of a run."""

    @property
    def dag_id(self) -> Hashable:
        """Whose values they are."""

    @property
    def over(self) -> bool:
        """Whether what is not there will not come."""

    def lookup(self, id_: Hashable) -> tuple[str, Any]:
        """``("there", value)``, or None with why not: coming, freed, never, or unknown."""

    def watch(self, id_: Hashable) -> None:
        """Tell the store when this value comes."""


@dataclass(frozen=True, slots=True)
class Begin:
    """A run of a DAG begins: its values are the DAG's from now on."""

    run: RunValues


@dataclass(frozen=True, slots=True)
class Ended:
    """A run is over: what it has not made will not come."""

    run: RunValues


@dataclass(frozen=True, slots=True)
class Forget:
    """A run was released."""

    run: RunValues


@dataclass(frozen=True, slots=True)
class Available:
    """Watched values of a run have come."""

    run: RunValues
    ids: Sequence[Hashable]


@dataclass(frozen=True, slots=True)
class Put:
    """Keep a value."""

    dag_id: Hashable
    id: Hashable
    value: Any


@dataclass(frozen=True, slots=True)
class Get:
    """A value, now. Raises ValueNotFoundError."""

    dag_id: Hashable
    id: Hashable


@dataclass(frozen=True, slots=True)
class GetMany:
    """A mapping of those among ``ids`` that are here."""

    dag_id: Hashable
    ids: Sequence[Hashable]


@dataclass(frozen=True, slots=True)
class Await:
    """A value, as soon as it is there."""

    dag_id: Hashable
    id: Hashable


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Whoever awaited with this reply does so no more."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Clear:
    """Forget everything about a DAG."""

    dag_id: Hashable


@dataclass(frozen=True, slots=True)
class _Waiter:
    dag_id: Hashable
    id: Hashable
    reply: Reply


_Key = tuple[Any, ...]


class ResultStore(Actor):
    """See the module.

    Args:
        table: keeps ``("value", dag_id, id)``, ``("run", dag_id)`` and ``("waiter", number)``.
    """

    def __init__(self, table: Table[_Key, Any]) -> None:
        self._state = table

    def init(self) -> None:
        """Index what the table has; answer waiters whose value came while nobody looked."""
        self.view: Mapping[_Key, Any] = self.take(self._state)
        self.values: dict[Hashable, dict[Hashable, Any]] = {}
        self.waiters: dict[tuple[Hashable, Hashable], list[_Key]] = {}
        self.number = 0
        for key, entry in self.view.items():
            if key[0] == "value":
                self.values.setdefault(key[1], {})[key[2]] = entry
            elif key[0] == "waiter":
                self.waiters.setdefault((entry.dag_id, entry.id), []).append(key)
                self.number = max(self.number, key[1])
        for dag_id, id_ in list(self.waiters):
            self._settle(dag_id, id_)

    def handle(self, message: Any) -> Any:
        """See the messages."""
        if isinstance(message, Await):
            return self._await(message)
        if isinstance(message, Get):
            return self._get(message.dag_id, message.id)
        if isinstance(message, GetMany):
            return self._get_many(message)
        if isinstance(message, Put):
            return self._put(message)
        if isinstance(message, Begin):
            return self._begin(message.run)
        if isinstance(message, Available):
            for id_ in message.ids:
                self._settle(message.run.dag_id, id_)
            return None
        if isinstance(message, Ended):
            return self._ended(message.run)
        if isinstance(message, Forget):
            key = ("run", message.run.dag_id)
            if self.view.get(key) is message.run:
                self.commit(deletions=[key])
            return None
        if isinstance(message, GiveUp):
            return self._give_up(message.reply)
        if isinstance(message, Clear):
            return self._clear(message.dag_id)
        return super().handle(message)

    def _find(self, dag_id: Hashable, id_: Hashable) -> tuple[str, Any]:
        stored = self.values.get(dag_id)
        if stored is not None and id_ in stored:
            return "there", stored[id_]
        run: RunValues | None = self.view.get(("run", dag_id))
        return ("unknown", None) if run is None else run.lookup(id_)

    def _get(self, dag_id: Hashable, id_: Hashable) -> Any:
        state, value = self._find(dag_id, id_)
        if state != "there":
            why = {
                "coming": "its run has not made it yet: use get_result() to wait for it",
                "never": "its run ended without it",
                "freed": "it was freed when its last consumer had ended: name it in keep=",
                "unknown": "no run and nobody else has stored it here",
            }[state]
            raise ValueNotFoundError(
                f"value {id_!r} of DAG {dag_id!r} is not here: {why}", dag_id=dag_id, value_id=id_
            )
        return value

    def _get_many(self, message: GetMany) -> dict[Hashable, Any]:
        found = {id_: self._find(message.dag_id, id_) for id_ in message.ids}
        return {id_: value for id_, (state, value) in found.items() if state == "there"}

    def _put(self, message: Put) -> None:
        self.commit({("value", message.dag_id, message.id): message.value})
        self.values.setdefault(message.dag_id, {})[message.id] = message.value
        self._settle(message.dag_id, message.id)

    def _begin(self, run: RunValues) -> None:
        stored = self.values.get(run.dag_id, {})
        stale = [id_ for id_ in stored if run.lookup(id_)[0] != "unknown"]
        self.commit({("run", run.dag_id): run}, [("value", run.dag_id, id_) for id_ in stale])
        for id_ in stale:
            del stored[id_]
        for dag_id, id_ in [key for key in self.waiters if key[0] == run.dag_id]:
            run.watch(id_)
            self._settle(dag_id, id_)

    def _await(self, message: Await) -> Any:
        dag_id, id_ = message.dag_id, message.id
        run: RunValues | None = self.view.get(("run", dag_id))
        if run is not None:
            run.watch(id_)
        state, value = self._find(dag_id, id_)
        if state == "there":
            return value
        if run is not None and state != "coming" and (run.over or state == "freed"):
            raise self._never(dag_id, id_)
        reply = self.asker()
        if reply is None:
            return None
        self.number += 1
        key = ("waiter", self.number)
        self.commit({key: _Waiter(dag_id, id_, reply)}, reply=DEFERRED)
        self.waiters.setdefault((dag_id, id_), []).append(key)
        return DEFERRED

    @staticmethod
    def _never(dag_id: Hashable, id_: Hashable) -> ResultTimeoutError:
        return ResultTimeoutError(
            f"the run of DAG {dag_id!r} has ended, and value {id_!r} is not among its results: it "
            "failed before, or the value was freed (see keep=)",
            dag_id=dag_id,
            value_id=id_,
        )

    def _settle(self, dag_id: Hashable, id_: Hashable) -> None:
        """Answer those who wait for a value, if it is there."""
        keys = self.waiters.get((dag_id, id_))
        if not keys:
            return
        state, value = self._find(dag_id, id_)
        if state == "there":
            replies = [self.view[key].reply for key in keys]
            self.commit(deletions=keys)
            del self.waiters[dag_id, id_]
            for reply in replies:
                reply.set(value)

    def _ended(self, run: RunValues) -> None:
        if self.view.get(("run", run.dag_id)) is not run:
            return
        for dag_id, id_ in [key for key in self.waiters if key[0] == run.dag_id]:
            self._settle(dag_id, id_)
            keys = self.waiters.pop((dag_id, id_), [])
            replies = [self.view[key].reply for key in keys]
            self.commit(deletions=keys)
            for reply in replies:
                reply.fail(self._never(dag_id, id_))

    def _give_up(self, reply: Reply) -> None:
        for where, keys in list(self.waiters.items()):
            gone = [key for key in keys if self.view[key].reply is reply]
            if gone:
                self.commit(deletions=gone)
                left = [key for key in keys if key not in gone]
                if left:
                    self.waiters[where] = left
                else:
                    del self.waiters[where]

    def _clear(self, dag_id: Hashable) -> None:
        stored = self.values.pop(dag_id, {})
        self.commit(deletions=[("run", dag_id), *(("value", dag_id, id_) for id_ in stored)])

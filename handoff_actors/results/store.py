"""ResultStore: the values of this node, and those who wait for them.

Values come from two sides: the newest run of each DAG brings its own (the store reads them where
the run keeps them), and users store some. What a user stores wins over a run that was there before,
and gives way to the values of a later one. The executor publishes the newest runs in ``Runs``; it
tells the store of a run's begin and end only when somebody waits for one of its values.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from handoff_actors.actors.calls import Reply, gone
from handoff_actors.actors.reasons import Reason
from handoff_actors.actors.server import DEFERRED, Actor
from handoff_actors.actors.table import Table
from handoff_actors.errors import ResultTimeoutError, ValueNotFoundError


class RunValues(Protocol):
    """What the store needs to know of a run."""

    @property
    def key(self) -> int:
        """Larger than those of earlier runs."""

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

    def made_at(self, id_: Hashable) -> str | None:
        """The node that made a value, if it is there."""


class Runs:
    """What the executor and the store share.

    Attributes:
        newest: the newest run of each DAG; written by the executor only.
        awaited: DAGs of which a value is waited for; written by the store only.
    """

    __slots__ = ("awaited", "newest")

    def __init__(self) -> None:
        self.newest: dict[Hashable, RunValues] = {}
        self.awaited: set[Hashable] = set()


@dataclass(frozen=True, slots=True)
class Begin:
    """A run of an awaited DAG begins: its values are the DAG's from now on."""

    run: RunValues


@dataclass(frozen=True, slots=True)
class Ended:
    """A run is over: what it has not made will not come."""

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
class _Stored:
    value: Any
    after: int
    """The key of the newest run when it was stored."""


@dataclass(frozen=True, slots=True)
class _Waiter:
    dag_id: Hashable
    id: Hashable
    reply: Reply


_Key = tuple[Any, ...]


class ResultStore(Actor):
    """See the module.

    Args:
        table: keeps ``("value", dag_id, id)`` and ``("waiter", number)``.
        runs: the newest runs.
    """

    def __init__(self, table: Table[_Key, Any], runs: Runs) -> None:
        self._state = table
        self.runs = runs

    def init(self) -> None:
        """Index what the table has; answer waiters whose value came while nobody looked."""
        self.view: Mapping[_Key, Any] = self.take(self._state)
        self.values: dict[Hashable, dict[Hashable, _Stored]] = {}
        self.waiters: dict[tuple[Hashable, Hashable], list[_Key]] = {}
        self.number = 0
        if not self.view:
            self.commit({("watched",): True})
            self.ref.when_gone(self._fail_waiters)
        for key, entry in self.view.items():
            if key[0] == "value":
                self.values.setdefault(key[1], {})[key[2]] = entry
            elif key[0] == "waiter":
                self.runs.awaited.add(entry.dag_id)
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
        if isinstance(message, GiveUp):
            return self._give_up(message.reply)
        if isinstance(message, Clear):
            return self._clear(message.dag_id)
        return super().handle(message)

    def _fail_waiters(self, reason: Reason) -> None:
        """No store will ever answer: on whatever thread closes the mailbox."""
        for key, entry in list(self._state.view.items()):
            if key[0] == "waiter":
                entry.reply.fail(gone(self.ref, reason))

    def _find(self, dag_id: Hashable, id_: Hashable) -> tuple[str, Any]:
        run = self.runs.newest.get(dag_id)
        found = ("unknown", None) if run is None else run.lookup(id_)
        stored = self.values.get(dag_id, {}).get(id_)
        if stored is not None and (found[0] == "unknown" or run is None or stored.after >= run.key):
            return "there", stored.value
        return found

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
        run = self.runs.newest.get(message.dag_id)
        stored = _Stored(message.value, 0 if run is None else run.key)
        self.commit({("value", message.dag_id, message.id): stored})
        self.values.setdefault(message.dag_id, {})[message.id] = stored
        self._settle(message.dag_id, message.id)

    def _begin(self, run: RunValues) -> None:
        for dag_id, id_ in [key for key in self.waiters if key[0] == run.dag_id]:
            run.watch(id_)
            self._settle(dag_id, id_)
        if run.over:
            self._ended(run)

    def _await(self, message: Await) -> Any:
        dag_id, id_ = message.dag_id, message.id
        # First say that it is waited for, then look: whoever brings it does it the other way round.
        self.runs.awaited.add(dag_id)
        run = self.runs.newest.get(dag_id)
        if run is not None:
            run.watch(id_)
        state, value = self._find(dag_id, id_)
        if state == "there":
            self._no_longer_awaited(dag_id)
            return value
        if run is not None and state != "coming" and (run.over or state == "freed"):
            self._no_longer_awaited(dag_id)
            raise self._never(dag_id, id_)
        reply = self.asker()
        if reply is None:
            return None
        self.number += 1
        key = ("waiter", self.number)
        self.commit({key: _Waiter(dag_id, id_, reply)}, reply=DEFERRED)
        self.waiters.setdefault((dag_id, id_), []).append(key)
        return DEFERRED

    def _no_longer_awaited(self, dag_id: Hashable) -> None:
        if not any(key[0] == dag_id for key in self.waiters):
            self.runs.awaited.discard(dag_id)

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
            # First answer, then forget: whoever is answered twice hears it once.
            for key in keys:
                self.view[key].reply.set(value)
            self.commit(deletions=keys)
            del self.waiters[dag_id, id_]
            self._no_longer_awaited(dag_id)

    def _ended(self, run: RunValues) -> None:
        if self.runs.newest.get(run.dag_id) is not run:
            return
        for dag_id, id_ in [key for key in self.waiters if key[0] == run.dag_id]:
            self._settle(dag_id, id_)
            keys = self.waiters.get((dag_id, id_), [])
            for key in keys:
                self.view[key].reply.fail(self._never(dag_id, id_))
            self.commit(deletions=keys)
            self.waiters.pop((dag_id, id_), None)
        self._no_longer_awaited(run.dag_id)

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
                    self._no_longer_awaited(where[0])

    def _clear(self, dag_id: Hashable) -> None:
        stored = self.values.pop(dag_id, {})
        self.commit(deletions=[("value", dag_id, id_) for id_ in stored])

"""Values by DAG and id on other nodes: what their stores have, and what their runs have made.

    get_value, synchronize ──▶ this node's store ──▶ the node that is registered ──▶ all the others

One call per node, however many values; what is large comes by itself, by the fastest way. For
threads that may wait, never for actors.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.cluster.peers import Cluster, Peer
from handoff_actors.errors import (
    HandoffError,
    NodeDownError,
    NodeUnreachableError,
    ValueNotFoundError,
    describe,
)
from handoff_actors.events import EventBus, ValuesMoved

SERVICE = "store"
_PATIENCE = 5.0
"""Seconds for a node to say what it has."""
_FETCH = 600.0
_SMALL = 256 * 1024
_LARGE = "large"

GetMany = Callable[[Hashable, Sequence[Hashable]], Mapping[Hashable, Any]]


class RemoteStore:
    """See the module.

    Args:
        cluster: this node among the others.
        get_many: the values among these ids that are here, read.
        locate: the node that has a value, as far as it is known here, or None.
        clear: forgets the values of a DAG here.
        events: where it is told what has come.
    """

    def __init__(
        self,
        cluster: Cluster,
        get_many: GetMany,
        locate: Callable[[Hashable, Hashable], str | None],
        clear: Callable[[Hashable], None],
        events: EventBus,
    ) -> None:
        self._cluster = cluster
        self._get_many = get_many
        self._locate = locate
        self._clear = clear
        self._events = events
        cluster.serve(SERVICE, on_call=self._on_call, on_fetch=self._on_fetch)

    # What others ask.

    def _on_call(self, _peer: Peer, request: Any) -> Any:
        what, dag_id, *rest = request
        if what == "get":
            found = self._get_many(dag_id, rest[0])
            answer: list[Any] = []
            for id_ in rest[0]:
                if id_ in found:
                    payload = dumps(found[id_], f"value {describe(id_)}")
                    answer.append(_LARGE if payload.nbytes > _SMALL else payload)
                else:
                    answer.append(None)
            return answer
        if what == "locate":
            return self._locate(dag_id, rest[0])
        if what == "clear":
            self._clear(dag_id)
            return None
        raise HandoffError(f"the store of node {self._cluster.node} cannot {describe(what)}")

    def _on_fetch(self, _peer: Peer, key: Any) -> Payload:
        dag_id, id_ = key
        found = self._get_many(dag_id, (id_,))
        if id_ not in found:
            raise ValueNotFoundError(
                f"value {id_!r} of DAG {dag_id!r} is not on node {self._cluster.node}",
                dag_id=dag_id,
                value_id=id_,
            )
        return dumps(found[id_], f"value {describe(id_)}")

    # What this node asks.

    def from_node(
        self, node: str, dag_id: Hashable, ids: Sequence[Hashable]
    ) -> dict[Hashable, Any]:
        """The values among ``ids`` that a node has.

        Raises:
            NodeDownError: it is not connected.
            NodeUnreachableError: it does not answer.
        """
        peer = self._cluster.peer(node)
        answer = peer.call(SERVICE, ("get", dag_id, list(ids)), _PATIENCE)
        return self._read(peer, dag_id, ids, answer)

    def from_all(self, dag_id: Hashable, ids: Sequence[Hashable]) -> dict[Hashable, Any]:
        """The values among ``ids`` that any of the other nodes has; those that fail have none."""
        asked = self._ask_all(("get", dag_id, list(ids)))
        found: dict[Hashable, Any] = {}
        for peer, answer in asked:
            left = [id_ for id_ in ids if id_ not in found]
            if not left:
                break
            wanted = [a if id_ in left else None for id_, a in zip(ids, answer, strict=True)]
            try:
                found.update(self._read(peer, dag_id, ids, wanted))
            except (NodeDownError, NodeUnreachableError, ValueNotFoundError):
                continue
        return found

    def locate(self, dag_id: Hashable, id_: Hashable) -> str | None:
        """The node that has a value, as far as any of the others knows."""
        for _, answer in self._ask_all(("locate", dag_id, id_)):
            if answer is not None:
                return str(answer)
        return None

    def clear(self, dag_id: Hashable) -> None:
        """Have all others forget the values of a DAG."""
        self._ask_all(("clear", dag_id))

    def _ask_all(self, request: tuple[Any, ...]) -> list[tuple[Peer, Any]]:
        peers = [peer for peer in self._cluster.peers().values() if peer.state == "up"]
        futures = [(peer, peer.ask(SERVICE, request, _PATIENCE)) for peer in peers]
        answers: list[tuple[Peer, Any]] = []
        for peer, future in futures:
            try:
                answers.append((peer, future.result(_PATIENCE + 1.0)))
            except (NodeDownError, NodeUnreachableError, concurrent.futures.TimeoutError):
                continue
        return answers

    def _read(
        self, peer: Peer, dag_id: Hashable, ids: Iterable[Hashable], answer: Sequence[Any]
    ) -> dict[Hashable, Any]:
        found: dict[Hashable, Any] = {}
        nbytes = 0
        for id_, payload in zip(ids, answer, strict=True):
            if payload is None:
                continue
            if payload == _LARGE:
                payload = peer.fetch(SERVICE, (dag_id, id_), _FETCH)
            nbytes += payload.nbytes
            found[id_] = loads(payload, f"value {describe(id_)}")
        if found and self._events.active:
            self._events.publish(
                ValuesMoved(
                    dag_id=dag_id,
                    source=peer.name,
                    target=self._cluster.node,
                    values=len(found),
                    nbytes=nbytes,
                )
            )
        return found

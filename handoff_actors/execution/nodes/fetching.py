"""Values from node to node: giving them out, and getting them from where they are.

    consumer ── Many(small ones), or fetch(one large one) ──▶ producer
        └ if the two cannot reach each other ──▶ orchestrator ──▶ producer

Serializers run where the value is, on a thread of the cluster's pool. What cannot be had now is a
``GoneError``: whoever made it is gone, and the run sees that it is made again. Everything else that
goes wrong is the error it is.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.cluster.peers import Cluster, Peer
from handoff_actors.cluster.remote_errors import dump_exception, load_exception
from handoff_actors.errors import (
    HandoffError,
    NodeDownError,
    NodeError,
    NodeUnreachableError,
    ValueNotFoundError,
    describe,
)
from handoff_actors.execution.context import Context, place
from handoff_actors.execution.nodes.messages import (
    VALUES,
    Carried,
    Located,
    Many,
    RunName,
    ValueKey,
)
from handoff_actors.execution.run_data import FREED, MISSING
from handoff_actors.execution.trail import Trail, Transfer
from handoff_actors.results.elsewhere import Elsewhere

if TYPE_CHECKING:
    from handoff_actors.execution.run_data import RunData

SMALL = 256 * 1024
"""Bytes of a value that is asked for together with others, at most."""
_ANSWER = 8 * 1024 * 1024
"""Bytes of values in one answer, about at most."""
_TOGETHER = 1000
TIMEOUT = 600.0
"""Seconds for one value; a producer that is gone or frozen is noticed long before."""


class GoneError(Exception):
    """The value cannot be had now.

    Attributes:
        certain: the node where it should be says that it has it not.
    """

    def __init__(self, message: str, certain: bool = False) -> None:
        super().__init__(message)
        self.certain = certain


@dataclass(frozen=True, slots=True)
class Wish:
    """A value somebody wants.

    Attributes:
        mark: what the wisher knows it by.
        key: which.
        node: where it is.
        nbytes: about how large it is.
        what: how errors call it.
    """

    mark: Any
    key: ValueKey
    node: str
    nbytes: int
    what: str


class _Here:
    """Where serializers run: on a thread of no attempt, which therefore has nothing to lend."""

    def __init__(self, runtime: Callable[[], Any]) -> None:
        self.home = runtime

    def context(self) -> Context:
        raise HandoffError("a serializer that runs where its value was made is of no attempt there")

    def lend(self) -> None:
        return None

    def reclaim(self, loan: Any) -> None:  # noqa: ARG002  as in Place
        return None


class Shelf:
    """What this node gives out.

    Args:
        node: its name.
        holder: the run of a name, if it is known here.
        relay: gets a value from where it is, for somebody who cannot.
        runtime: what serializers that call the library act on.
    """

    def __init__(
        self,
        node: str,
        holder: Callable[[RunName], RunData | None],
        relay: Callable[[ValueKey, str], Payload],
        runtime: Callable[[], Any],
    ) -> None:
        self._node = node
        self._holder = holder
        self._relay = relay
        self._here = _Here(runtime)

    def on_fetch(self, _peer: Peer, key: ValueKey) -> Payload:
        """The payload of one value.

        Raises:
            ValueNotFoundError: it is not here.
        """
        data = self._holder(key.run)
        value = MISSING if data is None else data.peek(key.index)
        if isinstance(value, Located):
            if key.relay:
                return self._relay(key, value.node)
            value = MISSING
        if data is None or value is MISSING or value is FREED:
            raise ValueNotFoundError(
                f"value {key.index} of run {key.run} is not on node {self._node}",
                dag_id=None if data is None else data.dag_id,
                value_id=None if data is None else data.plan.ids[key.index],
            )
        what = f"result of function {describe(data.plan.ids[key.index])}"
        if isinstance(value, Carried):
            if key.serialize is None:
                return value.payload
            value = loads(value.payload, what)
        elif isinstance(value, Elsewhere) and value.on_disk:
            value = data.read(key.index)
        if key.serialize is None:
            return dumps(value, what)
        return dumps(self._serialized(value, key), what)

    def _serialized(self, value: Any, key: ValueKey) -> Any:
        assert key.serialize is not None
        function, extra = loads(key.serialize, "serialization_fn")
        try:
            return contextvars.copy_context().run(
                self._run, function, (value, self._node, key.target, *extra)
            )
        except BaseException as error:  # the user's code may raise anything
            return _Failed(dump_exception(error))

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        place.set(self._here)
        return function(*args)

    def many(self, peer: Peer, message: Many) -> list[Any]:
        """For each key its payload, its size when it is better fetched alone, or a ``_Failed``."""
        answers: list[Any] = []
        size = 0
        for key in message.keys:
            try:
                payload = self.on_fetch(peer, key)
            except ValueNotFoundError:
                answers.append(None)
                continue
            except Exception as error:
                answers.append(_Failed(dump_exception(error)))
                continue
            nbytes = payload.nbytes
            size += nbytes
            answers.append(payload if nbytes <= SMALL and size <= _ANSWER else nbytes)
        return answers


class _Failed:
    """An error in the place of a value."""

    __slots__ = ("error",)

    def __init__(self, error: Payload) -> None:
        self.error = error


class Fetcher:
    """Gets values from other nodes; blocks, so it is for threads that may.

    Args:
        cluster: this node among the others.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def bring(
        self, wishes: Sequence[Wish], relay: str | None, trail: Trail
    ) -> Iterator[tuple[Any, Any, bool]]:
        """Yields ``(mark, value or error, whether it is the value)`` for each wish.

        Args:
            wishes: what is wanted.
            relay: the node to ask for what cannot be had from where it is, or None.
            trail: is told what has come.
        """
        homes: dict[str, list[Wish]] = {}
        for wish in wishes:
            homes.setdefault(wish.node, []).append(wish)
        for node, some in homes.items():
            small = [wish for wish in some if wish.nbytes <= SMALL]
            large = [wish for wish in some if wish.nbytes > SMALL]
            for k in range(0, len(small), _TOGETHER):
                chunk = small[k : k + _TOGETHER]
                for wish, answer in zip(chunk, self._ask(node, chunk, trail), strict=True):
                    if isinstance(answer, int):
                        large.append(wish)
                    elif isinstance(answer, (Payload, _Failed)):
                        yield (wish.mark, *_read(answer, wish))
                    else:
                        yield (wish.mark, *self._elsewhere(wish, relay, answer, trail))
            for wish in large:
                yield (wish.mark, *self._fetch(wish, relay, trail))

    def _ask(self, node: str, wishes: Sequence[Wish], trail: Trail) -> Iterable[Any]:
        start = perf_counter()
        try:
            answers: list[Any] = self._cluster.peer(node).call(
                VALUES, Many([wish.key for wish in wishes]), TIMEOUT
            )
        except (NodeDownError, NodeUnreachableError) as error:
            return [error] * len(wishes)
        except Exception as error:
            return [_Failed(dump_exception(error))] * len(wishes)
        come = [k for k, answer in enumerate(answers) if isinstance(answer, Payload)]
        if come:
            key, size = wishes[come[0]].key, sum(answers[k].nbytes for k in come)
            trail.moved(
                Transfer(key.index, node, key.target, start, perf_counter(), size, len(come))
            )
        return answers

    def _fetch(self, wish: Wish, relay: str | None, trail: Trail) -> tuple[Any, bool]:
        try:
            payload = self._take(wish.node, wish.key, trail)
        except (NodeDownError, NodeUnreachableError, ValueNotFoundError) as error:
            return self._elsewhere(wish, relay, error, trail)
        except BaseException as error:
            return _problem(error, wish), False
        return _read(payload, wish)

    def _take(self, node: str, key: ValueKey, trail: Trail) -> Payload:
        start = perf_counter()
        payload = self._cluster.peer(node).fetch(VALUES, key, TIMEOUT)
        trail.moved(
            Transfer(key.index, node, self._cluster.node, start, perf_counter(), payload.nbytes)
        )
        return payload

    def _elsewhere(self, wish: Wish, relay: str | None, why: Any, trail: Trail) -> tuple[Any, bool]:
        """By way of the orchestrator, which knows where the value is now, if anybody does."""
        if relay is None or relay == wish.node or relay == self._cluster.node:
            certain = not isinstance(why, NodeError)
            return GoneError(f"{wish.what} is not on node {wish.node} ({why})", certain), False
        key = ValueKey(
            wish.key.run, wish.key.index, wish.key.target, wish.key.serialize, relay=True
        )
        try:
            payload = self._take(relay, key, trail)
        except (NodeDownError, NodeUnreachableError, ValueNotFoundError) as error:
            return GoneError(f"{wish.what}: {error}"), False
        except BaseException as error:
            return _problem(error, wish), False
        return _read(payload, wish)

    def relay(self, key: ValueKey, node: str, trail: Trail) -> Payload:
        """The payload of a value of ours for somebody who cannot reach ``node``.

        Raises:
            ValueNotFoundError: it cannot be had.
        """
        plain = ValueKey(key.run, key.index, key.target, key.serialize)
        try:
            return self._take(node, plain, trail)
        except (NodeDownError, NodeUnreachableError) as error:
            raise ValueNotFoundError(str(error), dag_id=None, value_id=key.index) from error


def _read(answer: Payload | _Failed, wish: Wish) -> tuple[Any, bool]:
    if isinstance(answer, _Failed):
        return _problem(load_exception(answer.error), wish), False
    try:
        value = loads(answer, wish.what)
    except BaseException as error:  # the user's class may raise anything when it is made
        return _problem(error, wish), False
    if isinstance(value, _Failed):
        return load_exception(value.error), False
    return value, True


def _problem(error: BaseException, wish: Wish) -> BaseException:
    if isinstance(error, MemoryError):
        return MemoryError(
            f"{wish.what} (about {wish.nbytes / 1e6:,.0f} MB, on node {wish.node}) does not fit "
            f"into the memory that is left on node {wish.key.target}: {error or 'out of memory'}"
        )
    return error

"""What goes to worker processes and comes back, in values: attempts, calls, outcomes.

Guarantees that a value which cannot be sent or read is the trouble of the attempt it belongs to
alone, and that its error names function and argument.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from handoff_actors.cluster.framing import PLAIN, Slots, payload_of
from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.cluster.remote_errors import load_exception
from handoff_actors.errors import SerializationError, describe
from handoff_actors.graph.calls import Call

Values = Mapping[int, Any] | Sequence[Any]
Refused = list[tuple[int, SerializationError]]


class WorkItem(NamedTuple):
    """One attempt.

    Attributes:
        token: names the attempt; no two that a worker holds are equal.
        key: what its function was taught as.
        function_id: the function's id.
        attempt: 1 for the first.
        values: the values of the indices that the call names: a mapping, or, when the call's
            sources are just 0, 1, 2 and so on, a tuple.
    """

    token: int
    key: int
    function_id: Hashable
    attempt: int
    values: Values


class Outcome(NamedTuple):
    """How an attempt ended.

    Attributes:
        token: which.
        ok: whether ``value`` is its result; else it is the exception.
        value: see ``ok``.
        started: when, by ``time.perf_counter()`` of any process of this machine.
        ended: when.
    """

    token: int
    ok: bool
    value: Any
    started: float
    ended: float


def check_call(call: Call, dag_id: Hashable) -> None:
    """Refuse a call that cannot be sent to a process.

    Raises:
        SerializationError: names the function, and what of its code it is.
    """
    dump_call(call, dag_id)


def dump_call(call: Call, dag_id: Hashable = None) -> Payload:
    """Pickle a call.

    Raises:
        SerializationError: see ``check_call``.
    """
    try:
        return dumps(call, f"code of function {describe(call.id)}")
    except SerializationError as error:
        error.function_id = call.id
        error.dag_id = dag_id
        raise


def pack(dag_id: Hashable, items: Sequence[WorkItem], slots: Slots) -> tuple[Any, Refused]:
    """The attempts of one frame as columns; plain values as they are, the others in slots.

    Args:
        dag_id: whose attempts they are.
        items: the attempts.
        slots: of the frame.

    Returns:
        The columns, which are None when nothing is left to send, and the attempts that cannot be
        sent, with the reason.
    """
    tokens, keys, ids, attempts, values = map(list, zip(*items, strict=True))
    refs: dict[int, dict[int, int]] = {}
    made: dict[int, int] = {}  # the slots of objects, so that each crosses once in a frame
    refused: Refused = []
    is_plain = PLAIN.issuperset
    for i, given in enumerate(values):
        if is_plain(map(type, given if given.__class__ is tuple else given.values())):
            continue
        try:
            values[i], refs[i] = _pack_values(slots, made, given, ids[i])
        except SerializationError as error:
            error.dag_id = dag_id
            refused.append((tokens[i], error))
    if refused:
        gone = {token for token, _ in refused}
        rest = [item for item in items if item.token not in gone]
        slots.clear()
        if not rest:
            return None, refused
        columns, more = pack(dag_id, rest, slots)
        return columns, refused + more
    odd: dict[int, int] = {}
    if not is_plain(map(type, ids)):
        for i, id_ in enumerate(ids):
            if type(id_) not in PLAIN:
                try:
                    odd[i] = slots.add(dumps(id_, f"id of function {describe(id_)}"))
                    ids[i] = None
                except SerializationError:
                    ids[i] = describe(id_)
    dag_slot = -1
    if type(dag_id) not in PLAIN:
        try:
            dag_slot, dag_id = slots.add(dumps(dag_id, "dag_id")), None
        except SerializationError:
            dag_id = describe(dag_id)
    return (dag_id, dag_slot, tokens, keys, ids, odd, attempts, values, refs), refused


def _pack_values(
    slots: Slots, made: dict[int, int], given: Values, function_id: Hashable
) -> tuple[dict[int, Any], dict[int, int]]:
    """Values of which some are not plain: the plain ones, and the slots of the others."""
    plain: dict[int, Any] = {}
    refs: dict[int, int] = {}
    for number, value in given.items() if isinstance(given, Mapping) else enumerate(given):
        if type(value) in PLAIN:
            plain[number] = value
            continue
        slot = made.get(id(value))
        if slot is None:
            try:
                payload = dumps(value, f"argument {number} of function {describe(function_id)}")
            except SerializationError as error:
                error.function_id = function_id
                raise
            slot = made[id(value)] = slots.add(payload)
        refs[number] = slot
    return plain, refs


def unpack(message: Any, buffers: list[bytearray]) -> list[Outcome]:
    """The outcomes of one frame; a result that cannot be read is an error."""
    tokens, values, started, ended, pickled, slots = message
    oks = [True] * len(tokens)
    for i, slot, ok in pickled:
        oks[i], values[i] = _load(payload_of(slots[slot], buffers), ok)
    return list(map(Outcome._make, zip(tokens, oks, values, started, ended, strict=True)))


def _load(payload: Payload, ok: bool) -> tuple[bool, Any]:
    try:
        return (True, loads(payload, "result")) if ok else (False, load_exception(payload))
    except Exception as error:  # a user's class may raise anything when it is made
        return False, error

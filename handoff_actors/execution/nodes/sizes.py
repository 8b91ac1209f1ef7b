"""Which values travel with control, and what stands for the others: told by their sizes."""

from __future__ import annotations

from typing import Any

from handoff_actors.cluster.payload import Payload, dumps
from handoff_actors.errors import SerializationError
from handoff_actors.execution.nodes.messages import Located
from handoff_actors.results.sizes import size_of

CARRIED = 32 * 1024
"""Bytes of a value that travels with control, at most."""

_SCALARS = frozenset({int, float, bool, complex, type(None)})
TEXTS = frozenset({str, bytes})


def is_plain(value: Any) -> bool:
    """Whether it goes into a message as it is."""
    kind = type(value)
    return kind in _SCALARS or (kind in TEXTS and len(value) <= CARRIED)


def carried_bytes(value: Any) -> int:
    """Bytes of a value as it is in a message; 0 for a number, which is nothing beside it."""
    kind = value.__class__
    return value.nbytes if kind is Payload else len(value) if kind in TEXTS else 0


def enclose(value: Any, node: str) -> Any:
    """What stands for a value in a message: itself, its ``Payload``, or a ``Located``.

    Runs code of the user's when the value's class has its own way to be pickled.

    Args:
        value: anything.
        node: where it is.
    """
    if is_plain(value):
        return value
    size = size_of(value)
    if size > CARRIED:
        return Located(node, size)
    try:
        payload = dumps(value)
    except SerializationError:
        # Whoever fetches it is told why it cannot be had; here it may be all that is needed.
        return Located(node, size)
    return payload if payload.nbytes <= CARRIED else Located(node, payload.nbytes)

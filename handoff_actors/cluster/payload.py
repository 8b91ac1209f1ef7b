"""Values and functions to bytes and back.

Guarantees: what plain pickle can carry costs little more than plain pickle; what only lives in
``__main__``, and lambdas and nested functions, travel by value; a class of ``__main__`` is one
class in each process, the original one at home; large buffers are not copied. What cannot cross is
refused with a ``SerializationError`` that names the way to it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

from handoff_actors.cluster.strays import needles
from handoff_actors.errors import SerializationError, text_of

Buffer = Any  # bytes, bytearray, memoryview or pickle.PickleBuffer

_LARGE = 1 << 20  # so large a pickle is worth a look for single large values
_dumps = pickle.dumps
_loads = pickle.loads


class Payload:
    """A pickled value.

    Attributes:
        head: the pickle.
        buffers: what it refers to out of band, in order.
    """

    __slots__ = ("buffers", "head")

    def __init__(self, head: bytes, buffers: Sequence[Buffer] = ()) -> None:
        self.head = head
        self.buffers = buffers

    @property
    def nbytes(self) -> int:
        """The size of all of it."""
        if not self.buffers:
            return len(self.head)
        return len(self.head) + sum(memoryview(buffer).nbytes for buffer in self.buffers)

    def __reduce__(self) -> tuple[Any, ...]:
        return Payload, (self.head, [bytes(memoryview(b)) for b in self.buffers])

    def __repr__(self) -> str:
        return f"<Payload of {self.nbytes} bytes, {len(self.buffers)} buffers>"


def dumps(obj: Any, what: str = "value") -> Payload:
    """Pickle ``obj``.

    Args:
        obj: anything.
        what: how errors call it, say ``"result of function 'x'"``; the path to the culprit starts
            with what stands before ``" of "``.

    Raises:
        SerializationError: something in it cannot leave this process.
    """
    buffers: list[Buffer] = []
    kind = type(obj)
    inner = type(obj[0]) if (kind is list or kind is tuple) and obj else kind
    if inner.__module__ == "__main__":  # at a glance
        return _dumps_by_value(obj, what)
    try:
        head = _dumps(obj, 5, buffer_callback=buffers.append)
    except (
        Exception,
        SystemExit,
        GeneratorExit,
    ):  # any reducer may raise anything; the slow way says what
        return _dumps_by_value(obj, what)
    for needle in needles():
        if needle in head:
            return _dumps_by_value(obj, what)
    if len(head) >= _LARGE and _lifted(obj) is not obj:
        return _dumps_by_value(obj, what)
    return Payload(head, buffers)


def loads(payload: Payload, what: str = "value") -> Any:
    """The value that ``payload`` was made of.

    Loaded where it was made it shares its large buffers with the original.

    Raises:
        SerializationError: it cannot be made here, say because a module is missing.
    """
    try:
        return _loads(payload.head, buffers=payload.buffers)
    except MemoryError:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:
        raise SerializationError(
            f"{what} cannot be read in this process: {type(error).__name__}: "
            f"{text_of(error)}. Modules must be importable here too, and what pickles a class must "
            "match what makes it",
            dag_id=None,
            function_id=None,
            path=what.partition(" of ")[0],
            object=what,
        ) from error


def _dumps_by_value(obj: Any, what: str) -> Payload:
    from handoff_actors.cluster.by_value import ByValuePickler

    file = io.BytesIO()
    buffers: list[Buffer] = []
    pickler = ByValuePickler(file, buffers.append)
    try:
        pickler.dump(_lifted(obj))
    except MemoryError:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:
        from handoff_actors.cluster.blame import serialization_error

        raise serialization_error(obj, what, error) from error
    return Payload(file.getvalue(), buffers)


class _Large:
    """Stands for ``bytes`` or a ``bytearray`` so that its content goes out of band."""

    __slots__ = ("value",)

    def __init__(self, value: bytes | bytearray) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self.value), (pickle.PickleBuffer(self.value),)


def _lifted(obj: Any) -> Any:
    """``obj`` with large bytes in it, or one level down, out of band."""
    kind = type(obj)
    if kind is bytes or kind is bytearray:
        return _Large(obj) if len(obj) >= _LARGE else obj
    if kind is dict and any(_is_large(value) for value in obj.values()):
        return {key: _Large(v) if _is_large(v) else v for key, v in obj.items()}
    if kind is tuple and any(map(_is_large, obj)):
        return tuple([_Large(v) if _is_large(v) else v for v in obj])
    return obj


def _is_large(value: Any) -> bool:
    return type(value) in (bytes, bytearray) and len(value) >= _LARGE

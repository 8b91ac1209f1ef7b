"""Whatever values there are, they come back as they were; whatever is refused is found."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.cluster.remote_errors import dump_exception, load_exception
from handoff_actors.errors import SerializationError

_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.just("__main__")
)
_KEYS = st.integers() | st.text(max_size=5)


def _values(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(_KEYS, inner, max_size=4)
            | st.tuples(inner, inner)
        ),
        max_leaves=12,
    )


@dataclasses.dataclass
class _Node:
    left: Any
    right: Any


@given(_values(_LEAVES))
def test_values_come_back(value: Any) -> None:
    payload = dumps(value)
    assert payload.nbytes == len(payload.head)
    assert loads(payload) == value


@given(_values(_LEAVES))
def test_values_come_back_from_functions_that_hold_them(value: Any) -> None:
    def give(default: Any = value) -> Any:
        return default, value, _Node(value, default)

    assert loads(dumps(give))() == give()


@given(_values(_LEAVES), st.integers(0, 5), st.integers(1, 3))
def test_large_bytes_travel_beside(value: Any, at: int, millions: int) -> None:
    large = bytes(millions << 20)
    items = [value] * 5
    items.insert(at, large)
    payload = dumps(tuple(items))
    moved = Payload(payload.head, [bytearray(memoryview(b)) for b in payload.buffers])
    assert loads(moved) == tuple(items)
    assert sum(memoryview(b).nbytes for b in payload.buffers) == len(large)


def _within(steps: list[tuple[str, Any]], value: Any) -> tuple[Any, str]:
    path = ""
    for kind, detail in reversed(steps):
        if kind == "list":
            value, path = [None] * detail + [value, 1], f"[{detail}]{path}"
        elif kind == "dict":
            value, path = {1.5: None, detail: value}, f"[{detail!r}]{path}"
        else:
            value, path = _Node(detail, value), f".right{path}"
    return value, path


_STEPS = st.lists(
    st.tuples(st.just("list"), st.integers(0, 3))
    | st.tuples(st.just("dict"), st.integers() | st.text(max_size=5))
    | st.tuples(st.just("node"), _LEAVES),
    max_size=6,
)


@given(_STEPS, st.sampled_from([threading.Lock, threading.Condition, lambda: (i for i in ())]))
def test_what_is_refused_is_found(steps: list[tuple[str, Any]], make: Callable[[], Any]) -> None:
    value, path = _within(steps, make())
    with pytest.raises(SerializationError) as caught:
        dumps(value)
    assert caught.value.path.startswith("value" + path)


@given(_values(_LEAVES), st.lists(st.sampled_from(["cause", "context", "group"]), max_size=6))
def test_exceptions_keep_their_shape(value: Any, links: list[str]) -> None:
    error: Exception = ValueError(value)
    for link in links:
        if link == "group":
            error = ExceptionGroup("g", [error, KeyError(1)])
            continue
        outer = RuntimeError(link)
        if link == "cause":
            outer.__cause__ = error
        else:
            outer.__context__ = error
        error = outer
    assert _shape(load_exception(dump_exception(error))) == _shape(error)


def _shape(error: BaseException | None) -> Any:
    if error is None:
        return None
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    args = () if members else error.args
    return (
        type(error),
        args,
        [_shape(member) for member in members],
        _shape(error.__cause__),
        _shape(error.__context__),
        error.__suppress_context__,
    )

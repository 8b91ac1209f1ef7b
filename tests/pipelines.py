"""DAGs to stream, and what a pipeline may leave."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import handoff_actors as handoff
from handoff_actors import Function
from tests.conftest import wait_until

IDENTITY = lambda x: x  # noqa: E731


def line(*functions: Function, inputs: tuple[str, ...] = ("x",)) -> handoff.DAG:
    dag = handoff.DAG("line")
    for name in inputs:
        dag.add_function(Function(name, type="input"))
    for function in functions:
        dag.add_function(function)
    return dag


def chain(*codes: Callable[..., Any], **fields: Any) -> handoff.DAG:
    """Each code takes the result of the one before."""
    names = ["x", *map(str, range(len(codes)))]
    return line(
        *[Function(names[i + 1], [names[i]], code, **fields) for i, code in enumerate(codes)]
    )


COSTLY = {"cost": {"cpu": 0.5}}


@contextlib.contextmanager
def claimed(runtime: handoff.Runtime, claims_at_zero: Any) -> Iterator[None]:
    """Within it a pipeline has claimed; afterwards nothing is."""
    yield
    claims_at_zero(runtime)
    wait_until(lambda: not runtime.pipelines)

"""The DAGs that are measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from handoff_actors.graph import DAG, Function
from tests.benchmarks.kernels import nothing

ONE_CPU = {"cpu": 1}


def layered(width: int, depth: int, **fields: Any) -> DAG:
    """``depth`` layers of ``width`` functions; each takes three results of the layer before."""
    dag = DAG("layered")
    for level in range(depth):
        for i in range(width):
            args = [(level - 1, (i + k) % width) for k in range(3)] if level else ()
            dag.add_function(Function((level, i), args, nothing, **fields))
    return dag


def wide(width: int, **fields: Any) -> DAG:
    """``width`` functions that need nothing, and one that takes them all."""
    dag = DAG("wide")
    for i in range(width):
        dag.add_function(Function(i, (), nothing, **fields))
    return dag.add_function(Function("sum", range(width), nothing, **fields))


def chain(length: int, **fields: Any) -> DAG:
    """Each takes the result of the one before."""
    dag = DAG("chain")
    for i in range(length):
        dag.add_function(Function(i, (i - 1,) if i else (), nothing, **fields))
    return dag


def one() -> DAG:
    """A single function."""
    return DAG("one").add_function(Function("only", (), nothing))


def independent(id_: object, count: int, code: Callable[..., Any], **fields: Any) -> DAG:
    """``count`` functions that need nothing."""
    dag = DAG(id_)
    for i in range(count):
        dag.add_function(Function(i, (), code, **fields))
    return dag


def stencil(width: int, steps: int, code: Callable[..., Any], **fields: Any) -> DAG:
    """Each takes its own result of the step before, and those of its neighbours."""
    dag = DAG("stencil")
    for step in range(steps):
        for i in range(width):
            around = range(max(0, i - 1), min(width, i + 2))
            args = [(step - 1, j) for j in around] if step else ()
            dag.add_function(Function((step, i), args, code, **fields))
    return dag

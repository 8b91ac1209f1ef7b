"""Streams of the soak: pipelines of all kinds of stages, whose workers and actors are killed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import handoff_actors as handoff
from handoff_actors import Function


def plus(x: int) -> int:
    """One more; every hundredth item fails."""
    if x % 100 == 99:
        raise ValueError(x)
    return x + 1


def counted(before: int, x: int) -> tuple[int, int]:
    """One more; the state goes from item to item in their order."""
    assert x > before, (x, before)
    return x + 1, x


def nothing() -> int:
    """The state before the first item."""
    return -1


def asking(x: int) -> int:
    """The same; now and then with a run for which the pipeline has to lend what it holds."""
    if x % 100 == 50:
        nested = handoff.new().add_function(Function("n", (), abs, extra_args=[x], cost=COST))
        with handoff.execute(nested) as result:
            assert result.results["n"] == x
    return x


COST = {"cpu": 0.1}


def batch(rows: list[tuple[int]]) -> list[int]:
    """One more for each."""
    return [x + 1 for (x,) in rows]


async def later(x: int) -> int:
    """One more, as a coroutine."""
    return x + 1


def dag(rng: random.Random, nodes: list[str]) -> handoff.DAG:
    """A chain of four stages of random kinds, with one beside it that they are joined with."""
    made = handoff.new().add_function(Function("x", type="input"))
    before: Any = "x"
    kinds: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (plus, {"parallelism": rng.randint(1, 3)}),
        (counted, {"init": nothing}),
        (batch, {"batch_size": rng.randint(2, 9), "batch_timeout": rng.choice([None, 0.01])}),
        (later, {}),
    ]
    rng.shuffle(kinds)
    for i, (code, fields) in enumerate(kinds):
        isolation = "process" if rng.random() < 0.3 else "thread"
        node = rng.choice(nodes) if nodes and rng.random() < 0.4 else None
        made.add_function(
            Function(i, [before], code, isolation=isolation, max_crashes=1000, node=node, **fields)
        )
        before = i
    made.add_function(
        Function("beside", ["x"], asking, cost=COST, max_crashes=1000, isolation=isolation)
    )
    return made.add_function(Function("all", [before, "beside"], lambda x, y: (x, y)))


def streamed(runtime: handoff.Runtime, rng: random.Random, patience: float) -> None:
    """Push, read, and end a pipeline in one of the ways there are; check what came."""
    options: dict[str, Any] = {"max_pending": rng.choice([1, 10, 100, 1000])}
    if rng.random() < 0.3:
        options["max_demand"] = rng.randint(1, 10)
    count, end = rng.randint(1, 300), time.monotonic() + patience
    nodes = [name for name in runtime.nodes() if name != runtime.node()]
    with runtime.stream(dag(rng, nodes), timeout=patience, **options) as pipeline:
        results = []
        for result in pipeline.map(range(count)):
            results.append(result)
            assert time.monotonic() < end, f"a stream hangs: {pipeline.statistics()}"
            if rng.random() < 0.0005:
                return  # unread results, and perhaps items on their way
        assert len(results) == count
        failed = 0
        for x, result in enumerate(results):
            if isinstance(result, handoff.ItemFailedError):
                failed += 1
            else:
                assert result == (x + 4, x), (x, result)
        # ``plus`` sees x plus the stages before it, so each hundred items has one that fails.
        assert failed in (count // 100, count // 100 + 1)

"""Code as users write it. mypy (strict) and pyright (strict) accept it, and refuse what is marked.

A line with ``type: ignore`` must be an error for both: they report an ignore that is not needed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, assert_type

import handoff_actors as handoff
from handoff_actors.events import AttemptFailed, Event

# DAGs and functions.

dag = handoff.new("typed")
assert_type(dag, handoff.DAG)
assert_type(dag.id, Hashable)
assert_type(dag.functions, Mapping[Hashable, handoff.Function])


@dag.function
def numbers() -> list[int]:
    """A decorated function keeps its type."""
    return [1, 2]


@dag.function(isolation="process", cost={"cpu": 1}, max_retries=2, timeout=3.5)
def total(numbers: list[int]) -> int:
    """With options too."""
    return sum(numbers)


@dag.function(id="other", args=["total"])
async def coroutine(value: int) -> str:
    """A coroutine function as well."""
    return str(value)


assert_type(numbers(), list[int])
assert_type(total([1]), int)

chained = dag.add_function(handoff.Function("x", ["total"], abs)).add_function(
    handoff.Function(("y", 1), ["x", handoff.Argument("total")], max, node=handoff.Collocated("x"))
)
assert_type(chained, handoff.DAG)
assert_type(dag.to_mermaid(), str)
assert_type(dag.to_svg({"x": "done"}), str)

dag.function(isolation="fibre")  # type: ignore
dag.function(no_such_option=1)  # type: ignore
dag.add_function(numbers)  # type: ignore
handoff.Function("z", ["x"], 5)  # type: ignore

# Running.


def run() -> None:
    """Runs, results, errors."""
    with handoff.start(name="n", capabilities={"cpu": 2}) as runtime:
        assert_type(runtime, handoff.Runtime)
        result = handoff.execute(dag, inputs={"a": 1}, keep="sinks", timeout=3, progress=True)
        assert_type(result, handoff.ExecutionResult)
        assert_type(result.results, Mapping[Hashable, Any])
        assert_type(result.timings, dict[Hashable, handoff.Timing])
        assert_type(result.allocations, dict[Hashable, str])
        running = handoff.submit(dag, progress=lambda progress: print(progress.finished))
        future: concurrent.futures.Future[handoff.ExecutionResult] = running
        assert_type(future.result(), handoff.ExecutionResult)
        for id_, _value in running.as_completed():
            assert_type(id_, Hashable)
        handoff.execute(dag, timeout="soon")  # type: ignore
        handoff.execute(dag, no_such_option=1)  # type: ignore
        handoff.execute("dag")  # type: ignore
        status = handoff.status()
        assert_type(status.restarts, Mapping[str, int])
        assert_type([at.function_id for at in status.running], list[Hashable])
    try:
        handoff.execute(dag)
    except handoff.FunctionCrashedError as error:
        assert_type(error.attempts, Sequence[handoff.CrashedAttempt])
    except handoff.AllocationError as error:
        assert_type(error.asked, float | None)
    handoff.start(isolation=5)  # type: ignore
    handoff.start(no_such_option=5)  # type: ignore


async def in_a_loop() -> handoff.ExecutionResult:
    """The same, awaitable."""
    await handoff.aio.start()
    assert_type(await handoff.aio.execute(dag), handoff.ExecutionResult)
    awaited = await (await handoff.aio.submit(dag))
    assert_type(await handoff.aio.nodes(), list[str])
    await handoff.aio.stop()
    return awaited


def code() -> int:
    """Inside a function."""
    context = handoff.current()
    assert_type(context, handoff.Context)
    context.log.info("here", attempt=context.attempt)
    return context.attempt


# Pools.


def pools() -> None:
    """A pool keeps the types of what it is given."""
    with handoff.Executor(2, isolation="process") as pool:
        standard: concurrent.futures.Executor = pool
        assert_type(pool.submit(total, [1, 2]), concurrent.futures.Future[int])
        assert_type(list(pool.map(total, [[1], [2]], chunksize=2, buffersize=4)), list[int])
        pool.submit(total, "text")  # type: ignore
        pool.submit(total)  # type: ignore
        standard.shutdown(cancel_futures=True)


# Seams.


class Mine:
    """An allocator of the user's own."""

    def allocate(
        self, requests: Sequence[handoff.Request], nodes: Mapping[str, handoff.NodeCapacity]
    ) -> Mapping[Hashable, str]:
        """Everything on the first node."""
        return {request.id: next(iter(nodes)) for request in requests}


allocator: handoff.Allocator = Mine()


def seen(event: Event) -> None:
    """A subscriber."""
    if isinstance(event, AttemptFailed):
        assert_type(event.retry_in, float | None)


with handoff.subscribe(seen, [AttemptFailed]):
    handoff.dump("bug.json")
    handoff.subscribe(seen, ["AttemptFailed"])  # type: ignore

if __name__ == "__main__":
    run()
    pools()
    asyncio.run(in_a_loop())

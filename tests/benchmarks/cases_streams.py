"""Streams: items a second, what waiting and computing stages make of it, latency, memory."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from queue import Queue, SimpleQueue
from time import perf_counter, sleep
from typing import Any

import psutil

from handoff_actors import DAG, Function, Runtime
from tests.benchmarks.cases_parallel import bind
from tests.benchmarks.kernels import collatz
from tests.benchmarks.report import Row, Target, alternate

_BOUND = 1000
"""Of the floor's queues, as of a pipeline's ``max_pending``."""


def add(x: int) -> int:
    """A small function."""
    return x + 1


def add_all(rows: list[tuple[int]]) -> list[int]:
    """The same for a batch."""
    return [x + 1 for (x,) in rows]


async def add_async(x: int) -> int:
    """The same as a coroutine that never waits."""
    return x + 1


def wait(seconds: float, x: int) -> int:
    """A function that waits."""
    sleep(seconds)
    return x


def spin(x: int) -> int:
    """A function that computes for some milliseconds."""
    collatz(1, 1_500)
    return x


def chain(codes: Sequence[Callable[..., Any]], **fields: Any) -> DAG:
    """One input, and one code after another."""
    dag = DAG("stream").add_function(Function("x", type="input"))
    before: Any = "x"
    for i, code in enumerate(codes):
        dag.add_function(Function(i, [before], code, **fields))
        before = i
    return dag


def queued(codes: Sequence[Callable[[Any], Any]], items: Sequence[Any]) -> list[Any]:
    """The floor: a thread for each code, and bounded queues between them."""
    queues: list[Queue[Any]] = [Queue(_BOUND) for _ in range(len(codes) + 1)]
    end = object()

    def work(code: Callable[[Any], Any], source: Queue[Any], target: Queue[Any]) -> None:
        while (item := source.get()) is not end:
            target.put(code(item))
        target.put(end)

    def feed() -> None:
        for item in items:
            queues[0].put(item)
        queues[0].put(end)

    threads = [threading.Thread(target=feed)]
    for code, (source, target) in zip(codes, itertools.pairwise(queues), strict=True):
        threads.append(threading.Thread(target=work, args=(code, source, target)))
    for thread in threads:
        thread.start()
    got = []
    while (item := queues[-1].get()) is not end:
        got.append(item)
    for thread in threads:
        thread.join()
    return got


def queued_async(
    codes: Sequence[Callable[[Any], Awaitable[Any]]], items: Sequence[Any]
) -> list[Any]:
    """The same with a task for each code."""
    end = object()

    async def main() -> list[Any]:
        queues: list[asyncio.Queue[Any]] = [asyncio.Queue(_BOUND) for _ in range(len(codes) + 1)]

        async def work(code: Any, source: asyncio.Queue[Any], target: asyncio.Queue[Any]) -> None:
            while (item := await source.get()) is not end:
                await target.put(await code(item))
            await target.put(end)

        async def feed() -> None:
            for item in items:
                await queues[0].put(item)
            await queues[0].put(end)

        tasks = [asyncio.create_task(feed())]
        for code, (source, target) in zip(codes, itertools.pairwise(queues), strict=True):
            tasks.append(asyncio.create_task(work(code, source, target)))
        got = []
        while (item := await queues[-1].get()) is not end:
            got.append(item)
        await asyncio.gather(*tasks)
        return got

    return asyncio.run(main())


def rate(count: int, seconds: Sequence[float]) -> float:
    """Items a second."""
    return count / statistics.median(seconds)


def small(quick: bool) -> Iterator[Row]:
    """Three stages, small items: by ``map``, by ``push`` from a thread of its own, in batches."""
    count = 2_000 if quick else 20_000
    repeats = 1 if quick else 5
    items = range(count)
    with Runtime() as runtime:
        for name in ("map", "push and iterate"):
            with runtime.stream(chain([add] * 3), max_pending=_BOUND) as pipeline:
                go = partial(_by_map if name == "map" else _by_push, pipeline, items)
                assert go() == [x + 3 for x in items]
                ours, floor = alternate(
                    lambda go=go: go, lambda: partial(queued, [add] * 3, items), repeats
                )
                yield Row(
                    f"3 stages, {name}",
                    rate(count, ours),
                    rate(count, floor),
                    Target(2.5, sense="at least"),
                    "items/s",
                    "floor: threads with bounded queues",
                    (ours, floor),
                )
                if name == "map":
                    absolute = Target(300_000, "ours", "at least")
                    yield Row("the same, in items/s", rate(count, ours), None, absolute, "items/s")
        with runtime.stream(chain([add_async] * 3), max_pending=_BOUND) as pipeline:
            go = partial(_by_map, pipeline, items)
            assert go() == queued_async([add_async] * 3, items)
            ours, floor = alternate(
                lambda go=go: go, lambda: partial(queued_async, [add_async] * 3, items), repeats
            )
        yield Row(
            "3 stages of coroutines, map",
            rate(count, ours),
            rate(count, floor),
            Target(1.0, sense="at least"),
            "items/s",
            "floor: three tasks with bounded queues",
            (ours, floor),
        )
        with (
            runtime.stream(chain([add_all] * 3, batch_size=50), max_pending=_BOUND) as batched,
            runtime.stream(chain([add] * 3), max_pending=_BOUND) as unbatched,
        ):
            assert _by_map(batched, items) == _by_map(unbatched, items)
            samples = alternate(
                lambda: partial(_by_map, batched, items),
                lambda: partial(_by_map, unbatched, items),
                3 * repeats,
            )
        yield Row(
            "3 stages, map, batches of 50",
            rate(count, samples[0]),
            rate(count, samples[1]),
            Target(1.0, sense="at least"),
            "items/s",
            "floor: unbatched; ratio: of the rates, median of pairs",
            samples,
            statistics.median(b / a for a, b in zip(*samples, strict=True)),
        )


def _by_map(pipeline: Any, items: Sequence[int]) -> list[Any]:
    return list(pipeline.map(items))


def _by_push(pipeline: Any, items: Sequence[int]) -> list[Any]:
    """From a thread of its own, one by one."""

    def push() -> None:
        for item in items:
            pipeline.push(item)

    thread = threading.Thread(target=push)
    thread.start()
    got = list(itertools.islice(pipeline, len(items)))
    thread.join()
    return got


def waiting(quick: bool) -> Iterator[Row]:
    """Stages that wait: efficiency against the slowest, and what four workers make of one."""
    count = 100 if quick else 1_000
    with Runtime() as runtime:
        with runtime.stream(chain([partial(wait, 0.001)] * 3)) as pipeline:
            yield _efficiency(
                "3 stages that wait 1 ms", pipeline, count, 0.001, count, 0.9, "of one stage"
            )
        count //= 2
        with runtime.stream(chain([partial(wait, 0.005)], parallelism=4)) as pipeline:
            yield _efficiency(
                "parallelism 4, waits of 5 ms", pipeline, count, 0.005, count // 4, 3.8, "of one"
            )


def _efficiency(
    case: str, pipeline: Any, count: int, nap: float, alone: int, least: float, of: str
) -> Row:
    """The time that so many naps take in a row, beside what the pipeline took."""
    list(pipeline.map(range(20)))

    def ours() -> Callable[[], object]:
        return lambda: list(pipeline.map(range(count)))

    def floor() -> Callable[[], object]:
        return lambda: [sleep(nap) for _ in range(alone)]

    samples = alternate(ours, floor, 3)
    best, naps = map(min, samples)
    speedup = naps * (count / alone) / best
    return Row(
        case,
        best,
        naps * (count / alone),
        Target(least, sense="at least"),
        "ms",
        f"floor: the naps {of} in a row; ratio: theirs to ours",
        samples,
        speedup,
    )


def computing(quick: bool) -> Iterator[Row]:
    """CPU-bound functions in processes: two workers beside one."""
    bind()
    count = 20 if quick else 100
    with (
        Runtime() as runtime,
        runtime.stream(chain([spin], isolation="process")) as one,
        runtime.stream(chain([spin], isolation="process", parallelism=2)) as two,
    ):
        samples = alternate(
            lambda: lambda: list(two.map(range(count))),
            lambda: lambda: list(one.map(range(count))),
            1 if quick else 4,
        )
    best, single = map(min, samples)
    yield Row(
        "parallelism 2, CPU-bound, processes",
        best,
        single,
        Target(1.85, sense="at least"),
        "ms",
        "floor: parallelism 1; ratio: speed-up, of the best times",
        samples,
        single / best,
    )


def latency(quick: bool) -> Iterator[Row]:
    """One item alone through three stages, beside three hops over queues between threads."""
    count = 100 if quick else 1_000
    hops: list[SimpleQueue[Any]] = [SimpleQueue() for _ in range(4)]

    def work(source: SimpleQueue[Any], target: SimpleQueue[Any]) -> None:
        while (item := source.get()) is not None:
            target.put(item + 1)

    threads = [
        threading.Thread(target=work, args=pair, daemon=True) for pair in itertools.pairwise(hops)
    ]
    for thread in threads:
        thread.start()

    def over_queues() -> None:
        for i in range(count):
            hops[0].put(i)
            hops[-1].get()

    with Runtime() as runtime, runtime.stream(chain([add] * 3)) as pipeline:

        def alone() -> None:
            for i in range(count):
                pipeline.push(i)
                next(pipeline)

        samples = alternate(lambda: alone, lambda: over_queues, 1 if quick else 5)
    for hop, thread in zip(hops, threads, strict=False):
        hop.put(None)
        thread.join()
    ours, floor = (statistics.median(sample) / count for sample in samples)
    note = "floor: three threads and SimpleQueues"
    yield Row("a lone item, 3 stages", ours, floor, Target(3.0), "µs", note, samples)


def over_nodes(quick: bool) -> Iterator[Row]:
    """Three stages, of which two are on other nodes."""
    count = 2_000 if quick else 20_000
    with Runtime() as runtime:
        runtime.start_nodes(2, names=["one", "two"])
        dag = DAG("stream").add_function(Function("x", type="input"))
        dag.add_function(Function("a", ["x"], add, node="one"))
        dag.add_function(Function("b", ["a"], add, node="two"))
        dag.add_function(Function("c", ["b"], add))
        with runtime.stream(dag, max_pending=4 * _BOUND) as pipeline:

            def go() -> None:
                assert list(pipeline.map(range(count)))[-1] == count + 2

            ours, _ = alternate(lambda: go, lambda: lambda: None, 1 if quick else 5)
    target = Target(60_000, "ours", "at least")
    yield Row(
        "3 stages over three nodes", rate(count, ours), None, target, "items/s", "", (ours, ())
    )


def memory(quick: bool) -> Iterator[Row]:
    """Resident memory while a consumer sleeps, and the source goes on for ever."""
    process = psutil.Process()
    with (
        Runtime() as runtime,
        runtime.stream(chain([lambda x: bytearray(10_000)] * 2), max_pending=100) as pipeline,
    ):
        mapped = pipeline.map(itertools.count())
        for _ in range(1_000):
            next(mapped)
        sleep(0.1)
        before = process.memory_info().rss
        end = perf_counter() + (0.3 if quick else 2.0)
        while perf_counter() < end:
            next(mapped)
            sleep(0.01)
        growth = (process.memory_info().rss - before) / 1e6
    target = Target(5.0, "ours")
    yield Row("memory, a consumer that sleeps", growth, None, target, "MB", "grown in 2 s")


def streams(quick: bool) -> Iterator[Row]:
    """All of them."""
    for case in (small, waiting, computing, latency, over_nodes, memory):
        yield from case(quick)

"""What the runtime makes of two cores: METG, CPU-bound functions, runs that contend."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any

from handoff_actors import DAG, Function, Runtime
from tests.benchmarks import floors, shapes
from tests.benchmarks.kernels import Hash, Spin, collatz, nap
from tests.benchmarks.report import Row, Target, alternate, timed

CORES = 2
"""What the targets are for. On a machine with more, the process is bound to so many."""


def bind() -> None:
    """Use two cores; the pools and the worker processes inherit it."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


@dataclass(frozen=True)
class Point:
    """One size of kernel.

    Attributes:
        grain: seconds one kernel takes, run alone.
        ours: the share of the cores that ran kernels, of the best of some runs.
        floor: the same of the pool.
    """

    grain: float
    ours: float
    floor: float


def sweep(
    runtime: Runtime,
    pool: Executor,
    kernel: Callable[[int], Callable[..., Any]],
    grains: list[float],
    steps: int,
    repeats: int,
    **fields: Any,
) -> list[Point]:
    """Efficiency by grain: seconds wanted per kernel, largest first, until both are inefficient."""
    unit = 1 << 16
    per_unit = min(timed(partial(many, kernel(unit), 20)) for _ in range(5)) / 20 / unit
    points: list[Point] = []
    for wanted in grains:
        code = kernel(max(1, round(wanted / per_unit)))
        dag = shapes.stencil(4, steps, code, **fields)
        n = len(dag.functions)
        count = min(n, max(20, round(0.05 / wanted)))
        grain = min(timed(partial(many, code, count)) for _ in range(5)) / count

        def ours(dag: DAG = dag) -> Callable[[], object]:
            return partial(runtime.execute, dag)

        def floor(dag: DAG = dag) -> Callable[[], object]:
            return partial(floors.pooled, pool, dag)

        walls = alternate(ours, floor, repeats)
        shares = [n * grain / (CORES * min(wall)) for wall in walls]
        points.append(Point(grain, shares[0], shares[1]))
        if max(points[-1].ours, points[-1].floor) < 0.25:
            break
    return points


def many(code: Callable[..., Any], count: int) -> None:
    """Call ``code`` so often."""
    for _ in range(count):
        code()


def metg(points: list[tuple[float, float]], efficiency: float = 0.5) -> float:
    """The smallest grain at which the efficiency is reached, on the line between two points.

    Args:
        points: grain and efficiency, largest grain first.
        efficiency: what is asked for.
    """
    smaller, bad = 0.0, 0.0
    for grain, good in reversed(points):
        if good >= efficiency:
            share = (good - efficiency) / (good - bad)
            return float(grain * (smaller / grain) ** share) if smaller else grain
        smaller, bad = grain, good
    return math.inf


def metg_row(case: str, points: list[Point], limit: float, note: str) -> Row:
    """The row of a sweep."""
    ours = metg([(p.grain, p.ours) for p in points])
    floor = metg([(p.grain, p.floor) for p in points])
    curve = " ".join(f"{p.grain * 1e6:.0f}:{p.ours:.0%}/{p.floor:.0%}" for p in points)
    samples = ([p.ours for p in points], [p.floor for p in points])
    return Row(case, ours, floor, Target(limit), note=f"{note}; {curve}", samples=samples)


def grains(largest: float, smallest: float) -> list[float]:
    """From the largest to the smallest by factors of about 1.6."""
    count = max(1, round(math.log(largest / smallest, 1.6)))
    return [largest * (smallest / largest) ** (i / count) for i in range(count + 1)]


def metg_threads(quick: bool) -> Iterator[Row]:
    """The smallest hashing function at which two threads keep two cores half used."""
    bind()
    sizes = [400e-6, 20e-6] if quick else grains(500e-6, 4e-6)
    with ThreadPoolExecutor(CORES) as pool, Runtime() as runtime:
        points = sweep(runtime, pool, Hash, sizes, 20 if quick else 200, 1 if quick else 5)
    yield metg_row(
        "METG(50%) threads", points, 0.7, "floor: ThreadPoolExecutor(2); grain µs: ours/floor"
    )


def metg_processes(quick: bool) -> Iterator[Row]:
    """The smallest spinning function at which two processes keep two cores half used."""
    bind()
    sizes = [2e-3, 100e-6] if quick else grains(2.5e-3, 20e-6)
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(abs, range(4)))  # forks before the runtime has threads
        with Runtime() as runtime:
            points = sweep(
                runtime,
                pool,
                Spin,
                sizes,
                20 if quick else 200,
                1 if quick else 5,
                isolation="process",
            )
    yield metg_row(
        "METG(50%) processes", points, 0.5, "floor: ProcessPoolExecutor(2); grain µs: ours/floor"
    )


def cpu_bound(quick: bool) -> Iterator[Row]:
    """Eight pure-Python functions in worker processes, beside calling one after another."""
    bind()
    size = 2_000 if quick else 12_000

    def build() -> DAG:
        dag = DAG("cpu")
        for i in range(8):
            dag.add_function(Function(i, (), collatz, extra_args=(1, size), isolation="process"))
        return dag

    with Runtime() as runtime:
        dag = build()

        def ours() -> Callable[[], object]:
            return lambda: runtime.execute(dag)

        def floor() -> Callable[[], object]:
            return lambda: [collatz(1, size) for _ in range(8)]

        samples = alternate(ours, floor, 1 if quick else 5)
    best, sequential = map(min, samples)
    yield Row(
        "eight CPU-bound, processes",
        best,
        sequential,
        target=Target(1.85, sense="at least"),
        unit="ms",
        note="floor: sequential; ratio: speed-up, of the best times",
        samples=samples,
        ratio=sequential / best,
    )


def contention(quick: bool) -> Iterator[Row]:
    """Runs that all need the one cpu, 2 ms a function."""
    for runs, count in ((2, 10), (20, 3)) if quick else ((2, 100), (20, 20)):
        yield from contended(runs, count, 1 if quick else 3)


def contended(runs: int, count: int, repeats: int) -> Iterator[Row]:
    """``runs`` runs of ``count`` functions each."""
    shares: list[float] = []
    gaps: list[float] = []
    with Runtime(capabilities={"cpu": 1}) as runtime:

        def ours() -> Callable[[], object]:
            dags = [shapes.independent(i, count, nap, cost=shapes.ONE_CPU) for i in range(runs)]
            for dag in dags:
                with suppress(LookupError):
                    runtime.clear(dag.id)

            def go() -> None:
                began = perf_counter()
                ends: list[float] = []
                futures = [runtime.submit(dag) for dag in dags]
                for future in futures:
                    future.add_done_callback(lambda _: ends.append(perf_counter() - began))
                results = [future.result().results for future in futures]
                shares.append(min(ends) / max(ends))
                starts = [sorted(result.values()) for result in results]
                gaps.append(max(b - a for run in starts for a, b in pairwise(run)))

            return go

        def floor() -> Callable[[], object]:
            return partial(many, nap, runs * count)

        walls = alternate(ours, floor, repeats)
    best, serial = map(min, walls)
    yield Row(
        f"{runs} runs on one cpu, 2 ms each",
        best,
        serial,
        target=Target(1.15),
        unit="ms",
        note="floor: one after another",
        samples=walls,
    )
    yield Row(
        f"{runs} runs: first to last finish",
        min(shares),
        target=Target(0.5, "ours", "at least"),
        unit="",
        note=f"nobody starves; the longest a run got nothing: {max(gaps) * 1e3:.0f} ms",
    )

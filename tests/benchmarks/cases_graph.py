"""What the runtime adds to each no-op function, by the shape and the size of the DAG."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from statistics import median

from handoff_actors import DAG, Runtime
from tests.benchmarks import floors, shapes
from tests.benchmarks.kernels import nothing
from tests.benchmarks.report import Make, Row, Target, alternate, compared, timed

Build = Callable[[], DAG]
LOOP = "floor: plain loop in graphlib order"


def ours(runtime: Runtime, build: Build) -> Make:
    """A run of a DAG that is built anew, unmeasured, so that its plan is compiled in the run."""

    def make() -> Callable[[], object]:
        dag = build()
        # What a finished run of the name holds is no part of the next one's time.
        with suppress(LookupError):
            runtime.clear(dag.id)
        return lambda: runtime.execute(dag)

    return make


def loop(build: Build) -> Make:
    """The floor for it."""

    def make() -> Callable[[], object]:
        dag = build()
        return lambda: floors.loop(dag)

    return make


def against_loop(
    runtime: Runtime, case: str, build: Build, repeats: int, limit: float, again: float | None
) -> Iterator[Row]:
    """The row of a shape whose plan is compiled each time, and that of the same DAG again."""
    n = len(build().functions)
    samples = alternate(ours(runtime, build), loop(build), repeats)
    yield compared(case, samples, n, Target(limit), note=LOOP)
    if again is not None:
        dag = build()
        samples = alternate(ours(runtime, lambda: dag), loop(lambda: dag), repeats)
        yield compared(f"{case}, again", samples, n, Target(again), note=LOOP)


def layered(quick: bool) -> Iterator[Row]:
    """Layers of 100 functions with three inputs each."""
    depth, repeats = (10, 2) if quick else (100, 9)
    for case, fields in (("", {}), (", with costs", {"cost": shapes.ONE_CPU})):
        with Runtime() as runtime:
            build = partial(shapes.layered, 100, depth, **fields)
            yield from against_loop(runtime, f"layered 100x{depth}{case}", build, repeats, 1.6, 1.3)


def wide(quick: bool) -> Iterator[Row]:
    """Independent functions and an aggregator."""
    width, repeats = (1000, 2) if quick else (10_000, 9)
    for case, fields in (("", {}), (", with costs", {"cost": shapes.ONE_CPU})):
        with Runtime() as runtime:
            build = partial(shapes.wide, width, **fields)
            yield from against_loop(runtime, f"wide {width}{case}", build, repeats, 1.6, 1.3)


def chain(quick: bool) -> Iterator[Row]:
    """Functions that each take the one before."""
    with Runtime() as runtime:
        build = partial(shapes.chain, 1000)
        yield from against_loop(runtime, "chain 1000", build, 3 if quick else 25, 1.5, 1.3)


def growth(quick: bool) -> Iterator[Row]:
    """How the time per function grows with the DAG, beside how the loop's does; and memory."""
    small, large = (partial(shapes.layered, 100, d) for d in ((10, 50) if quick else (10, 1000)))
    repeats = 1 if quick else 5
    with Runtime() as runtime:
        few = alternate(ours(runtime, small), loop(small), repeats * 5)
        many = alternate(ours(runtime, large), loop(large), repeats)
    n, m = len(small().functions), len(large().functions)
    yield compared(f"layered {n}", few, n, None, note=LOOP)
    yield compared(f"layered {m}", many, m, None, note=LOOP)
    ours_grew, loop_grew = (
        (median(b) / m) / (median(a) / n) for a, b in zip(few, many, strict=True)
    )
    yield Row(
        f"growth {n} to {m}",
        ours_grew,
        loop_grew,
        target=Target(1.1),
        unit="x",
        note="µs per function of the large to the small one; floor: the loop's own",
    )
    yield from memory(2_000 if quick else 20_000)


def memory(n: int) -> Iterator[Row]:
    """Bytes per function that a finished run holds while its result is held."""
    width = 100
    with Runtime() as runtime:
        runtime.execute(shapes.layered(width, 2))
        gc.collect()
        tracemalloc.start()
        try:
            dag = shapes.layered(width, n // width)
            gc.collect()
            built = tracemalloc.get_traced_memory()[0]
            result = runtime.execute(dag)
            gc.collect()
            held = tracemalloc.get_traced_memory()[0] - built
        finally:
            tracemalloc.stop()
        assert len(result.results) == n
    yield Row(
        f"memory, layered {n}",
        held / n,
        target=Target(1200, "ours"),
        unit="B",
        note=f"plan, run and results per function; its DAG another {built / n:.0f} B",
    )


def one(quick: bool) -> Iterator[Row]:
    """The latency of a DAG of one function.

    The system may put a thread that is woken on the core of who wakes it or on another, which
    takes about twice as long, and it stays by that for a while, with each thread as luck has it. So
    both places are measured, each with ours and the pool's threads alike.
    """
    count = 2 if quick else 40
    usable = sorted(os.sched_getaffinity(0))
    first, last = usable[:1], usable[-1:]
    places = {"one core": (first, first), "two cores": (first, last)}
    with Runtime() as runtime, ThreadPoolExecutor(2) as pool:

        def floor() -> Callable[[], object]:
            return lambda: pool.submit(nothing).result()

        kept = shapes.one()

        def fresh() -> Callable[[], object]:
            return partial(runtime.execute, shapes.one())

        def again() -> Callable[[], object]:
            return partial(runtime.execute, kept)

        try:
            for case, make in (("one function", fresh), ("one function, again", again)):
                for where, (caller, others) in places.items():
                    samples = blocks(make, floor, count, partial(place, caller, others))
                    note = "floor: pool.submit().result()"
                    yield compared(f"{case}, {where}", samples, 1, Target(2.5), note=note)
        finally:
            place(usable, usable)


def place(caller: Iterable[int], others: Iterable[int]) -> None:
    """Have this thread use some cores, and all others others."""
    for thread in threading.enumerate():
        cores = caller if thread is threading.current_thread() else others
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(thread.native_id or 0, cores)


def blocks(
    first: Make, second: Make, count: int, before: Callable[[], object]
) -> tuple[list[float], list[float]]:
    """As ``alternate``, for what is too short to be measured singly: the medians of blocks.

    ``before`` is called before each block, as threads may have begun.
    """
    for make in (first, second):
        timed(make())
    medians: tuple[list[float], list[float]] = ([], [])
    for _ in range(count):
        for make, samples in zip((first, second), medians, strict=True):
            before()
            samples.append(median(timed(make(), collect=False) for _ in range(25)))
    return medians

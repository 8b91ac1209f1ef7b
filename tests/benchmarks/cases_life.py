"""What crashes, calls, imports, starts and stops cost."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

from handoff_actors import DAG, Function, Runtime
from handoff_actors.actors.system import ActorSystem
from tests.benchmarks import bench_actors
from tests.benchmarks.kernels import victim
from tests.benchmarks.report import Row, Target, compared, quantile


def kill(quick: bool) -> Iterator[Row]:
    """From the SIGKILL of a worker process to its function running again."""
    delays = []
    with Runtime() as runtime, tempfile.TemporaryDirectory() as folder:
        for i in range(2 if quick else 12):
            delays.append(killed(runtime, Path(folder) / f"pid-{i}"))
    note = "seconds from kill -9 to attempt 2; Dask 0.10 s, Ray 0.56 s"
    median, worst = statistics.median(delays), max(delays)
    target = Target(0.05, "ours")
    yield Row("killed worker, median", median, None, target, "ms", note, (delays, ()))
    yield Row("killed worker, worst", worst, None, target, "ms", note)


def killed(runtime: Runtime, fifo: Path) -> float:
    """One such kill."""
    os.mkfifo(fifo)
    dag = DAG("victim")
    dag.add_function(Function("victim", (), victim, extra_args=(str(fifo),), isolation="process"))
    at: list[float] = []

    def killer() -> None:
        pid = int(fifo.read_text())
        time.sleep(0.02)  # well into its wait
        at.append(time.monotonic())
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=killer, daemon=True)
    thread.start()
    attempt, began = runtime.execute(dag, timeout=60).results["victim"]
    thread.join()
    assert attempt == 2
    return float(began - at[0])


def actors(quick: bool) -> Iterator[Row]:
    """A crashed actor answers again; a call and its answer."""
    system = ActorSystem("benchmark")
    try:
        pairs = [
            (bench_actors.calls(system), bench_actors.ping_pong()) for _ in range(1 if quick else 9)
        ]
        restarts = bench_actors.restarts(system)
    finally:
        system.close()
    for q, limit in ((0.5, 1e-3), (0.99, 5e-3)):
        yield Row(
            f"actor restart, p{q * 100:.0f}",
            quantile(restarts, q),
            target=Target(limit, "ours"),
            unit="ms",
            note="from the crash to the answer to a call sent right after it",
        )
    ours, floor = zip(*pairs, strict=True)
    yield compared(
        "call round trip",
        (ours, floor),
        1,
        Target(2.0),
        note="floor: SimpleQueue ping-pong between two threads",
    )


def life(quick: bool) -> Iterator[Row]:
    """Import; start and stop, the first time in a process and later."""
    repeats = 2 if quick else 10
    bare, imported, fresh = [], [], []
    for _ in range(repeats):
        bare.append(python("pass"))
        imported.append(python("import handoff_actors"))
        fresh.append(float(output(FRESH)))
    warm = []
    for _ in range(repeats * 5 + 1):
        began = perf_counter()
        Runtime().start().stop()
        warm.append(perf_counter() - began)
    cost = statistics.median(a - b for a, b in zip(imported, bare, strict=True))
    yield Row(
        "import",
        cost,
        target=Target(0.15, "ours"),
        unit="ms",
        note=f"beyond Python's own {statistics.median(bare) * 1e3:.0f} ms",
        samples=(imported, bare),
    )
    for case, samples, limit in (("fresh", fresh, 0.05), ("warm", warm[1:], 0.01)):
        yield Row(
            f"start and stop, {case}",
            statistics.median(samples),
            target=Target(limit, "ours"),
            unit="ms",
            samples=(samples, ()),
        )


FRESH = """
import handoff_actors, time
began = time.perf_counter()
handoff_actors.start()
handoff_actors.stop()
print(time.perf_counter() - began)
"""


def python(code: str) -> float:
    """Seconds that a Python process takes for ``code``."""
    began = perf_counter()
    output(code)
    return perf_counter() - began


def output(code: str) -> str:
    """What a Python process prints."""
    # An installed package has its bytecode; so has this one after the first process.
    env = {
        **os.environ,
        "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "handoff-bytecode"),
    }
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env
    )
    return done.stdout

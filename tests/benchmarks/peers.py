"""What others take for the same DAGs: pools with graphlib, and Ray and Dask when installed.

Each peer is started, measured and shut down in turn, in a folder of its own that is removed
afterwards; a peer whose processes stay is an error.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from importlib.metadata import version
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from handoff_actors import DAG, Runtime
from tests.benchmarks import floors, shapes
from tests.benchmarks.report import Row, timed

Execute = Callable[[DAG], object]
SHORT = 0.001
"""Seconds up to which a DAG is run many times."""
ENOUGH = 6.0
"""Seconds after which a DAG is not run once more."""
MARK = "HANDOFF_BENCHMARK"
"""In the environment of whatever a peer starts."""
GONE = 20.0
"""Seconds for the processes of a peer that was shut down to end."""


def peers(quick: bool) -> Iterator[Row]:
    """Ours beside each peer on each shape, in µs per function; the best of a few each."""
    depth, width, length = (5, 200, 50) if quick else (100, 10_000, 1000)
    dags = {
        f"layered 100x{depth}": shapes.layered(100, depth),
        f"wide {width}": shapes.wide(width),
        f"chain {length}": shapes.chain(length),
        "one function": shapes.one(),
    }
    repeats = 1 if quick else 3
    os.environ[MARK] = str(os.getpid())
    times: dict[str, dict[str, float]] = {"a plain loop": best(dags, floors.loop, repeats)}
    for name, (package, using) in PEERS.items():
        if package is not None and importlib.util.find_spec(package) is None:
            continue
        resource_tracker.ensure_running()  # the standard library's, which ends with this process
        before = children()
        with tempfile.TemporaryDirectory(prefix="handoff-peer-", ignore_cleanup_errors=True) as own:
            with using(own) as execute:
                execute(shapes.one())
                shown = name if package is None else f"{name} {version(package)}"
                times[shown] = best(dags, execute, repeats)
            see_gone(name, before)
    with Runtime() as runtime:
        runtime.execute(shapes.one())
        ours = best(dags, runtime.execute, repeats)
    for name, theirs in times.items():
        for case, seconds in theirs.items():
            yield Row(f"{case}, beside {name}", ours[case], seconds)


def best(dags: dict[str, DAG], execute: Execute, repeats: int) -> dict[str, float]:
    """The least seconds per function of each DAG."""
    found = {}
    for case, dag in dags.items():
        samples: list[float] = []
        wanted = repeats
        while len(samples) < wanted and sum(samples) < ENOUGH:
            samples.append(timed(partial(execute, dag)))
            wanted = repeats if samples[0] > SHORT else 50
        found[case] = min(samples) / len(dag.functions)
    return found


@contextmanager
def threads(_folder: str) -> Iterator[Execute]:
    """The standard library's thread pool."""
    with ThreadPoolExecutor(2) as pool:
        yield partial(floors.pooled, pool)


@contextmanager
def processes(_folder: str) -> Iterator[Execute]:
    """The standard library's process pool."""
    with ProcessPoolExecutor(2) as pool:
        yield partial(floors.pooled, pool)


@contextmanager
def ray(folder: str) -> Iterator[Execute]:
    """Ray, two cpus."""
    # Else it writes into the user's home.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray as module

    remotes: dict[Any, Any] = {}

    def execute(dag: DAG) -> object:
        made: dict[Any, Any] = {}
        for id_, function in dag.functions.items():
            if function.code not in remotes:
                remotes[function.code] = module.remote(function.code)
            made[id_] = remotes[function.code].remote(*[made[a] for a in function.args])
        return module.get(list(made.values()))

    module.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
    try:
        yield execute
    finally:
        module.shutdown()


@contextmanager
def dask(folder: str) -> Iterator[Execute]:
    """Dask distributed, two processes of one thread."""
    os.environ["DASK_TEMPORARY_DIRECTORY"] = folder  # read when it is imported, here and there
    from distributed import Client

    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:

        def execute(dag: DAG) -> object:
            made: dict[Any, Any] = {}
            for id_, function in dag.functions.items():
                args = [made[a] for a in function.args]
                made[id_] = client.submit(function.code, *args, pure=False)
            return client.gather(list(made.values()))

        yield execute


PEERS: dict[str, tuple[str | None, Callable[[str], AbstractContextManager[Execute]]]] = {
    "ProcessPool(2)": (None, processes),
    "ThreadPool(2)": (None, threads),
    "Ray": ("ray", ray),
    "Dask": ("distributed", dask),
}
"""By name: the package that it takes, and how it runs a DAG; what forks comes first."""


def children() -> set[int]:
    """This process, those that descend from it, and those that have its mark."""
    parents: dict[int, int] = {}
    found = {os.getpid()}
    mark = f"{MARK}={os.getpid()}\0".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents[int(folder.name)] = int(fields[1])
                if mark in (folder / "environ").read_bytes():
                    found.add(int(folder.name))  # also when its parent has ended
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def see_gone(name: str, before: set[int]) -> None:
    """Wait until the processes of a peer have ended.

    Raises:
        RuntimeError: some have not.
    """
    deadline = time.monotonic() + GONE
    while left := children() - before:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{name} left processes behind: {sorted(left)}")
        time.sleep(0.05)

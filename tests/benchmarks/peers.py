"""What others take for the same DAGs: pools with graphlib, and Ray and Dask when installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

from handoff_actors import DAG
from tests.benchmarks import floors, shapes
from tests.benchmarks.report import Row, timed

Execute = Callable[[DAG], object]


def peers(quick: bool) -> Iterator[Row]:
    """Each peer on each shape; the best of a few."""
    depth, width, length = (5, 200, 50) if quick else (100, 10_000, 1000)
    dags = {
        f"layered 100x{depth}": shapes.layered(100, depth),
        f"wide {width}": shapes.wide(width),
        f"chain {length}": shapes.chain(length),
        "one function": shapes.one(),
    }
    for case, dag in dags.items():
        loop = min(timed(partial(floors.loop, dag)) for _ in range(3))
        n = len(dag.functions)
        yield Row(f"{case}, loop", loop / n)
    for name, using in PEERS.items():
        if name in ("ray", "distributed") and importlib.util.find_spec(name) is None:
            continue
        yield from using(dags, 1 if quick else 3)


def measured(name: str, dags: dict[str, DAG], execute: Execute, repeats: int) -> Iterator[Row]:
    """The rows of one peer."""
    execute(shapes.one())
    for case, dag in dags.items():
        best = min(timed(partial(execute, dag)) for _ in range(repeats))
        yield Row(f"{case}, {name}", best / len(dag.functions))


def threads(dags: dict[str, DAG], repeats: int) -> Iterator[Row]:
    """The standard library's thread pool."""
    with ThreadPoolExecutor(2) as pool:
        yield from measured("ThreadPool(2)", dags, partial(floors.pooled, pool), repeats)


def processes(dags: dict[str, DAG], repeats: int) -> Iterator[Row]:
    """The standard library's process pool."""
    with ProcessPoolExecutor(2) as pool:
        yield from measured("ProcessPool(2)", dags, partial(floors.pooled, pool), repeats)


def ray(dags: dict[str, DAG], repeats: int) -> Iterator[Row]:
    """Ray, two cpus."""
    import ray as module

    module.init(num_cpus=2, include_dashboard=False, log_to_driver=False)

    def execute(dag: DAG) -> object:
        made: dict[Any, Any] = {}
        for id_, function in dag.functions.items():
            remote = remotes.setdefault(function.code, module.remote(function.code))
            made[id_] = remote.remote(*[made[a] for a in function.args])
        return module.get(list(made.values()))

    remotes: dict[Any, Any] = {}
    try:
        yield from measured("Ray", dags, execute, repeats)
    finally:
        module.shutdown()


def dask(dags: dict[str, DAG], repeats: int) -> Iterator[Row]:
    """Dask distributed, two processes of one thread."""
    from distributed import Client

    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:

        def execute(dag: DAG) -> object:
            made: dict[Any, Any] = {}
            for id_, function in dag.functions.items():
                args = [made[a] for a in function.args]
                made[id_] = client.submit(function.code, *args, pure=False)
            return client.gather(list(made.values()))

        yield from measured("Dask", dags, execute, repeats)


PEERS: dict[str, Callable[[dict[str, DAG], int], Iterator[Row]]] = {
    "threads": threads,
    "processes": processes,
    "ray": ray,
    "distributed": dask,
}

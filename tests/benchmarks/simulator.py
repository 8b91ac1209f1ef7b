"""Scale, by simulation: ``python -m tests.benchmarks.simulator [--quick | --million]``.

Prints, for growing clusters and DAGs, what one decision costs in real time (the run state's step
and the choice of a node) and the memory of it all; then the makespan of both strategies against the
lower bound max(critical path, work / capacity), for generated workflows and the recorded ones.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter

import psutil

from handoff_actors.testing.simulated import SimulatedCluster
from handoff_actors.testing.workflows import Workflow, from_wfformat, layered, random_workflow

STRATEGIES = ("first_available", "load_balanced")


def memory() -> float:
    """MB of this process."""
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 1e6


def scale(nodes: int, functions: int, strategy: str) -> str:
    """One line: a layered DAG that fills the cluster several times over."""
    width = min(functions, max(10, nodes * 4))
    before = memory()
    work = layered(width, max(1, functions // width), seconds=(0.5, 1.5))
    dag_mb = memory() - before
    before = memory()
    cluster = SimulatedCluster(
        nodes, capabilities={"cpu": 4.0}, strategy=strategy, check=False, record=False
    )
    run = cluster.submit(work.dag, seconds=work.seconds, sizes=work.sizes)
    began = perf_counter()
    cluster.run()
    took = perf_counter() - began
    sim_mb = memory() - before
    assert run.state == "succeeded"
    n = len(work.dag)
    bound = run.lower_bound({"cpu": nodes * 4_000_000})
    return (
        f"| {nodes:,} | {n:,} | {strategy} | {cluster.deciding / cluster.decisions * 1e6:.1f} | "
        f"{took / n * 1e6:.0f} | {dag_mb * 1e3 / n:.2f} | {sim_mb * 1e3 / n:.2f} | "
        f"{run.makespan / bound:.2f} |"
    )


def alone(nodes: int, functions: int, strategy: str) -> None:
    """Print one line, measured in a process of its own: freed memory would be used again."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        print(pool.submit(scale, nodes, functions, strategy).result(), flush=True)


def makespan(name: str, work: Workflow, nodes: int, cores: float) -> str:
    """One line: both strategies against the bound."""
    found = []
    for strategy in STRATEGIES:
        cluster = SimulatedCluster(
            nodes, capabilities={"cpu": cores}, strategy=strategy, check=False, record=False
        )
        run = cluster.submit(work.dag, seconds=work.seconds, sizes=work.sizes)
        cluster.run()
        found.append(run.makespan / run.lower_bound({"cpu": int(nodes * cores * 1e6)}))
    return f"| {name} | {len(work.dag)} | {nodes} x {cores:g} | {found[0]:.2f} | {found[1]:.2f} |"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="no more than 1,000 nodes")
    parser.add_argument("--million", action="store_true", help="a million functions, and no more")
    parser.add_argument("--workflows", default="/work/shared/data/workflows")
    options = parser.parse_args()
    print("| nodes | functions | strategy | µs a decision | µs a function, all of the simulation | "
          "kB a function, DAG | kB a function, run | makespan / bound |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    if options.million:
        alone(10_000, 1_000_000, "load_balanced")
        return
    sizes = [(10, 10_000), (100, 10_000), (1_000, 100_000)]
    if not options.quick:
        sizes.append((10_000, 100_000))
    for nodes, functions in sizes:
        for strategy in STRATEGIES:
            alone(nodes, functions, strategy)
    print("\n| workflow | functions | nodes x cpus | first_available | load_balanced |")
    print("|---|---|---|---|---|")
    mixed = [{"cpu": 1.0}, {"cpu": 2.0}, {"cpu": 0.5}]
    cases = [
        ("layered 50 x 20", layered(50, 20)),
        ("random 1000", random_workflow(1000)),
        ("random 1000, three costs", random_workflow(1000, seed=1, costs=mixed)),
    ]
    cases += [
        (path.name.split("-")[0] + " (recorded)", from_wfformat(path))
        for path in sorted(Path(options.workflows).glob("*.json"))
    ]
    for name, work in cases:
        for nodes, cores in ((2, 2.0), (8, 4.0)):
            print(makespan(name, work, nodes, cores), flush=True)


if __name__ == "__main__":
    main()

"""Replay a recorded scientific workflow: a tutorial in costs, critical paths and timelines.

    python examples/replay_workflow.py TRACE.json [--scale 0.01] [--cores 4] [--timeline out.json]

TRACE is in WfFormat (https://wfcommons.org/format), which the WfInstances collection uses: the
tasks of a real run with their parents, run times, cores and memory. Each task becomes a function
that sleeps as long as the task ran, times the scale, and claims the cores and memory that it had.
How long does the workflow take on a machine with so many cores, and how close is that to the best
there is?
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import handoff_actors as handoff

MEGABYTE = 1_000_000


# 1. The trace. WfFormat tells what is to be done (the specification) apart from how it went.


@dataclass(frozen=True)
class Task:
    """One task of the trace: seconds, and what it needs."""

    id: str
    parents: tuple[str, ...]
    seconds: float
    cores: float
    memory: float


def read(path: Path) -> tuple[str, list[Task]]:
    """The name of a workflow and its tasks."""
    document = json.loads(path.read_text())
    workflow = document["workflow"]
    measured = {task["id"]: task for task in workflow["execution"]["tasks"]}
    tasks = []
    for task in workflow["specification"]["tasks"]:
        how: dict[str, Any] = measured.get(task["id"], {})
        tasks.append(
            Task(
                task["id"],
                tuple(task["parents"]),
                float(how.get("runtimeInSeconds", 0.0)),
                float(how.get("coreCount", 1)),
                how.get("memoryInBytes", 0) / MEGABYTE,
            )
        )
    return document["name"], tasks


# 2. The DAG. A sleeping coroutine keeps no core busy, so even a laptop can replay a cluster; its
#    cost is what makes functions wait for each other, as tasks for cores.


async def replay(_parents: list[str], name: str, seconds: float) -> str:
    """Take the place of one task."""
    await asyncio.sleep(seconds)
    return name


def build(name: str, tasks: Sequence[Task], scale: float) -> handoff.DAG:
    """The workflow as a DAG."""
    dag = handoff.new(name)
    for task in tasks:
        cost = {"cpu": task.cores}
        if task.memory:
            cost["memory"] = task.memory
        dag.add_function(
            handoff.Function(
                task.id,
                task.parents,
                replay,
                extra_args=[task.id, task.seconds * scale],
                argument_inclusion="as_list",
                cost=cost,
            )
        )
    return dag


# 3. What cannot be beaten: the way through the graph that takes longest, however many cores there
#    are; and all the work, evenly over the cores.


def critical_path(tasks: Sequence[Task]) -> tuple[float, list[str]]:
    """The seconds of the critical path, and the tasks on it."""
    by_id = {task.id: task for task in tasks}
    best: dict[str, tuple[float, list[str]]] = {}

    def longest(id_: str) -> tuple[float, list[str]]:
        if id_ not in best:
            task = by_id[id_]
            before = max((longest(parent) for parent in task.parents), default=(0.0, []))
            best[id_] = (before[0] + task.seconds, [*before[1], id_])
        return best[id_]

    return max((longest(task.id) for task in tasks), default=(0.0, []))


def work(tasks: Sequence[Task]) -> float:
    """Core-seconds in all."""
    return sum(task.seconds * task.cores for task in tasks)


# 4. The run.


def main(
    path: Path, scale: float = 0.01, cores: float = 4.0, timeline: Path | None = None
) -> tuple[float, float]:
    """Replay a trace and tell how it went.

    Returns:
        The makespan, and the least it could have been, in seconds of the replay.
    """
    name, tasks = read(path)
    dag = build(name, tasks, scale)
    plan = dag.plan()
    path_seconds, on_path = critical_path(tasks)
    least = max(path_seconds, work(tasks) / cores) * scale
    print(
        f"{name}: {len(tasks)} tasks on {len(plan.levels())} levels, at most {plan.width()} at once"
    )
    print(f"critical path       {path_seconds * scale:7.2f} s   {len(on_path)} tasks")
    print(f"work / {cores:g} cores      {work(tasks) * scale / cores:7.2f} s")

    memory = max((task.memory for task in tasks), default=0.0)
    capabilities = {"cpu": cores, "memory": max(16_000.0 * cores, memory)}
    with handoff.Runtime(capabilities=capabilities) as runtime:
        began = time.perf_counter()
        result = runtime.execute(dag, progress=True)
        makespan = time.perf_counter() - began
        if timeline is not None:
            result.to_chrome_trace(timeline)
    assert set(result.results) == {task.id for task in tasks}
    print(
        f"makespan            {makespan:7.2f} s   {makespan / least:.2f} times the least possible"
    )
    if timeline is not None:
        print(f"timeline in {timeline}: open it in https://ui.perfetto.dev")
    return makespan, least


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Replay a WfFormat trace.")
    parser.add_argument("trace", type=Path)
    parser.add_argument("--scale", type=float, default=0.01, help="seconds per second")
    parser.add_argument("--cores", type=float, default=4.0)
    parser.add_argument("--timeline", type=Path)
    options = parser.parse_args()
    main(options.trace, options.scale, options.cores, options.timeline)

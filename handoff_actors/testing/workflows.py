"""DAGs to simulate: generated shapes, and recorded workflows in WfFormat."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from handoff_actors.errors import ConfigurationError
from handoff_actors.graph.dag import DAG
from handoff_actors.graph.function import Function

CPU: Mapping[str, float] = {"cpu": 1.0}


class Workflow(NamedTuple):
    """A DAG with how long its functions take, in seconds, and the bytes they make, by id."""

    dag: DAG
    seconds: dict[Hashable, float]
    sizes: dict[Hashable, int]


def nothing(*_: Any) -> None:
    """The code of functions that are only simulated."""


def _add(dag: DAG, id_: Hashable, args: Sequence[Hashable], cost: Mapping[str, float]) -> None:
    dag.add_function(Function(id_, args, nothing, cost=cost))


def layered(
    width: int,
    depth: int,
    inputs: int = 3,
    *,
    seed: int = 0,
    seconds: tuple[float, float] = (0.5, 1.5),
    cost: Mapping[str, float] = CPU,
) -> Workflow:
    """``depth`` layers of ``width`` functions, each with ``inputs`` results of the one before."""
    rng = random.Random(seed)  # noqa: S311  it is to be the same again
    dag = DAG()
    for i in range(width * depth):
        layer = i // width
        args = [(layer - 1) * width + rng.randrange(width) for _ in range(inputs)] if layer else []
        _add(dag, i, args, cost)
    times: dict[Hashable, float] = {i: rng.uniform(*seconds) for i in range(width * depth)}
    return Workflow(dag, times, dict.fromkeys(times, 1000))


def random_workflow(
    n: int,
    *,
    seed: int = 0,
    most_inputs: int = 3,
    seconds: tuple[float, float] = (0.1, 10.0),
    costs: Sequence[Mapping[str, float]] = (CPU,),
) -> Workflow:
    """``n`` functions with up to ``most_inputs`` inputs from anywhere before them."""
    rng = random.Random(seed)  # noqa: S311  it is to be the same again
    dag = DAG()
    times: dict[Hashable, float] = {}
    sizes: dict[Hashable, int] = {}
    for i in range(n):
        args = [rng.randrange(i) for _ in range(rng.randint(0, most_inputs))] if i else []
        _add(dag, i, args, rng.choice(costs))
        times[i] = rng.uniform(*seconds)
        sizes[i] = int(10 ** rng.uniform(2, 8))
    return Workflow(dag, times, sizes)


def from_shape(shape: Sequence[Any]) -> Workflow:
    """The workflow of ``(inputs, cost in micro-units, seconds, bytes)`` for each function."""
    dag = DAG()
    for i, (inputs, amounts, *_) in enumerate(shape):
        cost = {name: amount / 1_000_000 for name, amount in amounts.items()}
        _add(dag, i, inputs, cost)
    return Workflow(
        dag,
        {i: entry[2] for i, entry in enumerate(shape)},
        {i: entry[3] for i, entry in enumerate(shape)},
    )


def from_wfformat(
    path: str | Path, cost: Callable[[Mapping[str, Any]], Mapping[str, float]] = lambda _task: CPU
) -> Workflow:
    """A recorded workflow: a file in WfFormat 1.5, as of WfCommons.

    Args:
        path: of the file.
        cost: the cost of a task, from its entry under ``workflow.execution.tasks``.

    Raises:
        ConfigurationError: the file is none.
    """
    import json

    try:
        workflow = json.loads(Path(path).read_text())["workflow"]
        tasks = {task["id"]: task for task in workflow["specification"]["tasks"]}
        files = {f["id"]: f["sizeInBytes"] for f in workflow["specification"].get("files", ())}
        ran = {task["id"]: task for task in workflow["execution"]["tasks"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{str(path)!r} is no workflow in WfFormat: {error!r}") from error
    dag = DAG()
    for id_, task in tasks.items():
        _add(dag, id_, task.get("parents", []), cost(ran.get(id_, {})))
    return Workflow(
        dag,
        {id_: float(ran[id_]["runtimeInSeconds"]) if id_ in ran else 0.0 for id_ in tasks},
        {
            id_: sum(files.get(name, 0) for name in task.get("outputFiles", ()))
            for id_, task in tasks.items()
        },
    )

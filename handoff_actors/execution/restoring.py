"""Going on from a checkpoint: which results a run has before it begins, and which it must make."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from handoff_actors.checkpoint.keeper import Keeper
from handoff_actors.execution.run import Run
from handoff_actors.execution.run_data import FREED, RunData
from handoff_actors.execution.run_state import keep_mask
from handoff_actors.execution.workers.roster import Workers
from handoff_actors.graph.dag import DAG
from handoff_actors.graph.plan import Plan


def restore(
    path: str | os.PathLike[str], dag: DAG, data: RunData, run: Run, workers: Workers
) -> None:
    """Give a run that has not begun what its checkpoint has, and a keeper for what it will make.

    Raises:
        CheckpointError: the file is in use, damaged, or none of ours.
        ConfigurationError: ``path`` is no path.
    """
    plan = data.plan
    n = plan.n
    inputs = {plan.ids[i]: data.values[i] for i in range(n, n + plan.n_inputs)}
    for other in list(workers.keepers):
        other.let_go(path)
    keeper = Keeper(
        path, dag, inputs, data.dag_id, plan.ids[:n], workers.events, data.resolve
    )  # fmt: skip
    try:
        values = _values(plan, keep_mask(plan, data.options.keep), keeper)
    except BaseException:
        keeper.close()
        raise
    for i, value in values.items():
        data.values[i] = value
        data.starts[i] = data.ends[i] = data.submitted
    data.restored = bool(values)
    data.finished = len(values)
    data.checkpoint = keeper
    workers.keepers.add(keeper)
    keeper.start()
    # However the run ends, also before anybody has heard of it, the file is let go of.
    run.add_done_callback(lambda _: keeper.close())


def _values(plan: Plan, kept: bytearray | None, keeper: Keeper) -> Mapping[int, Any]:
    """The functions that need not run, with their values, or ``FREED`` where nobody needs them."""
    had = set(keeper.had)
    while True:
        wanted, spared = _split(plan, kept, had)
        values = keeper.read(wanted)
        unreadable = [i for i in wanted if i not in values]
        if not unreadable:
            return {**dict.fromkeys(spared, FREED), **values}
        had.difference_update(unreadable)


def _split(plan: Plan, kept: bytearray | None, had: Collection[int]) -> tuple[list[int], list[int]]:
    """Of the functions that need not run, those whose value is needed, and the others.

    One whose result was not kept is spared too if all who take it have finished.
    """
    runs = bytearray(plan.n)
    wanted: list[int] = []
    spared: list[int] = []
    for i in reversed(range(plan.n)):
        needed = kept is None or kept[i] or any(runs[d] for d in plan.dependents[i])
        if i in had:
            (wanted if needed else spared).append(i)
        elif needed or not plan.dependents[i]:
            runs[i] = 1
        else:
            spared.append(i)
    return wanted, spared

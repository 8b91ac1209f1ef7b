"""``handoff check``: what can be known of a DAG before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from handoff_actors.cli import options
from handoff_actors.cli.loading import load, target
from handoff_actors.errors import amounts_text, describe

if TYPE_CHECKING:
    from handoff_actors.graph.plan import Plan

_NAMED = 8
"""So many functions of a list are named."""


@click.command()
@target
@options.isolation
@options.resources
def check(target: str, isolation: str, resources: tuple[str, ...]) -> None:
    """Check a DAG without running it.

    Validates it, checks that code which is to run in processes can be sent there, compares costs
    with this machine, and describes the plan: levels, critical path, widest point. Exit code 1 if
    it could not be run here.
    """
    offered = options.amounts(resources)
    dag = load(target)
    from handoff_actors.resources.capabilities import to_micro
    from handoff_actors.resources.machine import machine_capabilities

    plan = dag.plan()
    machine = {**machine_capabilities(), **offered}
    to_micro(machine, "--resource")
    click.echo(_size(describe(dag.id), len(dag.functions), plan))
    for line in _shape(plan):
        click.echo(line)
    problems = [*_costs(plan, machine), *_cannot_cross(plan, isolation, dag.id)]
    if problems:
        for problem in problems[1:]:
            click.echo(f"Error: {problem}", err=True)
        raise click.ClickException(problems[0])
    click.echo("it can be run here")


def _size(name: str, functions: int, plan: Plan) -> str:
    inline = functions - plan.n - plan.n_inputs
    more = [options.plural(plan.n_inputs, "input")] if plan.n_inputs else []
    if inline:
        more.append(f"{inline:,} inline")
    text = ", ".join([options.plural(plan.n, "function"), *more])
    return f"{name}: {text}"


def _shape(plan: Plan) -> list[str]:
    levels = plan.levels()
    if not levels:
        return ["nothing to run"]
    widest = max(range(len(levels)), key=lambda level: len(levels[level]))
    path = plan.critical_path()
    wide = options.plural(len(levels[widest]), "function")
    edges = sum(map(len, plan.deps))
    lines = [
        f"plan: {options.plural(len(levels), 'level')}, {options.plural(edges, 'edge')}",
        f"widest point: level {widest + 1}, {wide} ({_names(plan, levels[widest], ', ')})",
        f"critical path: {options.plural(len(path), 'function')} ({_names(plan, path, ' → ')})",
    ]
    if plan.n_inputs:
        inputs = ", ".join(map(str, plan.ids[plan.n :]))
        lines.append(f"inputs: {inputs}")
    return lines


def _names(plan: Plan, indices: Sequence[int], between: str) -> str:
    names = [str(plan.ids[i]) for i in indices]
    if len(names) > _NAMED:
        half = _NAMED // 2
        names = [*names[:half], "…", *names[-half:]]
    return between.join(names)


def _costs(plan: Plan, machine: Mapping[str, float]) -> list[str]:
    """Print how costs compare with the machine; what can never fit is a problem."""
    from handoff_actors.resources.capabilities import MICRO

    problems: list[str] = []
    most: dict[str, float] = {}
    pinned: set[str] = set()
    for number, kind in enumerate(plan.classes):
        if kind.pin is not None:
            pinned.add(kind.pin)
            continue
        for name, amount in (kind.cost or {}).items():
            asked = amount / MICRO
            most[name] = max(asked, most.get(name, 0.0))
            if asked > machine.get(name, 0.0) + 0.5 / MICRO:
                first = plan.ids[plan.class_of.index(number)]
                problems.append(
                    f"function {first!r} needs {name}={asked:g}, and this machine has "
                    f"{machine.get(name, 0.0):g}: lower its cost, run it on another node, or say "
                    f"--resource {name}={asked:g}"
                )
    if most:
        click.echo(f"costs: at most {amounts_text(most)} by one function")
    click.echo(f"this machine: {amounts_text(machine)}")
    if pinned:
        click.echo(f"pinned to nodes: {', '.join(sorted(pinned))} (not checked)")
    return problems


def _cannot_cross(plan: Plan, isolation: str, dag_id: object) -> list[str]:
    """What is wrong with code that has to run in a process."""
    from handoff_actors.errors import SerializationError
    from handoff_actors.execution.workers.process import check_call

    problems: list[str] = []
    count = 0
    for i in range(plan.n):
        if (plan.classes[plan.class_of[i]].isolation or isolation) != "process":
            continue
        count += 1
        try:
            check_call(plan.call(i), dag_id)
        except SerializationError as error:
            problems.append(" ".join(str(error).split()))
    if count:
        click.echo(f"in processes: {options.plural(count, 'function')}")
    return problems

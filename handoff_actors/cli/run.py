"""``handoff run``: run a DAG, print what comes out."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handoff_actors.cli import options
from handoff_actors.cli.group import one_line
from handoff_actors.cli.loading import load, target
from handoff_actors.errors import HandoffError, MissingInputError, describe

if TYPE_CHECKING:
    from handoff_actors.execution.result import ExecutionResult
    from handoff_actors.graph.dag import DAG


@click.command()
@target
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=VALUE|@FILE.json",
    help="An input of the DAG, JSON or text; or a file with all of them. May be repeated.",
)
@options.isolation
@click.option(
    "--max-concurrency", type=click.IntRange(min=1), metavar="N", help="At most N at once."
)
@options.resources
@click.option(
    "--keep",
    metavar="all|sinks|ID,ID",
    help="Whose results to keep and print; by default all are kept, and the sinks' printed.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="For all of it.",
)
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="Write the timeline, for ui.perfetto.dev.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--watch", is_flag=True, help="Show how it goes, on stderr.")
def run(
    target: str,
    inputs: tuple[str, ...],
    isolation: str,
    max_concurrency: int | None,
    resources: tuple[str, ...],
    keep: str | None,
    timeout: float | None,
    trace: str | None,
    as_json: bool,
    watch: bool,
) -> None:
    """Run a DAG, and print the results of its last functions.

    FILE_OR_MODULE is a Python file or the name of a module; DAG a DAG object in it, or a function
    that returns one. Without DAG it is the only one there is.
    """
    values, offered = options.inputs(inputs), options.amounts(resources)
    if trace is not None and not Path(trace).absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {Path(trace).parent}", param_hint="'--trace'")
    dag = load(target)
    from handoff_actors.resources.machine import machine_capabilities
    from handoff_actors.runtime import Runtime

    with Runtime(
        isolation=isolation, capabilities={**machine_capabilities(), **offered}
    ) as runtime:
        began = time.perf_counter()
        try:
            result = runtime.execute(
                dag,
                inputs=_by_id(dag, values),
                max_concurrency=max_concurrency,
                timeout=timeout,
                keep=_keep(dag, keep),
                progress=watch or None,
            )
        except HandoffError as error:
            if as_json:
                click.echo(_failure(dag, error))
            if isinstance(error, MissingInputError) and not values:
                raise click.ClickException(f"{one_line(error)}: give --input NAME=VALUE") from error
            raise
        seconds = time.perf_counter() - began
        if trace is not None:
            result.to_chrome_trace(trace)
        shown = _shown(dag, result, keep)
        if as_json:
            click.echo(_success(result, seconds))
            return
        for id_, value in shown.items():
            click.echo(f"{id_} = {describe(value, 1000)}")
    ran = options.plural(len(result.timings), "function")
    click.echo(f"{ran} in {seconds:.2f} s", err=True)


def _by_id(dag: DAG, values: Mapping[str, Any]) -> dict[Hashable, Any]:
    """The inputs by their ids, which need not be strings: on a command line all are text."""
    ids = {str(id_): id_ for id_, f in dag.functions.items() if f.type == "input"}
    return {ids.get(name, name): value for name, value in values.items()}


def _keep(dag: DAG, keep: str | None) -> Any:
    if keep is None or keep in ("all", "sinks"):
        return keep or "all"
    by_text = {str(id_): id_ for id_ in dag.functions}
    names = [keep] if keep in by_text else [part.strip() for part in keep.split(",")]
    return [by_text.get(name, name) for name in names]


def _shown(dag: DAG, result: ExecutionResult, keep: str | None) -> dict[Hashable, Any]:
    if keep is not None:
        return dict(result.results)
    plan = dag.plan()
    return {plan.ids[i]: result.results[plan.ids[i]] for i in plan.sinks}


def _success(result: ExecutionResult, seconds: float) -> str:
    nodes = result.allocations
    return _json(
        {
            "dag_id": result.dag_id,
            "state": "succeeded",
            "seconds": seconds,
            "results": {str(id_): value for id_, value in result.results.items()},
            "functions": {
                str(id_): {"node": nodes[id_], "start": t.start, "duration": t.duration}
                for id_, t in result.timings.items()
            },
        }
    )


def _failure(dag: DAG, error: HandoffError) -> str:
    return _json(
        {
            "dag_id": dag.id,
            "state": "failed",
            "error": {
                "type": type(error).__name__,
                "message": one_line(error),
                "function_id": getattr(error, "function_id", None),
            },
        }
    )


def _json(value: Any) -> str:
    """As JSON; what JSON does not know as its repr, keys that it does not know as text."""
    try:
        return json.dumps(value, default=describe, allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(_plain(value), default=describe)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k if isinstance(k, str) else describe(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return describe(value)
    return value

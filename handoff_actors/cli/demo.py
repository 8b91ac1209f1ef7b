"""``handoff demo``: the tutorial, run."""

from __future__ import annotations

import importlib

import click


@click.command()
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N modules, by name."
)
@click.option(
    "--isolation",
    type=click.Choice(["process", "thread"]),
    default="process",
    show_default=True,
    help="Where modules are parsed.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    metavar="N",
    help="Rows of the table.",
)
def demo(limit: int | None, isolation: str, top: int) -> None:
    """Take a census of this machine's Python standard library, as one DAG."""
    census = importlib.import_module("handoff_actors._examples.census")
    census.main(limit=limit, isolation=isolation, top=top)

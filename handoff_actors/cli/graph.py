"""``handoff graph``: a picture of a DAG."""

from __future__ import annotations

import click

from handoff_actors.cli.loading import load, target


@click.command()
@target
@click.option(
    "--format",
    "form",
    type=click.Choice(["mermaid", "dot", "svg"]),
    default="mermaid",
    show_default=True,
    help="What to print.",
)
def graph(target: str, form: str) -> None:
    """Print a picture of a DAG.

    Mermaid is what Markdown shows, dot is for Graphviz, svg is a picture at once; in an svg of a
    large DAG (more than 500 functions) the levels are drawn.
    """
    dag = load(target)
    if form == "mermaid":
        text = dag.to_mermaid()
    elif form == "dot":
        text = dag.to_dot()
    else:
        text = dag.to_svg()
    click.echo(text, nl=not text.endswith("\n"))

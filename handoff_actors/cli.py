"""The command ``handoff``.

Guarantees that what goes wrong in the world is one clear line on stderr with exit code 1, and what
is wrong with the command line itself is exit code 2.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from handoff_actors._version import __version__
from handoff_actors.errors import HandoffError


class _Group(click.Group):
    """A group whose commands fail in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly when nobody reads the output any more
        except (HandoffError, OSError) as error:
            text = " ".join(str(error).split())
            raise click.ClickException(text or type(error).__name__) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="handoff")
def handoff() -> None:
    """DAGs of Python functions on a supervised actor runtime."""


@handoff.command()
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


def main() -> None:
    """The entry point: runs the command line of this process, and ends it."""
    handoff(prog_name="handoff")

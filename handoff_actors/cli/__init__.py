"""The command ``handoff``: a file for each subcommand, loaded when it is asked for.

Guarantees that what goes wrong in the world is one clear line on stderr with exit code 1, and what
is wrong with the command line itself is exit code 2; ``--traceback`` shows where it came from.
"""

from __future__ import annotations

import click

from handoff_actors._version import __version__
from handoff_actors.cli.group import Commands

COMMANDS = {
    "run": "handoff_actors.cli.run:run",
    "graph": "handoff_actors.cli.graph:graph",
    "check": "handoff_actors.cli.check:check",
    "node": "handoff_actors.cli.nodes:node",
    "status": "handoff_actors.cli.nodes:status",
    "explain": "handoff_actors.cli.explain:explain",
    "demo": "handoff_actors.cli.demo:demo",
    "completion": "handoff_actors.cli.completion:completion",
}
"""The subcommands, in the order of the help, and where each is."""


@click.group(cls=Commands, commands_at=COMMANDS)
@click.version_option(__version__, prog_name="handoff")
def handoff() -> None:
    """DAGs of Python functions on a supervised actor runtime."""


def main() -> None:
    """The entry point: runs the command line of this process, and ends it."""
    handoff(prog_name="handoff")

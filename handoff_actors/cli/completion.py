"""``handoff completion``: the script that makes a shell complete the command."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

_WHERE = {
    "bash": "~/.local/share/bash-completion/completions/handoff",
    "zsh": "a folder of your $fpath, as _handoff",
    "fish": "~/.config/fish/completions/handoff.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(_WHERE)), required=False)
def completion(shell: str | None) -> None:
    """Print the script that makes SHELL complete this command.

    Without SHELL it is the one you use. For bash:

        handoff completion bash > ~/.local/share/bash-completion/completions/handoff
    """
    if shell is None:
        shell = Path(os.environ.get("SHELL", "")).name
        if shell not in _WHERE:
            raise click.UsageError(f"say which shell: {', '.join(_WHERE)}")
    kind = get_completion_class(shell)
    root = click.get_current_context().find_root()
    assert kind is not None
    click.echo(kind(root.command, {}, "handoff", "_HANDOFF_COMPLETE").source())
    click.echo(f"# put this into {_WHERE[shell]}", err=True)

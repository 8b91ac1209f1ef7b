"""The group of subcommands: loads them lazily, and turns what they raise into one line."""

from __future__ import annotations

import importlib
import os
import sysconfig
import traceback
from collections.abc import Mapping
from typing import Any

import click

from handoff_actors.errors import HandoffError

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_EXAMPLES = os.path.join(_OURS, "_examples")
_NOT_THEIRS = ("<frozen ", _OURS, sysconfig.get_path("stdlib") + os.sep)
"""What files begin with whose lines tell a user nothing; what is installed is among them."""
HELP = {"help_option_names": ["-h", "--help"]}


class TargetError(click.ClickException):
    """What the command line names is not there: exit code 2."""

    exit_code = 2


class Commands(click.Group):
    """See the module.

    Args:
        commands_at: of each subcommand ``module:attribute``.
    """

    def __init__(self, *args: Any, commands_at: Mapping[str, str], **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", HELP)
        super().__init__(*args, **kwargs)
        self.commands_at = commands_at
        self.params.append(_traceback_option())

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's
        """The names, in the order given."""
        return list(self.commands_at)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's
        """Load a subcommand; each has ``--traceback`` too."""
        place = self.commands_at.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        if not any(param.name == "traceback" for param in command.params):
            command.params.append(_traceback_option())
            command.context_settings = {**HELP, **command.context_settings}
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command line."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly when nobody reads the output any more
        except (HandoffError, OSError, click.ClickException) as error:
            usage = isinstance(error, click.UsageError)
            if ctx.find_root().meta.get("handoff.traceback") and not usage:
                # Our own wrapping of what the user's code raised tells nothing.
                wrapped = isinstance(error, click.ClickException) and error.__cause__
                click.echo("".join(traceback.format_exception(wrapped or error)), err=True)
            if isinstance(error, click.ClickException):
                raise
            raise click.ClickException(one_line(error)) from error


def _traceback_option() -> click.Option:
    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            ctx.find_root().meta["handoff.traceback"] = True

    return click.Option(
        ["--traceback"],
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Show where an error came from.",
    )


def one_line(error: BaseException) -> str:
    """What went wrong; of code of the user's also the line that raised."""
    text = " ".join(str(error).split()) or type(error).__name__
    cause = error.__cause__
    place = None if cause is None else _place(cause)
    return text if place is None else f"{text} ({place})"


def _place(error: BaseException) -> str | None:
    """The file and line of the user's where ``error`` was raised, as far as it knows."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    theirs = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_NOT_THEIRS) or _EXAMPLES in frame.filename
    ]
    return f"{theirs[-1].filename}, line {theirs[-1].lineno}" if theirs else None

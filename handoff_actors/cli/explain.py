"""``handoff explain``: what an error means and what to do, from the documentation."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from handoff_actors.cli.group import TargetError

_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (_PACKAGE / "_docs" / "errors.md", _PACKAGE.parent / "docs" / "errors.md")
"""Where a wheel and a checkout have the page."""


def sections() -> dict[str, str]:
    """What the page says of each error, by name.

    Raises:
        OSError: the page is not there.
    """
    page = next((place for place in _PLACES if place.is_file()), _PLACES[0])
    parts = re.split(r"^(#+) (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    return {name: text.strip() for marks, name, text in found if marks == "###"}


def _complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sections() if name.startswith(incomplete)]


@click.command()
@click.argument("error", required=False, shell_complete=_complete)
def explain(error: str | None) -> None:
    """Tell what ERROR means and what to do; without ERROR, which there are."""
    known = sections()
    if error is None:
        click.echo("\n".join(known))
        return
    by_name = {name.lower(): name for name in known}
    wanted = error.lower().rpartition(".")[2]
    name = by_name.get(wanted) or by_name.get(f"{wanted}error")
    if name is None:
        name = _nearest(error, wanted.removesuffix("error"), by_name)
    text = re.sub(r"[`*]", "", known[name])
    click.echo(f"{name}\n\n{text}")


def _nearest(error: str, part: str, by_name: dict[str, str]) -> str:
    """The one error that has ``part`` in its name, or is spelt much like it."""
    alike = [low for low in by_name if part in low]
    alike = alike or difflib.get_close_matches(f"{part}error", by_name, 3, 0.8)
    if len(alike) == 1:
        return by_name[alike[0]]
    names = ", ".join(by_name[low] for low in alike or by_name)
    rest = f"do you mean one of {names}?" if alike else f"there are {names}"
    raise TargetError(f"there is no error {error}; {rest}")

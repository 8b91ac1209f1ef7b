"""Reading values from the command line: inputs, amounts of resources."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

isolation = click.option(
    "--isolation",
    type=click.Choice(["thread", "process"]),
    default="thread",
    show_default=True,
    help="Where functions run that do not say.",
)

resources = click.option(
    "--resource",
    "resources",
    multiple=True,
    metavar="NAME=AMOUNT",
    help="What this machine offers besides, or instead: gpu=1, cpu=4. May be repeated.",
)


def amounts(pairs: Sequence[str]) -> dict[str, float]:
    """``["gpu=1"]`` as a mapping.

    Raises:
        click.UsageError: one is no ``NAME=AMOUNT``.
    """
    found: dict[str, float] = {}
    for pair in pairs:
        name, equals, amount = pair.partition("=")
        try:
            found[name.strip()] = float(amount)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise click.UsageError(f"--resource wants NAME=AMOUNT, as gpu=1, not {pair!r}")
    return found


def inputs(texts: Sequence[str]) -> dict[str, Any]:
    """The inputs of a DAG.

    Args:
        texts: each ``name=value``, ``name=@file.json``, or ``@file.json`` with an object. A value
            that is JSON is what it says, any other is text.

    Raises:
        click.UsageError: one is none of these, or a file is not there or not JSON.
    """
    found: dict[str, Any] = {}
    for text in texts:
        if text.startswith("@"):
            values = _read(text[1:])
            if not isinstance(values, dict):
                raise click.UsageError(f"{text[1:]} must hold a JSON object of inputs by name")
            found.update(values)
            continue
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--input wants NAME=VALUE or @FILE.json, not {text!r}")
        found[name] = _read(value[1:]) if value.startswith("@") else _value(value)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(f"--input {path}: {error.strerror}") from error
    except ValueError as error:
        raise click.UsageError(f"--input {path} is not JSON: {error}") from error


def plural(count: int, noun: str) -> str:
    """``1 function``, ``1,200 functions``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"

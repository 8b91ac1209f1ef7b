"""Checks of what callers of the face give, before an actor gets it.

Guarantees that what is refused is a ``ConfigurationError`` that names the argument.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from handoff_actors.errors import ConfigurationError, describe, unfit_id
from handoff_actors.graph.checks import LONGEST, real_number


def check_ids(*ids: Any) -> None:
    """Refuse ids that an actor could not keep."""
    for id_ in ids:
        if (reason := unfit_id(id_)) is not None:
            raise ConfigurationError(f"an id {reason}")


def check_node(node: Any) -> None:
    """Refuse what cannot be a node's name."""
    if not isinstance(node, str) or not node:
        raise ConfigurationError(f"a node's name is a non-empty str, not {describe(node)}")


def items_of(name: str, values: Any, what: str) -> tuple[Any, ...]:
    """The values of a collection; refuses what is one value.

    Args:
        name: of the argument.
        values: what was given.
        what: what it is a list of, for the error.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ConfigurationError(f"{name} must be a list of {what}, not {describe(values)}")
    return tuple(values)


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse what is no int, a bool, or below ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{name} must be an int >= {least}, not {describe(value)}")


def unlike(
    wanted: Sequence[Hashable], given: Mapping[Any, Any]
) -> tuple[list[Hashable], list[Any]]:
    """Which of the inputs that are wanted are missing, and which were given that are none."""
    missing = [id_ for id_ in wanted if id_ not in given]
    if len(given) == len(wanted) - len(missing):
        return missing, []
    among = set(wanted)
    return missing, [id_ for id_ in given if id_ not in among]


def patience(timeout: Any) -> float | None:
    """A timeout that locks and clocks can hold; refuses what is no number."""
    if timeout is None:
        return None
    number = real_number(timeout)
    if number is None or number != number:
        raise ConfigurationError(
            f"timeout must be a number of seconds or None, not {describe(timeout)}"
        )
    return min(number, LONGEST)

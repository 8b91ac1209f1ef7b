"""Amounts of resources: what a node offers and what a function needs. Pure.

Guarantees: every amount that passes ``to_micro`` is an integer count of micro-units, so sums and
comparisons are exact (0.1 + 0.2 - 0.3 is 0), and it is finite and not negative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Rational, Real
from typing import Any

from handoff_actors.errors import ConfigurationError, describe

Capabilities = Mapping[str, float]
"""Amounts by resource name, for example ``{"cpu": 4, "memory": 8000}``."""

MICRO = 1_000_000
"""Micro-units in one unit."""


def to_micro(amounts: Capabilities, what: str) -> dict[str, int]:
    """Check amounts and count them in integer micro-units.

    Args:
        amounts: resource name to a real number (``Decimal``, ``Fraction`` and numpy scalars too).
        what: whose amounts they are, to open the message with ("capabilities of node 'a'").

    Returns:
        The same names, in the same order; an amount of zero stays.

    Raises:
        ConfigurationError: not a mapping, a name that is no non-empty ``str``, or an amount that
            is not a finite number of at least zero.
    """
    if not isinstance(amounts, Mapping):
        raise ConfigurationError(
            f"{what}: {describe(amounts)} is not a mapping of resource names to numbers; "
            'write {"cpu": 1}'
        )
    micro: dict[str, int] = {}
    for name, amount in amounts.items():
        if not isinstance(name, str) or not name:
            raise ConfigurationError(
                f"{what}: the resource name {describe(name)} is not a non-empty string"
            )
        micro[str(name)] = _micro(amount, name, what)
    return micro


def _micro(amount: Any, name: str, what: str) -> int:
    """One amount in micro-units; what it raises names resource and value."""
    if not isinstance(amount, Real | Decimal) or isinstance(amount, bool):
        raise ConfigurationError(
            f"{what}: {name!r} is {describe(amount)}, a {type(amount).__name__}; give a number"
        )
    try:
        number: Any = amount  # Decimal and Fraction stay exact; narrow numpy scalars must widen
        if isinstance(amount, Integral):
            number = int(amount)
        elif not isinstance(amount, Rational | Decimal):
            number = float(amount)
        finite = math.isfinite(number)
        if finite and number >= 0:
            micro: int = round(number * MICRO)
            return micro
    except (OverflowError, ValueError):
        finite = False
    raise ConfigurationError(
        f"{what}: {name!r} is {describe(amount)}; give "
        + ("an amount of at least 0" if finite else "a finite number")
    )


def from_micro(amounts: Mapping[str, int]) -> dict[str, float]:
    """Micro-units back to units."""
    return {name: amount / MICRO for name, amount in amounts.items()}


def fits(need: Capabilities, free: Capabilities) -> bool:
    """Whether ``free`` covers ``need``, exact to a micro-unit; a resource it lacks counts as 0."""
    for name, amount in need.items():
        if amount > 0 and round(amount * MICRO) > round(free.get(name, 0) * MICRO):
            return False
    return True


@dataclass(frozen=True, slots=True)
class NodeCapacity:
    """What an allocator sees of a node.

    Attributes:
        free: what nobody holds, in units; below zero where the capabilities were lowered under use.
        total: what the node offers, in units.
    """

    free: Mapping[str, float]
    total: Mapping[str, float]

    def fits(self, cost: Capabilities) -> bool:
        """Whether ``cost`` is free here now."""
        return fits(cost, self.free)

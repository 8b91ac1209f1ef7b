"""Rows of the table, how they are measured, and how they are shown."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any, Literal

UNITS = {"µs": 1e-6, "ms": 1e-3, "s": 1.0}
"""How figures in seconds are shown; any other unit shows the figure as it is."""


@dataclass(frozen=True)
class Target:
    """What a figure has to reach.

    Args:
        limit: the figure's bound.
        of: which figure of the row: the ratio of ours to the floor, or ours itself.
        sense: on which side of the limit is good.
    """

    limit: float
    of: Literal["ratio", "ours"] = "ratio"
    sense: Literal["at most", "at least"] = "at most"

    def reached(self, row: Row) -> bool:
        """Whether ``row`` is good enough."""
        figure = row.ratio if self.of == "ratio" else row.ours
        assert figure is not None
        return figure <= self.limit if self.sense == "at most" else figure >= self.limit


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        case: what was measured.
        ours: seconds, or what ``unit`` says.
        floor: the same of what it is compared with.
        target: None for a line that only informs.
        unit: what the figures are shown in.
        note: what the floor is, or what else there is to know.
        samples: all measurements, ours and the floor's.
        ratio: ours to the floor's, or what the case computes instead.
    """

    case: str
    ours: float
    floor: float | None = None
    target: Target | None = None
    unit: str = "µs"
    note: str = ""
    samples: tuple[Sequence[float], Sequence[float]] = ((), ())
    ratio: float | None = field(default=None)

    def __post_init__(self) -> None:
        if self.ratio is None and self.floor:
            object.__setattr__(self, "ratio", self.ours / self.floor)

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without one."""
        return None if self.target is None else self.target.reached(self)


def timed(call: Callable[[], object], *, collect: bool = True) -> float:
    """Seconds that ``call()`` takes, after what is garbage was collected, if it is to be."""
    if collect:
        gc.collect()
    began = perf_counter()
    call()
    return perf_counter() - began


Make = Callable[[], Callable[[], object]]
"""Prepares one measurement, unmeasured, and returns what is to be measured."""


def alternate(ours: Make, floor: Make, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of both in turn, so that a noisy moment meets both; a first round is thrown away."""
    pairs = []
    for _ in range(repeats + 1):
        pairs.append((timed(ours()), timed(floor())))
    return [a for a, _ in pairs[1:]], [b for _, b in pairs[1:]]


def compared(
    case: str,
    samples: tuple[Sequence[float], Sequence[float]],
    per: int,
    target: Target | None,
    *,
    unit: str = "µs",
    note: str = "",
) -> Row:
    """A row of medians, each divided by ``per``; its ratio is the median of the pairs' ratios."""
    ours, floor = samples
    ratio = statistics.median(a / b for a, b in zip(ours, floor, strict=True))
    return Row(
        case,
        statistics.median(ours) / per,
        statistics.median(floor) / per,
        target,
        unit,
        note,
        samples,
        ratio,
    )


def quantile(samples: Iterable[float], q: float) -> float:
    """The value that the share ``q`` of the samples does not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


HEADER = ("case", "ours", "floor", "ratio", "target", "", "note")


def cells(row: Row) -> tuple[str, ...]:
    """``row`` as text."""

    def shown(figure: float | None) -> str:
        if figure is None:
            return ""
        scale = UNITS.get(row.unit)
        return f"{figure if scale is None else figure / scale:.3g} {row.unit}"

    target = row.target
    wanted = ""
    if target is not None:
        limit = f"{target.limit:g}x" if target.of == "ratio" else shown(target.limit)
        wanted = f"{'≤' if target.sense == 'at most' else '≥'} {limit}"
    mark = {None: "", True: "yes", False: "NO"}[row.reached]
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
    return row.case, shown(row.ours), shown(row.floor), ratio, wanted, mark, row.note


class Table:
    """A Markdown table that is printed line by line, as cases end."""

    WIDTHS = (36, 11, 11, 7, 11, 3, 0)

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self.rows: list[Row] = []

    def begin(self) -> None:
        """Print the head."""
        self._line(HEADER)
        self._line(tuple("-" * max(3, width) for width in self.WIDTHS))

    def add(self, row: Row) -> None:
        """Print a row."""
        self.rows.append(row)
        self._line(cells(row))

    def _line(self, texts: tuple[str, ...]) -> None:
        padded = (text.ljust(width) for text, width in zip(texts, self.WIDTHS, strict=True))
        self._write("| " + " | ".join(padded).rstrip() + " |")

    def to_json(self) -> str:
        """All rows with all their samples, and the machine."""
        rows = [asdict(row) | {"reached": row.reached} for row in self.rows]
        return json.dumps({"machine": machine(), "rows": rows}, indent=1)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
    }

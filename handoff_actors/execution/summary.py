"""How a run went, for people: a few lines of text, and what a notebook shows."""

from __future__ import annotations

import html as escaping
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from handoff_actors.errors import describe
from handoff_actors.execution.run_data import FREED, MISSING, RunData

if TYPE_CHECKING:
    from handoff_actors.execution.result import ExecutionResult

_SLOWEST = 8
_PATH = 12


@dataclass(frozen=True, slots=True)
class Summary:
    """What can be told of a run that has ended.

    Attributes:
        dag_id: the run's.
        state: how it ended.
        functions: how many ran.
        seconds: from its submission to the end of its last function.
        nodes: how many functions ran on each.
        slowest: the ids of the slowest functions with their seconds, node and worker.
        path: the critical path: the ids on the heaviest way through the graph.
        path_seconds: how long these took.
        failed: the attempts that did not count, as id, attempt and error.
    """

    dag_id: Hashable
    state: str
    functions: int
    seconds: float
    nodes: dict[str, int]
    slowest: list[tuple[Hashable, float, str, str]]
    path: list[Hashable]
    path_seconds: float
    failed: list[tuple[Hashable, int, str]]

    @classmethod
    def of(cls, result: ExecutionResult, data: RunData | None) -> Summary:
        """The summary of a result; of a copy from another process it has no critical path."""
        timings, nodes = result.timings, result.allocations
        slowest = sorted(timings, key=lambda id_: timings[id_].duration, reverse=True)[:_SLOWEST]
        path: list[Hashable] = []
        failed: list[tuple[Hashable, int, str]] = []
        workers: dict[Hashable, str] = {}
        if data is not None:
            plan, trail = data.plan, data.trail
            trail.settle(data.starts, data.ends)
            took = [max(0.0, e - s) for s, e in zip(data.starts, data.ends, strict=True)]
            path = [plan.ids[i] for i in plan.critical_path(took)]
            failed = [(plan.ids[f.index], f.attempt, f.error) for f in trail.failed]
            workers = {id_: trail.crew[trail.by[plan.index[id_]]] for id_ in slowest}
        return cls(
            result.dag_id,
            "succeeded" if data is None else data.state,
            len(timings),
            max([t.start + t.duration for t in timings.values()], default=0.0),
            dict(Counter(nodes.values())),
            [
                (id_, timings[id_].duration, nodes.get(id_, ""), workers.get(id_, ""))
                for id_ in slowest
            ],
            path,
            sum(timings[id_].duration for id_ in path if id_ in timings),
            failed,
        )

    def headline(self) -> str:
        """One line."""
        where = ", ".join(f"{count:,} on {node}" for node, count in self.nodes.items())
        plural = "" if self.functions == 1 else "s"
        return (
            f"{_name(self.dag_id)}: {self.state}, {self.functions:,} function{plural} in "
            f"{seconds_text(self.seconds)} ({where or 'none'})"
        )

    def text(self) -> str:
        """Some lines, as ``str(result)`` has them."""
        lines = [self.headline()]
        if self.slowest:
            slow = ", ".join(f"{_name(i)} {seconds_text(s)}" for i, s, *_ in self.slowest[:3])
            lines.append(f"  slowest: {slow}")
        if len(self.path) > 1:
            lines.append(f"  critical path, {seconds_text(self.path_seconds)}: {self._way()}")
        if self.failed:
            lines.append(f"  attempts that did not count: {len(self.failed)}")
            lines += [f"    {_name(i)}, attempt {n}: {e}" for i, n, e in self.failed[:3]]
        return "\n".join(lines)

    def _way(self) -> str:
        names = [_name(id_) for id_ in self.path]
        if len(names) > _PATH:
            names = [*names[: _PATH // 2], "…", *names[-_PATH // 2 :]]
        return " → ".join(names)


def states(data: RunData) -> dict[Hashable, str]:
    """The state of each function of a run that has ended."""
    found: dict[Hashable, str] = {}
    for i in range(data.plan.n):
        value = data.peek(i)
        if value is not MISSING or value is FREED:
            found[data.plan.ids[i]] = "done"
        elif getattr(data.error, "function_id", MISSING) == data.plan.ids[i]:
            found[data.plan.ids[i]] = "failed"
        else:
            found[data.plan.ids[i]] = "cancelled" if data.ends[i] else "waiting"
    return found


def html(summary: Summary, data: RunData | None) -> str:
    """What a notebook shows of a result: the graph, the slowest functions, the critical path."""
    parts = [f"<p><b>{escaping.escape(summary.headline())}</b></p>"]
    if data is not None and data.functions is not None:
        from handoff_actors.graph.drawing import svg_of

        parts.append(svg_of(data.functions, states(data), set(summary.path)))
    if len(summary.path) > 1:
        parts.append(
            f"<p>critical path (bold), {seconds_text(summary.path_seconds)}: "
            f"{escaping.escape(summary._way())}</p>"  # noqa: SLF001  its own module
        )
    rows = [
        (_name(id_), seconds_text(seconds), node, worker)
        for id_, seconds, node, worker in summary.slowest
    ]
    parts.append(_table(("slowest", "took", "node", "worker"), rows))
    if summary.failed:
        tried = [(_name(i), str(attempt), error) for i, attempt, error in summary.failed[:20]]
        parts.append(_table(("did not count", "attempt", "error"), tried))
    return f"<div>{''.join(parts)}</div>"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    cells = "".join(f"<th style='text-align:left'>{escaping.escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>"
        + "".join(f"<td style='text-align:left'>{escaping.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _name(id_: Hashable) -> str:
    return id_ if isinstance(id_, str) else describe(id_)


def seconds_text(seconds: float) -> str:
    """``850 µs``, ``12.5 ms``, ``3.20 s``, ``4 min 10 s``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"

"""The timeline of a run as Chrome's trace events, which Perfetto opens too.

One process per node, one row per worker. Categories tell what a slice is: ``function``, ``retry``
(an attempt that did not count), ``wait`` (ready, and no worker yet; on rows of their own) and
``transfer`` (values between nodes, on rows of the node that gets them). A counter shows how many
functions run. Slices of a row never overlap, as viewers could not show that: coroutines that run at
once have rows of their own, as many as are needed.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from typing import Any

from handoff_actors.execution.run_data import RunData

_LEAST_WAIT = 0.002
_SHORTEST_WAIT = 0.001
"""A wait shorter than this part of the whole run, or so many seconds, is not drawn."""
_MOST_WAITS = 2000
_UNKNOWN_ROW = 5_000
_WAITING_ROW = 10_000
_TRANSFER_ROW = 20_000
_FURTHER_ROW = 100_000

Events = list[dict[str, Any]]


class _Lanes:
    """Hands out the first lane that is free, to spans that come in the order of their starts."""

    def __init__(self) -> None:
        self._ends: list[tuple[float, int]] = []
        self._free: list[int] = []
        self._count = 0

    def first(self, start: float, end: float) -> int:
        """A lane that is free from ``start`` on; it is taken until ``end``."""
        while self._ends and self._ends[0][0] <= start:
            heapq.heappush(self._free, heapq.heappop(self._ends)[1])
        if self._free:
            lane = heapq.heappop(self._free)
        else:
            lane, self._count = self._count, self._count + 1
        heapq.heappush(self._ends, (end, lane))
        return lane


class _Rows:
    """Numbers for nodes and workers, and the metadata that names them."""

    def __init__(self) -> None:
        self.events: Events = []
        self._nodes: dict[str, int] = {}
        self._names: dict[tuple[int, int], str] = {}

    def node(self, name: str) -> int:
        """The number of a node."""
        number = self._nodes.get(name)
        if number is None:
            number = self._nodes[name] = len(self._nodes) + 1
            self._tell("process_name", number, 0, f"node {name}")
        return number

    def row(self, node: int, number: int, name: str, beside: int | None = None) -> int:
        """A row of a node, named when it is new; shown next to the row ``beside``."""
        if (node, number) not in self._names:
            self._names[node, number] = name
            self._tell("thread_name", node, number, name)
            self.events.append(
                {"name": "thread_sort_index", "ph": "M", "pid": node, "tid": number,
                 "args": {"sort_index": number if beside is None else beside}}
            )  # fmt: skip
        return number

    def another(self, node: int, number: int, lane: int) -> int:
        """A further row like this one; the 0th is itself."""
        name = self._names[node, number]
        return self.row(node, number + lane * _FURTHER_ROW, name, beside=number)

    def _tell(self, what: str, pid: int, tid: int, name: str) -> None:
        self.events.append(
            {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
        )


def trace(data: RunData, nodes: Mapping[Hashable, str]) -> dict[str, Any]:
    """The timeline.

    Args:
        data: of a run that has ended.
        nodes: the node that each function ran on.

    Returns:
        What to write as JSON; times are microseconds since the run was submitted.
    """
    rows = _Rows()
    plan, trail, zero = data.plan, data.trail, data.submitted
    trail.settle(data.starts, data.ends)
    end = max(data.ends, default=zero)
    slices: Events = []
    free: dict[int, _Lanes] = defaultdict(_Lanes)
    retries = Counter(failed.index for failed in trail.failed)
    for i in sorted(range(plan.n), key=data.starts.__getitem__):
        if not data.ends[i] or plan.ids[i] not in nodes:
            continue
        node = rows.node(nodes[plan.ids[i]])
        if trail.by[i]:
            row = _worker_row(rows, node, trail.by[i], trail.crew)
        else:
            first = free[node].first(data.starts[i], data.ends[i])
            row = rows.row(node, _UNKNOWN_ROW + first, f"worker {first + 1}")
        slices.append(
            _slice(
                str(plan.ids[i]), "function", data.starts[i] - zero, data.ends[i] - zero,
                node, row,
                attempt=1 + retries[i],
                **_waited(data, i, retries[i]),
            )
        )  # fmt: skip
    for failed in trail.failed:
        node = rows.node(failed.node)
        start = failed.start or failed.end
        slices.append(
            _slice(
                f"{plan.ids[failed.index]} (attempt {failed.attempt})", "retry", start - zero,
                failed.end - zero, node, _worker_row(rows, node, failed.worker, trail.crew),
                error=failed.error,
            )
        )  # fmt: skip
    _set_apart(slices, rows)
    slices += _waits(data, nodes, rows, end - zero)
    slices += _transfers(data, rows)
    slices += _running(slices)
    slices.sort(key=lambda event: event["ts"])
    return {"traceEvents": rows.events + slices, "displayTimeUnit": "ms"}


def _waited(data: RunData, i: int, retries: int) -> dict[str, float]:
    """How long a function waited for a worker; of one that was tried before that is not known."""
    return {} if retries else {"waited_ms": round(1e3 * (data.starts[i] - _ready(data, i)), 3)}


def _slice(
    name: str, category: str, start: float, end: float, pid: int, tid: int, **args: Any
) -> dict[str, Any]:
    ts = round(start * 1e6, 3)
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": ts,
        "dur": max(0.0, round(round(end * 1e6, 3) - ts, 3)),
        "pid": pid,
        "tid": tid,
        "args": args,
        **({"cname": _COLORS[category]} if category in _COLORS else {}),
    }


_COLORS = {"retry": "terrible", "wait": "grey", "transfer": "yellow"}


def _worker_row(rows: _Rows, node: int, number: int, crew: list[str]) -> int:
    return rows.row(node, number, crew[number] or "worker")


def _set_apart(slices: Events, rows: _Rows) -> None:
    """Give slices of one worker that overlap, as those of coroutines do, further rows."""
    free: dict[tuple[int, int], _Lanes] = defaultdict(_Lanes)
    for event in sorted(slices, key=lambda event: event["ts"]):
        node, row, start = event["pid"], event["tid"], event["ts"]
        lane = free[node, row].first(start, round(start + event["dur"], 3))
        event["tid"] = rows.another(node, row, lane)


def _ready(data: RunData, i: int) -> float:
    """When a function had all it needs."""
    n = data.plan.n
    return max([data.ends[d] for d in data.plan.deps[i] if d < n], default=data.submitted)


def _waits(data: RunData, nodes: Mapping[Hashable, str], rows: _Rows, total: float) -> Events:
    """The longest waits, each on the first row that is free."""
    plan, zero = data.plan, data.submitted
    again = {failed.index for failed in data.trail.failed}
    found: list[tuple[float, float, int]] = []
    for i in range(plan.n):
        if data.ends[i] and plan.ids[i] in nodes and i not in again:
            ready = _ready(data, i)
            if data.starts[i] - ready > max(_SHORTEST_WAIT, _LEAST_WAIT * total):
                found.append((ready, data.starts[i], i))
    found.sort(key=lambda wait: wait[0] - wait[1])
    found = sorted(found[:_MOST_WAITS])
    free: dict[int, _Lanes] = defaultdict(_Lanes)
    slices: Events = []
    for start, end, i in found:
        node = rows.node(nodes[plan.ids[i]])
        tid = rows.row(node, _WAITING_ROW + free[node].first(start, end), "waiting")
        slices.append(_slice(f"{plan.ids[i]} waits", "wait", start - zero, end - zero, node, tid))
    return slices


def _transfers(data: RunData, rows: _Rows) -> Events:
    """Values that went between nodes, each on the first row that is free."""
    zero = data.submitted
    free: dict[int, _Lanes] = defaultdict(_Lanes)
    slices: Events = []
    for t in sorted(data.trail.transfers, key=lambda t: t.start):
        node = rows.node(t.target)
        tid = rows.row(node, _TRANSFER_ROW + free[node].first(t.start, t.end), "transfers")
        what = str(data.plan.ids[t.index]) if t.values == 1 else f"{t.values} values"
        slices.append(
            _slice(
                f"{what} from {t.source}", "transfer", t.start - zero, t.end - zero, node, tid,
                bytes=t.nbytes,
            )
        )  # fmt: skip
    return slices


def _running(slices: Events) -> Events:
    """A counter of the functions that run, for each node; at most some thousand points."""
    steps: dict[int, list[tuple[float, int]]] = {}
    for event in slices:
        if event["cat"] in ("function", "retry"):
            steps.setdefault(event["pid"], []).extend(
                [(event["ts"], 1), (event["ts"] + event["dur"], -1)]
            )
    counters: Events = []
    for pid, changes in steps.items():
        changes.sort()
        every = max(1, len(changes) // 4000)
        count = 0
        for number, (at, change) in enumerate(changes):
            count += change
            if number % every == 0 or number == len(changes) - 1:
                counters.append(
                    {"name": "running", "cat": "counter", "ph": "C", "ts": at, "pid": pid,
                     "tid": 0, "args": {"functions": count}}
                )  # fmt: skip
    return counters

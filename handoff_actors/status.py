"""``status()``: how a runtime is doing, for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from handoff_actors.errors import amounts_text
from handoff_actors.execution.running import RunningFunction

_SHOWN = 20
"""So many running functions are named by ``str(status())``."""


@dataclass(frozen=True, slots=True)
class ActorStatus:
    """One actor of the tree.

    Attributes:
        name: what it answers to.
        state: ``"up"`` or ``"down"``.
        queued: messages that wait in its mailbox.
        children: below it.
    """

    name: str
    state: str
    queued: int
    children: Sequence[ActorStatus] = ()


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One node.

    Attributes:
        name: unique in the cluster.
        address: ``host:port``, or None when it does not listen.
        pid: its process.
        state: ``"up"``, ``"suspect"`` or ``"down"``.
        capabilities: what it offers in all.
        available: what of it is free.
        python: its Python version.
        version: its version of this library.
    """

    name: str
    address: str | None
    pid: int
    state: str
    capabilities: Mapping[str, float]
    available: Mapping[str, float]
    python: str
    version: str


@dataclass(frozen=True, slots=True)
class ClaimStatus:
    """Resources that are held: by which run, where, how much."""

    node: str
    dag_id: Any
    amounts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run the runtime knows of."""

    dag_id: Any
    state: str
    finished: int
    total: int


@dataclass(frozen=True, slots=True)
class GuestStatus:
    """What this node does for a run of another one.

    Attributes:
        dag_id: the run's.
        orchestrator: the node whose run it is.
        state: ``"running"``, or ``"over"`` when only results are kept.
        values: how many results and inputs are here.
    """

    dag_id: Any
    orchestrator: str
    state: str
    values: int


@dataclass(frozen=True, slots=True)
class MemoryStatus:
    """What the values of a runtime with a ``memory_limit`` take, in bytes.

    Attributes:
        limit: of what is in memory.
        held: what is in memory, about.
        spilled: what is on disk.
        values: how many of them are on disk.
        unspillable: what of ``held`` cannot be pickled, so that it stays.
        problem: why nothing can be written to disk just now, or None.
    """

    limit: int
    held: int
    spilled: int
    values: int
    unspillable: int
    problem: str | None

    def __str__(self) -> str:
        stays = f", {_mb(self.unspillable)} of it cannot be pickled" if self.unspillable else ""
        problem = "" if self.problem is None else f"; nothing can be written: {self.problem}"
        return (
            f"values: {_mb(self.held)} in memory of at most {_mb(self.limit)}{stays}; "
            f"{_mb(self.spilled)} on disk, {self.values} values{problem}"
        )


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


@dataclass(frozen=True, slots=True)
class RuntimeStatus:
    """How a runtime is doing.

    Attributes:
        tree: the supervision tree.
        restarts: by name, also of actors that have ended.
        nodes: this node and the others it knows.
        claims: held now.
        runs: in progress, and finished ones that are retained.
        workers: counts of threads, processes, coroutines; abandoned threads.
        running: the functions that workers are at, also for runs of other nodes.
        guests: what this node does for runs of other nodes.
        memory: of the values, if it is limited.
    """

    tree: ActorStatus
    restarts: Mapping[str, int]
    nodes: Sequence[NodeInfo]
    claims: Sequence[ClaimStatus]
    runs: Sequence[RunStatus]
    workers: Mapping[str, Any]
    running: Sequence[RunningFunction] = ()
    guests: Sequence[GuestStatus] = ()
    memory: MemoryStatus | None = None

    def to_dict(self) -> dict[str, Any]:
        """As dicts, lists, numbers and strings, fit for ``json.dumps(..., default=str)``."""
        return asdict(self)

    def __str__(self) -> str:
        lines: list[str] = []

        def draw(actor: ActorStatus, depth: int) -> None:
            restarts = self.restarts.get(actor.name)
            notes = [actor.state]
            if actor.queued:
                notes.append(f"{actor.queued} queued")
            if restarts:
                notes.append(f"restarted {restarts}x")
            lines.append(f"{'  ' * depth}{actor.name}: {', '.join(notes)}")
            for child in actor.children:
                draw(child, depth + 1)

        draw(self.tree, 0)
        lines.extend(
            f"node {node.name} ({node.state}): {amounts_text(node.available)} free of "
            f"{amounts_text(node.capabilities)}"
            for node in self.nodes
        )
        lines.append(f"claims: {len(self.claims)} held")
        lines.extend(
            f"  {claim.dag_id!r} on {claim.node}: {amounts_text(claim.amounts)}"
            for claim in self.claims
        )
        if self.memory is not None:
            lines.append(str(self.memory))
        running = sum(run.state == "running" for run in self.runs)
        lines.append(f"runs: {running} in progress, {len(self.runs) - running} retained")
        lines.extend(
            f"  {run.dag_id!r}: {run.finished}/{run.total}"
            for run in self.runs
            if run.state == "running"
        )
        lines.extend(
            f"  {guest.dag_id!r} for {guest.orchestrator}: {guest.state}, {guest.values} values"
            for guest in self.guests
        )
        lines.extend(
            f"  {at.dag_id!r}: {at.function_id!r} on {at.node}, {at.worker}"
            for at in self.running[:_SHOWN]
        )
        if len(self.running) > _SHOWN:
            lines.append(f"  and {len(self.running) - _SHOWN} more functions")
        return "\n".join(lines)

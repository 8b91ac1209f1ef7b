"""How a pipeline is doing: ``Pipeline.statistics()``."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from time import monotonic
from time import perf_counter as clock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from handoff_actors.pipeline.crew import Crew


@dataclass(frozen=True, slots=True)
class StageStatistics:
    """One stage.

    Attributes:
        id: of its function.
        node: where its workers are.
        workers: how many have begun.
        queue: items that wait for a worker.
        in_flight: items that workers have.
        processed: items that came to a result.
        failed: items that failed here.
        rate: items a second, over the last ten seconds.
        busy: the share of their time that workers were at work, over the last ten seconds.
    """

    id: Hashable
    node: str
    workers: int
    queue: int
    in_flight: int
    processed: int
    failed: int
    rate: float
    busy: float


@dataclass(frozen=True, slots=True)
class PipelineStatistics(Mapping[Hashable, StageStatistics]):
    """A pipeline; maps the ids of its functions to their ``StageStatistics``.

    Attributes:
        stages: in the order of the functions.
        pushed: items.
        taken: items whose results were taken out.
        pending: items that are pushed and not taken.
        state: ``"running"``, ``"closed"``: what was pushed drains, or ``"ended"``.
    """

    stages: Mapping[Hashable, StageStatistics]
    pushed: int
    taken: int
    pending: int
    state: str

    def __getitem__(self, id_: Hashable) -> StageStatistics:
        return self.stages[id_]

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self.stages)

    def __len__(self) -> int:
        return len(self.stages)

    def __str__(self) -> str:
        lines = [f"{self.state}: {self.pushed} pushed, {self.pending} pending"]
        lines += [
            f"  {stage.id!r} on {stage.node}: {stage.queue} queued, {stage.in_flight} in flight, "
            f"{stage.processed} processed, {stage.failed} failed, {stage.rate:.0f}/s, "
            f"{stage.busy:.0%} busy"
            for stage in self.stages.values()
        ]
        return "\n".join(lines)


def stage_statistics(crew: Crew) -> StageStatistics:
    """A snapshot of one stage."""
    intake = crew.line.flow.stages[crew.index]
    workers = [worker for worker in crew.workers if worker is not None and worker.ready]
    now, instant = monotonic(), clock()
    since, count, busy = crew.samples[0]
    elapsed = max(now - since, 1e-9)
    ended = intake.processed + intake.failed
    at_work = sum(instant - w.working_since for w in workers if w.working_since)
    share = (crew.busy + at_work - busy) / (elapsed * len(crew.workers))
    return StageStatistics(
        crew.id,
        crew.node,
        len(workers),
        len(intake.ready) + (0 if intake.turns is None else len(intake.turns)),
        intake.running,
        intake.processed,
        intake.failed,
        (ended - count) / elapsed,
        min(1.0, max(0.0, share)),
    )

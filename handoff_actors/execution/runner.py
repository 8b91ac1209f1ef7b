"""The runner: the actor around the run state of one run.

    worker ── done, reports ──▶ RunData ── signal ──▶ Runner.signalled ──▶ RunState.handle
                                                          │ commit values, histories
                                                          ▼
                                         queues (lanes, claims), retry timers, the Run's answer

It has no thread: its step is carried by the worker that signals, which as a rule then goes on with
what the step made ready. All that it must not forget is in ``RunData``. A new incarnation rebuilds
the run state from the committed values and hands out only what the dead one still owed: attempts in
queues and in workers go on undisturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from handoff_actors.actors.reasons import Exit, Reason
from handoff_actors.actors.server import Actor
from handoff_actors.actors.table import StaleIncarnationError
from handoff_actors.errors import AllocationError, RunCancelledError
from handoff_actors.execution.ending import announce, announce_failure, conclude, wind_up
from handoff_actors.execution.failures import failure_error, infeasible_error, stopped_error
from handoff_actors.execution.placement import Placement
from handoff_actors.execution.run_data import FREED, MISSING, RunData
from handoff_actors.execution.run_state import (
    Crashed,
    Event,
    Raised,
    RunState,
    Start,
    Step,
    Stopped,
    TimedOut,
    Withdrawn,
    keep_mask,
)
from handoff_actors.execution.workers.roster import Workers
from handoff_actors.resources.claims import Granted, Infeasible
from handoff_actors.resources.tracker import Refused

if TYPE_CHECKING:
    from handoff_actors.execution.nodes.runner import RunnerAbroad

_PLACE_AGAIN = 0.02
"""Seconds until an allocator that left something out is asked again."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the run with this error."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class RetryDue:
    """The delay of this attempt is over."""

    token: int


@dataclass(frozen=True, slots=True)
class Listen:
    """Put the index of each finished function into the queue, earlier ones first; then None."""

    queue: SimpleQueue[int | None]


@dataclass(frozen=True, slots=True)
class PlaceAgain:
    """Ask the allocator again about what it left out."""


class Runner(Actor):
    """See the module.

    Args:
        data: the run.
        workers: the runtime's.
        on_end: called once, when the run has its outcome and before its future is told.
    """

    def __init__(self, data: RunData, workers: Workers, on_end: Callable[[RunData], None]) -> None:
        self.data = data
        self.workers = workers
        self.on_end = on_end

    def init(self) -> None:
        """Begin, or go on from what is committed."""
        data = self.data
        options = data.options
        plan = data.plan
        data.incarnation += 1
        self.incarnation = data.incarnation
        kept = keep_mask(plan, options.keep)
        fresh = not data.queues
        self.abroad: RunnerAbroad | None = None
        self.state: RunState
        if data.away is not None:
            # Only runs that may use other nodes pay for what that takes.
            from handoff_actors.execution.nodes.runner import RunnerAbroad

            self.abroad = RunnerAbroad(self, data.away)
            self.state = self.abroad.state(kept, fresh and not data.restored)
        else:
            self.state = RunState(
                plan,
                options.max_retries,
                kept,
                data.links if not fresh else None,
                None if fresh and not data.restored else data.succeeded(),
                data.histories,
            )
        if fresh:
            data.queues = self.workers.queues(data)
            if data.restored and data.links is not None:
                data.links = [d if data.peek(d) is MISSING else -1 for d in data.links]
            self.state.links = data.links
            if data.away is not None:
                data.away.begin()
        self.queues = data.queues
        self.single = self.queues[0] if len(self.queues) == 1 else None
        own = options.allocator is not None and not isinstance(options.allocator, str)
        self.placement = Placement(data, self.workers) if own and self.abroad is None else None
        self.placing = False
        self.recovering = False
        data.ref = self.ref
        if data.state != "running":
            self._leave()
        elif fresh:
            self._carry_out(self.state.handle(Start()))
        else:
            self._go_on()

    def _go_on(self) -> None:
        data, state, n = self.data, self.state, self.data.plan.n
        # First see what has come, and only then hand out what is owed, so that it is counted once.
        self.recovering = True
        self.signalled()
        self.recovering = False
        if data.state != "running":
            return
        linked = set() if data.links is None else {data.links[i] for i in range(n) if state.done[i]}
        held = {token for queue in self.queues for token in list(queue.ready)}
        held.update(t for q in self.queues for lane in [*q.lanes, *q.apart] for t in lane.tokens())
        owed = [
            token
            for token in state.outstanding()
            if data.dispatched[token % n] != token // n + 1
            and token not in data.retrying
            and token not in held
            and not (token < n and token in linked)
        ]
        if self.abroad is not None:
            owed = self.abroad.owed(held)
        self._carry_out(Step(ready=owed, finished=not state.remaining))
        for queue in self.queues:
            queue.adjust()

    def handle(self, message: Any) -> Any:
        """Everything that comes by message; outcomes come by signal."""
        self.signalled()
        data = self.data
        if isinstance(message, Granted):
            self.queues[_number(message.tag)].granted(message.claim)
        elif isinstance(message, RetryDue):
            if message.token in data.retrying:  # else an incarnation after a crash has run it
                data.retrying.discard(message.token)
                self.feed(Withdrawn((message.token,)))
        elif isinstance(message, Cancel):
            if data.state == "running":
                self._stop(message.error)
        elif self.abroad is not None and self.abroad.handle(message):
            pass
        elif isinstance(message, Infeasible):
            if data.state == "running":
                self._stop(infeasible_error(data, message, self.queues[_number(message.tag)]))
        elif isinstance(message, Refused):
            if data.state == "running":
                self._stop(message.error)
        elif isinstance(message, Listen):
            self._listen(message.queue)
        elif isinstance(message, PlaceAgain):
            self.placing = False
            if data.state == "running":
                self._dispatch([])
        else:
            return super().handle(message)
        return None

    def signalled(self) -> None:
        """Look at the outcomes that have come: the step."""
        data = self.data
        if data.incarnation != self.incarnation:
            raise StaleIncarnationError(f"{data.name} has a newer runner")
        while data.done or data.reports:
            # A report may be about what followed an outcome on its lane: outcomes come first.
            known = len(data.reports)
            if data.done:
                self._commit()
            for _ in range(known):
                self._report()
        if self.abroad is not None:
            self.abroad.step()
        for queue in self.queues:
            if queue.wanted:
                queue.settle()
            if data.options.max_concurrency is not None:
                queue.adjust()

    def _commit(self) -> None:
        data = self.data
        done, values, n = data.done, data.values, data.plan.n
        step = Step()
        # One step in C: workers append meanwhile, which no iteration in Python survives.
        batch = list(done)
        tokens = [entry[0] for entry in batch]
        self.state.succeeded(tokens, step)
        if self.state.histories:
            # What was given up may end all the same; it is not the outcome.
            batch = [entry for entry in batch if entry[0] == self.state.token(entry[0] % n)]
        for token, value in batch:
            if data.peek(token % n) is MISSING:
                values[token % n] = value
        if data.checkpoint is not None:
            data.checkpoint.put([(token % n, value) for token, value in batch])
        data.finished = n - self.state.remaining
        if self.abroad is not None:
            self.abroad.away.ended(tokens)
        announce(data, self.workers, tokens)
        for _ in tokens:
            done.popleft()
        self._carry_out(step)

    def _report(self) -> None:
        reports = self.data.reports
        event = reports[0] if self.abroad is None else self.abroad.read(reports[0])
        if event is None:
            reports.popleft()
        else:
            self.feed(event, reports.popleft)

    def feed(self, event: Event, committed: Callable[[], object] = lambda: None) -> None:
        """Have the run state handle an event, and carry out what it asks for.

        Args:
            event: what has happened.
            committed: called once a runner that crashes needs to be told of it no more.
        """
        step = self.state.handle(event)
        data = self.data
        if isinstance(event, (Raised, TimedOut, Crashed)):
            announce_failure(data, self.workers, event, step)
        if step.failure is not None:
            # The report stays until the run has its error: a runner that dies here fails it again.
            self._carry_out(step)
            committed()
            return
        # Owed from here on: a runner that dies before it has handed them out is not the last word.
        for token in step.ready:
            data.dispatched[token % data.plan.n] = 0
        data.histories = dict(self.state.histories)
        committed()
        self._carry_out(step)

    def _carry_out(self, step: Step) -> None:
        data = self.data
        if self.abroad is not None and (step.again or step.freed):
            self.abroad.carry_out(step)
        if step.freed:
            for i in step.freed:
                data.values[i] = FREED
        if step.failure is not None:
            self._stop(failure_error(data, step.failure))
            return
        for delay, token in step.retries:
            self.workers.timers.send_after(delay, self.ref, RetryDue(token))
            data.retrying.add(token)
        if step.ready:
            self._dispatch(step.ready)
        if step.finished and data.state == "running":
            self._end("succeeded", None)

    def _dispatch(self, ready: list[int]) -> None:
        data = self.data
        n = data.plan.n
        if self.abroad is not None:
            self.abroad.dispatch(ready)
            return
        if self.recovering:
            for token in ready:
                data.dispatched[token % n] = 0
            return
        if self.placement is not None:
            try:
                ready = self.placement.place(ready)
            except AllocationError as error:
                self._stop(error)
                return
        if self.placement is not None and self.placement.waiting and not self.placing:
            self.placing = True
            self.workers.timers.send_after(_PLACE_AGAIN, self.ref, PlaceAgain())
        self.queue(ready)

    def queue(self, ready: list[int]) -> None:
        """Have attempts run here."""
        if self.single is not None:
            self.single.ready.extend(ready)
            self._handed_out(ready)
            self.single.adjust()
            return
        class_of, n = self.data.plan.class_of, self.data.plan.n
        touched = set()
        for token in ready:
            number = class_of[token % n]
            self.queues[number].ready.append(token)
            touched.add(number)
        self._handed_out(ready)
        for number in touched:
            self.queues[number].adjust()

    def _handed_out(self, tokens: list[int]) -> None:
        """They are the queues' now; after, not before: what is done twice is better than never."""
        n, dispatched = self.data.plan.n, self.data.dispatched
        if self.state.histories:
            for token in tokens:
                dispatched[token % n] = token // n + 1
        else:
            for token in tokens:
                dispatched[token] = 1

    def fail(self, error: BaseException) -> None:
        """The run ends with this error, if it has not ended."""
        if self.data.state == "running":
            self._stop(error)

    def _stop(self, error: BaseException) -> None:
        """The run fails, or is cancelled: siblings are cancelled, nothing new starts."""
        self.state.handle(Stopped())
        cancelled = isinstance(error, RunCancelledError)
        self._end("cancelled" if cancelled else "failed", error)

    def _end(self, state: str, error: BaseException | None) -> None:
        conclude(self.data, state, error)
        self._leave()

    def _leave(self) -> None:
        """The run has its outcome: let go of its workers, then tell."""
        wind_up(self.data, self.ref, self.workers, self.on_end)
        self.stop(Exit.NORMAL)

    def _listen(self, queue: SimpleQueue[int | None]) -> None:
        data = self.data
        finished = [i for i in range(data.plan.n) if self.state.done[i]]
        for i in sorted(finished, key=data.ends.__getitem__):
            queue.put(i)
        if data.state == "running":
            if queue not in data.listeners:
                data.listeners = [*data.listeners, queue]
        else:
            queue.put(None)

    def terminate(self, reason: Reason) -> None:
        """The runtime stops: nobody will want the results."""
        if reason is Exit.SHUTDOWN and self.data.state == "running":
            self._stop(stopped_error(self.data.dag_id))


def _number(tag: Hashable) -> int:
    """The queue that asked the tracker under this tag."""
    assert isinstance(tag, int)
    return tag

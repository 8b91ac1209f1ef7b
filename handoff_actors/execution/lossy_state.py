"""The run state of a run over several nodes: values may be lost, and are computed again. Pure.

A value that is gone is *absent*: its function is done, but nobody can have what it made. It is
computed again when it is kept, or when something that is about to run takes it, and so are the
inputs of that, as deep as needed; what nobody takes any more stays absent. An attempt that has its
inputs already is not disturbed by their loss: it is *out*, and only when it comes back without
having succeeded its inputs are looked at again.

Attempts that a node took with it are charged to a budget of their own, as the loss of a node hits
innocents too. A function that may never run twice (``max_crashes=0``) fails its run instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from handoff_actors.errors import CrashedAttempt
from handoff_actors.execution.run_state import (
    Crashed,
    Event,
    Failure,
    History,
    Lost,
    Raised,
    RunState,
    Start,
    Step,
    TimedOut,
    Withdrawn,
)
from handoff_actors.graph.plan import Plan

MAX_LOSSES = 16
"""How many attempts of one function may be lost with their nodes."""


class LossyState(RunState):
    """See the module.

    Args:
        plan: what is run.
        max_retries: for functions that do not say.
        kept: see ``RunState``.
        links: see ``RunState``; those of functions that are computed again are cut, in place.
        done: see ``RunState``.
        histories: see ``RunState``.
        out: functions whose present attempt is with a worker, when a run goes on.
        absent: functions that are done and whose values are gone.

    Attributes:
        cut: functions whose links were cut, in order.
        crash: the last loss.
    """

    __slots__ = ("absent", "crash", "cut", "out")

    def __init__(
        self,
        plan: Plan,
        max_retries: int = 3,
        kept: bytearray | None = None,
        links: list[int] | None = None,
        done: bytearray | None = None,
        histories: dict[int, History] | None = None,
        out: Iterable[int] = (),
        absent: Iterable[int] = (),
    ) -> None:
        super().__init__(plan, max_retries, kept, links, done, histories)
        for i in range(plan.n):
            if self.left[i] < 0:
                # Done before what it takes: that is daily business here, and counted as it is.
                self.left[i] = self._waits(i)
        self.out = set(out)
        self.absent = set(absent)
        self.cut: list[int] = []
        self.crash = CrashedAttempt("", 0, None, "the node with its result was lost")

    def _waits(self, i: int) -> int:
        return sum(d < self.plan.n and not self.done[d] for d in self.plan.deps[i])

    def handle(self, event: Event) -> Step:
        """What ``event`` asks for."""
        if isinstance(event, Withdrawn) and not self.stopped:
            step = Step()
            self._hand_out([t for t in event.tokens if self.is_present(t)], step)
            return step
        step = super().handle(event)
        if isinstance(event, Start):
            self.out.update(step.ready)
        return step

    def succeeded(self, tokens: Iterable[int], step: Step) -> None:
        """As ``RunState.succeeded``, for values that come a second time too."""
        plan, n = self.plan, self.plan.n
        done, left, links = self.done, self.left, self.links
        count = 0
        for token in tokens:
            i = token % n
            if done[i] or token != (self.token(i) if self.histories else i):
                continue
            done[i] = 1
            count += 1
            self.out.discard(i)
            if links is not None and (following := links[i]) >= 0:
                left[following] = 0
                self.out.add(following)
            else:
                for d in plan.dependents[i]:
                    left[d] -= 1
                    if not left[d] and not done[d] and d not in self.out:
                        self._hand_out([self.token(d)], step)
            if self.needed is not None:
                self._release(i, step)
        self._count(count, step)

    def _release(self, i: int, step: Step) -> None:
        before = len(step.freed)
        super()._release(i, step)
        step.freed[before:] = filter(self._is_there, step.freed[before:])

    def _is_there(self, d: int) -> bool:
        return d >= self.plan.n or (bool(self.done[d]) and d not in self.absent)

    def _failed(self, event: Raised | TimedOut | Crashed, step: Step) -> None:
        super()._failed(event, step)
        ready, step.ready = step.ready, []
        self._hand_out(ready, step)

    def _hand_out(self, tokens: Sequence[int], step: Step) -> None:
        """Attempts are to run, if their inputs are there; else those are computed first."""
        n = self.plan.n
        for token in tokens:
            i = token % n
            missing = self._gone_among(self.plan.deps[i])
            if missing:
                self.out.discard(i)
                self._again(missing, step)
                if step.failure is not None:
                    return
            if self.left[i]:
                self.out.discard(i)
            else:
                self.out.add(i)
                step.ready.append(token)

    def _gone_among(self, values: Iterable[int]) -> list[int]:
        if not self.absent and self.needed is None:
            return []
        return [d for d in values if d < self.plan.n and self.done[d] and self._is_gone(d)]

    def _is_gone(self, d: int) -> bool:
        """Whether the value of a function that is done cannot be had."""
        if d in self.absent:
            return True
        needed, kept = self.needed, self.kept
        return needed is not None and kept is not None and not needed[d] and not kept[d]

    def _lost(self, event: Lost, step: Step) -> None:
        n = self.plan.n
        self.crash = event.crash
        back: list[int] = []
        for token in event.tokens:
            if not self.is_present(token):
                continue
            i = token % n
            before = self.histories.get(i) or History()
            losses = (*before.losses, event.crash)
            self.histories[i] = replace(before, attempts=before.attempts + 1, losses=losses)
            self.out.discard(i)
            if not self.plan.functions[i].max_crashes or len(losses) > MAX_LOSSES:
                self._fail(i, event, before.attempts, step)
                return
            back.append(i)
        gone = [v for v in event.values if v < n and self.done[v] and not self._is_gone(v)]
        self.absent.update(gone)
        wanted = gone if self.kept is None else [v for v in gone if self._is_wanted(v, back)]
        self._again(wanted, step)
        if step.failure is None:
            self._hand_out([self.token(i) for i in back if not self.left[i]], step)
        if step.failure is None:
            step.freed.extend(v for v in gone if v in self.absent)

    def _is_wanted(self, v: int, back: Sequence[int]) -> bool:
        """Whether a lost value must be made again before anything asks for it."""
        assert self.kept is not None
        return bool(self.kept[v]) or any(
            not self.done[d] and (d not in self.out or d in back) for d in self.plan.dependents[v]
        )

    def _again(self, values: Iterable[int], step: Step) -> None:
        """Have functions run again whose values are gone, and those whose values they need."""
        plan, done = self.plan, self.done
        again: dict[int, None] = {}
        stack = list(values)
        while stack:
            i = stack.pop()
            if i in again:
                continue
            again[i] = None
            stack.extend(self._gone_among(plan.deps[i]))
        for i in again:
            before = self.histories.get(i) or History()
            self.histories[i] = replace(before, attempts=before.attempts + 1)
            if not plan.functions[i].max_crashes:
                losses = (*before.losses, self.crash)
                self.histories[i] = replace(self.histories[i], losses=losses)
                self._fail(i, Lost((), (i,), self.crash), before.attempts, step)
                return
        for i in again:
            done[i] = 0
            self.absent.discard(i)
            if self.links is not None and self.links[i] >= 0:
                self.links[i] = -1  # type: ignore[index]  # it is a list, made for this run
                self.cut.append(i)
            if self.needed is not None:
                for d in plan.deps[i]:
                    self.needed[d] += 1
            for d in plan.dependents[i]:
                self.left[d] += 1
        self.remaining += len(again)
        step.again = (*step.again, *again)
        for i in again:
            if not self.left[i]:
                self.out.add(i)
                step.ready.append(self.token(i))

    def _fail(self, i: int, event: Lost, attempts: int, step: Step) -> None:
        history = self.histories[i]
        self.stopped = True
        step.ready.clear()
        step.failure = Failure(i, event, attempts, (*history.crashes, *history.losses))

    def outstanding(self) -> set[int]:
        """As ``RunState.outstanding``, with those that are out while inputs are made again."""
        return super().outstanding() | {self.token(i) for i in self.out}

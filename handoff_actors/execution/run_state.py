"""The scheduler of one run: what is ready, what a failure means, when it is over. Pure.

    Start ─▶ ready ─▶ (a worker runs it) ─▶ Succeeded ─▶ what waited for it is ready
                                         ├▶ Raised, TimedOut ─▶ again after a delay, or it fails
                                         ├▶ Crashed ─▶ again at once, or it fails
                                         └▶ Withdrawn ─▶ again at once, nothing charged

An attempt is named by a *token*: ``token % n`` is the function's index in the plan and
``token // n`` the number of earlier attempts. So a first attempt is just the index, and an outcome
that comes after its attempt was given up is told from the present one by its number.

``handle(event)`` returns a ``Step``: what to do about it. The batch of successes is the path that
runs for every function; everything it does costs O(the function's edges).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from handoff_actors.errors import CrashedAttempt
from handoff_actors.graph.plan import Plan

LONGEST_DELAY = 60.0
"""Seconds: a retry's delay doubles up to here."""


@dataclass(frozen=True, slots=True)
class Start:
    """Begin."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """These attempts returned."""

    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Raised:
    """The function's code raised ``error``; with ``final`` it is no use to run it again."""

    token: int
    error: BaseException
    node: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The attempt took longer than its function's timeout."""

    token: int
    node: str


@dataclass(frozen=True, slots=True)
class Crashed:
    """The worker died while it ran this."""

    token: int
    crash: CrashedAttempt


@dataclass(frozen=True, slots=True)
class Lost:
    """A node is gone, and with it these attempts and the only copies of these values.

    Only a ``LossyState`` takes it; see there.
    """

    tokens: Sequence[int]
    values: Sequence[int]
    crash: CrashedAttempt


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """These attempts never started, and will not."""

    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Stopped:
    """Nobody wants the results any more."""


Event = Start | Succeeded | Raised | TimedOut | Crashed | Lost | Withdrawn | Stopped


@dataclass(slots=True)
class Failure:
    """Why the run failed: the last failure of ``index``, with its history."""

    index: int
    last: Raised | TimedOut | Crashed | Lost
    attempts: int
    crashes: tuple[CrashedAttempt, ...]


@dataclass(slots=True)
class Step:
    """What an event asks for.

    Attributes:
        ready: attempts to run.
        retries: ``(seconds, token)``: attempts to run after a delay.
        freed: indices of values that nobody needs any more.
        failure: set by the event that made the run fail.
        finished: all functions have succeeded; set once.
        again: functions whose values were lost, and that are to succeed once more.
    """

    ready: list[int] = field(default_factory=list)
    retries: list[tuple[float, int]] = field(default_factory=list)
    freed: list[int] = field(default_factory=list)
    failure: Failure | None = None
    finished: bool = False
    again: Sequence[int] = ()


@dataclass(slots=True)
class History:
    """What went wrong with one function so far; immutable in effect: replaced, never changed."""

    attempts: int = 1
    retries: int = 0
    crashes: tuple[CrashedAttempt, ...] = ()
    losses: tuple[CrashedAttempt, ...] = ()


class RunState:
    """See the module.

    Args:
        plan: what is run.
        max_retries: for functions that do not say.
        kept: per value index whether it stays to the end; None keeps all.
        links: for each function the one that its worker runs right after it, or -1; such a
            function is never ``ready`` but when its first attempt failed. None has no links.
        done: whether each function has succeeded before, by index, when a run goes on.
        histories: of functions that have failed before.
    """

    __slots__ = (
        "done",
        "histories",
        "kept",
        "left",
        "links",
        "max_retries",
        "needed",
        "plan",
        "remaining",
        "stopped",
    )

    def __init__(
        self,
        plan: Plan,
        max_retries: int = 3,
        kept: bytearray | None = None,
        links: Sequence[int] | None = None,
        done: bytearray | None = None,
        histories: dict[int, History] | None = None,
    ) -> None:
        self.plan = plan
        self.max_retries = max_retries
        self.kept = kept
        self.links = links
        self.done = bytearray(plan.n) if done is None else done
        self.histories = dict(histories or {})
        self.left = plan.indegree.copy()
        self.needed = None if kept is None else plan.consumers.copy()
        self.remaining = plan.n
        self.stopped = False
        if done is not None:
            self._replay()

    def _replay(self) -> None:
        plan = self.plan
        for i in range(plan.n):
            if self.done[i]:
                self.remaining -= 1
                for d in plan.dependents[i]:
                    self.left[d] -= 1
                if self.needed is not None:
                    for d in plan.deps[i]:
                        self.needed[d] -= 1
        for i in range(plan.n):
            if self.done[i] and self.left[i]:
                self.left[i] = -1  # done before what it takes, by a checkpoint: never ready again

    def handle(self, event: Event) -> Step:
        """What ``event`` asks for."""
        step = Step()
        if isinstance(event, Succeeded):
            self.succeeded(event.tokens, step)
        elif self.stopped:
            return step
        elif isinstance(event, Start):
            self._start(step)
        elif isinstance(event, Withdrawn):
            step.ready.extend(t for t in event.tokens if self.is_present(t))
        elif isinstance(event, Stopped):
            self.stopped = True
        elif isinstance(event, Lost):
            self._lost(event, step)
        elif self.is_present(event.token):
            self._failed(event, step)
        return step

    def _start(self, step: Step) -> None:
        if not self.remaining:
            step.finished = True
            return
        left, done = self.left, self.done
        for i in range(self.plan.n):
            if not left[i] and not done[i]:
                step.ready.append(i)

    def outstanding(self) -> set[int]:
        """The tokens of all attempts that could be running or waiting for a worker.

        A linked function counts from when its worker reports the one before it.
        """
        return {self.token(i) for i in range(self.plan.n) if not self.left[i] and not self.done[i]}

    def token(self, i: int) -> int:
        """The present attempt of function ``i``."""
        history = self.histories.get(i)
        return i if history is None else (history.attempts - 1) * self.plan.n + i

    def is_present(self, token: int) -> bool:
        """Whether this attempt is not superseded, and not over."""
        i = token % self.plan.n
        return not self.done[i] and token == self.token(i)

    def succeeded(self, tokens: Iterable[int], step: Step) -> None:
        """As ``handle(Succeeded(tokens))``, adding to ``step``: the path of every function."""
        plan = self.plan
        n = plan.n
        done, left, dependents = self.done, self.left, plan.dependents
        ready = step.ready.append
        links = self.links
        histories = self.histories
        count = 0
        for token in tokens:
            i = token
            if token >= n or histories:
                i = token % n
                if token != self.token(i):
                    continue
            if done[i]:
                continue
            done[i] = 1
            count += 1
            if links is not None and (following := links[i]) >= 0:
                left[following] = 0
            else:
                for d in dependents[i]:
                    waits = left[d] - 1
                    left[d] = waits
                    if not waits:
                        ready(d)
            if self.needed is not None:
                self._release(i, step)
        self._count(count, step)

    def _count(self, succeeded: int, step: Step) -> None:
        """So many more have succeeded: is that all?"""
        self.remaining -= succeeded
        if self.stopped:
            step.ready.clear()
        elif succeeded and not self.remaining:
            step.finished = True

    def _release(self, i: int, step: Step) -> None:
        needed, kept = self.needed, self.kept
        assert needed is not None
        assert kept is not None
        for d in self.plan.deps[i]:
            needed[d] -= 1
            if not needed[d] and not kept[d]:
                step.freed.append(d)
        if not needed[i] and not kept[i]:
            step.freed.append(i)

    def _failed(self, event: Raised | TimedOut | Crashed, step: Step) -> None:
        i = event.token % self.plan.n
        function = self.plan.functions[i]
        before = self.histories.get(i) or History()
        crashes, retries = before.crashes, before.retries
        delay = 0.0
        if isinstance(event, Crashed):
            crashes = (*crashes, event.crash)
            again = len(crashes) <= function.max_crashes
        else:
            limit = self.max_retries if function.max_retries is None else function.max_retries
            again = retries < limit and not (isinstance(event, Raised) and event.final)
            delay = min(function.retry_delay * 2.0 ** min(retries, 60), LONGEST_DELAY)
            retries += 1
        attempts = before.attempts
        # Also when there is no next attempt: what this one says later is not heard.
        self.histories[i] = History(attempts + 1, retries, crashes, before.losses)
        if not again:
            self.stopped = True
            step.failure = Failure(i, event, attempts, crashes)
            return
        token = self.token(i)
        if delay:
            step.retries.append((delay, token))
        else:
            step.ready.append(token)

    def _lost(self, event: Lost, step: Step) -> None:
        raise NotImplementedError("only a LossyState goes on after a loss")

    def check(self) -> None:
        """Assert what must hold between any two events; for tests."""
        plan = self.plan
        assert self.remaining == plan.n - sum(self.done)
        for i in range(plan.n):
            waits = sum(1 for d in plan.deps[i] if d < plan.n and not self.done[d])
            assert self.left[i] == waits or (self.done[i] and self.left[i] < 0), (i, self.left[i])
            if self.needed is not None:
                assert self.needed[i] == sum(1 for d in plan.dependents[i] if not self.done[d])


def find_links(plan: Plan, eligible: Sequence[bool]) -> list[int] | None:
    """For each function the one its worker can run right after it without asking anybody.

    That is its only dependent, when it is that one's only argument, both are plain calls of one
    class, and the class is ``eligible``.

    Args:
        plan: what is run.
        eligible: per class.

    Returns:
        Per function an index or -1; None when there is no link at all.
    """
    links: list[int] | None = None
    n = plan.n
    plain, class_of, consumers = plan.plain, plan.class_of, plan.consumers
    for d, args in enumerate(plain):
        if args is None or len(args) != 1:
            continue
        i = args[0]
        if (
            i < n
            and consumers[i] == 1
            and class_of[i] == class_of[d]
            and plain[i] is not None
            and eligible[class_of[d]]
        ):
            if links is None:
                links = [-1] * n
            links[i] = d
    return links


def keep_mask(plan: Plan, keep: str | Iterable[Hashable]) -> bytearray | None:
    """Per value index whether it stays; None keeps all.

    Raises:
        KeyError: ``keep`` names no regular function.
    """
    if keep == "all":
        return None
    mask = bytearray(plan.n + plan.n_inputs)
    for i in range(plan.n, plan.n + plan.n_inputs):
        mask[i] = 1
    if keep == "sinks":
        for i in plan.sinks:
            mask[i] = 1
        return mask
    for id_ in keep:
        i = plan.index[id_]
        if i >= plan.n:
            raise KeyError(id_)
        mask[i] = 1
    return mask

"""The run state under any events in any order, against a naive model."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from handoff_actors.errors import CrashedAttempt
from handoff_actors.execution.run_state import (
    LONGEST_DELAY,
    Crashed,
    Raised,
    RunState,
    Start,
    Step,
    Stopped,
    Succeeded,
    TimedOut,
    Withdrawn,
    find_links,
    keep_mask,
)
from handoff_actors.graph import DAG, Function, compile_plan

ERROR = ValueError("no")


def many(*values, **named):
    return values


@st.composite
def plans(draw, most=7):
    """Small DAGs: chains, joins, arguments taken twice, two classes, inputs, inlines."""
    dag = DAG("test")
    takes: list[str] = []
    for i in range(draw(st.integers(0, 2))):
        dag.add_function(Function(f"x{i}", type="input"))
        takes.append(f"x{i}")
    for i in range(draw(st.integers(1, most))):
        fields = {
            "max_retries": draw(st.sampled_from([None, None, 0, 1, 2])),
            "max_crashes": draw(st.integers(0, 2)),
            "retry_delay": draw(st.sampled_from([0.0, 0.0, 0.5, 50.0])),
            "cost": draw(st.sampled_from([None, None, None, {"cpu": 1}])),
            "extra_args": draw(st.sampled_from([(), (), (), (1,)])),
        }
        if takes and draw(st.integers(0, 2)):
            args = [takes[-1]]  # chains are what links are about
        else:
            args = draw(st.lists(st.sampled_from(takes), max_size=3)) if takes else []
        if i and draw(st.integers(0, 8)) == 0:
            dag.add_function(Function(i, args, many, type="inline"))
        else:
            dag.add_function(Function(i, args, many, **fields))
        takes.append(i)
    return compile_plan(dag)


@st.composite
def runs(draw):
    """A plan, its ``max_retries``, what is kept, and its links."""
    plan = draw(plans())
    keep = draw(st.sampled_from(["all", "sinks", "some"]))
    if keep == "some":
        keep = draw(st.lists(st.sampled_from(plan.ids[: plan.n]), unique=True)) if plan.n else []
    eligible = [draw(st.integers(0, 3)) > 0 for _ in plan.classes]
    return plan, draw(st.integers(0, 2)), keep_mask(plan, keep), find_links(plan, eligible)


class Runs(RuleBasedStateMachine):
    """Plays the workers; a token is queued, delayed, running or, once it is over, late."""

    @initialize(run=runs())
    def begin(self, run):
        self.plan, self.max_retries, self.kept, self.links = run
        self.n = self.plan.n
        self.state = RunState(self.plan, self.max_retries, self.kept, self.links)
        self.queued: set[int] = set()
        self.delayed: set[int] = set()
        self.running: set[int] = set()
        self.late: list[int] = []
        self.done: set[int] = set()
        self.freed: set[int] = set()
        self.dispatched: Counter[int] = Counter()
        self.withdrawn: Counter[int] = Counter()
        self.attempts = [1] * self.n
        self.retries = [0] * self.n
        self.crashes: list[tuple[CrashedAttempt, ...]] = [()] * self.n
        self.linked = {f for f in self.links or () if f >= 0}
        self.ended = None
        step = self.state.handle(Start())
        self.expect(step, {i for i in range(self.n) if not self.needs(i)})

    # The model.

    def needs(self, i):
        """The regular functions whose values ``i`` takes."""
        return {d for d in self.plan.deps[i] if d < self.n}

    def token(self, i):
        return (self.attempts[i] - 1) * self.n + i

    def expect(self, step, ready, done=()):
        """``step`` hands out exactly ``ready`` and frees what ``done`` was the last to need."""
        assert Counter(step.ready) == Counter(ready)
        assert step.retries == []
        assert step.failure is None
        for token in step.ready:
            self.hand_out(token)
        self.queued.update(step.ready)
        self.frees(step, done)
        finished = self.ended is None and len(self.done) == self.n
        assert step.finished == finished
        if finished:
            self.ended = "finished"

    def hand_out(self, token):
        """An attempt is handed out once, and again only when it was given back unstarted."""
        assert not self.ended
        assert self.needs(token % self.n) <= self.done
        self.dispatched[token] += 1
        assert self.dispatched[token] == 1 + self.withdrawn[token]

    def frees(self, step, done):
        expected: set[int] = set()
        if self.kept is not None and done:
            for v in range(self.n + self.plan.n_inputs):
                there = v >= self.n or v in self.done
                wanted = any(i not in self.done for i in self.plan.dependents[v])
                if there and not wanted and not self.kept[v] and v not in self.freed:
                    expected.add(v)
        assert Counter(step.freed) == Counter(expected)
        self.freed |= expected

    def pick(self, data, tokens):
        return data.draw(st.sampled_from(sorted(tokens)))

    # The workers.

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def start(self, data):
        token = self.pick(data, self.queued)
        self.queued.remove(token)
        self.running.add(token)
        i = token % self.n
        assert not self.freed & set(self.plan.deps[i]), "what it needs was freed"

    @precondition(lambda self: self.running)
    @rule(data=st.data(), stale=st.booleans())
    def succeed(self, data, stale):
        """Some attempts return; what is linked to them begins, and may return at once."""
        some = data.draw(
            st.lists(st.sampled_from(sorted(self.running)), unique=True, min_size=1, max_size=3)
        )
        batch: list[int] = []
        done: set[int] = set()
        for first in some:
            token = first
            while True:
                self.running.remove(token)
                batch.append(token)
                i = token % self.n
                done.add(i)
                following = self.links[i] if self.links is not None else -1
                if following < 0:
                    break
                assert self.plan.deps[following] == (i,)
                token = following
                self.running.add(token)
                self.dispatched[token] += 1
                if not data.draw(st.booleans()):
                    break
        if stale and self.late:
            batch.insert(data.draw(st.integers(0, len(batch))), self.pick(data, self.late))
        if data.draw(st.booleans()):
            batch.append(batch[0])
        before = set(self.done)
        self.done |= done
        self.late.extend(t for t in batch if t not in self.late)
        ready = set()
        if not self.ended:
            ready = {
                i
                for i in range(self.n)
                if i not in self.done
                and i not in self.linked
                and self.needs(i) & done
                and self.needs(i) <= self.done
            }
        assert not before & done
        self.expect(self.state.handle(Succeeded(batch)), ready, done)

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(), kind=st.sampled_from(["raised", "final", "timed out", "crashed", "crashed"])
    )
    def fail(self, data, kind):
        token = self.pick(data, self.running)
        self.running.remove(token)
        i = token % self.n
        function = self.plan.functions[i]
        if kind == "crashed":
            event = Crashed(token, CrashedAttempt("here", 100 + token, -9, "killed"))
            again = len(self.crashes[i]) < function.max_crashes
            delay = 0.0
        else:
            event = (
                TimedOut(token, "here")
                if kind == "timed out"
                else Raised(token, ERROR, "here", kind == "final")
            )
            own = function.max_retries
            again = self.retries[i] < (self.max_retries if own is None else own)
            again = again and kind != "final"
            delay = min(function.retry_delay * 2 ** self.retries[i], LONGEST_DELAY)
        step = self.state.handle(event)
        if self.ended:
            assert step == Step()
            return
        self.late.append(token)
        if kind == "crashed":
            self.crashes[i] += (event.crash,)
        else:
            self.retries[i] += 1
        assert not step.freed
        assert not step.finished
        if not again:
            assert (step.ready, step.retries) == ([], [])
            failure = step.failure
            assert failure is not None
            assert (failure.index, failure.last) == (i, event)
            assert failure.attempts == self.attempts[i] == token // self.n + 1
            assert failure.crashes == self.crashes[i]
            self.ended = "failed"
            return
        assert step.failure is None
        self.attempts[i] += 1
        token = self.token(i)
        if delay:
            assert (step.ready, step.retries) == ([], [(delay, token)])
            self.delayed.add(token)
        else:
            assert (step.ready, step.retries) == ([token], [])
            self.queued.add(token)
        self.hand_out(token)

    @precondition(lambda self: self.delayed)
    @rule(data=st.data())
    def delay_over(self, data):
        token = self.pick(data, self.delayed)
        self.delayed.remove(token)
        assert self.ended or self.state.is_present(token)
        self.queued.add(token)

    @precondition(lambda self: self.queued or self.running)
    @rule(data=st.data())
    def withdraw(self, data):
        """A worker gives back some that it has not started, linked ones among them."""
        held = sorted(self.queued | self.running)
        some = data.draw(st.lists(st.sampled_from(held), unique=True, min_size=1, max_size=3))
        for token in some:
            self.queued.discard(token)
            self.running.discard(token)
            self.withdrawn[token] += 1
        expected = [] if self.ended else some
        step = self.state.handle(Withdrawn(some))
        self.expect(step, expected)

    @precondition(lambda self: self.late)
    @rule(data=st.data(), kind=st.integers(0, 4))
    def late_outcome(self, data, kind):
        token = self.pick(data, self.late)
        event = [
            Succeeded([token, token]),
            Raised(token, ERROR, "here"),
            TimedOut(token, "here"),
            Crashed(token, CrashedAttempt("here", 1, 1, "late")),
            Withdrawn([token]),
        ][kind]
        assert not self.state.is_present(token)
        assert self.state.handle(event) == Step()

    @precondition(lambda self: self.running or self.ended)
    @rule()
    def stop(self):
        assert self.state.handle(Stopped()) == Step()
        self.ended = self.ended or "stopped"

    @precondition(lambda self: self.ended is None)
    @rule()
    def recover(self):
        """The runner dies: a state made from what is committed is the state that was."""
        old = self.state
        done = bytearray(i in self.done for i in range(self.n))
        self.state = RunState(
            self.plan, self.max_retries, self.kept, self.links, done, old.histories
        )
        for name in ("done", "left", "needed", "remaining", "stopped", "histories"):
            assert getattr(self.state, name) == getattr(old, name), name

    # What always holds.

    @invariant()
    def it_is_consistent(self):
        self.state.check()
        assert {i for i in range(self.n) if self.state.done[i]} == self.done
        if self.kept is not None:
            assert not any(self.kept[v] for v in self.freed)
            assert all(i in self.done for v in self.freed for i in self.plan.dependents[v])

    @invariant()
    def what_is_outstanding_is_with_somebody(self):
        if self.ended is None:
            assert self.state.outstanding() == self.queued | self.running | self.delayed
            assert self.queued or self.running or self.delayed, "the run would hang"
            for token in self.queued | self.running | self.delayed:
                assert token == self.token(token % self.n)
                assert self.state.is_present(token)

    @invariant()
    def an_end_is_an_end(self):
        if self.ended == "finished":
            assert self.done == set(range(self.n))
            # Every attempt was handed out, and none but those that a failure asked for.
            assert len(self.dispatched) == sum(self.attempts)
        assert self.state.stopped >= (self.ended in ("failed", "stopped"))


TestRuns = Runs.TestCase
TestRuns.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@given(runs(), st.randoms(use_true_random=False))
def test_without_failures_each_function_runs_once_in_a_right_order(run, random):
    plan, retries, kept, links = run
    state = RunState(plan, retries, kept, links)
    step = state.handle(Start())
    waiting, order, freed = list(step.ready), [], []
    while waiting:
        token = waiting.pop(random.randrange(len(waiting)))
        while token >= 0:
            assert {d for d in plan.deps[token] if d < plan.n} <= set(order)
            assert not set(plan.deps[token]) & set(freed)
            order.append(token)
            step = state.handle(Succeeded([token]))
            waiting += step.ready
            freed += step.freed
            token = -1 if links is None else links[token]
        state.check()
    assert step.finished
    assert sorted(order) == list(range(plan.n))
    there = {v for v in range(plan.n + plan.n_inputs) if v not in freed}
    if kept is not None:
        inputs = set(range(plan.n, plan.n + plan.n_inputs))
        assert there | inputs == {v for v, k in enumerate(kept) if k} | inputs
    assert len(set(freed)) == len(freed)


@given(plans(), st.data())
def test_links_are_only_between_neighbours_of_one_class(plan, data):
    eligible = [data.draw(st.booleans()) for _ in plan.classes]
    links = find_links(plan, eligible)
    expected = [-1] * plan.n
    for i in range(plan.n):
        if len(plan.dependents[i]) != 1:
            continue
        d = plan.dependents[i][0]
        if (
            plan.plain[i] is not None
            and plan.plain[d] == (i,)
            and plan.class_of[i] == plan.class_of[d]
            and eligible[plan.class_of[i]]
        ):
            expected[i] = d
    assert links == (expected if any(d >= 0 for d in expected) else None)

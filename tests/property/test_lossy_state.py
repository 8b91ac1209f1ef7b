"""The run state under losses of nodes in any order, against real values on made-up nodes."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from handoff_actors.errors import CrashedAttempt
from handoff_actors.execution.lossy_state import MAX_LOSSES, LossyState
from handoff_actors.execution.run_state import (
    Crashed,
    Lost,
    Raised,
    Start,
    Step,
    Succeeded,
    Withdrawn,
    find_links,
    keep_mask,
)
from handoff_actors.graph import DAG, Function, compile_plan

NODES = ("a", "b", "c")


def many(*values):
    return values


@st.composite
def runs(draw):
    """A plan of chains and joins, what is kept, and its links."""
    dag = DAG("test")
    takes: list[object] = []
    for i in range(draw(st.integers(0, 1))):
        dag.add_function(Function(f"x{i}", type="input"))
        takes.append(f"x{i}")
    for i in range(draw(st.integers(1, 8))):
        once = draw(st.integers(0, 15)) == 0
        if takes and draw(st.integers(0, 2)):
            args = [takes[-1]]
        else:
            args = draw(st.lists(st.sampled_from(takes), max_size=3, unique=True)) if takes else []
        fields = {"max_crashes": 0, "max_retries": 0} if once else {"max_retries": 5}
        dag.add_function(Function(i, args, many, **fields))
        takes.append(i)
    plan = compile_plan(dag)
    keep = draw(st.sampled_from(["all", "sinks", "some"]))
    if keep == "some":
        keep = draw(st.lists(st.sampled_from(plan.ids[: plan.n]), unique=True))
    links = find_links(plan, [draw(st.booleans()) for _ in plan.classes])
    return plan, keep_mask(plan, keep), links


def sequential(plan):
    values = {i: plan.ids[i] for i in range(plan.n, plan.n + plan.n_inputs)}
    for i in range(plan.n):
        values[i] = (i, *[values[d] for d in plan.deps[i]])
    return values


class Losses(RuleBasedStateMachine):
    """Plays three nodes. A token is queued, or began on a node with its inputs, or is late."""

    @initialize(run=runs())
    def begin(self, run):
        self.plan, self.kept, self.links = run
        self.n = self.plan.n
        self.right = sequential(self.plan)
        self.state = LossyState(
            self.plan, 3, self.kept, None if self.links is None else list(self.links)
        )
        self.queued: set[int] = set()
        self.delayed: set[int] = set()
        self.running: dict[int, tuple[str, tuple]] = {}
        self.late: dict[int, tuple] = {}
        self.values: dict[int, tuple[str, tuple]] = {}
        self.begun = dict.fromkeys(range(self.n), 0)
        self.lost = [0] * self.n
        self.ended = None
        self.take(self.state.handle(Start()))

    def take(self, step):
        """Do as the runner does."""
        for v in step.freed:
            if v < self.n:
                self.values.pop(v, None)
        if step.failure is not None:
            i = step.failure.index
            once = not self.plan.functions[i].max_crashes
            failed = isinstance(step.failure.last, (Crashed, Raised))
            assert once or self.lost[i] > MAX_LOSSES or failed
            assert not step.ready
            self.ended = "failed"
            return
        for token in step.ready:
            assert self.ended is None
            assert token not in self.queued
            assert token not in self.running
            assert token % self.n not in {t % self.n for t in self.queued}
            assert token % self.n not in {t % self.n for t in self.running}
            assert self.state.is_present(token)
            self.queued.add(token)
        for _, token in step.retries:
            self.delayed.add(token)
        if step.finished:
            assert self.ended is None
            self.ended = "finished"

    @precondition(lambda self: self.queued and not self.ended)
    @rule(data=st.data(), node=st.sampled_from(NODES))
    def start(self, data, node):
        """A node has the inputs fetched and begins; if one is gone meanwhile it gives it back."""
        token = data.draw(st.sampled_from(sorted(self.queued)))
        self.queued.remove(token)
        i = token % self.n
        inputs = []
        for d in self.plan.deps[i]:
            if d < self.n and d not in self.values:
                self.take(self.state.handle(Withdrawn([token])))
                assert token not in self.queued, "it would be handed out for ever"
                return
            inputs.append(self.right[d] if d >= self.n else self.values[d][1])
        self.begun[i] += 1
        self.running[token] = (node, (i, *inputs))

    @precondition(lambda self: self.running and not self.ended)
    @rule(data=st.data(), linked=st.booleans())
    def succeed(self, data, linked):
        token = data.draw(st.sampled_from(sorted(self.running)))
        batch = []
        while True:
            node, value = self.running.pop(token)
            i = token % self.n
            self.values[i] = (node, value)
            batch.append(token)
            following = self.state.links[i] if self.state.links is not None else -1
            if following < 0:
                break
            token = following
            self.begun[following] += 1
            self.running[token] = (node, (following, value))
            if not linked:
                break
        self.take(self.state.handle(Succeeded(batch)))

    @precondition(lambda self: self.running and not self.ended)
    @rule(data=st.data(), kind=st.sampled_from(["raised", "crashed"]))
    def fail(self, data, kind):
        token = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[token]
        crash = CrashedAttempt("a", 1, -9, "killed")
        event = Raised(token, ValueError(), "a") if kind == "raised" else Crashed(token, crash)
        self.take(self.state.handle(event))

    @precondition(lambda self: not self.ended)
    @rule(node=st.sampled_from(NODES))
    def node_dies(self, node):
        tokens = [t for t, (where, _) in self.running.items() if where == node]
        values = [v for v, (where, _) in self.values.items() if where == node]
        for t in tokens:
            self.late[t] = self.running.pop(t)[1]
            self.lost[t % self.n] += 1
        for v in values:
            del self.values[v]
        self.take(self.state.handle(Lost(tokens, values, CrashedAttempt(node, 1, -9, "gone"))))

    @precondition(lambda self: self.late and not self.ended)
    @rule(data=st.data(), kind=st.integers(0, 2))
    def late_outcome(self, data, kind):
        token = data.draw(st.sampled_from(sorted(self.late)))
        crash = CrashedAttempt("a", 1, -9, "late")
        event = [Succeeded([token]), Withdrawn([token]), Crashed(token, crash)][kind]
        assert self.state.handle(event) == Step()

    @precondition(lambda self: not self.ended)
    @rule()
    def recover(self):
        """The runner dies: a state made from what is committed goes on."""
        old = self.state
        out = {t % self.n for t in self.queued | set(self.running)} | {
            t % self.n for t in self.delayed
        }
        assert out == old.out
        done = bytearray(old.done)
        self.state = LossyState(
            self.plan, 3, self.kept, old.links, done, old.histories, out, old.absent
        )
        assert self.state.left == old.left
        assert self.state.needed == old.needed
        assert self.state.remaining == old.remaining

    @precondition(lambda self: self.ended)
    @rule()
    def over(self):
        """Nothing is heard any more."""
        assert self.state.stopped or not self.state.remaining

    @invariant()
    def it_is_consistent(self):
        self.state.check()
        if self.ended is None:
            assert self.queued or self.running or self.delayed, "the run would hang"
            for v, (_, value) in self.values.items():
                assert value == self.right[v]
                assert self.state.done[v]
            for i in range(self.n):
                if self.plan.functions[i].max_crashes == 0:
                    assert self.begun[i] <= 1

    @invariant()
    def a_finished_run_has_its_values(self):
        if self.ended == "finished":
            wanted = [v for v in range(self.n) if self.kept is None or self.kept[v]]
            assert {v: self.values[v][1] for v in wanted} == {v: self.right[v] for v in wanted}


TestLosses = Losses.TestCase
TestLosses.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)

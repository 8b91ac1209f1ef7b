"""Where attempts go as nodes come and go: each in one place, none where it may not be."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from handoff_actors.execution.nodes.spread import Spread
from handoff_actors.graph import DAG, Collocated, Function, compile_plan
from handoff_actors.resources.allocator import by_name
from handoff_actors.resources.capabilities import MICRO

NODES = ("here", "b", "c")


@st.composite
def plans(draw):
    dag = DAG("test")
    for i in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["free", "cost", "cost", "pin", "group"]))
        node = None
        if kind == "pin":
            node = draw(st.sampled_from(NODES))
        elif kind == "group" and i:
            node = Collocated(draw(st.integers(0, i - 1)))
        cost = {"cpu": draw(st.sampled_from([1, 1, 1, 2]))} if kind == "cost" else None
        dag.add_function(Function(i, (), lambda: None, node=node, cost=cost))
    return compile_plan(dag)


class Spreads(RuleBasedStateMachine):
    @initialize(
        plan=plans(),
        strategy=st.sampled_from(["first_available", "load_balanced"]),
        limit=st.sampled_from([None, None, 1, 3]),
    )
    def begin(self, plan, strategy, limit):
        self.plan, self.limit = plan, limit
        self.spread = Spread(plan, "here", by_name(strategy), limit=limit)
        self.spread.capacity("here", {"cpu": 2 * MICRO}, {})
        self.up, self.silent = {"here"}, set()
        self.new = list(range(plan.n))
        self.placed: dict[int, str] = {}
        self.waiting: list[int] = []

    @precondition(lambda self: self.new)
    @rule(data=st.data())
    def ready(self, data):
        count = data.draw(st.integers(1, len(self.new)))
        tokens, self.new = self.new[:count], self.new[count:]
        self.waiting += tokens
        self.spread.ready(tokens)

    @rule()
    def place(self):
        for name, tokens in self.spread.place().items():
            assert name in self.up
            for token in tokens:
                self.waiting.remove(token)
                self.placed[token] = name
                kind = self.plan.classes[self.plan.class_of[token]]
                assert kind.pin in (None, name)
                if kind.group is not None:
                    assert self.spread.group_place(kind.group) == name
        if self.limit is not None:
            assert len(self.placed) <= self.limit

    @precondition(lambda self: self.placed)
    @rule(data=st.data(), back=st.booleans(), took=st.sampled_from([1e-6, 1e-3, 1.0]))
    def ended(self, data, back, took):
        token = data.draw(st.sampled_from(sorted(self.placed)))
        del self.placed[token]
        self.spread.took(token, took)
        self.spread.ended(token)
        if back:
            self.new.append(token)

    @rule(name=st.sampled_from(NODES[1:]), cpu=st.integers(0, 3), others=st.integers(0, 2))
    def node_up(self, name, cpu, others):
        self.spread.node_up(name)
        self.spread.capacity(name, {"cpu": cpu * MICRO}, {"cpu": min(cpu, others) * MICRO})
        self.up.add(name)
        self.silent.discard(name)

    @rule(name=st.sampled_from(NODES[1:]))
    def node_suspect(self, name):
        if name in self.up:
            self.spread.node_suspect(name)
            self.up.discard(name)
            self.silent.add(name)

    @rule(name=st.sampled_from(NODES[1:]))
    def node_down(self, name):
        lost = self.spread.node_down(name)
        assert sorted(lost) == sorted(t for t, where in self.placed.items() if where == name)
        for token in lost:
            del self.placed[token]
        self.new += lost
        self.up.discard(name)
        self.silent.discard(name)

    @rule()
    def ask_back(self):
        for name, tokens in self.spread.ask_back().items():
            assert all(self.placed[token] == name for token in tokens)

    @invariant()
    def each_is_in_one_place(self):
        members = Counter(self.spread.members())
        assert members == Counter([*self.waiting, *self.placed])
        assert self.spread.where == self.placed

    @invariant()
    def counts_are_right(self):
        for name, site in self.spread.sites.items():
            here = Counter(
                self.plan.class_of[t] for t, where in self.placed.items() if where == name
            )
            for number in range(len(self.plan.classes)):
                counted = site.placed.get(number, 0) + site.ahead.get(number, 0)
                assert counted == here[number]
                assert site.placed.get(number, 0) >= 0
                assert site.ahead.get(number, 0) >= 0

    def teardown(self):
        """With all nodes up and everything ending at once, everything is placed in the end."""
        if not hasattr(self, "spread"):
            return
        self.spread.ready(self.new)
        self.waiting += self.new
        for name in NODES:
            self.spread.node_up(name)
            self.spread.capacity(name, {"cpu": 3 * MICRO}, {})
        for _ in range(4 * self.plan.n):
            for token in list(self.placed):
                self.spread.ended(token)
                del self.placed[token]
            self.up, self.new = set(NODES), []
            self.place()
        assert not self.waiting


TestSpreads = Spreads.TestCase
TestSpreads.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)

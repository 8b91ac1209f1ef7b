"""Where attempts go as nodes come and go: each in one place, none where it may not be."""

from __future__ import annotations

import sys
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

from handoff_actors.execution.nodes.spread import Spread
from handoff_actors.graph import DAG, Collocated, Function, compile_plan
from handoff_actors.resources.allocator import by_name
from handoff_actors.resources.capabilities import MICRO, NodeCapacity

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


@st.composite
def costly_plans(draw):
    dag = DAG("test")
    costs = [{"cpu": 1}, {"cpu": 2}, {"memory": 1}, {"cpu": 1, "memory": 2}, {"cpu": 0.5}]
    for i in range(draw(st.integers(1, 14))):
        node = draw(st.sampled_from([None, None, None, None, *NODES, "group"]))
        if node == "group":
            node = Collocated(draw(st.integers(0, i - 1))) if i else None
        cost = draw(st.sampled_from(costs))
        dag.add_function(Function(i, (), lambda: None, node=node, cost=cost))
    return compile_plan(dag)


AMOUNTS = st.fixed_dictionaries({"cpu": st.integers(0, 4), "memory": st.integers(0, 3)})
BYTES = st.dictionaries(st.sampled_from([*NODES, "nobody"]), st.integers(0, 2), max_size=3)


STEPS = ("ready", "place", "place", "end", "up", "silent", "down")


class Scan:
    """A built-in strategy as an allocator of a user's: it is shown all nodes and all that waits."""

    def __init__(self, strategy):
        self.strategy = by_name(strategy)

    def allocate(self, requests, nodes):
        assert all(isinstance(capacity, NodeCapacity) for capacity in nodes.values())
        return self.strategy.allocate(requests, nodes)


@settings(max_examples=100, deadline=None)
@given(
    plan=costly_plans(),
    strategy=st.sampled_from(["first_available", "load_balanced"]),
    sizes=st.lists(BYTES, min_size=14, max_size=14),
    data=st.data(),
)
def test_the_index_places_as_a_look_at_all_nodes_does(plan, strategy, sizes, data):
    def spread(allocator, own):
        return Spread(plan, "here", allocator, own=own, input_bytes=lambda i: sizes[i])

    both = (spread(by_name(strategy), False), spread(Scan(strategy), True))

    def each(name, *args):
        first, second = (getattr(one, name)(*args) for one in both)
        assert first == second
        return first

    def offer(name):
        total, others = data.draw(AMOUNTS), data.draw(AMOUNTS)
        others = {r: min(total[r], amount) * MICRO for r, amount in others.items()}
        each("capacity", name, {r: amount * MICRO for r, amount in total.items()}, others)

    offer("here")
    new, placed = list(range(plan.n)), []
    for _ in range(data.draw(st.integers(5, 40))):
        what = data.draw(
            st.sampled_from(["ready", "place", "place", "end", "up", "silent", "down"])
        )
        name = data.draw(st.sampled_from(NODES[1:]))
        if what == "ready" and new:
            count = data.draw(st.integers(1, len(new)))
            each("ready", new[:count])
            del new[:count]
        elif what == "place":
            for tokens in each("place").values():
                placed += tokens
        elif what == "end" and placed:
            token = placed.pop(data.draw(st.integers(0, len(placed) - 1)))
            each("ended", token)
            new.append(token)
        elif what == "up":
            each("node_up", name)
            offer(name)
        elif what == "silent":
            each("node_suspect", name)
        elif what == "down":
            lost = each("node_down", name)
            placed = [token for token in placed if token not in lost]
            new += lost
        assert both[0].where == both[1].where
        assert both[0].parked == both[1].parked
        assert sorted(both[0].hopeless()) == sorted(both[1].hopeless())


def test_a_step_does_not_look_at_all_that_waits_or_at_all_nodes():
    """An outcome costs as much with a hundred times the nodes and the work; counted, not timed."""

    def looks(nodes, functions):
        dag = DAG("test")
        for i in range(functions):
            dag.add_function(Function(i, (), int, cost={"cpu": 1}))
        asked = Counter()

        def sizes(i):
            asked["sizes"] += 1
            return {}

        spread = Spread(compile_plan(dag), "n0", by_name("load_balanced"), input_bytes=sizes)
        for k in range(nodes):
            spread.node_up(f"n{k}")
            spread.capacity(f"n{k}", {"cpu": MICRO}, {})
        spread.ready(range(functions))
        placed = [token for tokens in spread.place().values() for token in tokens]
        assert len(placed) == nodes

        def count(frame, event, _arg):
            asked["calls"] += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            for token in placed[:10]:
                spread.ended(token)
                spread.place()
        finally:
            sys.setprofile(None)
        return asked["calls"]

    assert looks(500, 5_000) < 3 * looks(5, 50)

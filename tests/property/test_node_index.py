"""The index of nodes answers as the allocators do, whatever has happened before."""

from __future__ import annotations

import random
import time
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from handoff_actors.resources.allocator import FirstAvailable, LoadBalanced, Request
from handoff_actors.resources.capabilities import MICRO, NodeCapacity
from handoff_actors.resources.node_index import NodeIndex, cost_key

AMOUNTS = st.dictionaries(st.sampled_from(["cpu", "memory", "gpu"]), st.integers(0, 4), max_size=3)


class Index(RuleBasedStateMachine):
    """An index beside plain dicts of what is there and what is free."""

    def __init__(self) -> None:
        super().__init__()
        self.index = NodeIndex()
        self.total: dict[str, dict[str, int]] = {}
        self.free: dict[str, dict[str, int]] = {}
        self.placed: list[tuple[str, dict[str, int]]] = []
        self.number = 0

    @rule(total=AMOUNTS)
    def add(self, total: dict[str, int]) -> None:
        self.number += 1
        self.offer(f"n{self.number}", total)

    def offer(self, name: str, total: dict[str, int]) -> None:
        self.placed = [p for p in self.placed if p[0] != name]
        self.total[name] = {k: v * MICRO for k, v in total.items()}
        self.free[name] = dict(self.total[name])
        self.index.offer(name, self.total[name])

    @precondition(lambda self: self.total)
    @rule(data=st.data(), total=AMOUNTS)
    def offer_anew(self, data: Any, total: dict[str, int]) -> None:
        self.offer(data.draw(st.sampled_from(sorted(self.total))), total)

    @precondition(lambda self: self.total)
    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.total)))
        del self.total[name], self.free[name]
        self.placed = [p for p in self.placed if p[0] != name]
        self.index.remove(name)
        self.index.remove("nobody")

    @rule(cost=AMOUNTS, inputs=st.dictionaries(st.sampled_from(["n1", "n2", "n3", "x"]),
                                               st.integers(0, 2)),
          balanced=st.booleans())  # fmt: skip
    def ask_and_take(self, cost: dict[str, int], inputs: dict[str, int], balanced: bool) -> None:
        key = cost_key({k: v * MICRO for k, v in cost.items()})
        nodes = {
            name: NodeCapacity({k: v / MICRO for k, v in self.free[name].items()},
                               {k: v / MICRO for k, v in self.total[name].items()})
            for name in self.total
        }  # fmt: skip
        request = [Request("x", cost, inputs)]
        assert self.index.first_available(key) == FirstAvailable().allocate(request, nodes).get("x")
        expected = LoadBalanced().allocate(request, nodes).get("x")
        assert self.index.load_balanced(key, inputs) == expected
        name = expected if balanced else self.index.first_available(key)
        if name is not None:
            self.index.take(name, key)
            for resource, amount in key:
                self.free[name][resource] -= amount
            self.placed.append((name, dict(key)))

    @precondition(lambda self: self.placed)
    @rule(data=st.data())
    def give(self, data: Any) -> None:
        name, cost = self.placed.pop(data.draw(st.integers(0, len(self.placed) - 1)))
        for resource, amount in cost.items():
            self.free[name][resource] += amount
        self.index.give(name, cost_key(cost))

    @invariant()
    def it_knows_what_is_free(self) -> None:
        assert len(self.index) == len(self.total)
        for name, free in self.free.items():
            assert {k: v for k, v in self.index.free(name).items() if v} == {
                k: v for k, v in free.items() if v
            }


TestIndex = Index.TestCase
TestIndex.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_heaps_do_not_grow_for_ever() -> None:
    index = NodeIndex()
    for i in range(100):
        index.offer(f"n{i}", {"cpu": 8 * MICRO})
    key = cost_key({"cpu": MICRO})
    rng, held = random.Random(1), []
    began = time.perf_counter()
    for _ in range(20_000):
        if held and rng.random() < 0.5:
            index.give(held.pop(rng.randrange(len(held))), key)
        elif (name := index.load_balanced(key)) is not None:
            index.take(name, key)
            held.append(name)
    assert sum(map(len, index._heaps.values())) <= 401
    assert time.perf_counter() - began < 10

"""The room in a file for spilled values: never twice in use, and all of it given back."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from handoff_actors.results.extents import Extents


class Rooms(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.extents = Extents()
        self.taken: list[tuple[int, int]] = []

    @rule(size=st.integers(1, 9))
    def take(self, size: int) -> None:
        before = self.extents.end
        start = self.extents.take(size)
        assert start + size <= self.extents.end
        assert self.extents.end in (before, before + size)
        self.taken.append((start, size))

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give(self, data: Any) -> None:
        which = data.draw(st.integers(0, len(self.taken) - 1))
        self.extents.give(*self.taken.pop(which))

    @invariant()
    def no_two_overlap_and_nothing_is_lost(self) -> None:
        in_use = [byte for start, size in self.taken for byte in range(start, start + size)]
        assert len(in_use) == len(set(in_use)) == self.extents.used
        assert self.extents.end == max(in_use, default=-1) + 1
        free = dict(zip(self.extents._starts, self.extents._sizes, strict=True))
        gaps = [byte for start, size in free.items() for byte in range(start, start + size)]
        assert sorted(in_use + gaps) == list(range(self.extents.end))
        assert not any(start + size in free for start, size in free.items()), "they are one"


TestRooms = Rooms.TestCase
TestRooms.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)

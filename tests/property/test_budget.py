"""Values under a limit: each is in memory or whole on disk, and what is counted is there."""

from __future__ import annotations

import errno
import gc
import logging
import threading
from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from handoff_actors.errors import SpillError
from handoff_actors.events import EventBus, log
from handoff_actors.results import budget as module
from handoff_actors.results.budget import SMALLEST, Budget, Kept
from handoff_actors.results.elsewhere import Placeholder
from handoff_actors.results.sizes import deep_size_of
from handoff_actors.results.spill_file import Spilled, SpillFile

ABSENT = Placeholder()
PLACES = 4


class Opaque:
    """A value with its bytes in an attribute."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and other.content == self.content

    __hash__ = None  # type: ignore[assignment]


def make(kind: str, size: int, letter: int) -> Any:
    content = bytes([letter]) * size
    if kind == "object":
        return Opaque(content)
    if kind == "list":
        return [content[: size // 2], letter, content[size // 2 :]]
    if kind == "stays":
        return [content, threading.Lock()]
    return content


class Budgets(RuleBasedStateMachine):
    @initialize(limit=st.sampled_from([1, 5_000, 20_000]))
    def begin(self, limit: int) -> None:
        self.jobs: deque[Any] = deque()
        self.events = EventBus()
        self.budget = Budget(limit, None, self.jobs.append, self.events, log)
        self.lists: list[Kept] = []
        self.expected: list[dict[int, Any]] = []
        self.broken = False
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "_TRY_AGAIN", 1e6)
        real = SpillFile.write

        def write(file: SpillFile, payload: Any, what: str) -> Spilled:
            if self.broken:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(file, payload, what)

        self.patch.setattr(SpillFile, "write", write)

    @rule()
    def another_list(self) -> None:
        kept = Kept(self.budget, [ABSENT] * PLACES, PLACES, lambda i: f"value {i}")
        self.lists.append(kept)
        self.expected.append({})

    @precondition(lambda self: self.lists)
    @rule(
        data=st.data(),
        index=st.integers(0, PLACES - 1),
        kind=st.sampled_from(["bytes", "object", "list", "stays"]),
        size=st.sampled_from([10, 1_000, 3_000, 9_000]),
        letter=st.integers(0, 255),
    )
    def put(self, data: Any, index: int, kind: str, size: int, letter: int) -> None:
        which = data.draw(st.integers(0, len(self.lists) - 1))
        value = make(kind, size, letter)
        self.lists[which][index] = value
        self.expected[which][index] = value

    @precondition(lambda self: self.lists)
    @rule(data=st.data(), index=st.integers(0, PLACES - 1))
    def free(self, data: Any, index: int) -> None:
        which = data.draw(st.integers(0, len(self.lists) - 1))
        self.lists[which][index] = ABSENT
        self.expected[which].pop(index, None)

    @precondition(lambda self: self.lists)
    @rule(data=st.data())
    def drop_a_list(self, data: Any) -> None:
        which = data.draw(st.integers(0, len(self.lists) - 1))
        del self.lists[which], self.expected[which]

    @precondition(lambda self: any(self.expected))
    @rule(data=st.data())
    def read(self, data: Any) -> None:
        which = data.draw(st.sampled_from([k for k, e in enumerate(self.expected) if e]))
        index = data.draw(st.sampled_from(sorted(self.expected[which])))
        found, expected = self.lists[which][index], self.expected[which][index]
        assert found == expected or (isinstance(found, list) and found[0] == expected[0])

    @rule()
    def do_jobs(self) -> None:
        while self.jobs:
            self.jobs.popleft()()
        self.budget.relieve()
        assert not self.budget.over

    @rule(broken=st.booleans())
    def disk(self, broken: bool) -> None:
        self.broken = broken
        self.budget._again = 0.0

    @invariant()
    def all_is_counted(self) -> None:
        if not hasattr(self, "budget"):
            return
        _, held, spilled, values, stuck, _ = self.budget.status()
        there = [(kept.peek(i), kept, i) for kept in self.lists for i in range(PLACES)]
        in_memory = [v for v, _, _ in there if not isinstance(v, Placeholder)]
        large = [v for v in in_memory if deep_size_of(v)[0] >= SMALLEST]
        assert (held > 0) == bool(large)
        assert abs(held - sum(deep_size_of(v)[0] for v in large)) <= 600 * len(large) + 1
        assert stuck <= held
        on_disk = sum(v.nbytes for v, _, _ in there if isinstance(v, Spilled))
        assert on_disk <= spilled
        assert values <= len(there)
        for kept, expected in zip(self.lists, self.expected, strict=True):
            for index in range(PLACES):
                assert (kept.peek(index) is not ABSENT) == (index in expected)

    def all_can_be_read(self) -> None:
        for kept, expected in zip(self.lists, self.expected, strict=True):
            for index, value in expected.items():
                if not isinstance(value, list):
                    assert kept[index] == value

    def teardown(self) -> None:
        if not hasattr(self, "budget"):
            return
        try:
            self.disk(False)
            self.do_jobs()
            self.budget.status()  # the disk is looked at again
            self.budget.relieve()
            limit, held, _, _, stuck, _ = self.budget.status()
            assert held <= max(limit, stuck), (held, stuck)
            self.all_can_be_read()
            self.lists.clear()
            self.expected.clear()
            gc.collect()
            assert self.budget.status()[1:5] == (0, 0, 0, 0)
        finally:
            self.patch.undo()
            self.budget.close((), ABSENT)
            self.events.close()


TestBudgets = Budgets.TestCase
TestBudgets.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


def budget_of(limit: int) -> tuple[Budget, deque[Any]]:
    jobs: deque[Any] = deque()
    return Budget(limit, None, jobs.append, EventBus(), log), jobs


def test_what_was_not_used_lately_goes_first() -> None:
    budget, _ = budget_of(25_000)
    kept = Kept(budget, [ABSENT] * 4, 4, str)
    for index in range(4):
        kept[index] = bytes(9_000)
        _ = kept[0]
        budget.relieve()
    assert [isinstance(kept.peek(i), Spilled) for i in range(4)] == [False, True, True, False]
    budget.close((), ABSENT)


def test_what_was_read_back_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    budget, _ = budget_of(10_000)
    kept = Kept(budget, [bytes(9_000), b"x" * 9_000], 0, str)
    budget.relieve()
    written: list[Any] = []
    real = SpillFile.write
    monkeypatch.setattr(
        SpillFile,
        "write",
        lambda *args: written.append(args) or real(*args),  # type: ignore[func-returns-value]
    )
    for _ in range(3):
        assert kept[0] == bytes(9_000)
        assert kept[1] == b"x" * 9_000
    assert len(written) <= 1
    budget.close((), ABSENT)


def test_a_class_that_does_not_say_how_large_it_is_is_measured_once() -> None:
    budget, jobs = budget_of(1_000_000)
    opaque = iter(bytes(5_000))  # its class says 48 bytes, or so
    assert not deep_size_of(opaque)[1]
    kept = Kept(budget, [ABSENT] * 3, 3, str)
    kept[0] = opaque
    assert budget.status()[1] < 5_000
    assert len(jobs) == 1
    jobs.popleft()()
    measured = budget.status()[1]
    assert measured >= 5_000
    kept[1] = iter(bytes(5_000))
    assert not jobs, "the class is known"
    assert budget.status()[1] >= 2 * measured - 100
    budget.close((), ABSENT)


def test_a_damaged_value_is_an_error_and_the_others_are_not() -> None:
    import os

    budget, _ = budget_of(1)
    kept = Kept(budget, [b"a" * 5_000, b"b" * 5_000], 0, lambda i: f"result {i}")
    budget.relieve()
    first = kept.peek(0)
    assert isinstance(first, Spilled)
    os.pwrite(first._file.fd, b"?", first._start + 2_000)
    with pytest.raises(SpillError, match="result 0"):
        _ = kept[0]
    assert kept[1] == b"b" * 5_000
    second = kept.peek(1)
    assert isinstance(second, Spilled)
    os.ftruncate(second._file.fd, second._start + 10)
    with pytest.raises(SpillError, match="result 1"):
        _ = kept[1]
    budget.close((), ABSENT)


def test_many_threads_read_and_write_side_by_side() -> None:
    budget, _ = budget_of(30_000)
    lists = [Kept(budget, [ABSENT] * 8, 8, str) for _ in range(4)]
    wrong: list[Any] = []

    def work(number: int) -> None:
        try:
            mine = lists[number]
            for turn in range(60):
                mine[turn % 8] = bytes([number, turn]) * 3_000
                budget.relieve()
                for other in range(min(turn, 7) + 1):
                    turn_of = turn - (turn - other) % 8
                    assert mine[other] == bytes([number, turn_of]) * 3_000
                _ = lists[(number + 1) % 4][0]
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    _, held, *_ = budget.status()
    assert held <= 30_000
    budget.close((), ABSENT)


def test_nothing_is_said_when_nothing_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    budget, _ = budget_of(1)
    with caplog.at_level(logging.DEBUG, "handoff_actors"):
        kept = Kept(budget, [b"a" * 5_000], 0, str)
        budget.relieve()
        assert kept[0] == b"a" * 5_000
    assert not caplog.records
    budget.close((), ABSENT)

"""Functions and DAGs for tests: what waits, what counts, what fails for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import handoff_actors as handoff
from handoff_actors import Function


class Gate:
    """A function that says that it runs, and waits to be let go (20 s at most)."""

    def __init__(self, value: Any = "through") -> None:
        self.value = value
        self.entered = threading.Event()
        self.open = threading.Event()
        self.calls = 0

    def __call__(self, *_: Any) -> Any:
        self.calls += 1
        self.entered.set()
        self.open.wait(20)
        return self.value


class Meter:
    """Counts how many run at once.

    Each stays until ``expected`` are there (2 s at most), and then 10 ms longer, so that one too
    many has the time to come and be seen.
    """

    def __init__(self, expected: int = 1) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.expected = expected
        self.full = threading.Event()
        self.too_many = threading.Event()

    def __call__(self, *_: Any) -> int:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now >= self.expected:
                self.full.set()
            if self.now > self.expected:
                self.too_many.set()
        self.full.wait(2)
        self.too_many.wait(0.01)
        with self.lock:
            self.now -= 1
        return self.most


def single(code: Callable[..., Any], **options: Any) -> handoff.DAG:
    return handoff.new().add_function(Function("f", (), code, **options))


def wait_for(predicate: Callable[[], object], deadline: float = 10.0) -> None:
    end = time.monotonic() + deadline
    while not predicate():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.001)


def fails_until(attempt: int, error: type[BaseException] = ValueError) -> Callable[..., Any]:
    seen: list[int] = []

    def code(*_: Any) -> int:
        seen.append(handoff.current().attempt)
        if len(seen) < attempt:
            raise error(f"attempt {len(seen)}")
        return len(seen)

    code.seen = seen  # type: ignore[attr-defined]
    return code


def diamond(dag_id: Any = None) -> handoff.DAG:
    dag = handoff.new(dag_id)
    dag.add_function(Function("a", (), lambda: 1))
    dag.add_function(Function("b", ["a"], lambda a: a + 1))
    dag.add_function(Function("c", ["a"], lambda a: a + 2))
    dag.add_function(Function("d", ["b", "c"], lambda b, c: b * c))
    return dag

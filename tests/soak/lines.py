"""Every line of every actor is once the line at which it crashes.

    python -m tests.soak.lines [--only runner] [--hits 3]

For each executable line of the modules below a fresh runtime does a bit of everything, and the
first (second, ...) time that an actor comes to that line, an exception is raised there: between any
two statements, not only between two messages. Whatever line it was, every caller gets its right
answer in time, nothing finished runs again, and no claim is left.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import sys
import threading
import time
import types
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import handoff_actors as handoff
from handoff_actors import Function
from handoff_actors.actors.calls import current
from handoff_actors.testing import InjectedCrash

MODULES = {
    "runner": "handoff_actors.execution.runner",
    "executor": "handoff_actors.execution.executor",
    "starting": "handoff_actors.execution.starting",
    "store": "handoff_actors.results.store",
    "tracker": "handoff_actors.resources.tracker",
    "locations": "handoff_actors.results.locations",
    "distributed": "handoff_actors.results.distributed",
    "workers": "handoff_actors.execution.workers.supervisor",
    "dynamic": "handoff_actors.actors.dynamic_supervisor",
    "run_state": "handoff_actors.execution.run_state",
    "ledger": "handoff_actors.resources.ledger",
}
PATIENCE = 8.0


def lines_of(module: types.ModuleType) -> list[int]:
    """The lines of all functions of a module that can be executed."""
    found: set[int] = set()
    file = Path(module.__file__ or "")
    todo: list[Any] = [compile(file.read_text(), str(file), "exec")]
    top = todo[0]
    while todo:
        code = todo.pop()
        todo.extend(c for c in code.co_consts if isinstance(c, types.CodeType))
        if code is not top and code.co_flags & 2:  # a function's own: not a class body
            found.update(
                line for *_, line in code.co_lines() if line and line > code.co_firstlineno
            )
    return sorted(found)


class Bomb:
    """Raises once, at the ``hit``-th time an actor comes to a line."""

    def __init__(self, file: str, line: int, hit: int) -> None:
        self.file = file
        self.line = line
        self.left = hit
        self.fired = ""
        self.lock = threading.Lock()

    def trace(self, frame: Any, _event: str, _arg: Any) -> Any:
        if self.fired or frame.f_code.co_filename != self.file:
            return None
        return self.local

    def local(self, frame: Any, event: str, _arg: Any) -> Any:
        if event == "line" and frame.f_lineno == self.line and current.incarnation is not None:
            with self.lock:
                self.left -= 1
                if self.left == 0:
                    self.fired = f"{current.incarnation.ref.label}: {frame.f_code.co_qualname}"
                    raise InjectedCrash(f"line {self.line}")
        return self.local


def spawn(call: Any) -> Future[Any]:
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def scenario(runtime: handoff.Runtime) -> Iterator[str]:
    """Everything once; yields what went wrong."""
    counts: dict[Any, int] = {}
    gate = threading.Event()
    held = threading.Event()

    def code(key: Any, fails: int, *args: int) -> int:
        counts[key] = counts.get(key, 0) + 1
        if handoff.current().attempt <= fails:
            raise ValueError(key)
        if key == ("d", 0):
            held.set()
            gate.wait(PATIENCE)
        return len(args) + sum(args)

    def bind(name: str, n: int, fails: dict[int, int]) -> handoff.DAG:
        made = handoff.new(name)
        for i in range(n):
            made.add_function(
                Function(i, range(max(0, i - i % 3), i),
                         functools.partial(code, (name, i), fails.get(i, 0)),
                         cost={"cpu": 1} if i % 2 else None, max_retries=2,
                         retry_delay=0.005 if i == 4 else 0.0))  # fmt: skip
        return made

    def expect(n: int) -> dict[int, int]:
        values: dict[int, int] = {}
        for i in range(n):
            args = [values[j] for j in range(max(0, i - i % 3), i)]
            values[i] = len(args) + sum(args)
        return values

    fails = {2: 1, 4: 2}
    runtime.store_value("mine", "x", 1)
    runtime.store_result("mine", "y", 2)
    runtime.register_data_location("mine", "z", "elsewhere")
    runtime.register_node("ghost", {"gpu": 1})
    waiting = [spawn(lambda i=i: runtime.get_result("d", i, PATIENCE)) for i in (1, 5)]
    listed: Future[Any] | None = None
    try:
        run = runtime.submit(bind("d", 8, fails))
        listed = spawn(lambda: sorted(run.as_completed(PATIENCE)))
        if not held.wait(PATIENCE):
            yield "function 0 never began"
        other = spawn(lambda: dict(runtime.execute(bind("e", 6, {}), keep="sinks",
                                                   timeout=PATIENCE).results))  # fmt: skip
        doomed = runtime.submit(bind("f", 6, {3: 3}))
        cancelled = runtime.submit(bind("g", 3, {}))
        if cancelled.cancel():
            with contextlib.suppress(handoff.RunCancelledError):
                cancelled.result(PATIENCE)
        with contextlib.suppress(handoff.ValueNotFoundError):
            runtime.get_local_value("d", 7)
        runtime.status()
        gate.set()
        if dict(run.result(PATIENCE).results) != expect(8):
            yield f"d: {dict(run.result().results)}"
        whole = other.result(PATIENCE)
        if whole != {i: v for i, v in expect(6).items() if i in whole} or not whole:
            yield f"e: {whole}"
        try:
            doomed.result(PATIENCE)
            yield "f did not fail"
        except handoff.FunctionFailedError as error:
            if error.function_id != 3 or error.attempts != 3:
                yield f"f: {error}"
        if [w.result(PATIENCE) for w in waiting] != [expect(8)[1], expect(8)[5]]:
            yield "get_result"
        if listed.result(PATIENCE) != sorted(expect(8).items()):
            yield f"as_completed: {listed.result()}"
        seen = (runtime.get_local_value("mine", "x"), runtime.get_value("mine", "y"),
                runtime.lookup_data_location("mine", "z"), runtime.synchronize("d", [7]),
                runtime.discover_nodes()["ghost"])  # fmt: skip
        if seen != (1, 2, "elsewhere", {7: expect(8)[7]}, {"gpu": 1}):
            yield f"values: {seen}"
        runtime.clear("d")
        runtime.clear("mine")
        again = runtime.execute(bind("d", 8, fails), timeout=PATIENCE)
        if dict(again.results) != expect(8):
            yield f"d again: {dict(again.results)}"
        again.release()
    except BaseException as error:
        yield f"{type(error).__name__}: {error}"
        return
    for key, count in counts.items():
        name = key[0]
        times = {"d": 2, "f": 1, "e": 1}.get(name, 1)
        most = {("d", 2): 4, ("d", 4): 6, ("f", 3): 3}.get(key, times)
        if count > most:
            yield f"{key} ran {count} times instead of {most}"
    end = time.monotonic() + PATIENCE
    while runtime.status().claims:
        if time.monotonic() > end:
            yield f"claims: {runtime.status().claims}"
            break
        time.sleep(0.002)
    if not runtime.resources_available(runtime.node(), {"cpu": 2}):
        yield "not all is free"


def attack(module: types.ModuleType, line: int, hit: int) -> tuple[str, list[str]]:
    """One life with one bomb: where it went off, and what went wrong."""
    bomb = Bomb(module.__file__ or "", line, hit)
    threads = set(threading.enumerate())
    threading.settrace(bomb.trace)
    sys.settrace(bomb.trace)
    problems: list[str] = []
    try:
        runtime = handoff.Runtime(capabilities={"cpu": 2}, max_restarts=1000, shutdown_timeout=1.0)
        try:
            runtime.start()
        except (InjectedCrash, handoff.HandoffError):
            return "start", []  # told to who started it
        problems += scenario(runtime)
        if problems:
            problems.append(str(runtime.status()))
        runtime.stop()
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
    end = time.monotonic() + PATIENCE
    while left := [
        t for t in threading.enumerate() if t not in threads and t.name[:7] == "handoff"
    ]:
        if time.monotonic() > end:
            problems.append(f"threads: {left}")
            break
        time.sleep(0.002)
    return bomb.fired, problems


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=list(MODULES))
    parser.add_argument("--hits", type=int, nargs="*", default=[1])
    parser.add_argument("--line", type=int)
    options = parser.parse_args()
    bad = fired_in_all = 0
    for name in options.only:
        module = importlib.import_module(MODULES[name])
        fired_here = 0
        for line in [options.line] if options.line else lines_of(module):
            for hit in options.hits:
                fired, problems = attack(module, line, hit)
                fired_here += bool(fired)
                if problems:
                    bad += 1
                    print(
                        f"{name}:{line} hit {hit} ({fired}):", *problems, sep="\n    ", flush=True
                    )
                if not fired:
                    break
        fired_in_all += fired_here
        print(f"{name}: crashed at {fired_here} points", flush=True)
    print(f"{fired_in_all} points, {bad} with problems")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

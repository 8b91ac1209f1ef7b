"""A crash storm: ``python -m tests.soak.storm [--seconds 120] [--runs 200]``.

So many runs at once, for so long; meanwhile each actor in turn crashes twice a second. All answers
are right, nothing is claimed at the end; what a run takes is printed for before and during. Then
each actor is crashed alone, and how soon its next incarnation answers is printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Sequence

import handoff_actors as handoff
from handoff_actors import Function
from handoff_actors.life import NAMES
from handoff_actors.testing import crash


def add(*args: int) -> int:
    """The sum, plus one."""
    return sum(args) + 1


def dag() -> handoff.DAG:
    """Ten functions, some of which cost a cpu."""
    made = handoff.new()
    for i in range(10):
        cost = {"cpu": 0.01} if i % 2 else None
        made.add_function(Function(i, range(max(0, i - 3), i), add, cost=cost))
    return made


def expected() -> int:
    """What the last function gives."""
    values: list[int] = []
    for i in range(10):
        values.append(sum(values[max(0, i - 3) : i]) + 1)
    return values[-1]


def line(name: str, seconds: Sequence[float]) -> str:
    """Median and p99 in milliseconds."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"{name:28} {statistics.median(ordered) * 1e3:9.2f} {p99 * 1e3:9.2f}  {len(ordered):7}"


def storm(runtime: handoff.Runtime, seconds: float, runs: int, crashing: bool) -> list[float]:
    """What each run took."""
    right, took, problems = expected(), [], []
    over = threading.Event()

    def caller() -> None:
        while not over.is_set():
            began = time.perf_counter()
            try:
                value = runtime.submit(dag()).result(60).results[9]
            except BaseException as error:
                problems.append(repr(error))
                return
            took.append(time.perf_counter() - began)
            if value != right:
                problems.append(f"{value} instead of {right}")

    callers = [threading.Thread(target=caller, daemon=True) for _ in range(runs)]
    for thread in callers:
        thread.start()
    end, turn = time.monotonic() + seconds, 0
    while time.monotonic() < end and not problems:
        if crashing:
            crash(NAMES[turn % len(NAMES)], runtime=runtime)
            turn += 1
        time.sleep(0.5)
    over.set()
    for thread in callers:
        thread.join(60)
    if problems or any(thread.is_alive() for thread in callers):
        print("FAILED", problems[:5] or "a caller hangs")
        sys.exit(1)
    return took


def restart(runtime: handoff.Runtime, name: str, times: int = 100) -> list[float]:
    """How soon after its crash an actor has its next incarnation."""
    ref = runtime.whereis(name)
    assert ref is not None
    took = []
    for _ in range(times):
        before = ref.incarnation
        began = time.perf_counter()
        crash(name, runtime=runtime)
        while ref.incarnation is before or ref.incarnation is None:
            time.sleep(0)
        took.append(time.perf_counter() - began)
    return took


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--runs", type=int, default=200)
    options = parser.parse_args()
    with handoff.Runtime(capabilities={"cpu": 2}, max_restarts=10**9) as runtime:
        print(f"{'':28} {'median ms':>9} {'p99 ms':>9}  {'samples':>7}")
        calm = storm(runtime, options.seconds / 4, options.runs, crashing=False)
        print(line("a run, before", calm), flush=True)
        rough = storm(runtime, options.seconds, options.runs, crashing=True)
        print(line("a run, during the storm", rough))
        end = time.monotonic() + 10
        while runtime.status().claims and time.monotonic() < end:
            time.sleep(0.01)
        restarts = sum(runtime.status().restarts.values())
        print(f"claims {len(runtime.status().claims)}, restarts {restarts}", flush=True)
        if runtime.status().claims:
            sys.exit(1)
        for name in NAMES:
            print(line(f"restart of {name}"[:28], restart(runtime, name)), flush=True)


if __name__ == "__main__":
    main()

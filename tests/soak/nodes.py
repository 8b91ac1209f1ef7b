"""Kills a node every second while DAGs of hundreds of functions run over two nodes.

    python -m tests.soak.nodes [--seconds 60] [--every 1.0] [--stop]

Each DAG's results are compared with the sequential evaluation; at the end no claim may be held, no
process, descriptor or shared memory be left. With ``--stop`` some nodes are frozen for a while
instead of killed. Prints one line a second, and what went wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from handoff_actors import DAG, Function, NodeDownError, Runtime

SIZES = (10, 10, 10, 50_000)


def work(me: int, seconds: float, size: int, *args: Any) -> tuple[int, int, bytes]:
    """A value that depends on all below it, after a while."""
    time.sleep(seconds)
    total = me + sum(arg[1] for arg in args)
    return me, total % 1_000_003, bytes([total % 251]) * size


def dag(random_: random.Random, names: list[str], functions: int) -> DAG:
    """Functions that take up to three earlier ones; some pinned, some with costs."""
    made = DAG(f"soak-{random_.random()}")
    for i in range(functions):
        args = random_.sample(range(max(0, i - 40), i), min(i, random_.randint(0, 3)))
        where = random_.random()
        fields: dict[str, Any] = {}
        if where < 0.2:
            fields["node"] = random_.choice(names)
        elif where < 0.9:
            fields["cost"] = {"cpu": 1}
        extra = (random_.choice((0.0, 0.001, 0.01)), random_.choice(SIZES))
        code = _Work(i, *extra)
        made.add_function(Function(i, args, code, **fields))
    return made


class _Work:
    """``work`` with its first arguments."""

    def __init__(self, me: int, seconds: float, size: int) -> None:
        self.fixed = (me, seconds, size)

    def __call__(self, *args: Any) -> tuple[int, int, bytes]:
        return work(*self.fixed, *args)


def sequential(made: DAG) -> dict[Any, Any]:
    """What the DAG's results are."""
    values: dict[Any, Any] = {}
    for i, function in made.functions.items():
        code: Any = function.code
        me, _, size = code.fixed
        values[i] = work(me, 0.0, size, *[values[a] for a in function.args])
    return values


def soak(
    seconds: float, every: float, stop: bool, seed: int, functions: int = 300
) -> dict[str, int]:
    """Run; returns counts.

    Raises:
        AssertionError: a result was wrong, or something was left.
    """
    random_ = random.Random(seed)
    counts = {"runs": 0, "kills": 0, "functions": 0}
    over = threading.Event()
    keeps = ("all", "sinks")
    with Runtime(
        name="home", capabilities={"cpu": 2}, heartbeat_timeout=1.0, node_return_timeout=20.0
    ) as runtime:
        names = runtime.start_nodes(2, capabilities={"cpu": 2})

        def kill() -> None:
            while not over.wait(every):
                try:
                    pid = runtime.node_info(random_.choice(names)).pid
                    frozen = stop and random_.random() < 0.5
                    os.kill(pid, signal.SIGSTOP if frozen else signal.SIGKILL)
                except (NodeDownError, ProcessLookupError):
                    continue
                counts["kills"] += 1
                if frozen and not over.wait(random_.choice((0.2, 2.0))):
                    try:
                        os.kill(pid, signal.SIGCONT)
                    except ProcessLookupError:
                        continue

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            made = dag(random_, names, functions)
            began = time.monotonic()
            strategy = random_.choice(("load_balanced", "first_available"))
            with runtime.execute(
                made, allocation_strategy=strategy, keep=random_.choice(keeps), timeout=60.0
            ) as result:
                right = sequential(made)
                for i, value in result.results.items():
                    assert value == right[i], f"function {i} of {made.id}: {value[:2]}"
            counts["runs"] += 1
            counts["functions"] += len(made)
            print(f"{time.monotonic() - began:6.2f} s {counts}", flush=True)
        over.set()
        killer.join()
        deadline = time.monotonic() + 10.0
        while runtime.status().claims and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not runtime.status().claims, "claims are held at the end"
    return counts


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--stop", action="store_true")
    options = parser.parse_args()
    print("seed", options.seed)
    here = psutil.Process()
    before = (here.num_fds(), len(os.listdir("/dev/shm")), here.num_threads())
    counts = soak(options.seconds, options.every, options.stop, options.seed)
    time.sleep(0.5)
    after = (here.num_fds(), len(os.listdir("/dev/shm")), here.num_threads())
    print("descriptors, /dev/shm, threads before", before, "after", after, counts)
    print("memory now", here.memory_info().rss // 1_000_000, "MB; children", here.children())
    return int(bool(here.children()) or after[0] > before[0])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(main())

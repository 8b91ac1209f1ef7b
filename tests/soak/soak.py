"""Everything at once for minutes, and then nothing may be left of it.

    python -m tests.soak.soak --minutes 10
    python -m tests.soak.soak --minutes 10 --only streamed --nodes 2

Eight callers run DAGs on threads, processes and coroutines, with and without costs, nested,
failing, timing out, cancelled; meanwhile actors are crashed and worker processes killed. Every ten
seconds a line tells resident memory, threads, processes, descriptors, claims and runs done. At the
end the figures are compared with those after warm-up: exit status 1 tells of a leak, a wrong
result, or a caller that hangs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

import handoff_actors as handoff
from handoff_actors import Function
from handoff_actors.testing import crash, kill_node
from tests.soak.streams import streamed

CALLERS = 8
WORKERS = 6
EVERY = 10.0
"""Seconds between two lines."""
WARM_UP = 60.0
"""Seconds before the figures that the end is compared with."""
PATIENCE = 60.0
"""Seconds after which a run that has not ended counts as hanging."""
IDLE_THREADS = 12.0
"""Seconds after which a thread without work has ended."""
GROWTH = 1.10
"""Blocks of memory in use at the end may be so many of those after warm-up: runs differ."""
SETTLING = 1.25
"""The same of resident memory, of which allocators keep some that is free, in pieces."""

ACTORS = (
    "result_store",
    "resource_tracker",
    "data_location_registry",
    "worker_supervisor",
    "execution_supervisor",
    "pipeline_supervisor",
    "distributed_executor",
    "distributed_result_store",
)


class Expected(Exception):
    """What functions that are to fail raise."""


def add(*args: Any) -> int:
    """The sum, plus one."""
    return sum(args) + 1


async def add_later(*args: Any) -> int:
    """The same, after a turn of the loop."""
    await asyncio.sleep(0.0005)
    return sum(args) + 1


def flaky(*args: Any) -> int:
    """The same, at the second attempt."""
    if handoff.current().attempt == 1:
        raise Expected("first attempt")
    return sum(args) + 1


def broken(*_: Any) -> int:
    """Always fails."""
    raise Expected("always")


def big(*args: Any) -> bytes:
    """A megabyte."""
    return bytes(1_000_000)


def suicidal(*args: Any) -> int:
    """Kills its worker at the first attempt; only for worker processes."""
    if handoff.current().attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return sum(args) + 1


def spin(*args: Any) -> int:
    """Works until it is told to leave, for two seconds at most."""
    end = time.monotonic() + 2
    while time.monotonic() < end and not handoff.current().cancelled():
        time.sleep(0.001)
    return 0


def outer(depth: int) -> int:
    """Runs a DAG that runs a DAG..."""
    if depth == 0:
        return 0
    dag = handoff.new().add_function(
        Function("inner", (), outer, extra_args=[depth - 1], cost={"cpu": 1})
    )
    return int(handoff.execute(dag).results["inner"]) + 1


def chain(n: int, code: Callable[..., Any], **options: Any) -> handoff.DAG:
    """Each function takes the one before."""
    dag = handoff.new()
    for i in range(n):
        dag.add_function(Function(i, [i - 1] if i else [], code, **options))
    return dag


class Kinds:
    """The kinds of runs; each checks its own outcome."""

    def __init__(self, runtime: handoff.Runtime) -> None:
        self.runtime = runtime

    def execute(self, dag: handoff.DAG, **options: Any) -> handoff.ExecutionResult:
        """Run it; whatever happens, it ends in time."""
        return self.runtime.submit(dag, **options).result(PATIENCE)

    def threads(self, rng: random.Random) -> None:
        """A chain on threads, some with costs."""
        n = rng.randint(1, 60)
        cost = rng.choice([None, {"cpu": 0.5}, {"cpu": 1}, {"cpu": 2}])
        assert self.execute(chain(n, add, cost=cost)).results[n - 1] == n

    def wide(self, rng: random.Random) -> None:
        """Many at once, and one that takes them all."""
        n = rng.randint(2, 200)
        dag = handoff.new()
        for i in range(n):
            dag.add_function(Function(i, (), add, cost=rng.choice([None, {"cpu": 1}])))
        dag.add_function(Function("all", list(range(n)), add))
        assert self.execute(dag, keep="sinks").results["all"] == n + 1

    def coroutines(self, rng: random.Random) -> None:
        """A chain of coroutines."""
        n = rng.randint(1, 20)
        assert self.execute(chain(n, add_later)).results[n - 1] == n

    def processes(self, rng: random.Random) -> None:
        """A chain in worker processes."""
        n = rng.randint(1, 20)
        dag = chain(n, add, isolation="process", cost={"cpu": 0.5}, max_crashes=1000)
        assert self.execute(dag).results[n - 1] == n

    def killed(self, _: random.Random) -> None:
        """A function that kills its worker."""
        dag = chain(2, suicidal, isolation="process", max_crashes=1000)
        assert self.execute(dag).results[1] == 2

    def values(self, _: random.Random) -> None:
        """Values of a megabyte."""
        dag = chain(4, big).add_function(Function("length", [3], len))
        assert self.execute(dag, keep="sinks").results["length"] == 1_000_000

    def retried(self, rng: random.Random) -> None:
        """Each function fails once."""
        n = rng.randint(1, 10)
        assert self.execute(chain(n, flaky, cost={"cpu": 1})).results[n - 1] == n

    def failing(self, _: random.Random) -> None:
        """The third of five fails for good."""
        dag = chain(3, add, cost={"cpu": 0.5})
        dag.add_function(Function("bad", [2], broken, max_retries=1, cost={"cpu": 1}))
        dag.add_function(Function("never", ["bad"], add))
        try:
            self.execute(dag)
        except handoff.FunctionFailedError as error:
            if isinstance(error.__cause__, Expected):
                return
            raise
        raise AssertionError("it did not fail")

    def timing_out(self, rng: random.Random) -> None:
        """A function that overruns its timeout, on a thread or in a process."""
        isolation = rng.choice(["thread", "thread", "process"])
        dag = chain(
            1,
            spin,
            timeout=0.02,
            max_retries=0,
            cost={"cpu": 0.25},
            isolation=isolation,
            max_crashes=1000,
        )
        try:
            self.execute(dag)
        except handoff.FunctionTimeoutError:
            return
        raise AssertionError("it did not time out")

    def cancelled(self, rng: random.Random) -> None:
        """A run that is cancelled somewhere on its way."""
        run = self.runtime.submit(chain(30, rng.choice([spin, add, add_later]), cost={"cpu": 0.25}))
        time.sleep(rng.random() * 0.01)
        if run.cancel():
            try:
                run.result(PATIENCE)
            except handoff.RunCancelledError:
                return
            raise AssertionError("it was not cancelled")

    def nested(self, rng: random.Random) -> None:
        """Runs in runs."""
        depth = rng.randint(1, 4)
        dag = handoff.new().add_function(
            Function("f", (), outer, extra_args=[depth], cost={"cpu": 1})
        )
        assert self.execute(dag).results["f"] == depth

    def stored(self, rng: random.Random) -> None:
        """Values of the user's own, kept and cleared."""
        key = rng.random()
        self.runtime.store_value(key, "x", 1)
        self.runtime.store_result(key, "y", 2)
        assert self.runtime.get_result(key, "x") == 1
        assert self.runtime.synchronize(key, ["x", "y"]) == {"x": 1, "y": 2}
        self.runtime.clear(key)

    def waited_for(self, rng: random.Random) -> None:
        """A value that is asked for and never comes."""
        try:
            self.runtime.get_result(rng.random(), "x", timeout=0.01)
        except handoff.ResultTimeoutError:
            return
        raise AssertionError("there was a value")

    def streamed(self, rng: random.Random) -> None:
        """A pipeline; see ``streams``."""
        streamed(self.runtime, rng, PATIENCE)

    def all(self) -> list[Callable[[random.Random], None]]:
        """Every kind, the common ones more often."""
        common = [self.threads, self.wide, self.coroutines, self.processes, self.stored]
        return common * 3 + [
            self.killed,
            self.values,
            self.retried,
            self.failing,
            self.timing_out,
            self.cancelled,
            self.nested,
            self.waited_for,
            self.streamed,
            self.streamed,
        ]


@dataclass(frozen=True)
class Figures:
    """What the process has."""

    memory: float
    blocks: int
    threads: int
    processes: int
    fds: int
    claims: int

    @classmethod
    def take(cls, runtime: handoff.Runtime | None) -> Figures:
        """Now; memory in MB, of this process."""
        process = psutil.Process()
        return cls(
            process.memory_info().rss / 1e6,
            sys.getallocatedblocks(),
            threading.active_count(),
            len(process.children(recursive=True)),
            process.num_fds(),
            0 if runtime is None else len(runtime.status().claims),
        )

    def __str__(self) -> str:
        return (
            f"rss {self.memory:7.1f} MB  blocks {self.blocks:6}  threads {self.threads:3}  "
            f"processes {self.processes:2}  fds {self.fds:3}  claims {self.claims:2}"
        )


class Soak:
    """One soak; ``problems`` is what went wrong."""

    def __init__(self, minutes: float, seed: int, only: str | None = None, nodes: int = 0) -> None:
        self.only = only
        self.nodes = nodes
        self.end = time.monotonic() + minutes * 60
        self.warm_up = min(WARM_UP, minutes * 15)
        self.seed = seed
        self.problems: list[str] = []
        self.done: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.resting = threading.Event()
        self.over = threading.Event()
        self.idle = [threading.Event() for _ in range(CALLERS + 1)]

    def problem(self, text: str) -> None:
        """Tell of it now, and at the end."""
        print("PROBLEM", text, flush=True)
        self.problems.append(text)

    def rest(self, number: int) -> None:
        """While figures are taken nobody does anything."""
        if self.resting.is_set():
            self.idle[number].set()
            while self.resting.is_set() and not self.over.is_set():
                time.sleep(0.01)
            self.idle[number].clear()

    def caller(self, number: int, runtime: handoff.Runtime) -> None:
        """Runs one thing after another."""
        rng = random.Random(self.seed * 1000 + number)
        kinds = [k for k in Kinds(runtime).all() if self.only in (None, k.__name__)]
        while not self.over.is_set():
            self.rest(number)
            kind = rng.choice(kinds)
            try:
                kind(rng)
                self.done[kind.__name__] += 1
            except BaseException as error:
                self.problem(f"{kind.__name__}: {type(error).__name__}: {error}")
                traceback.print_exc()
        self.idle[number].set()

    def saboteur(self, runtime: handoff.Runtime) -> None:
        """Crashes actors and kills workers."""
        rng = random.Random(self.seed)
        up: list[int] = []
        runtime.subscribe(
            lambda event: up.append(event.pid),  # type: ignore[attr-defined]
            [handoff.events.WorkerStarted],
        )
        while not self.over.is_set():
            self.rest(CALLERS)
            time.sleep(rng.random() * 0.4)
            if self.nodes and rng.random() < 0.03:
                node = rng.choice([n for n in runtime.nodes() if n != runtime.node()] or [""])
                with contextlib.suppress(handoff.HandoffError, LookupError):
                    kill_node(node, runtime=runtime)
                    self.faults["node killed"] += 1
                continue
            if rng.random() < 0.3:
                children = [c for c in psutil.Process().children() if c.pid in up]
                for child in children[:1]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
                    self.faults["worker killed"] += 1
                del up[:-20]
                continue
            name = rng.choice(ACTORS)
            if rng.random() < 0.3:
                running = [r.dag_id for r in runtime.status().runs if r.state == "running"]
                name = f"run:{rng.choice(running)}" if running else name
            elif rng.random() < 0.2:
                name = rng.choice([*runtime.pipelines, name])
            with contextlib.suppress(handoff.ConfigurationError):
                crash(name, runtime=runtime)
                self.faults["actor crashed"] += 1
        self.idle[CALLERS].set()

    def figures(self, runtime: handoff.Runtime) -> Figures:
        """At rest: everybody waits, threads without work have ended, garbage is collected."""
        self.resting.set()
        for number, idle in enumerate(self.idle):
            if not idle.wait(PATIENCE * 2):
                self.problem(f"caller {number} hangs\n{runtime.status()}")
        end = time.monotonic() + 10
        while runtime.status().claims or runtime.status().workers["abandoned_threads"]:
            if time.monotonic() > end:
                self.problem(f"claims at rest: {runtime.status()}")
                break
            time.sleep(0.05)
        self.idle_threads_gone()
        gc.collect()
        taken = Figures.take(runtime)
        self.resting.clear()
        return taken

    @staticmethod
    def idle_threads_gone() -> None:
        """Wait until no more threads end: how many are parked tells of the last seconds only."""
        deadline = time.monotonic() + 4 * IDLE_THREADS
        fewest, since = threading.active_count(), time.monotonic()
        while (now := time.monotonic()) < min(deadline, since + IDLE_THREADS):
            if threading.active_count() < fewest:
                fewest, since = threading.active_count(), now
            time.sleep(0.1)

    def run(self) -> int:
        """All of it; the exit status."""
        before = Figures.take(None)
        runtime = handoff.Runtime(
            capabilities={"cpu": 2, "memory": 1000},
            max_restarts=10**9,
            max_retained_runs=64,
            max_workers=WORKERS,
        ).start()
        if self.nodes:
            runtime.start_nodes(self.nodes, capabilities={"cpu": 2})
        actors = [
            threading.Thread(target=self.caller, args=(n, runtime), daemon=True)
            for n in range(CALLERS)
        ]
        actors.append(threading.Thread(target=self.saboteur, args=(runtime,), daemon=True))
        for thread in actors:
            thread.start()
        began = time.monotonic()
        time.sleep(self.warm_up)
        warm = self.figures(runtime)
        print(f"after warm-up   {warm}", flush=True)
        while time.monotonic() < self.end and len(self.problems) < 20:
            time.sleep(min(EVERY, max(0.0, self.end - time.monotonic())))
            now = Figures.take(runtime)
            print(
                f"{time.monotonic() - began:7.0f} s       {now}  runs {self.done.total():7}  "
                f"faults {self.faults.total():5}",
                flush=True,
            )
        last = self.figures(runtime)
        print(f"at rest         {last}")
        self.over.set()
        for thread in actors:
            thread.join(PATIENCE)
        restarts = sum(runtime.status().restarts.values())
        runtime.stop()
        end = time.monotonic() + 10
        while (after := Figures.take(None)).threads > before.threads and time.monotonic() < end:
            time.sleep(0.05)
        print(f"after stop()    {after}")
        print("runs  ", dict(self.done))
        print("faults", dict(self.faults), "restarts", restarts)
        self.judge(before, warm, last, after)
        print("\n".join(["FAILED", *self.problems]) if self.problems else "no leak, nothing wrong")
        return 1 if self.problems else 0

    def judge(self, before: Figures, warm: Figures, last: Figures, after: Figures) -> None:
        """Compare."""
        if last.blocks > warm.blocks * GROWTH:
            self.problem(f"blocks of memory in use grew from {warm.blocks} to {last.blocks}")
        if last.memory > warm.memory * SETTLING:
            self.problem(f"memory grew from {warm.memory:.1f} to {last.memory:.1f} MB")
        if last.threads > warm.threads + 4:
            self.problem(f"threads grew from {warm.threads} to {last.threads}")
        if last.processes > (WORKERS + 2) * (1 + self.nodes):  # spares stand by
            self.problem(f"processes grew from {warm.processes} to {last.processes}")
        if last.fds > warm.fds + 8:
            self.problem(f"descriptors grew from {warm.fds} to {last.fds}")
        if after.threads > before.threads:
            self.problem(f"threads after stop(): {threading.enumerate()}")
        if after.processes > before.processes:
            self.problem(f"processes after stop(): {psutil.Process().children()}")
        if after.fds > before.fds + 2:
            self.problem(f"descriptors after stop(): {before.fds} became {after.fds}")


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Everything at once, for minutes.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="the kind of runs, say streamed")
    parser.add_argument("--nodes", type=int, default=0, help="so many, which are killed too")
    options = parser.parse_args()
    return Soak(options.minutes, options.seed, options.only, options.nodes).run()


if __name__ == "__main__":
    sys.exit(main())

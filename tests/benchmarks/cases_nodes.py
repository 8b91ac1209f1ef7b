"""What other nodes cost: functions there, values between, losses. All nodes are on this machine."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from handoff_actors import DAG, Function, Runtime
from tests.benchmarks import shapes
from tests.benchmarks.kernels import array, nap_for, nothing, seen, victim
from tests.benchmarks.report import Make, Row, Target, alternate, compared, timed

NAMES = ("n1", "n2")


@contextmanager
def nodes(**options: Any) -> Iterator[Runtime]:
    """A runtime with two nodes beside it."""
    with Runtime(name="home", capabilities={"cpu": 2}, **options) as runtime:
        runtime.start_nodes(2, names=NAMES, capabilities={"cpu": 2})
        yield runtime


def ours(runtime: Runtime, build: Callable[[], DAG]) -> Make:
    """A run of a DAG that is built anew, unmeasured."""

    def make() -> Callable[[], object]:
        dag = build()
        return lambda: runtime.execute(dag).release()

    return make


def pinned(count: int) -> DAG:
    """No-ops on one other node."""
    return shapes.independent("pinned", count, nothing, node="n1")


def alternating(length: int) -> DAG:
    """A chain that goes to and fro between two nodes."""
    dag = DAG("alternating")
    for i in range(length):
        args = (i - 1,) if i else ()
        dag.add_function(Function(i, args, nothing, node=("home", "n1")[i % 2]))
    return dag


def layered(width: int, depth: int) -> DAG:
    """Layers over two nodes, three inputs each."""
    dag = DAG("layered")
    for level in range(depth):
        for i in range(width):
            args = [(level - 1, (i + k) % width) for k in range(3)] if level else ()
            dag.add_function(Function((level, i), args, nothing, node=("home", "n1")[i % 2]))
    return dag


@contextmanager
def echo() -> Iterator[socket.socket]:
    """A connection to a process that sends back each byte it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = (
            "import socket,sys\n"
            "s=socket.create_connection(('127.0.0.1',int(sys.argv[1])))\n"
            "s.setsockopt(6,1,1)\n"
            "while (b:=s.recv(64)): s.sendall(b)"
        )
        child = subprocess.Popen([sys.executable, "-c", code, str(server.getsockname()[1])])
        try:
            connection, _ = server.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield connection
        finally:
            child.kill()
            child.wait()


def ping_pong(connection: socket.socket, count: int) -> None:
    """``count`` round trips."""
    for _ in range(count):
        connection.sendall(b"x" * 32)
        connection.recv(64)


def over_nodes(quick: bool) -> Iterator[Row]:
    """No-ops there, to and fro, and in layers."""
    count, length, depth, repeats = (500, 20, 5, 1) if quick else (10_000, 200, 100, 7)
    with nodes() as runtime, echo() as connection:
        taken = [timed(ours(runtime, partial(pinned, count))()) for _ in range(repeats + 1)][1:]
        figure = statistics.median(taken) / count
        note = "Ray 600, Dask 1,690"
        yield Row(
            f"{count} pinned to another node", figure, None, Target(15e-6, "ours"), "µs", note
        )

        def floor() -> Callable[[], object]:
            return partial(ping_pong, connection, length)

        samples = alternate(ours(runtime, partial(alternating, length)), floor, repeats)
        note = "per function; floor: a round trip of 32 bytes over TCP between two processes"
        yield compared(f"chain {length}, alternating", samples, length, Target(3.0), note=note)
        taken = [timed(ours(runtime, partial(layered, 100, depth))()) for _ in range(repeats + 1)]
        figure = statistics.median(taken[1:]) / (100 * depth)
        note = "Ray 700-835"
        yield Row(
            f"layered 100x{depth} over two nodes", figure, None, Target(30e-6, "ours"), "µs", note
        )


def arrays(quick: bool) -> Iterator[Row]:
    """An array from one node to another, beyond its making."""
    if importlib.util.find_spec("numpy") is None:
        return
    sizes = (1,) if quick else (100, 1000)
    with nodes() as runtime:
        for megabytes in sizes:
            count = megabytes * 125_000
            repeats = 1 if quick else 5
            taken = moving(runtime, "n1", "n2", count, repeats)
            copies = [copied(count) for _ in range(repeats)]
            note = "floor: memcpy into fresh memory; Ray 0.05 and 1.1 s, Dask 0.06 and 0.3 s"
            yield compared(
                f"{megabytes} MB array, node to node",
                (taken, copies),
                1,
                Target(2.0),
                unit="ms",
                note=note,
            )
    for name, using in (("distributed", _dask_array), ("ray", _ray_array)):
        if importlib.util.find_spec(name) is not None:
            for megabytes in sizes:
                figure = using(megabytes * 125_000)
                yield Row(f"{megabytes} MB array, {name}", figure, unit="ms")


def moving(runtime: Runtime, source: str, target: str, count: int, repeats: int) -> list[float]:
    """Seconds from the end of an array's making to the start of who takes it on another node."""
    taken = []
    for _ in range(repeats + 1):
        dag = DAG("array")
        dag.add_function(Function("make", code=array, extra_args=(count,), node=source))
        dag.add_function(Function("see", ["make"], seen, node=target))
        with runtime.execute(dag) as result:
            made = result.timings["make"]
            taken.append(result.timings["see"].start - made.start - made.duration)
    return taken[1:]


def copied(count: int) -> float:
    """Seconds to copy an array into memory that is fresh."""
    import numpy as np

    data = np.ones(count)
    began = perf_counter()
    bytearray(memoryview(data).cast("B"))
    return perf_counter() - began


def _dask_array(count: int) -> float:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        first, second = (w["name"] for w in client.scheduler_info()["workers"].values())
        taken = []
        for _ in range(3):
            made = client.submit(array, count, workers=[first], pure=False)
            made.result() if count < 1000 else client.gather([])
            while made.status != "finished":
                time.sleep(0.001)
            began = perf_counter()
            client.submit(seen, made, workers=[second], pure=False).result()
            taken.append(perf_counter() - began)
    return min(taken)


def _ray_array(count: int) -> float:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        make, see = ray.remote(array), ray.remote(seen)
        taken = []
        for _ in range(3):
            began = perf_counter()
            ray.get(see.remote(make.remote(count)))
            total = perf_counter() - began
            making = timed(partial(array, count))
            taken.append(total - making)
        return min(taken)
    finally:
        ray.shutdown()


def losses(quick: bool) -> Iterator[Row]:
    """Two nodes to the first result; a killed node's work runs again; a frozen one is given up."""
    taken = []
    for _ in range(1 if quick else 5):
        began = perf_counter()
        with nodes() as runtime:
            dag = DAG("first")
            for name in NAMES:
                dag.add_function(Function(name, code=nothing, node=name))
            runtime.execute(dag)
            taken.append(perf_counter() - began)
    target = Target(0.6, "ours")
    note = "Dask 0.9 s, Ray 4.6 s"
    yield Row("two nodes to their first result", statistics.median(taken), None, target, "s", note)
    again = []
    with nodes() as runtime, tempfile.TemporaryDirectory() as folder:
        for i in range(1 if quick else 7):
            again.append(killed(runtime, Path(folder) / f"pid-{i}"))
            while sorted(runtime.nodes()) != sorted(NAMES):
                time.sleep(0.01)
    note = "seconds from kill -9 of the node to the attempt elsewhere; Dask 0.10 s"
    yield Row("killed node", statistics.median(again), None, Target(0.1, "ours"), "ms", note)
    limit = 1.0 if quick else 5.0
    with nodes(heartbeat_timeout=limit) as runtime:
        dag = DAG("frozen")
        for i in range(4):
            dag.add_function(Function(i, code=nap_for, extra_args=(0.3,), cost={"cpu": 1}))
        run = runtime.submit(dag, allocation_strategy="load_balanced")
        time.sleep(0.1)
        pid = runtime.node_info("n1").pid
        began = perf_counter()
        os.kill(pid, signal.SIGSTOP)
        try:
            run.result(60.0)
        finally:
            os.kill(pid, signal.SIGCONT)
        took = perf_counter() - began
    note = f"its work has run elsewhere; heartbeat_timeout is {limit:g} s"
    yield Row("frozen node", took, None, Target(limit + 1.0, "ours"), "s", note)


def killed(runtime: Runtime, fifo: Path) -> float:
    """Seconds from the kill of a node to its function running again."""
    os.mkfifo(fifo)
    dag = DAG("victim")
    only = {"cost": {"cpu": 2}}
    dag.add_function(Function("busy", code=nap_for, extra_args=(0.5,), node="home", **only))
    dag.add_function(Function("victim", (), victim, extra_args=(str(fifo),), **only))
    at: list[float] = []

    def killer() -> None:
        pid = int(fifo.read_text())
        time.sleep(0.02)
        at.append(time.monotonic())
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=killer, daemon=True)
    thread.start()
    attempt, began = runtime.execute(dag, timeout=60).results["victim"]
    thread.join()
    assert attempt == 2
    return float(began - at[0])

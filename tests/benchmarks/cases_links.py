"""What a link costs by itself: a call and its answer, and large values, on each way there is.

The other machine is a process of this one that does not know it: see ``far_node``.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from handoff_actors import Runtime
from tests.benchmarks.cases_nodes import copied, echo, moving, nodes, ping_pong
from tests.benchmarks.report import Row, Target, alternate, compared

KEY = "5eed" * 16
BANDWIDTH = 1.5e9  # bytes a second that TCP is to reach


@contextmanager
def far(**options: Any) -> Iterator[Runtime]:
    """A runtime, and a node that is on another machine as far as both know."""
    with Runtime(
        name="home", capabilities={"cpu": 2}, listen="127.0.0.1:0", authkey=KEY, **options
    ) as runtime:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.far_node"], stdin=subprocess.PIPE, text=True
        )
        assert child.stdin is not None
        try:
            told = {"address": runtime.address, "options": {"authkey": KEY, **options}}
            print(json.dumps(told), file=child.stdin, flush=True)
            began = perf_counter()
            while "far" not in runtime.nodes():
                assert perf_counter() - began < 30.0, "the other node does not come"
            yield runtime
        finally:
            child.stdin.close()
            child.wait(20)


def calls(runtime: Runtime, node: str, count: int) -> Callable[[], None]:
    """``count`` calls of a node, one after another."""
    peer = runtime.cluster().peer(node)

    def call() -> None:
        for _ in range(count):
            peer.call("runs", "clock", 5.0)

    return call


def links(quick: bool) -> Iterator[Row]:
    """A call and its answer; arrays over TCP, plain and encrypted."""
    count, repeats = (20, 1) if quick else (300, 5)
    megabytes = 1 if quick else 100
    arrays = importlib.util.find_spec("numpy") is not None
    note = "floor: a round trip of 32 bytes over TCP between two processes"
    with nodes() as runtime, echo() as connection:
        yield _round_trip("local socket", runtime, "n1", connection, count, repeats, note)
    with far() as runtime, echo() as connection:
        yield _round_trip("TCP", runtime, "far", connection, count, repeats, note)
        if arrays:
            yield _bulk("TCP", runtime, megabytes, repeats)
    with tempfile.TemporaryDirectory() as folder:
        tls = certificates(Path(folder))
        if tls is not None and arrays:
            with far(tls=tls) as runtime:
                yield _bulk("TLS", runtime, megabytes, repeats)


def _round_trip(
    way: str, runtime: Runtime, node: str, connection: Any, count: int, repeats: int, note: str
) -> Row:
    samples = alternate(
        lambda: calls(runtime, node, count), lambda: partial(ping_pong, connection, count), repeats
    )
    return compared(f"call of a node, {way}", samples, count, None, note=note)


def _bulk(way: str, runtime: Runtime, megabytes: int, repeats: int) -> Row:
    count = megabytes * 125_000
    taken = moving(runtime, "far", "home", count, repeats)
    copies = [copied(count) for _ in range(repeats)]
    target = Target(megabytes * 1e6 / BANDWIDTH, "ours") if way == "TCP" else None
    speed = megabytes * 1e6 / sorted(taken)[len(taken) // 2] / 1e9
    note = f"{speed:.2f} GB/s; floor: memcpy into fresh memory"
    case = f"{megabytes} MB array, over {way}"
    return compared(case, (taken, copies), 1, target, unit="ms", note=note)


def certificates(folder: Path) -> dict[str, str] | None:
    """An authority's and a node's files; None where they cannot be made."""
    made = {name: str(folder / f"{name}.pem") for name in ("cafile", "certfile", "keyfile")}
    new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    authority, request = str(folder / "ca.key"), str(folder / "node.csr")
    for arguments in (
        [*new, "-x509", "-subj", "/CN=ca", "-keyout", authority, "-out", made["cafile"]],
        [*new, "-subj", "/CN=node", "-keyout", made["keyfile"], "-out", request],
        ["x509", "-req", "-in", request, "-CA", made["cafile"], "-CAkey", authority,
         "-CAcreateserial", "-out", made["certfile"]],
    ):  # fmt: skip
        try:
            done = subprocess.run(["openssl", *arguments], capture_output=True)
        except FileNotFoundError:
            return None
        if done.returncode:
            return None
    return made

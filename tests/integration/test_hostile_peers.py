"""Fifty connections at once of each hostile kind, to a node process that has work to do."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import handoff_actors as handoff
from handoff_actors import DAG, Function
from handoff_actors.cluster import handshake
from handoff_actors.cluster.addresses import parse
from handoff_actors.cluster.gateway import Caller, Place
from handoff_actors.cluster.handshake import Hello
from handoff_actors.cluster.transport import dial
from tests.gates import until
from tests.programs import Program

KEY = "ac" * 32
AT_ONCE = 50
Address = tuple[str, int]
Attack = Callable[[Address, threading.Event], None]


class Boom:
    """Unpickling this would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def connected(address: Address) -> socket.socket:
    return socket.create_connection(address, 10.0)


def until_closed(sock: socket.socket, over: threading.Event) -> None:
    """Stay until the node has closed, or the test is over."""
    sock.settimeout(0.1)
    while not over.is_set():
        try:
            if not sock.recv(1 << 16):
                return
        except TimeoutError:
            continue
        except OSError:
            return


def rubbish(address: Address, over: threading.Event) -> None:
    with connected(address) as sock:
        sock.sendall(os.urandom(100_000))
        until_closed(sock, over)


def silent(address: Address, over: threading.Event) -> None:
    with connected(address) as sock:
        until_closed(sock, over)


def half_open(address: Address, over: threading.Event) -> None:
    with connected(address) as sock:
        sock.sendall(b"HANDOFF\n")
        sock.shutdown(socket.SHUT_WR)
        until_closed(sock, over)


def slow(address: Address, over: threading.Event) -> None:
    with connected(address) as sock:
        for byte in b"HANDOFF\n" + handshake._encode(Hello("slow")):
            if over.wait(0.05):
                return
            sock.sendall(bytes([byte]))
        until_closed(sock, over)


def keyless_frame_of_4_gb(address: Address, over: threading.Event) -> None:
    """A proper hello, no proof, and then what a trusted peer would send."""
    stream = dial(address, None, 10.0)
    try:
        stream.send_all(b"HANDOFF\n" + handshake._encode(Hello("large")))
        handshake._read(stream)
        stream.send_all(bytes(32) + struct.pack("<Q", 1 << 32) + bytes(1 << 16))
        until_closed(stream.sock, over)
    finally:
        stream.close()


def frame_of_4_gb_at_once(address: Address, over: threading.Event) -> None:
    with connected(address) as sock:
        sock.sendall(struct.pack("<Q", 1 << 32) + bytes(1 << 16))
        until_closed(sock, over)


def wrong_key(address: Address, _over: threading.Event) -> None:
    with pytest.raises((handoff.AuthenticationError, handoff.NodeUnreachableError)):
        Caller(Place("wrong", *address), bytes(32))


def ends_at_once(address: Address, _over: threading.Event) -> None:
    connected(address).close()


ATTACKS: list[Attack] = [
    rubbish, silent, half_open, slow, keyless_frame_of_4_gb, frame_of_4_gb_at_once, wrong_key,
    ends_at_once,
]  # fmt: skip


@pytest.fixture
def node(leaks: Any) -> Iterator[Program]:
    program = Program(
        [sys.executable, "-m", "handoff_actors", "node", "--name", "n", "--cpu", "2"],
        {"HANDOFF_AUTHKEY": KEY},
    )
    yield program
    program.close()


def evil(address: Address, path: Path) -> None:
    """A pickle that would run, in the places where a peer would send one."""
    bomb = pickle.dumps(Boom(path))
    for before in (b"", b"HANDOFF\n" + handshake._encode(Hello("evil")), bytes(32)):
        with connected(address) as sock:
            sock.sendall(before + struct.pack("<Q", len(bomb)) + bomb)
            sock.shutdown(socket.SHUT_WR)
            until_closed(sock, threading.Event())


def test_fifty_at_once_of_each_kind_harm_nobody_and_leave_nothing(
    node: Program, make_runtime: Callable[..., handoff.Runtime], tmp_path: Path
) -> None:
    text = node.wait_for(r"node n listens on (\S+)")[1]
    address = parse(text)
    home = make_runtime(name="home", authkey=KEY, capabilities={"cpu": 1})
    home.connect(text)
    lost: list[Any] = []
    home.subscribe(lost.append, [handoff.events.NodeDown, handoff.events.NodeSuspect])
    process = psutil.Process(node.pid)

    def square(i: int) -> tuple[int, int]:
        time.sleep(0.002)
        return i * i, handoff.current().attempt

    def run(name: str) -> None:
        dag = DAG(name)
        for i in range(200):
            dag.add_function(Function(i, code=square, extra_args=[i], node="n"))
        found = home.execute(dag, timeout=30.0).results
        assert [found[i] for i in range(200)] == [(i * i, 1) for i in range(200)]

    run("before")
    before = (process.num_fds(), process.num_threads())
    memory = process.memory_info().rss
    over = threading.Event()
    errors: list[BaseException] = []

    def attacks(attack: Attack) -> None:
        try:
            attack(address, over)
        except (OSError, EOFError):
            return  # the node has closed: that is what is wanted
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=attacks, args=(attack,), daemon=True)
        for _ in range(AT_ONCE)
        for attack in ATTACKS
    ]
    for thread in threads:
        thread.start()
    for number in range(3):
        run(f"meanwhile {number}")
    evil(address, tmp_path / "evil")
    began = time.monotonic()
    other = make_runtime(name="other", authkey=KEY, capabilities={"cpu": 1})
    assert other.connect(text, timeout=10.0) == "n"
    assert time.monotonic() - began < 8.0
    other.stop()
    for thread in threads:
        thread.join(20.0)  # a node gives none of them more than its time for the handshake
    assert not any(thread.is_alive() for thread in threads)
    assert not errors
    assert not (tmp_path / "evil").exists()
    assert not lost or {event.node for event in lost} == {"other"}, lost
    run("after")
    until(lambda: process.num_fds() <= before[0] and process.num_threads() <= before[1] + 2)
    assert process.memory_info().rss - memory < 100_000_000
    refused = [line for line in node.lines if "refused_key" in line]
    assert len(refused) >= AT_ONCE

"""Nodes that join, leave and see each other: several runtimes, over real sockets."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors.cluster import handshake
from handoff_actors.cluster.addresses import parse
from handoff_actors.cluster.gateway import Caller, GatewayManager, Place
from handoff_actors.cluster.handshake import Hello
from handoff_actors.cluster.payload import dumps, loads
from handoff_actors.cluster.stream import Stream
from handoff_actors.cluster.transport import dial

KEY = "ab" * 32

Make = Callable[..., handoff.Runtime]


@pytest.fixture
def node(make_runtime: Make) -> Make:
    """Makes a listening node of one cluster."""

    def make(name: str, **options: Any) -> handoff.Runtime:
        options.setdefault("capabilities", {"cpu": 2})
        options.setdefault("listen", "127.0.0.1:0")
        options.setdefault("authkey", KEY)
        return make_runtime(name=name, **options)

    return make


class Echo:
    """A service on a node that answers, and keeps what it was posted."""

    def __init__(self, runtime: handoff.Runtime) -> None:
        self.got: list[Any] = []
        self.came = threading.Event()
        self.release = threading.Event()
        self.value: Any = None
        runtime.cluster().serve("echo", self.on_post, self.on_call, lambda *_: dumps(self.value))

    def on_post(self, peer: Any, message: Any) -> None:
        self.got.append((peer.name, message))
        if message == "end":
            self.came.set()

    def on_call(self, _peer: Any, request: Any) -> Any:
        if request == "wait":
            assert self.release.wait(20)
        if isinstance(request, BaseException):
            raise request
        return request


# Joining.


def test_joining_one_joins_all(node: Make) -> None:
    a, b, c, d = (node(name) for name in "abcd")
    assert b.connect(a.address) == "a"
    assert d.connect(c.address) == "c"
    # Two clusters of two become one of four.
    assert c.connect(b.address) == "b"
    for runtime, others in ((a, "bcd"), (b, "acd"), (c, "abd"), (d, "abc")):
        assert runtime.nodes() == list(others), runtime
        assert set(runtime.discover_nodes()) == set("abcd")
        assert runtime.discover_nodes()["a"] == {"cpu": 2.0}
    assert a.connect(d.address) == "d"  # nothing changes


def test_a_runtime_that_does_not_listen_can_connect(node: Make, make_runtime: Make) -> None:
    a = node("a")
    alone = make_runtime(authkey=KEY, name="alone")
    assert alone.address is None
    assert alone.connect(a.address) == "a"
    assert alone.address is not None
    b = node("b")
    assert b.connect(alone.address) == "alone"
    assert a.nodes() == ["alone", "b"]
    tree = {actor.name for actor in alone.status().tree.children}
    assert {"gateway", "membership"} <= tree
    assert {"gateway"}.isdisjoint(actor.name for actor in make_runtime().status().tree.children)


def test_many_join_at_once(node: Make, together: Callable[..., Any]) -> None:
    seed, *others = (node(f"n{k}") for k in range(6))
    together([lambda r=r: r.connect(seed.address, 15.0) for r in others])
    for runtime in (seed, *others):
        # Two that joined at the same moment may hear of each other a moment later.
        end = time.monotonic() + 10
        while len(runtime.nodes()) < 5 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(runtime.nodes()) == 5, (runtime, runtime.nodes())


def test_names_are_unique(node: Make) -> None:
    a, b, other = node("a"), node("b"), node("a")
    b.connect(a.address)
    for seed in (a, b):
        with pytest.raises(handoff.NameTakenError, match="already"):
            other.connect(seed.address)
    with pytest.raises(handoff.NodeError):
        other.connect(a.address)
    with pytest.raises(handoff.ConfigurationError, match="this node itself"):
        a.connect(a.address)
    assert other.nodes() == []
    assert a.nodes() == ["b"]


def test_who_joins_under_a_name_that_a_later_one_knows_is_as_if_it_never_had(
    node: Make, eventually: Callable[..., None]
) -> None:
    seed, third, first, second = node("seed"), node("third"), node("same"), node("same")
    first.cluster().apart.add("seed")  # so that only the third node knows it
    third.connect(seed.address)
    first.connect(third.address)
    assert (seed.nodes(), first.nodes()) == (["third"], ["third"])
    with pytest.raises(handoff.NameTakenError, match="'same' already"):
        second.connect(seed.address)
    assert second.nodes() == []
    eventually(lambda: seed.nodes() == ["third"])
    assert third.nodes() == ["same", "seed"]
    assert third.node_info("same").address == first.address
    assert seed.cluster().known()["same"].left


def test_clusters_that_have_a_name_in_common_are_not_joined(node: Make) -> None:
    a, one, b, other = node("a"), node("x"), node("b"), node("x")
    one.connect(a.address)
    other.connect(b.address)
    with pytest.raises(handoff.NameTakenError, match="has a node 'x', and so has this one"):
        b.connect(a.address)
    assert (a.nodes(), b.nodes()) == (["x"], ["x"])
    other.stop()
    assert b.connect(a.address) == "a"
    assert (a.nodes(), b.nodes()) == (["b", "x"], ["a", "x"])
    assert b.node_info("x").address == one.address


def test_two_nodes_that_cannot_reach_each_other_keep_nobody_out(
    node: Make, eventually: Callable[..., None], caplog: Any
) -> None:
    a, b, c = (node(name) for name in "abc")
    b.cluster().apart.add("c")
    c.cluster().apart.add("b")
    b.connect(a.address)
    began = time.monotonic()
    assert c.connect(a.address, 3.0) == "a"
    assert time.monotonic() - began < 3.0
    apart = [r.getMessage() for r in caplog.records if "nodes_apart" in r.getMessage()]
    assert len(apart) == 1
    assert "one='b' other='c' error=\"the link to 'b' is cut" in apart[0]
    assert (a.nodes(), b.nodes(), c.nodes()) == (["b", "c"], ["a"], ["a"])
    eventually(lambda: "c" in b.cluster().known() and "b" in c.cluster().known())
    assert (b.node_info("c").state, c.node_info("b").state) == ("down", "down")
    # They go on trying, and nobody has to do anything.
    b.cluster().apart.clear()
    c.cluster().apart.clear()
    eventually(lambda: b.nodes() == ["a", "c"] and c.nodes() == ["a", "b"])


def test_a_dial_that_a_stopping_node_cannot_finish_leaves_no_socket(
    node: Make, monkeypatch: Any
) -> None:
    a, b = node("a"), node("b")
    mesh = a.cluster()
    ask = mesh.ask

    def stops(event: Any) -> Any:
        if type(event).__name__ == "Dialled":
            raise handoff.ActorCrashedError("the runtime stops")
        return ask(event)

    monkeypatch.setattr(mesh, "ask", stops)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(handoff.ActorCrashedError):
        a.connect(b.address)
    monkeypatch.undo()
    end = time.monotonic() + 10
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < end:
        time.sleep(0.001)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert a.connect(b.address) == "b"


@pytest.mark.parametrize("address", ["nonsense", "host:", ":99999", "::1:80", 7, None])
def test_what_is_no_address_is_refused(node: Make, address: Any) -> None:
    with pytest.raises(handoff.ConfigurationError, match="host:port"):
        node("a").connect(address)
    if address is not None:
        with pytest.raises(handoff.ConfigurationError, match="host:port"):
            handoff.Runtime(listen=address)


def test_nobody_there(node: Make) -> None:
    a = node("a")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(handoff.NodeUnreachableError, match="no node answers"):
            a.connect(f"127.0.0.1:{free.getsockname()[1]}", timeout=2.0)
        free.listen()  # accepts, and never says anything
        began = time.monotonic()
        with pytest.raises(handoff.NodeUnreachableError):
            a.connect(f"127.0.0.1:{free.getsockname()[1]}", timeout=0.3)
        assert time.monotonic() - began < 3.0
    with pytest.raises(handoff.ConfigurationError, match="timeout"):
        a.connect("127.0.0.1:1", timeout=0)
    b = node("b")
    with pytest.raises(handoff.ConfigurationError, match="cannot listen"):
        node("c", listen=b.address)


def test_wrong_key(node: Make) -> None:
    a, stranger = node("a"), node("stranger", authkey="cd" * 32)
    with pytest.raises(handoff.AuthenticationError, match="same key"):
        stranger.connect(a.address)
    assert a.nodes() == stranger.nodes() == []


@pytest.mark.parametrize(
    "hello",
    [
        replace(Hello("old"), version="0.0.1"),
        replace(Hello("old"), python="3.2.1"),
        replace(Hello("old"), protocol=99),
    ],
)
def test_other_versions_are_refused_by_name(
    node: Make, hello: Hello, spawn: Callable[..., Any]
) -> None:
    a = node("a")
    stream = dial(parse(a.address), None, 5.0)
    with pytest.raises(handoff.IncompatibleNodeError, match=r"here is old .*there is a ") as caught:
        handshake.call(stream, "old", bytes.fromhex(KEY), hello)
    assert caught.value.node == "a"
    stream.close()
    # And when it is the gateway that is old.
    here, there = map(Stream, socket.socketpair())
    answered = spawn(lambda: handshake.answer(there, "old", b"k", hello))
    with pytest.raises(handoff.IncompatibleNodeError, match=r"here is me .*there is old "):
        handshake.call(here, "me", b"k")
    with pytest.raises(handoff.IncompatibleNodeError, match=r"here is old .*there is me "):
        answered.result(10)
    here.close()
    there.close()


def test_keys_may_be_given_in_any_form(make_runtime: Make, monkeypatch: Any) -> None:
    assert make_runtime(authkey=b"secret").authkey == b"secret".hex()
    assert make_runtime(authkey="secret").authkey == b"secret".hex()
    assert make_runtime(authkey="ABcd").authkey == "abcd"
    made = make_runtime()
    assert len(bytes.fromhex(made.authkey)) == 32
    assert made.authkey != make_runtime().authkey
    monkeypatch.setenv("HANDOFF_AUTHKEY", KEY)
    runtime = make_runtime()
    assert runtime.authkey == KEY
    shown = repr(runtime) + repr(runtime.options) + str(runtime.status())
    assert KEY not in shown + json.dumps(runtime.status().to_dict(), default=str)
    with pytest.raises(handoff.ConfigurationError, match="authkey"):
        handoff.Runtime(authkey="")


# Leaving.


def test_leaving(node: Make, eventually: Callable[..., None]) -> None:
    a, b, c = (node(name) for name in "abc")
    b.connect(a.address)
    c.connect(a.address)
    pid = a.node_info("b").pid
    a.disconnect("b")
    assert a.nodes() == ["c"]
    eventually(lambda: b.nodes() == ["c"])
    assert c.nodes() == ["a", "b"]
    info = a.node_info("b")
    assert (info.state, info.pid) == ("down", pid)
    for name in ("b", "nobody"):
        with pytest.raises(handoff.NodeDownError):
            a.disconnect(name)
    with pytest.raises(handoff.NodeDownError, match="not known"):
        a.node_info("nobody")
    b.connect(a.address)
    assert a.nodes() == ["b", "c"]
    b.stop()
    eventually(lambda: a.nodes() == ["c"] and c.nodes() == ["a"])
    assert c.node_info("b").state == "down"


def test_a_runtime_may_be_started_again(node: Make, eventually: Callable[..., None]) -> None:
    a, b = node("a"), node("b")
    b.connect(a.address)
    b.stop()
    eventually(lambda: a.nodes() == [])
    b.start()
    assert b.nodes() == []
    assert b.connect(a.address) == "a"
    assert a.nodes() == ["b"]


# What is known of nodes.


def test_node_info_and_resources_of_others(node: Make) -> None:
    a, b = node("a"), node("b", capabilities={"cpu": 4, "gpu": 1})
    b.connect(a.address)
    info = a.node_info("b")
    assert info == replace(
        info,
        name="b",
        address=b.address,
        pid=os.getpid(),
        state="up",
        capabilities={"cpu": 4, "gpu": 1},
        available={"cpu": 4, "gpu": 1},
    )
    assert info.python == b.node_info().python
    assert info.version == handoff.__version__
    assert b.node_info().address == b.address
    assert a.resources_available("b", {"gpu": 1})
    assert not a.resources_available("b", {"gpu": 2})
    assert not a.resources_available("nobody", {})
    b.register_local_node({"cpu": 1})
    end = time.monotonic() + 10
    while a.discover_nodes()["b"] != {"cpu": 1} and time.monotonic() < end:
        time.sleep(0.001)
    assert a.discover_nodes() == {"a": {"cpu": 2}, "b": {"cpu": 1}}
    assert not a.resources_available("b", {"gpu": 1})
    # What was registered here goes before what the node says of itself.
    a.register_node("b", {"cpu": 7})
    a.register_node("elsewhere", {"cpu": 3})
    assert a.discover_nodes() == {"a": {"cpu": 2}, "b": {"cpu": 7}, "elsewhere": {"cpu": 3}}
    assert [n.name for n in a.status().nodes] == ["a", "b"]


def test_events_of_nodes(node: Make, eventually: Callable[..., None]) -> None:
    a, b = node("a"), node("b")
    seen: list[Any] = []
    kinds = (handoff.events.NodeUp, handoff.events.NodeDown)
    with a.subscribe(seen.append, kinds):
        b.connect(a.address)
        b.stop()
        eventually(lambda: len(seen) == 2)
    assert [type(event) for event in seen] == list(kinds)
    assert {event.node for event in seen} == {"b"}


# Posts, calls, values.


def test_posts_and_calls(node: Make) -> None:
    a, b = node("a"), node("b")
    echo = Echo(b)
    b.connect(a.address)
    peer = a.cluster().peer("b")
    large = bytes(3 << 20)
    for number in range(500):
        peer.post("echo", number)
    for _ in range(20):  # more than the socket takes
        peer.post("echo", large)
    peer.post("echo", lambda: 1)
    peer.post("echo", "end")
    assert echo.came.wait(20)
    assert [m for _, m in echo.got[:500]] == list(range(500))
    assert [m for _, m in echo.got[500:520]] == [large] * 20
    assert echo.got[520][1]() == 1
    assert {name for name, _ in echo.got} == {"a"}
    assert peer.call("echo", {"x": [1, 2]}, 5) == {"x": [1, 2]}
    with pytest.raises(KeyError, match="no such thing"):
        peer.call("echo", KeyError("no such thing"), 5)
    with pytest.raises(handoff.SerializationError):
        peer.post("echo", threading.Lock())
    with pytest.raises(handoff.HandoffError, match="does not answer 'nothing'"):
        peer.call("nothing", 1, 5)
    peer.post("nothing", 1)  # told in the log, and no more


def test_no_call_is_left_waiting(node: Make, spawn: Callable[..., Any]) -> None:
    a, b = node("a"), node("b")
    echo = Echo(b)
    b.connect(a.address)
    peer = a.cluster().peer("b")
    with pytest.raises(handoff.NodeUnreachableError, match=r"within 0\.05 s"):
        peer.call("echo", "wait", 0.05)
    with pytest.raises(handoff.NodeUnreachableError):
        peer.ask("echo", "wait", 0.05).result(10)
    waiting = [spawn(lambda: peer.call("echo", "wait", 30)) for _ in range(3)]
    assert peer.call("echo", 1, 5) == 1  # the others are at it, and this one is not behind them
    b.cluster().peer("a").close("pulled out")  # type: ignore[attr-defined]
    for each in waiting:
        with pytest.raises(handoff.NodeDownError):
            each.result(10)
    with pytest.raises(handoff.NodeDownError):
        peer.call("echo", 1, 5)
    with pytest.raises(handoff.NodeDownError):
        peer.post("echo", 1)
    assert peer.ask("echo", 1, 5).exception(5) is not None
    echo.release.set()


def test_a_lost_connection_is_made_again(node: Make, eventually: Callable[..., None]) -> None:
    a, b = node("a"), node("b")
    b.connect(a.address)
    peer = a.cluster().peer("b")
    peer.stream.shutdown()  # type: ignore[attr-defined]
    eventually(lambda: peer.state == "down")
    eventually(lambda: a.nodes() == ["b"] and b.nodes() == ["a"])
    again = a.cluster().peer("b")
    assert again is not peer
    assert (again.incarnation, again.session != peer.session) == (peer.incarnation, True)


@pytest.mark.parametrize("way", ["memory", "local socket", "tcp", "link"])
def test_large_values_come_each_way(node: Make, way: str, monkeypatch: Any) -> None:
    numpy = pytest.importorskip("numpy")
    a, b = node("a"), node("b")
    echo = Echo(b)
    echo.value = {"array": numpy.arange(1 << 20), "text": "x" * 300_000, "bytes": bytes(2 << 20)}
    b.connect(a.address)
    peer: Any = a.cluster().peer("b")
    if way != "memory":
        peer.bulk._unreadable = 99
    if way == "tcp":
        peer.card = replace(peer.card, local=None)
    if way == "link":
        peer.card = replace(peer.card, local=None, address=None)
    for _ in range(3):
        found = loads(peer.fetch("echo", "key", 20))
        assert (found["array"] == echo.value["array"]).all()
        assert found["text"] == echo.value["text"]
        assert found["bytes"] == echo.value["bytes"]
        found["array"][0] = 7  # it is ours
        assert echo.value["array"][0] == 0
    back: Any = b.cluster().peer("a")
    assert peer.call("echo", 1, 5) == 1  # what was freed has been told
    assert not back.bulk._pinned
    echo.value = "small"
    assert loads(peer.fetch("echo", "key", 5)) == "small"


def test_a_value_larger_than_memory_is_refused(node: Make, monkeypatch: Any) -> None:
    from handoff_actors.cluster import memory

    a, b = node("a"), node("b")
    Echo(b).value = bytes(8 << 20)
    b.connect(a.address)
    peer: Any = a.cluster().peer("b")
    monkeypatch.setattr(memory, "memory_left", lambda: 4 << 20)
    with pytest.raises(MemoryError, match=r"8 MB on node 'b' does not fit into the 4 MB"):
        peer.fetch("echo", "key", 5)
    assert peer.call("echo", 1, 5) == 1
    assert not b.cluster().peer("a").bulk._pinned  # type: ignore[attr-defined]


# Crashes of the actors.


@pytest.mark.parametrize("name", ["gateway", "membership"])
def test_a_crash_costs_nothing(node: Make, name: str, eventually: Callable[..., None]) -> None:
    a, b, c = (node(each) for each in "abc")
    b.connect(a.address)
    peer = a.cluster().peer("b")
    for _ in range(2):
        before = a.status().restarts.get(name, 0)
        handoff.testing.crash(name, runtime=a)
        eventually(lambda n=before: a.status().restarts.get(name, 0) == n + 1)
    assert a.cluster().peer("b") is peer
    assert a.nodes() == ["b"]
    c.connect(a.address)
    assert a.nodes() == ["b", "c"]
    assert b.nodes() == ["a", "c"]
    a.disconnect("b")
    assert a.nodes() == ["c"]


# Silence.


def test_a_silent_peer_is_suspect_then_down_then_back(
    node: Make, eventually: Callable[..., None]
) -> None:
    a, b = node("a", heartbeat_timeout=0.6), node("b", heartbeat_timeout=0.6)
    heard: list[str] = []
    a.cluster().watch(lambda event: heard.append(type(event).__name__))
    b.connect(a.address)
    peer = a.cluster().peer("b")
    # b says nothing for a while, as if frozen; what it has to say comes later.
    link: Any = b.cluster().peer("a")
    link._sending.acquire()
    eventually(lambda: "PeerSuspect" in heard)
    assert peer.state == "suspect"
    assert a.node_info("b").state == "suspect"
    assert a.nodes() == ["b"]
    link._sending.release()
    link.tell_facts(dumps({}))
    eventually(lambda: "PeerBack" in heard)
    assert peer.state == "up"
    link._sending.acquire()
    began = time.monotonic()
    eventually(lambda: "PeerDown" in heard)
    assert time.monotonic() - began < 3.0
    link._sending.release()
    eventually(lambda: heard.count("PeerUp") == 2)
    assert a.nodes() == ["b"]


# Who may come in.


def test_interfaces_that_others_can_reach(make_runtime: Make, monkeypatch: Any) -> None:
    monkeypatch.delenv("HANDOFF_AUTHKEY", raising=False)
    for options in ({}, {"authkey": KEY}):
        with pytest.raises(handoff.ConfigurationError, match="insecure=True"):
            handoff.start(listen="0.0.0.0:0", **options)
    with pytest.warns(UserWarning, match="can run any code"):
        runtime = make_runtime(listen="0.0.0.0:0", insecure=True, authkey=KEY)
    other = make_runtime(authkey=KEY)
    assert runtime.address is not None
    assert other.connect(runtime.address) == runtime.node()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_runtime(listen="localhost:0")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a certificate of it, and one of another authority."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*args: str) -> None:
        done = subprocess.run(["openssl", *args], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"openssl: {done.stderr}")

    try:
        for ca, name in (("ca", "node"), ("other-ca", "other")):
            new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
            openssl(*new, "-x509", "-days", "2", "-subj", f"/CN={ca}",
                    "-keyout", f"{ca}.key", "-out", f"{ca}.pem")  # fmt: skip
            openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
            openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey",
                    f"{ca}.key", "-CAcreateserial", "-out", f"{name}.pem")  # fmt: skip
    except FileNotFoundError:
        pytest.skip("there is no openssl here")
    return folder


def tls(folder: Path, name: str = "node", ca: str = "ca") -> dict[str, str]:
    return {
        "certfile": str(folder / f"{name}.pem"),
        "keyfile": str(folder / f"{name}.key"),
        "cafile": str(folder / f"{ca}.pem"),
    }


def test_tls(node: Make, certificates: Path) -> None:
    mine = tls(certificates)
    a, b = (node(n, listen="0.0.0.0:0", tls=mine) for n in "ab")
    # Over the encrypted way, not the local socket that there is too.
    for runtime in (a, b):
        mesh = runtime.cluster()
        mesh.card = replace(mesh.card, machine=f"another machine: {runtime.node()}")
    echo = Echo(b)
    assert b.connect(a.address) == "a"
    peer: Any = a.cluster().peer("b")
    assert type(peer.stream).__name__ == "TLSStream"
    large = os.urandom(3 << 20)
    for number in range(300):
        peer.post("echo", number)
    for _ in range(5):
        peer.post("echo", large)
    peer.post("echo", "end")
    assert echo.came.wait(20)
    assert [m for _, m in echo.got] == [*range(300), *[large] * 5, "end"]
    echo.value = large
    assert loads(peer.fetch("echo", 1, 20)) == large
    assert peer.call("echo", 5, 5) == 5
    # Neither without certificates, nor with those of another authority.
    for options in ({}, {"tls": tls(certificates, "other", "other-ca")}):
        with pytest.raises(handoff.NodeUnreachableError, match="TLS"):
            node(f"stranger{len(options)}", **options).connect(a.address, 2.0)
    with pytest.raises(handoff.NodeUnreachableError, match="TLS"):
        a.connect(node("plain").address, 2.0)
    assert a.nodes() == ["b"]


@pytest.mark.parametrize("given", ["cert.pem", {"certfile": "x"}, {"a": 1, "b": 2, "c": 3}])
def test_what_is_no_tls_is_refused(given: Any) -> None:
    with pytest.raises(handoff.ConfigurationError, match="tls must be"):
        handoff.Runtime(tls=given)
    with pytest.raises(handoff.ConfigurationError, match="cannot use"):
        handoff.Runtime(tls={"certfile": "/no", "keyfile": "/no", "cafile": "/no"})


# Hostile and broken peers.


class Boom:
    """Unpickling this would be the end of the test."""

    def __reduce__(self) -> Any:
        return os._exit, (66,)


def test_rubbish_half_open_slow_and_silent_connections_harm_nobody(
    node: Make, together: Callable[..., Any]
) -> None:
    a, b = node("a"), node("b")
    Echo(b)
    host, port = parse(a.address)
    sockets = [socket.create_connection((host, port)) for _ in range(120)]
    evil = __import__("pickle").dumps(Boom())
    rubbish = [
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(5000),
        evil,
        struct.pack("<Q", len(evil)) + evil,
        b"HANDOFF\n" + b"\xff\xff" + b"{" * 70_000,
        b"HANDOFF\n" + struct.pack("<H", 2000) + b"[" * 2000,
        b"HANDOFF\n" + struct.pack("<H", 2) + b"{}",
        b"HANDOFF\n",  # and then nothing
        b"",
        b"H",
    ]
    for number, sock in enumerate(sockets):
        try:
            sock.sendall(rubbish[number % len(rubbish)])
        except OSError:
            continue
    began = time.monotonic()
    assert b.connect(a.address) == "a"
    assert time.monotonic() - began < 3.0
    assert a.cluster().peer("b").call("echo", 1, 5) == 1
    # Half-open ones, and proofs that are none.
    for _ in range(20):
        stream = dial((host, port), None, 5.0)
        mine = handshake._encode(Hello("evil"))
        stream.send_all(b"HANDOFF\n" + mine)
        handshake._read(stream)
        stream.send_all(bytes(32) + struct.pack("<Q", len(evil)) + evil)
        assert stream.read_exactly(32) == bytes(32)
        stream.close()
    for sock in sockets[:60]:
        sock.close()
    c = node("c")
    assert c.connect(a.address) == "a"
    for sock in sockets[60:]:
        sock.close()


def test_who_has_the_key_reaches_four_methods_and_no_more(node: Make) -> None:
    a = node("a")
    place = Place("me", *parse(a.address))
    key = bytes.fromhex(KEY)
    GatewayManager(place, key).connect()
    from multiprocess import managers

    caller = Caller(place, key)
    assert caller.call("greet").card.name == "a"
    for method in ("close", "__init__", "serve", "membership", "_dial", "__reduce__"):
        with pytest.raises((handoff.HandoffError, AttributeError)):
            caller.call(method)
    assert caller.call("describe")["node"] == "a"
    caller.close()
    for verb in ("create", "shutdown", "incref", "debug_info", "number_of_objects"):
        caller = Caller(place, key)
        with pytest.raises(handoff.HandoffError, match="has no"):
            managers.dispatch(caller.connection, None, verb, ("node",))
        caller.close()
    assert a.nodes() == []

"""Node processes: started, killed, frozen, orphaned; and nodes from the command line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import handoff_actors as handoff
from tests.integration.conftest import environment
from tests.programs import Program

KEY = "ef" * 32
Make = Callable[..., handoff.Runtime]


@pytest.fixture(autouse=True)
def _bytecode(monkeypatch: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Processes need not compile the library each time."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(base / "bytecode"))


@pytest.fixture
def home(make_runtime: Make) -> handoff.Runtime:
    return make_runtime(name="home", capabilities={"cpu": 1}, heartbeat_timeout=1.0)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_nodes_are_up_when_they_are_started(home: handoff.Runtime, default: Any) -> None:
    names = home.start_nodes(2, capabilities={"cpu": 3}, names=["left", "right"])
    assert names == home.nodes() == ["left", "right"]
    assert home.discover_nodes() == {"home": {"cpu": 1}, "left": {"cpu": 3}, "right": {"cpu": 3}}
    (third,) = home.start_nodes(1, capabilities={"gpu": 1})
    assert home.resources_available(third, {"gpu": 1})
    for name in home.nodes():
        info = home.node_info(name)
        process = psutil.Process(info.pid)
        assert process.ppid() == os.getpid()
        assert home.authkey not in " ".join(process.cmdline())
        assert info.state == "up"
    # They know each other: whoever joins one of them sees all.
    default.start(name="guest", authkey=home.authkey)
    assert default.connect(home.node_info("left").address) == "left"
    assert set(default.nodes()) == {"home", "left", "right", third}
    tree = {actor.name: actor for actor in home.status().tree.children}
    assert tree["node_supervisor"].state == "up"


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        ((0,), {}, "n must be"),
        ((True,), {}, "n must be"),
        ((2,), {"names": ["a"]}, "2 nodes need 2"),
        ((2,), {"names": ["a", "a"]}, "different names"),
        ((1,), {"names": [""]}, "non-empty"),
        ((1,), {"names": ["home"]}, "already"),
        ((1,), {"capabilities": {"cpu": -1}}, "capabilities of the nodes"),
    ],
)
def test_what_cannot_be_started_is_refused(
    home: handoff.Runtime, arguments: Any, options: Any, match: str
) -> None:
    with pytest.raises(handoff.ConfigurationError, match=match):
        home.start_nodes(*arguments, **options)


def test_a_node_that_cannot_begin_is_told_at_once(home: handoff.Runtime, monkeypatch: Any) -> None:
    from handoff_actors import runtime_cluster

    monkeypatch.setattr(runtime_cluster, "_SCRIPT", "/nowhere/to/be/found.py")
    with pytest.raises(handoff.NodeDownError, match="ended with 2 before it was up"):
        home.start_nodes(2)
    assert home.nodes() == []
    assert home.status().restarts == {}


def test_killed_nodes_come_back_under_their_names_and_count_against_nobody(
    home: handoff.Runtime, eventually: Callable[..., None]
) -> None:
    (name,) = home.start_nodes(1)
    down: list[float] = []
    seen = threading.Event()

    def heard(event: Any) -> None:
        down.append(time.monotonic())
        seen.set()

    home.subscribe(heard, [handoff.events.NodeDown])
    pids = []
    for _ in range(5):  # more than max_restarts
        pids.append(home.node_info(name).pid)
        seen.clear()
        began = time.monotonic()
        os.kill(pids[-1], signal.SIGKILL)
        assert seen.wait(10)
        assert down[-1] - began < 0.5
        eventually(lambda: home.nodes() == [name])
        assert home.node_info(name).pid not in pids
    assert home.running
    assert home.status().restarts[f"node:{name}"] == 5
    assert home.discover_nodes()[name]


def test_a_frozen_node_is_suspect_then_down_and_is_used_again_when_it_thaws(
    home: handoff.Runtime, eventually: Callable[..., None]
) -> None:
    frozen, other = home.start_nodes(2, names=["frozen", "other"])
    heard: list[tuple[str, str]] = []
    home.cluster().watch(lambda e: heard.append((type(e).__name__, e.peer.name)))
    before = home.cluster().peer(frozen)
    pid = home.node_info(frozen).pid
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    try:
        with pytest.raises((handoff.NodeUnreachableError, handoff.NodeDownError)):
            before.call("handoff.node", ("available",), 0.3)
        assert not home.resources_available(frozen, {})
        eventually(lambda: home.nodes() == [other])
        assert time.monotonic() - began < 3.5
        info = home.node_info(frozen)
        assert (info.state, info.pid) == ("down", pid)
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: home.nodes() == [frozen, other])
    after = home.cluster().peer(frozen)
    assert home.node_info(frozen).pid == pid
    assert (after.incarnation, after.session == before.session) == (before.incarnation, False)
    home.cluster().notifier.flush()
    of_frozen = [kind for kind, name in heard if name == frozen]
    assert of_frozen == ["PeerUp", "PeerSuspect", "PeerDown", "PeerUp"], of_frozen
    assert "PeerDown" not in [kind for kind, name in heard if name == other]


def test_crashes_of_the_actors_cost_no_process(
    home: handoff.Runtime, eventually: Callable[..., None]
) -> None:
    (name,) = home.start_nodes(1)
    pid = home.node_info(name).pid
    for actor in (f"node:{name}", "node_supervisor", "gateway", "membership"):
        handoff.testing.crash(actor, runtime=home)
        eventually(lambda a=actor: home.status().restarts.get(a) == 1)
    assert home.node_info(name).pid == pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: home.nodes() == [name] and home.node_info(name).pid != pid)


PARENT = """
    import sys, time
    import handoff_actors as handoff

    handoff.start(name="parent")
    names = handoff.start_nodes(2)
    print(*[handoff.node_info(name).pid for name in names], flush=True)
    {then}
"""


@pytest.mark.parametrize(
    ("then", "signal_"),
    [
        ("sys.stdin.read()", signal.SIGKILL),
        ("sys.stdin.read()", signal.SIGTERM),
        ("import os; os._exit(1)", None),
        ("", None),
        ("raise SystemExit('bye')", None),
    ],
)
def test_nodes_end_with_their_parent_however_it_ends(
    popen: Any, then: str, signal_: Any, eventually: Callable[..., None]
) -> None:
    parent = popen(PARENT.format(then=then))
    pids = list(map(int, parent.stdout.readline().split()))
    assert len(pids) == 2, parent.stderr.read()
    if signal_ is not None:
        parent.send_signal(signal_)
    eventually(lambda: all(map(gone, pids)), 10.0)


def test_a_script_without_main_guard_may_start_nodes(script: Any) -> None:
    done = script("""
        import handoff_actors as handoff

        with handoff.start():
            print(len(handoff.start_nodes(2)), flush=True)
            print(handoff.nodes() == sorted(handoff.nodes()))
    """)
    assert done.stdout.split() == ["2", "True"]
    assert done.stderr == ""


# The command line.


class Node(Program):
    """``handoff node`` in a process of its own."""

    def __init__(self, *args: str, **more: str) -> None:
        super().__init__([sys.executable, "-m", "handoff_actors", "node", *args], more)


@pytest.fixture
def start_node(leaks: Any) -> Iterator[Callable[..., Node]]:
    started: list[Node] = []

    def start(*args: str, **more: str) -> Node:
        started.append(Node(*args, **more))
        return started[-1]

    yield start
    for each in started:
        each.close()


def status(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "handoff_actors", "status", *args],
        env={**environment(), **more},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_nodes_from_the_command_line(
    start_node: Any, make_runtime: Make, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    key = tmp_path / "key"
    key.write_text(KEY + "\n")
    key.chmod(0o600)
    first = start_node(
        "--name", "first", "--cpu", "3", "--memory", "100", "--resource", "gpu=1",
        "--authkey-file", str(key),
    )  # fmt: skip
    address = first.wait_for(r"node first listens on (\S+) .*cpu=3, memory=100, gpu=1")[1]
    second = start_node("--name", "second", "--connect", address, HANDOFF_AUTHKEY=KEY)
    second.wait_for("joined first at")
    first.wait_for(r"INFO node_up .*peer='second'")
    me = make_runtime(name="me", authkey=KEY)
    me.connect(address)
    assert me.nodes() == ["first", "second"]
    assert me.node_info("first").capabilities == {"cpu": 3, "memory": 100, "gpu": 1}

    shown = status(address, "--authkey-file", str(key))
    assert shown.returncode == 0, shown.stderr
    rows = {line.split()[0]: line.split()[1] for line in shown.stdout.splitlines()[1:4]}
    assert rows == {"first": "up", "me": "up", "second": "up"}
    assert me.nodes() == ["first", "second"]  # who only looks does not join

    second.process.terminate()
    assert second.process.wait(20) == 0
    second.wait_for("drained")
    eventually(lambda: me.nodes() == ["first"])
    assert me.node_info("second").state == "down"
    first.wait_for(r"INFO node_left .*peer='second'")
    first.process.send_signal(signal.SIGINT)
    assert first.process.wait(20) == 0
    shown = status(address, HANDOFF_AUTHKEY=KEY)
    assert shown.returncode == 1
    assert "no node answers" in shown.stderr
    assert len(shown.stderr.splitlines()) == 1
    for line in first.lines[:-1]:
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (INFO|WARNING) ", line), line
    assert KEY not in "".join(first.lines + second.lines)


def test_a_node_goes_on_trying_to_join(
    start_node: Any, make_runtime: Make, eventually: Callable[..., None]
) -> None:
    me = make_runtime(name="me", authkey=KEY, listen="127.0.0.1:0")
    address = me.address
    me.stop()
    early = start_node("--name", "early", "--connect", address, HANDOFF_AUTHKEY=KEY)
    early.wait_for("WARNING cannot_join")
    again = make_runtime(name="me", authkey=KEY, listen=address)
    early.wait_for("joined me at")
    assert again.nodes() == ["early"]


@pytest.mark.parametrize(
    ("args", "code", "match"),
    [
        (("--listen", "nonsense"), 1, "listen must be 'host:port'"),
        (("--listen", "0.0.0.0:0"), 1, "insecure=True"),
        (("--tls-cert", __file__), 2, "go together"),
        (("--resource", "gpu"), 2, "NAME=AMOUNT"),
        (("--authkey-file", "/no/such/file"), 2, "does not exist"),
    ],
)
def test_mistakes_on_the_command_line(args: Any, code: int, match: str) -> None:
    from click.testing import CliRunner

    from handoff_actors.cli import handoff as command

    done = CliRunner().invoke(command, ["node", *args])
    assert (done.exit_code, match in done.output) == (code, True), done.output


def test_a_node_that_drains_finishes_what_it_has_and_gets_no_more(
    start_node: Any, make_runtime: Make, tmp_path: Path, spawn: Callable[..., Any]
) -> None:
    home = make_runtime(name="home", authkey=KEY, listen="127.0.0.1:0", capabilities={"cpu": 1})
    went = start_node(
        "--name", "went", "--connect", home.address, "--cpu", "1", HANDOFF_AUTHKEY=KEY
    )
    went.wait_for("joined home")
    log = tmp_path / "calls"

    def work(number: int) -> int:
        time.sleep(0.05)
        with log.open("a") as file:
            file.write(f"{number} {handoff.current().node} {handoff.node()}\n")
        return number

    dag = handoff.new("draining")
    for number in range(120):
        dag.add_function(handoff.Function(number, (), work, extra_args=[number], cost={"cpu": 1}))
    run = home.submit(dag, allocation_strategy="load_balanced")
    end = time.monotonic() + 20
    while "went" not in (log.read_text() if log.exists() else "") and time.monotonic() < end:
        time.sleep(0.005)
    went.process.terminate()
    assert went.process.wait(20) == 0
    assert "went" in log.read_text()
    assert not run.done(), "it went on getting work"
    went.wait_for("INFO drained")
    run.cancel()
    numbers = [line.split()[0] for line in log.read_text().splitlines()]
    assert len(numbers) == len(set(numbers)), "what it had was not finished"

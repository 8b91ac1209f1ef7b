"""Networks that are cut and healed: each node is in a network namespace, the cut is silent."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs import Program
from tests.wires import NoWiresError, Wires

KEY = "cd" * 32
HEARTBEAT = 2.0
NAMES = ("home", "n1", "n2")

HOME = '''
"""The orchestrator: joins what it is told, says what happens to nodes, goes on when told."""
import hashlib, json, logging, os, sys, time, warnings
import handoff_actors as handoff
from handoff_actors import DAG, Function, events

here, folder, *others = sys.argv[1:]
warnings.simplefilter("ignore")
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="log %(message)s")
home = handoff.start(
    name="home", listen=f"{here}:0", insecure=True, capabilities={"cpu": 1},
    heartbeat_timeout=HEARTBEAT, node_return_timeout=60.0,
)
node_events = [events.NodeUp, events.NodeSuspect, events.NodeBack, events.NodeDown]
home.subscribe(lambda e: print("event", type(e).__name__, e.node, flush=True), node_events)
finished = []
home.subscribe(lambda e: finished.extend(e.function_ids), [events.FunctionsFinished])
for other in others:
    handoff.connect(other, timeout=3.0)


def work(name, *args):
    """Says that it has begun, and ends when the test says so."""
    me = handoff.current()
    with open(f"{folder}/begun", "a") as file:
        file.write(f"{name} {me.node} {me.attempt}\\n")
    while not os.path.exists(f"{folder}/go"):
        time.sleep(0.01)
    return me.node, me.attempt


class Work:
    def __init__(self, name):
        self.name = name

    def __call__(self, *args):
        return work(self.name, *args)


def free():
    """Waits until no node holds anything."""
    deadline = time.monotonic() + 10.0
    for name in ("home", *handoff.nodes()):
        while (info := handoff.node_info(name)).available != info.capabilities:
            assert time.monotonic() < deadline, (name, info)
            time.sleep(0.01)


def say(**what):
    home.events.flush()
    print("said", json.dumps(what), flush=True)


'''.replace("HEARTBEAT", str(HEARTBEAT))


class Net:
    """The machines, and what runs on them."""

    def __init__(self, wires: Wires, folder: Path) -> None:
        self.wires = wires
        self.folder = folder
        self.nodes: dict[str, Program] = {}
        self.addresses: dict[str, str] = {}
        self.programs: list[Program] = []

    def python(self, name: str, *args: str) -> Program:
        program = Program([*self.wires.on(name), sys.executable, *args], {"HANDOFF_AUTHKEY": KEY})
        self.programs.append(program)
        return program

    def node(self, name: str, *options: str) -> Program:
        """``handoff node`` on the machine of that name."""
        listen = f"{self.wires.address(name)}:0"
        made = self.python(
            name, "-W", "ignore", "-m", "handoff_actors", "node", "--name", name, "--listen",
            listen, "--insecure", "--cpu", "4", "--heartbeat-timeout", str(HEARTBEAT), *options,
        )  # fmt: skip
        self.nodes[name] = made
        return made

    def up(self, *names: str) -> None:
        for name in names:
            said = self.nodes[name].wait_for(rf"node {name} listens on (\S+)")
            self.addresses[name] = said[1]

    def home(self, script: str) -> Program:
        """An orchestrator that joins all nodes and then does as the script says."""
        path = self.folder / "home.py"
        path.write_text(HOME + script)
        return self.python(
            "home", str(path), self.wires.address("home"), str(self.folder),
            *self.addresses.values(),
        )  # fmt: skip

    def begun(self) -> list[str]:
        path = self.folder / "begun"
        return sorted(path.read_text().splitlines()) if path.exists() else []

    def go(self) -> None:
        (self.folder / "go").touch()

    def close(self) -> None:
        for program in self.programs:
            program.close()


def said(program: Program, times: int = 1) -> Any:
    return json.loads(program.wait_for(r"said (.*)", 60.0, times)[1])


@pytest.fixture(scope="module")
def wires() -> Iterator[Wires]:
    try:
        made = Wires(*NAMES)
    except NoWiresError as error:
        pytest.skip(f"no network namespaces: {error}")
    with made:
        yield made


@pytest.fixture
def net(wires: Wires, tmp_path: Path, leaks: Any) -> Iterator[Net]:
    made = Net(wires, tmp_path)
    yield made
    made.close()
    for a, b in (("home", "n1"), ("home", "n2"), ("n1", "n2")):
        wires.heal(a, b)
    wires.slow("n1", None)


def test_a_short_cut_costs_nothing_a_long_one_leaves_no_double_result_and_no_claim(
    net: Net, eventually: Callable[..., None]
) -> None:
    for name in ("n1", "n2"):
        net.node(name, "--resource", "slot=4")
    net.up("n1", "n2")
    home = net.home("""
dag = DAG("cut")
dag.add_function(Function("pinned", code=Work("pinned"), node="n1"))
for k in range(4):
    dag.add_function(Function(k, code=Work(k), cost={"slot": 2}))
dag.add_function(Function("all", ["pinned", 0, 1, 2, 3], lambda *a: list(a)))
run = home.submit(dag, allocation_strategy="load_balanced")
ids = [id_ for id_, _ in run.as_completed()]
result = run.result(60.0)
values = dict(result.results)
free()
say(ids=ids, values=[[k, v] for k, v in values.items()], finished=finished)
input()
    """)
    eventually(lambda: len(net.begun()) == 5)
    first = net.begun()
    assert sum(" n1 1" in line for line in first) == 3
    # So short that nobody is given up: nothing is lost, nothing runs twice.
    net.wires.cut("home", "n1")
    home.wait_for("event NodeSuspect n1")
    net.wires.heal("home", "n1")
    home.wait_for("event NodeBack n1")
    assert net.begun() == first
    # Until both sides have given the other up, and its work has begun elsewhere.
    net.wires.cut("home", "n1")
    home.wait_for("event NodeDown n1")
    net.nodes["n1"].wait_for("WARNING node_down .*peer='home' reason='silent")
    assert not [line for line in net.nodes["n2"].lines if "node_down" in line]
    net.wires.heal("home", "n1")
    home.wait_for("event NodeUp n1", times=2)
    eventually(lambda: "pinned n1 2" in net.begun())
    assert not (set(first) - set(net.begun()))
    # What began before the cut ends now too, in vain.
    net.go()
    found = said(home)
    values = dict(found["values"])
    assert values["pinned"] == ["n1", 2]
    for k in range(4):
        node, attempt = values[k]
        assert (node, attempt) == ("n2", 1) or attempt == 2
        assert f"{k} {node} {attempt}" in net.begun()
    assert values["all"] == [values[each] for each in ("pinned", 0, 1, 2, 3)]
    for each in (found["ids"], found["finished"]):
        assert sorted(map(str, each)) == ["0", "1", "2", "3", "all", "pinned"]
    home.tell()
    assert home.process.wait(20) == 0


def test_nodes_that_cannot_reach_each_other_exchange_values_through_the_orchestrator(
    net: Net,
) -> None:
    wires = net.wires
    for name in ("n1", "n2"):
        net.node(name)
    net.up("n1", "n2")
    wires.cut("n1", "n2")  # they never saw each other
    home = net.home("""
def make(k):
    return bytes([k]) * 3_000_000


def peers(data):
    return hashlib.sha256(data).hexdigest(), sorted(handoff.nodes())


def exchange(k):
    dag = DAG(f"exchange {k}")
    dag.add_function(Function("there", code=make, extra_args=[k], node="n1"))
    dag.add_function(Function("back", ["there"], lambda data: data + b"!", node="n2"))
    dag.add_function(Function("seen 1", ["back"], peers, node="n1"))
    dag.add_function(Function("seen 2", ["there"], peers, node="n2"))
    began = time.monotonic()
    found = handoff.execute(dag, timeout=50.0).results
    assert found["seen 1"][0] == hashlib.sha256(make(k) + b"!").hexdigest()
    assert found["seen 2"][0] == hashlib.sha256(make(k)).hexdigest()
    free()
    say(n1=found["seen 1"][1], n2=found["seen 2"][1], seconds=time.monotonic() - began)


for k in range(2):
    exchange(k)
    input()
    """)
    told = home.wait_for("log nodes_apart .*")[0]
    assert "one='n1' other='n2'" in told
    assert "go through the node that runs the DAG" in told
    apart = said(home)
    assert (apart["n1"], apart["n2"]) == (["home"], ["home"])
    wires.heal("n1", "n2")
    for name, other in (("n1", "n2"), ("n2", "n1")):
        net.nodes[name].wait_for(f"INFO node_up .*peer='{other}'", 40.0)
    home.tell()
    whole = said(home, 2)
    assert (whole["n1"], whole["n2"]) == (["home", "n2"], ["home", "n1"])
    assert not [line for line in home.lines if "NodeDown" in line]
    home.tell()
    assert home.process.wait(20) == 0


def test_a_value_that_is_under_way_when_the_network_is_cut_comes_another_way(
    net: Net, eventually: Callable[..., None]
) -> None:
    wires = net.wires
    for name in ("n1", "n2"):
        net.node(name)
    net.up("n1", "n2")
    try:
        wires.slow("n1", 100)  # ten megabytes a second
    except NoWiresError as error:
        pytest.skip(f"the network cannot be slowed: {error}")
    home = net.home("""
def there(data):
    return hashlib.sha256(data).hexdigest(), sorted(handoff.nodes())


size = 30_000_000
dag = DAG("under way")
dag.add_function(Function("x", code=lambda: b"x" * size, node="n1"))
dag.add_function(Function("y", ["x"], there, node="n2"))
home.subscribe(lambda e: print("done", e.function_ids, flush=True), [events.FunctionsFinished])
began = time.monotonic()
found = handoff.execute(dag, timeout=60.0).results["y"]
assert found[0] == hashlib.sha256(b"x" * size).hexdigest()
free()
say(nodes=found[1], seconds=time.monotonic() - began)
    """)
    home.wait_for("done .*x")
    before = wires.sent("n1")
    eventually(lambda: wires.sent("n1") > before + 3_000_000)
    wires.cut("n1", "n2")
    net.nodes["n2"].wait_for("WARNING node_down .*peer='n1'")
    wires.slow("n1", None)
    found = said(home)
    assert found["nodes"] == ["home"], "it came before the network was cut"
    assert found["seconds"] < 15.0
    assert home.process.wait(20) == 0

"""Short functions run on the thread that reads from the other node, which no function may hold."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import handoff_actors as handoff
from handoff_actors import DAG, Function
from handoff_actors.actors.carriers import _local
from tests.gates import until

LENGTH = 24
LATE = LENGTH - 6  # by then it is known that they are short
NODES = ("home", "n1")


def on_reader(*_args):
    """Whether this runs on a thread that reads from another node when it is done."""
    carrier = _local.carrier
    return carrier is not None and carrier.duty is not None


def put():
    handoff.store_value("far", "value", 7)


class Step:
    """A step of a chain, all of the same code.

    The one called ``late`` writes down where it runs, and then acts.
    """

    def __init__(self, folder, late):
        self.folder = folder
        self.late = late

    def __call__(self, *args):
        context = handoff.current()
        if context.function_id == self.late:
            with Path(self.folder, "began").open("a") as file:
                file.write(f"{context.node} {os.getpid()} {on_reader()}\n")
            self.act(context)
        return on_reader()

    def act(self, context):
        raise NotImplementedError


class Plain(Step):
    """Does nothing."""

    def act(self, context):
        pass


class Block(Step):
    """Waits for a file."""

    def act(self, context):
        deadline = time.monotonic() + 30.0
        while not Path(self.folder, "go").exists():
            assert time.monotonic() < deadline
            time.sleep(0.002)


class Ask(Step):
    """Asks the other node for a value, over and over."""

    def act(self, context):
        for _ in range(50):
            other = NODES[context.node == "home"]
            assert handoff.get_value("far", "value", from_node=other) == 7


class Exit(Step):
    """Is a bad program, the first time."""

    def act(self, context):
        if context.attempt == 1:
            raise SystemExit(3)


class Freeze(Step):
    """Stops its process, the first time."""

    def act(self, context):
        if context.attempt == 1:
            # To this thread: else the main one stops them all, and this one may go on till then.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def chain(kind, folder, where):
    """A chain to and fro, whose step ``LATE``, or the one after it, is on that node."""
    code = kind(str(folder), LATE + (NODES[LATE % 2] != where))
    dag = DAG("chain")
    for i in range(LENGTH):
        dag.add_function(Function(i, (i - 1,) if i else (), code, node=NODES[i % 2]))
    return dag


def began(folder):
    path = Path(folder, "began")
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def cluster(make_runtime):
    runtime = make_runtime(name="home", capabilities={"cpu": 2}, heartbeat_timeout=1.0)
    runtime.start_nodes(1, names=["n1"], capabilities={"cpu": 2})
    return runtime


def test_short_functions_follow_the_message_that_brought_them(cluster, tmp_path):
    seen = set()

    def some_did():
        with cluster.execute(chain(Plain, tmp_path, "home")) as result:
            seen.update(result.allocations[i] for i, it in result.results.items() if it)
        return seen == {"home", "n1"}

    until(some_did)


def on_a_reader(cluster, tmp_path, kind, where, meanwhile=lambda: None):
    """Run chains until the late step was run on a thread that reads; the last one's folder."""
    for folder in (tmp_path / str(k) for k in range(100)):
        folder.mkdir()
        run = cluster.submit(chain(kind, folder, where))
        until(lambda: began(folder))
        meanwhile()
        (folder / "go").touch()
        run.result(30).release()
        if began(folder)[0][2] == "True":
            return folder
    raise AssertionError("no step was ever run by a thread that reads")


@pytest.mark.parametrize("where", NODES)
def test_a_function_that_blocks_keeps_nobody_from_reading(cluster, tmp_path, where):
    session = cluster.cluster().peers()["n1"].session
    other = DAG("other").add_function(Function("there", code=on_reader, node="n1"))

    def others_run():
        for _ in range(3):
            cluster.execute(other, timeout=10).release()

    def silence():
        others_run()
        # Longer than the heartbeats allow: who is not read from would be given up.
        end = time.monotonic() + 1.3
        until(lambda: time.monotonic() > end)
        others_run()

    on_a_reader(cluster, tmp_path, Block, where, others_run)
    (tmp_path / "again").mkdir()
    folder = on_a_reader(cluster, tmp_path / "again", Block, where, silence)
    assert len(began(folder)) == 1
    assert cluster.cluster().peers()["n1"].session == session


@pytest.mark.parametrize("where", NODES)
def test_a_function_may_ask_the_node_that_its_thread_reads_from(cluster, tmp_path, where):
    cluster.store_value("far", "value", 7)
    there = DAG("put").add_function(Function("put", code=put, node="n1"))
    cluster.execute(there).release()
    folder = on_a_reader(cluster, tmp_path, Ask, where)
    assert len(began(folder)) == 1


@pytest.mark.parametrize("where", NODES)
def test_system_exit_on_a_thread_that_reads_is_an_attempt_that_failed(cluster, tmp_path, where):
    session = cluster.cluster().peers()["n1"].session
    folder = on_a_reader(cluster, tmp_path, Exit, where)
    assert len(began(folder)) == 2
    assert cluster.cluster().peers()["n1"].session == session


def test_a_node_that_freezes_in_a_function_on_its_reader_is_given_up(cluster, tmp_path):
    first = cluster.cluster().peers()["n1"].session

    def thaw():
        pid = cluster.node_info("n1").pid
        until(lambda: "n1" not in cluster.cluster().peers())
        os.kill(pid, signal.SIGCONT)

    folder = on_a_reader(cluster, tmp_path, Freeze, "n1", thaw)
    assert len(began(folder)) == 2
    assert cluster.cluster().peers()["n1"].session != first

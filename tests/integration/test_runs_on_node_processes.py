"""Runs over real node processes: every kind of function, and every way to lose a node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

import handoff_actors as handoff
from handoff_actors import DAG, Argument, Function
from tests.gates import until


@pytest.fixture(scope="module")
def shared():
    """A runtime with two nodes, for tests that leave them as they are."""
    with handoff.Runtime(name="home", capabilities={"cpu": 2}, shutdown_timeout=2.0) as runtime:
        runtime.start_nodes(2, names=["n1", "n2"], capabilities={"cpu": 2, "memory": 1000})
        yield runtime


@pytest.fixture
def cluster(make_runtime):
    """A runtime with two nodes of its own, to be killed."""
    runtime = make_runtime(
        name="home", capabilities={"cpu": 2}, heartbeat_timeout=1.0, node_return_timeout=30.0
    )
    runtime.start_nodes(2, names=["n1", "n2"], capabilities={"cpu": 2})
    return runtime


def pid(runtime, name):
    return runtime.node_info(name).pid


class Signal:
    """Tells the test, by a file, that a function has begun; may wait for another file."""

    def __init__(self, folder, name, wait=True):
        self.path = str(folder / name)
        self.wait = wait

    def __call__(self, *args):
        with open(self.path, "a") as file:
            file.write(f"{handoff.current().node} {os.getpid()}\n")
        deadline = time.monotonic() + 30.0
        while self.wait and not os.path.exists(self.path + ".go"):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return handoff.current().node

    def begun(self, times=1):
        until(lambda: len(self.lines()) >= times)

    def lines(self):
        if not os.path.exists(self.path):
            return []
        with open(self.path) as file:
            return file.read().splitlines()

    def go(self):
        with open(self.path + ".go", "w"):
            pass


def stopped(process):
    """Whether all threads of a process are stopped."""
    stats = [task.read_text() for task in Path(f"/proc/{process}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


# What runs there.


def test_processes_coroutines_and_timeouts_on_other_nodes(shared):
    async def awaits(x):
        await asyncio.sleep(0.01)
        return x, handoff.current().node

    def sleeps():
        time.sleep(30.0)

    dag = DAG("kinds")
    dag.add_function(Function("p", code=os.getpid, node="n1", isolation="process"))
    dag.add_function(Function("t", code=os.getpid, node="n1"))
    dag.add_function(Function("a", ["t"], awaits, node="n2", cost={"cpu": 1}))
    dag.add_function(Function("in", type="input"))
    dag.add_function(Function("i", ["in"], lambda x: x * 2, type="inline"))
    dag.add_function(Function("k", ["i", "p"], lambda i, p, k: (i, p, k), extra_kwargs={"k": 3},
                              node="n2"))  # fmt: skip
    results = shared.execute(dag, inputs={"in": [1]}).results
    home = pid(shared, "n1")
    assert results["t"] == home
    assert results["p"] not in (home, os.getpid())
    assert results["a"] == (home, "n2")
    assert results["k"] == ([1, 1], results["p"], 3)
    slow = DAG("slow").add_function(
        Function("s", code=sleeps, node="n1", isolation="process", timeout=0.3, max_retries=0)
    )
    with pytest.raises(handoff.FunctionTimeoutError):
        shared.execute(slow)


@pytest.mark.parametrize(
    ("home", "there"), [("n1", "n1"), ("n1", "n2"), ("home", "n1"), ("n1", "home")]
)
def test_serializers_and_worker_processes_on_other_nodes(shared, home, there):
    """What an ``Argument`` converts reaches worker processes too, fetched or not."""

    def pack(data, source, target):
        return data, source, target, handoff.node()

    def unpack(data, source, target):
        return *data, source, target, handoff.node()

    argument = Argument("x", pack, unpack)
    dag = DAG("converted")
    dag.add_function(Function("x", code=lambda: [7], node=home))
    dag.add_function(
        Function("half", [Argument("x", None, unpack)], list, isolation="process", node=there)
    )
    dag.add_function(Function("inline", [argument], list, type="inline"))
    for isolation in ("thread", "process"):
        for source in (argument, "inline"):
            id_ = isolation, source if source == "inline" else "argument"
            dag.add_function(
                Function(id_, [source], list, node=there, isolation=isolation, max_retries=0)
            )
    results = shared.execute(dag).results
    assert results["half"] == [7, home, there, there]
    for isolation in ("thread", "process"):
        for source in ("inline", "argument"):
            assert results[isolation, source] == [[7], home, there, home, home, there, there]


def test_a_value_that_is_there_for_others_is_there_for_serializers_too(shared):
    dag = DAG("both")
    dag.add_function(Function("x", code=lambda: [7], node="home"))
    dag.add_function(Function("plain", ["x"], len, node="n1"))
    dag.add_function(
        Function(
            "y",
            ["plain", Argument("x", lambda x, *_: x * 2)],
            lambda n, x: x,
            node="n1",
            isolation="process",
            max_retries=0,
        )
    )
    assert shared.execute(dag).results["y"] == [7, 7]


def test_a_worker_that_dies_on_another_node_costs_an_attempt(shared):
    def dies():
        if handoff.current().attempt < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return handoff.current().attempt

    dag = DAG("dies").add_function(Function("x", code=dies, node="n1", isolation="process"))
    assert shared.execute(dag).results["x"] == 3
    always = DAG("always").add_function(
        Function("x", code=lambda: os.kill(os.getpid(), signal.SIGKILL), node="n1",
                 isolation="process", max_crashes=1)
    )  # fmt: skip
    with pytest.raises(handoff.FunctionCrashedError) as caught:
        shared.execute(always)
    assert [c.node for c in caught.value.attempts] == ["n1", "n1"]


def test_max_concurrency_is_for_all_nodes_together(shared, tmp_path):
    def work():
        path = tmp_path / str(time.monotonic_ns())
        path.touch()
        count = sum(1 for _ in tmp_path.iterdir())
        time.sleep(0.01)
        path.unlink()
        return count

    dag = DAG("few")
    for i in range(20):
        dag.add_function(Function(i, code=work, node=("n1", "n2", "home")[i % 3]))
    assert max(shared.execute(dag, max_concurrency=2).results.values()) <= 2


def test_execute_local_stays_here(shared):
    dag = DAG("here").add_function(Function("x", code=os.getpid, node="n1"))
    assert shared.execute_local(dag).results["x"] == os.getpid()


def test_timings_are_of_one_clock(shared):
    dag = DAG("clock")
    dag.add_function(Function("x", code=lambda: time.sleep(0.05), node="n1"))
    dag.add_function(Function("y", ["x"], lambda _: time.sleep(0.05), node="n2"))
    dag.add_function(Function("z", ["y"], lambda _: None, node="home"))
    timings = shared.execute(dag).timings
    ends = {id_: t.start + t.duration for id_, t in timings.items()}
    assert 0.0 <= timings["x"].start < 5.0
    assert ends["x"] <= timings["y"].start
    assert ends["y"] <= timings["z"].start
    assert 0.04 < timings["x"].duration < 5.0


def test_a_value_is_fetched_once_by_a_node_however_many_need_it(shared, tmp_path):
    seen = str(tmp_path / "pickled")

    class Loud:
        def __init__(self, data):
            self.data = data

        def __reduce__(self):
            with open(seen, "a") as file:
                file.write("x")
            return Loud, (self.data,)

    dag = DAG("once")
    dag.add_function(Function("x", code=lambda: [Loud(b"x" * 300_000), b"y" * 300_000], node="n1"))
    for i in range(20):
        dag.add_function(Function(i, ["x"], lambda x: len(x[0].data), node="n2"))
    result = shared.execute(dag)
    assert [result.results[i] for i in range(20)] == [300_000] * 20
    assert os.path.getsize(seen) <= 2  # pickled to be sent, once, or twice when it is looked at


def test_what_cannot_be_pickled_may_be_used_where_it_is(shared):
    dag = DAG("lock")
    dag.add_function(Function("x", code=threading.Lock, node="n1"))
    dag.add_function(Function("y", ["x"], lambda x: x.locked(), node="n1"))
    result = shared.execute(dag)
    assert result.results["y"] is False
    with pytest.raises(handoff.SerializationError):
        result.results["x"]
    dag.add_function(Function("z", ["x"], lambda x: x.locked(), node="n2"))
    with pytest.raises(handoff.SerializationError, match="'x'") as caught:
        shared.execute(dag)
    assert caught.value.function_id == "z"


def test_code_that_must_leave_and_cannot_is_refused_at_once(shared):
    lock = threading.Lock()
    with pytest.raises(handoff.SerializationError, match="'x'"):
        shared.submit(DAG("no").add_function(Function("x", code=lambda: lock, node="n1")))
    here = DAG("yes")
    for i in range(4):
        here.add_function(Function(i, code=lambda: lock.locked(), cost={"cpu": 1}))
    result = shared.execute(here, allocation_strategy="load_balanced")
    assert set(result.allocations.values()) == {"home"}


def test_several_orchestrators_never_over_commit_a_node(shared, leaks, tmp_path):
    def work():
        path = tmp_path / f"{time.monotonic_ns()}"
        path.touch()
        count = sum(1 for _ in tmp_path.iterdir())
        time.sleep(0.005)
        path.unlink()
        return count

    options = {"authkey": shared.authkey, "capabilities": {"cpu": 2}, "shutdown_timeout": 2.0}
    with handoff.Runtime(name="other", **options) as other:
        other.connect(shared.address)
        runs = []
        for k, runtime in enumerate((shared, other)):
            dag = DAG(f"both-{k}")
            for i in range(30):
                dag.add_function(Function(i, code=work, node="n1", cost={"cpu": 1}))
            runs.append(runtime.submit(dag))
        for run in runs:
            assert max(run.result(30.0).results.values()) <= 2


def test_runs_go_on_when_their_actors_crash(shared):
    from handoff_actors.testing import crash

    dag = DAG("crashes")
    for i in range(300):
        args = [i - 3] if i >= 3 else []
        node = ("n1", "n2", "home")[i % 2 + (i % 7 == 0)]
        dag.add_function(Function(i, args, lambda *x: time.sleep(0.001) or sum(x) + 1, node=node))
    run = shared.submit(dag)
    for name in ("run:crashes", "resource_tracker", "execution_supervisor"):
        with contextlib.suppress(handoff.HandoffError):
            crash(name, runtime=shared)
        time.sleep(0.02)
    results = run.result(30.0).results
    assert [results[i] for i in range(300)] == [i // 3 + 1 for i in range(300)]


# Losses.


def test_a_killed_node_s_work_runs_again_elsewhere_at_once(cluster, tmp_path):
    work = Signal(tmp_path, "work")
    dag = DAG("kill")
    for i in range(6):
        dag.add_function(Function(i, code=work, cost={"cpu": 1}))
    run = cluster.submit(dag, allocation_strategy="load_balanced")
    work.begun(6)
    os.kill(pid(cluster, "n1"), signal.SIGKILL)
    work.go()
    result = run.result(30.0)
    assert len(result.results) == 6
    assert len(work.lines()) >= 8


def test_an_unrelated_run_notices_nothing(cluster, tmp_path):
    work = Signal(tmp_path, "work")
    run = cluster.submit(DAG("other").add_function(Function("x", code=work, node="n2")))
    work.begun()
    os.kill(pid(cluster, "n1"), signal.SIGKILL)
    until(lambda: "n1" not in cluster.nodes())
    work.go()
    assert run.result(30.0).results["x"] == "n2"
    assert len(work.lines()) == 1
    until(lambda: "n1" in cluster.nodes())
    again = DAG("again").add_function(Function("x", code=os.getpid, node="n1"))
    assert cluster.execute(again).results["x"] == pid(cluster, "n1")


def test_a_frozen_node_is_given_up_and_used_again(cluster, tmp_path):
    work = Signal(tmp_path, "work")
    dag = DAG("freeze")
    for i in range(6):
        dag.add_function(Function(i, code=work, cost={"cpu": 1}))
    run = cluster.submit(dag, allocation_strategy="load_balanced")
    work.begun(6)
    frozen = pid(cluster, "n1")
    began = time.monotonic()
    os.kill(frozen, signal.SIGSTOP)
    try:
        until(lambda: stopped(frozen))  # or one of its threads could still see the sign to go
        work.go()
        run.result(30.0)
        assert time.monotonic() - began < 6.0
        assert len(work.lines()) == 8
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(frozen, signal.SIGCONT)
    until(lambda: "n1" in cluster.nodes() and cluster.node_info("n1").state == "up")
    again = DAG("again").add_function(Function("x", code=lambda: 1, node="n1"))
    assert cluster.execute(again).results["x"] == 1
    until(lambda: not cluster.node_info("n1").available["cpu"] < 2)


def test_kills_while_hundreds_of_functions_run_give_the_sequential_results():
    """``HANDOFF_KILL_SECONDS=60`` is a kill every second for a minute."""
    from tests.soak.nodes import soak

    seconds = float(os.environ.get("HANDOFF_KILL_SECONDS", "3"))
    counts = soak(seconds, min(1.0, seconds / 4), False, seed=5, functions=200)
    assert counts["runs"]
    assert counts["kills"] > seconds / 2

"""The fault kit for users: faults, plans of them, the oracle, strategies, leaks, the plugin."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import handoff_actors as handoff
from handoff_actors import Argument, Function, testing
from handoff_actors.testing import At, Fault, FaultPlan

COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}


def add(*args: int) -> int:
    return sum(args) + 1


def chain(n: int, dag_id: Any = None, **options: Any) -> handoff.DAG:
    dag = handoff.new(dag_id)
    for i in range(n):
        dag.add_function(Function(i, [i - 1] if i else [], add, **options))
    return dag


# The oracle and the strategies.


@settings(max_examples=80, **COMMON)
@given(dag=testing.dags(inputs=True), value=st.integers(0, 99))
def test_any_dag_gives_what_the_oracle_says(
    handoff_runtime: handoff.Runtime, dag: handoff.DAG, value: int
) -> None:
    inputs = {f.id: value + i for i, f in enumerate(dag.functions.values()) if f.type == "input"}
    assert dict(handoff.execute(dag, inputs=inputs).results) == testing.sequential(dag, inputs)


@settings(max_examples=10, **COMMON)
@given(dag=testing.dags(max_size=6, isolation=[None, "process"]))
def test_any_dag_in_processes(handoff_runtime: handoff.Runtime, dag: handoff.DAG) -> None:
    assert dict(handoff.execute(dag).results) == testing.sequential(dag)


def test_the_oracle_knows_every_form_of_a_function() -> None:
    async def later(x: int) -> int:
        return x * 2

    dag = handoff.new()
    dag.add_function(Function("i", type="input"))
    dag.add_function(Function("inline", ["i"], lambda i: i + 1, type="inline"))
    dag.add_function(Function("list", ["i", "inline"], sum, argument_inclusion="as_list"))
    dag.add_function(Function("async", ["list"], later))
    dag.add_function(Function("path", ["async"], "math:sqrt"))
    dag.add_function(Function("state", ["i"], lambda s, i: (s + i, s), init=(int, ["40"])))
    dag.add_function(Function("batch", ["i"], lambda b: [i for (i,) in b], batch_size=3))
    dag.add_function(
        Function("extra", [], lambda a, k: a - k, extra_args=[5], extra_kwargs={"k": 3})
    )
    dag.add_function(
        Function("way", [Argument("i", lambda d, s, t: [s, d], (lambda d, s, t, n: d * n, [2]))],
                 lambda got: got))  # fmt: skip
    dag.add_function(Function("unused", ["i"], lambda i: 1 / 0, type="inline"))
    assert testing.sequential(dag, {"i": 2}) == {
        "list": 5, "async": 10, "path": 10**0.5, "state": 42, "batch": 2, "extra": 2,
        "way": ["sequential", 2, "sequential", 2],
    }  # fmt: skip
    with pytest.raises(handoff.MissingInputError):
        testing.sequential(dag)
    with pytest.raises(ZeroDivisionError):
        testing.sequential(handoff.new().add_function(Function("f", (), lambda: 1 / 0)))
    assert len(testing.sequential(chain(5000))) == 5000


def test_strategies_draw_all_there_is(handoff_runtime: handoff.Runtime) -> None:
    seen: set[str] = set()

    @settings(max_examples=200, database=None, derandomize=True, **COMMON)
    @given(dag=testing.dags(inputs=True, isolation=[None, "process"]))
    def look(dag: handoff.DAG) -> None:
        dag.validate()
        for f in dag.functions.values():
            seen.update([f.type, f.argument_inclusion, str(f.isolation)])
            seen.update(["cost"] * bool(f.cost) + ["node"] * (f.node is not None))
            seen.update("argument" for a in f.args if isinstance(a, Argument))

    look()
    assert seen >= {"regular", "inline", "input", "as_list", "variadic", "None", "process", "cost",
                    "node", "argument"}  # fmt: skip


# Faults.


def test_a_delayed_actor_answers_later(handoff_runtime: handoff.Runtime) -> None:
    testing.delay("result_store", 0.15)
    done = threading.Event()
    threading.Thread(target=lambda: (handoff.store_value("d", "x", 1), done.set())).start()
    assert not done.wait(0.05)
    assert done.wait(5)
    assert handoff.get_local_value("d", "x") == 1
    assert not handoff.status().restarts
    for wrong in (0, -1, "1", True, float("nan")):
        with pytest.raises(handoff.ConfigurationError):
            testing.delay("result_store", wrong)  # type: ignore[arg-type]


def test_a_delayed_actor_keeps_nobody_from_its_result(handoff_runtime: handoff.Runtime) -> None:
    for name in ("resource_tracker", "distributed_executor", "result_store", "worker_supervisor"):
        testing.delay(name, 0.02)
        result = handoff.execute(chain(5, cost={"cpu": 1}))
        assert result.results[4] == 5


def test_lost_replies_are_told_at_the_deadline(
    handoff_runtime: handoff.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handoff_actors.actors import calls

    ref = handoff_runtime.whereis("result_store")
    assert ref is not None
    end = testing.drop_replies("result_store", 3)
    from handoff_actors.results.store import Get, Put

    with pytest.raises(handoff.ActorTimeoutError):
        ref.call(Put("d", "x", 1), timeout=0.05)
    with pytest.raises(handoff.ActorTimeoutError):
        ref.call(Get("d", "nothing"), timeout=0.05)
    assert end() == 2
    assert handoff.get_local_value("d", "x") == 1, "it was done; only nobody heard of it"
    assert end() == 2
    assert calls.DEFAULT_TIMEOUT == 5.0
    for wrong in (0, 1.5, True):
        with pytest.raises(handoff.ConfigurationError):
            testing.drop_replies("result_store", wrong)  # type: ignore[arg-type]


def test_a_run_whose_admission_was_not_heard_of_does_not_go_on_unseen(
    handoff_runtime: handoff.Runtime, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    from handoff_actors.actors.calls import Ref

    ran: list[int] = []
    gate = threading.Event()
    dag = handoff.new("d").add_function(Function("a", (), lambda: gate.wait(10)))
    dag.add_function(Function("b", ["a"], ran.append))
    call = Ref.call
    monkeypatch.setattr(Ref, "call", lambda self, request: call(self, request, 0.05))
    testing.drop_replies("distributed_executor", 1)
    with pytest.raises(handoff.ActorTimeoutError):
        handoff.submit(dag)
    monkeypatch.undo()
    gate.set()
    eventually(lambda: all(run.state != "running" for run in handoff.status().runs))
    assert not ran
    assert handoff.execute(chain(2, "d")).results[1] == 2


def test_kill_worker(handoff_runtime: handoff.Runtime, tmp_path: Path) -> None:
    with pytest.raises(handoff.ConfigurationError, match="isolation"):
        testing.kill_worker()
    flag = tmp_path / "flag"

    def once() -> int:
        import time

        first = not flag.exists()
        flag.write_text(str(os.getpid()))
        while first:
            time.sleep(0.01)
        return handoff.current().attempt

    run = handoff.submit(handoff.new().add_function(Function("f", (), once, isolation="process")))
    while not flag.exists() or not flag.read_text():
        pass
    with pytest.raises(handoff.ConfigurationError, match="'other'"):
        testing.kill_worker("other")
    pid = int(flag.read_text())
    assert testing.kill_worker("f") == pid
    assert run.result(20).results["f"] == 2


# Plans.


@settings(max_examples=25, **COMMON)
@given(dag=testing.dags(max_size=8), seed=st.integers(0, 2**32))
@pytest.mark.handoff(max_restarts=1_000_000)
def test_any_dag_under_any_plan(
    handoff_runtime: handoff.Runtime, dag: handoff.DAG, seed: int
) -> None:
    plan = FaultPlan(seed=seed)
    assert dict(plan.execute(dag).results) == testing.sequential(dag)
    assert sorted(map(repr, plan.happened)) == sorted(map(repr, plan.points))


@settings(max_examples=25, **COMMON)
@given(data=st.data())
@pytest.mark.handoff(max_restarts=1_000_000)
def test_any_dag_under_drawn_faults(handoff_runtime: handoff.Runtime, data: Any) -> None:
    dag = data.draw(testing.dags(max_size=8))
    ids = [f.id for f in dag.functions.values() if f.type == "regular"]
    moments = st.tuples(st.sampled_from(["before", "while", "after"]), st.sampled_from(ids or [0]))
    drawn = data.draw(st.lists(st.tuples(moments, testing.faults()), max_size=4)) if ids else []
    plan = FaultPlan([At(when, id_, fault) for (when, id_), fault in drawn])
    assert dict(plan.execute(dag).results) == testing.sequential(dag)


@pytest.mark.handoff(max_restarts=1_000_000)
def test_a_plan_can_be_run_again_from_what_it_prints(handoff_runtime: handoff.Runtime) -> None:
    plan = FaultPlan(seed=7, n=8)
    plan.execute(chain(4, "d"))
    assert len(plan.points) == 8
    names: dict[str, Any] = {"FaultPlan": FaultPlan, "At": At, "Fault": Fault}
    again = eval(repr(plan), names)
    assert again.points == plan.points
    assert again.seed == plan.seed
    other = FaultPlan(seed=7, n=8)
    other.draw(chain(4, "d"))
    assert other.points == plan.points
    again.execute(chain(4, "d"))
    assert sorted(map(repr, again.happened)) == sorted(map(repr, plan.points))


def test_an_error_under_a_plan_tells_of_it(handoff_runtime: handoff.Runtime) -> None:
    dag = handoff.new().add_function(Function("f", (), lambda: 1 / 0, max_retries=0))
    plan = FaultPlan([At("before", "f", Fault("crash", "result_store"))])
    with pytest.raises(handoff.FunctionFailedError) as caught:
        plan.execute(dag)
    assert f"under {plan!r}" in caught.value.__notes__
    assert plan.happened == plan.points


def test_before_while_and_after(handoff_runtime: handoff.Runtime) -> None:
    order: list[str] = []
    seen = threading.Event()

    def code() -> int:
        seen.wait(5)
        order.append("code")
        return 1

    class Note(Fault):
        def apply(self, runtime: Any = None) -> None:
            order.append(self.args[0])
            if self.args[0] == "while":
                seen.set()

    points = [At(when, "f", Note("crash", when)) for when in ("after", "while", "before")]
    points.append(At("before", "f", Note("crash", "second attempt"), attempt=2))
    plan = FaultPlan(points, runtime=handoff_runtime)
    assert plan.execute(handoff.new().add_function(Function("f", (), code))).results["f"] == 1
    assert order == ["before", "while", "code", "after"]


@pytest.mark.parametrize("when", ["before", "while", "after"])
def test_a_planned_kill_hits_the_worker_of_that_function(
    handoff_runtime: handoff.Runtime, eventually: Any, when: str
) -> None:
    lost: list[int] = []
    handoff.subscribe(lambda e: lost.append(e.pid), [handoff.events.WorkerLost])  # type: ignore[attr-defined]
    dag = chain(3, isolation="process")
    plan = FaultPlan([At(when, 1, Fault("kill_worker"))])
    assert dict(plan.execute(dag).results) == testing.sequential(dag)
    assert plan.happened == plan.points
    assert not plan.refused
    eventually(lambda: len(lost) == 1)


def test_a_plan_with_coroutines(handoff_runtime: handoff.Runtime) -> None:
    async def code() -> int:
        return 5

    plan = FaultPlan([At(when, "f", Fault("crash", "resource_tracker"))
                      for when in ("before", "after", "while")])  # fmt: skip
    dag = handoff.new().add_function(Function("f", (), code, cost={"cpu": 1}))
    assert plan.execute(dag).results["f"] == 5
    assert len(plan.happened) == 3


def test_what_a_plan_cannot_do_is_told(handoff_runtime: handoff.Runtime) -> None:
    plan = FaultPlan([At("before", 0, Fault("kill_worker")), At("after", 0, Fault("crash", "no"))])
    assert plan.execute(chain(1)).results[0] == 1
    assert [point for point, _ in plan.refused] == plan.points
    with pytest.raises(handoff.ConfigurationError, match="'eat'"):
        Fault("eat")
    with pytest.raises(handoff.ConfigurationError, match="during"):
        At("during", 0, Fault("kill_worker"))
    with pytest.raises(handoff.ConfigurationError, match="99"):
        FaultPlan([At("before", 99, Fault("kill_worker"))]).execute(chain(1))


# Leaks and the plugin.


def test_leaks_of_every_kind_are_found(tmp_path: Path) -> None:
    before = testing.Leaks()
    assert before.new() == []
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="forgotten")
    thread.start()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    file = (tmp_path / "left").open("w")
    sock = socket.socket()
    segment = Path("/dev/shm") / f"handoff-test-{os.getpid()}"
    segment.write_text("left")
    found = "\n".join(before.new())
    for what in ("thread forgotten", f"process {child.pid}", "descriptor", "left", "socket ",
                 f"shared memory {segment.name}"):  # fmt: skip
        assert what in found
    with pytest.raises(AssertionError, match="forgotten"):
        before.check(0.01)
    stop.set()
    thread.join()
    child.communicate()
    file.close()
    sock.close()
    segment.unlink()
    before.check()


def test_spare_threads_of_a_shared_runtime_are_no_leak(eventually: Any) -> None:
    with handoff.Runtime(capabilities={"cpu": 8}, shutdown_timeout=2.0) as shared:
        before = testing.Leaks()
        gate, together = threading.Event(), threading.Barrier(9)

        def work() -> None:
            together.wait(20)
            gate.wait(20)

        dag = handoff.new()
        for i in range(8):
            dag.add_function(Function(i, code=work, cost={"cpu": 1}))
        run = shared.submit(dag)
        together.wait(20)
        assert any(found.startswith("thread handoff-") for found in before.new())
        with pytest.raises(AssertionError, match="left behind: thread handoff-"):
            before.check(0.01)  # they are at work
        gate.set()
        run.result(20)
        before.check()
        more = set(threading.enumerate()) - before.threads
        assert more
        with handoff.Runtime(capabilities={"cpu": 1}, shutdown_timeout=2.0) as later:
            later.execute(handoff.new().add_function(Function("f", code=int)))
            own = set(later._workers.carriers.threads())
            eventually(lambda: {f"thread {thread.name}" for thread in own} <= set(before.new()))
        before.check()
    assert not more & set(threading.enumerate())


HOLDS = """
import mmap, os, sys
path, apart = sys.argv[1], sys.argv[2:]
if apart and os.fork():
    os._exit(0)  # so that who holds it is not below the test
with open(path, "w+b") as file:
    file.write(bytes(4096))
    file.flush()
    held = mmap.mmap(file.fileno(), 4096)
print("held", flush=True)
sys.stdin.read()
"""


def test_shared_memory_of_others_is_no_leak() -> None:
    kind = f"handoff-test-{os.getpid()}"
    before = testing.Leaks()

    def hold(name: str, *more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDS, f"/dev/shm/{name}", *more],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    def found() -> list[str]:
        return [line for line in before.new() if line.startswith("shared memory")]

    theirs = hold(f"{kind}-theirs", "apart")
    ours = None
    try:
        Path(f"/dev/shm/sem.{kind}").write_text("of somebody who was killed")
        assert theirs.wait(20) == 0
        assert found() == []
        ours = hold(f"sem.{kind}-ours")
        assert found() == [f"shared memory sem.{kind}-ours"]
        Path(f"/dev/shm/{kind}-left").write_text("held by nobody")
        assert found() == [f"shared memory {kind}-left", f"shared memory sem.{kind}-ours"]
    finally:
        for process in filter(None, (theirs, ours)):
            process.communicate()
        for path in Path("/dev/shm").glob(f"*{kind}*"):
            path.unlink()
    before.check()


def test_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_user.py").write_text(
        textwrap.dedent(
            """
            import threading, handoff_actors as handoff, pytest
            from handoff_actors import Function

            stop = threading.Event()

            @pytest.mark.handoff(name="mine", capabilities={"cpu": 3})
            def test_good(handoff_runtime):
                assert handoff.node() == "mine"
                assert handoff.discover_nodes() == {"mine": {"cpu": 3}}
                assert handoff.execute(handoff.new().add_function(
                    Function("f", (), lambda: 1, cost={"cpu": 3}))).results["f"] == 1

            def test_other(handoff_runtime):
                assert handoff.node() != "mine"

            def test_thread(handoff_leaks):
                threading.Thread(target=stop.wait, name="forgotten", daemon=True).start()

            def test_file(handoff_runtime):
                test_file.left = open(__file__)

            def test_process_run(handoff_runtime):
                run = handoff.submit(handoff.new().add_function(
                    Function("f", (), lambda: 7, isolation="process")))
                assert run.result(20).results["f"] == 7

            def test_nothing():
                pass
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "handoff_actors_pytest", "-p", "no:randomly",
         "-p", "no:cacheprovider", str(tmp_path), "-o", "handoff_leaks=true",
         "-o", "handoff_leaks_patience=0.5"],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert "4 passed, 2 errors" in done.stdout or "6 passed, 2 errors" in done.stdout, done.stdout
    assert "left behind: thread forgotten" in done.stdout
    assert f"descriptor {tmp_path / 'test_user.py'}" in done.stdout


def test_nothing_at_run_time_needs_the_test_packages(script: Any) -> None:
    script(
        """
        import sys
        sys.modules["hypothesis"] = sys.modules["pytest"] = None
        import handoff_actors as handoff
        from handoff_actors import Function, testing

        with handoff.start():
            dag = handoff.new().add_function(Function("f", (), lambda: 1))
            plan = testing.FaultPlan(seed=3)
            assert dict(plan.execute(dag).results) == testing.sequential(dag)
            testing.crash("result_store")
            handoff.execute(dag)
        testing.Leaks()
        try:
            testing.dags
        except ImportError as error:
            assert "hypothesis" in str(error)
        else:
            raise SystemExit("dags without hypothesis?")
        """
    )


def test_the_plugin_costs_nothing_until_it_is_used(script: Any) -> None:
    script("""
        import sys, handoff_actors_pytest
        assert "handoff_actors" not in sys.modules
        """)


def test_the_kit_is_what_it_says() -> None:
    assert set(testing.__all__) <= set(dir(testing))
    for name in testing.__all__:
        assert getattr(testing, name).__doc__
    with pytest.raises(AttributeError):
        testing.nothing  # noqa: B018
    assert functools.reduce(lambda a, b: a and b, (hasattr(testing, f) for f in testing.FAULTS))

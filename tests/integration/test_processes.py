"""Functions in worker processes: kills, crashes, what cannot cross, calls home, nothing left."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import handoff_actors as handoff
from handoff_actors import Function
from handoff_actors.execution.workers import process_lane
from handoff_actors.execution.workers.packing import Outcome, unpack
from handoff_actors.execution.workers.process_lane import ProcessLane
from handoff_actors.execution.workers.process_worker import ProcessWorker
from tests.functions import single, wait_for


@pytest.fixture
def runtime(make_runtime: Any) -> handoff.Runtime:
    return make_runtime(isolation="process", capabilities={"cpu": 2, "memory": 1000})  # type: ignore[no-any-return]


def count(path: Path) -> int:
    """Adds a line to the file, from any process; how many there are then."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"x\n")
    os.close(fd)
    return len(path.read_text().splitlines())


# Where code runs.


def test_code_runs_in_other_processes(runtime: handoff.Runtime) -> None:
    dag = handoff.new().add_function(Function("p", (), os.getpid))
    dag.add_function(Function("t", (), os.getpid, isolation="thread"))
    dag.add_function(Function("parent", (), os.getppid))
    results = runtime.execute(dag).results
    assert results["p"] != os.getpid()
    assert results["t"] == os.getpid()
    assert results["parent"] == os.getpid()


def test_isolation_of_one_function(make_runtime: Any) -> None:
    runtime = make_runtime()
    dag = handoff.new().add_function(Function("t", (), os.getpid))
    dag.add_function(Function("p", ["t"], lambda t: (t, os.getpid()), isolation="process"))
    dag.add_function(Function("u", ["p"], lambda p: (*p, os.getpid())))
    thread, process, again = runtime.execute(dag).results["u"]
    assert thread == again == os.getpid()
    assert process != os.getpid()


def test_no_process_before_one_is_needed(make_runtime: Any) -> None:
    runtime = make_runtime()
    runtime.execute(single(lambda: 1))
    assert psutil.Process().children() == []


def test_lambdas_closures_and_values_cross(runtime: handoff.Runtime) -> None:
    offset = {"by": 3}

    def helper(x: int) -> int:
        return x + offset["by"]

    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    dag = handoff.new().add_function(Function("a", (), lambda: Point(helper(1))))
    dag.add_function(Function("b", ["a"], lambda p: (p, helper(p.x))))
    dag.add_function(Function("c", ["b"], lambda b: [b[1]] * 3, extra_kwargs=None))
    dag.add_function(Function("big", (), lambda: b"x" * 5_000_000))
    dag.add_function(Function("length", ["big"], len))
    results = runtime.execute(dag).results
    assert results["c"] == [7, 7, 7]
    assert results["length"] == 5_000_000
    assert results["a"].x == 4


def test_inlines_serialisers_inits_and_batches(runtime: handoff.Runtime) -> None:
    here = os.getpid()
    dag = handoff.new().add_function(Function("a", (), lambda: 5))
    dag.add_function(Function("i", ["a"], lambda a: (a, os.getpid()), type="inline"))
    dag.add_function(Function("b", ["i"], lambda i: (i, os.getpid())))
    dag.add_function(Function("s", ["a"], lambda s, a: (s + a, s), init=lambda: 100))
    dag.add_function(Function("k", ["a"], lambda items: [x for (x,) in items], batch_size=4))
    dag.add_function(
        Function(
            "z",
            [handoff.Argument("a", lambda d, *_: [d], lambda d, *_: d[0] + 1)],
            lambda a: a,
        )
    )
    results = runtime.execute(dag).results
    inline, process = results["b"]
    assert inline == (5, process)
    assert process != here
    assert (results["s"], results["k"], results["z"]) == (105, 5, 6)


def test_coroutines_in_a_process(runtime: handoff.Runtime) -> None:
    async def code(i: int) -> int:
        import asyncio

        await asyncio.sleep(0.05)
        return os.getpid()

    dag = handoff.new()
    for i in range(100):
        dag.add_function(Function(i, (), code, extra_args=[i]))
    started = time.monotonic()
    pids = set(runtime.execute(dag, timeout=15).results.values())
    assert os.getpid() not in pids
    assert time.monotonic() - started < 4, "many in flight at once"


def test_current_in_a_process(runtime: handoff.Runtime) -> None:
    def code() -> Any:
        context = handoff.current()
        if context.attempt == 1:
            raise ValueError
        return context.dag_id, context.function_id, context.attempt, context.node

    result = runtime.execute(single(code), dag_id=("d", 1))
    assert result.results["f"] == (("d", 1), "f", 2, runtime.node())


def test_three_functions_meet_at_a_barrier(make_runtime: Any, tmp_path: Path) -> None:
    runtime = make_runtime(isolation="process", max_workers=3)
    runtime.execute(single(os.getpid))

    def meet(name: str, folder: str) -> bool:
        (Path(folder) / name).touch()
        end = time.monotonic() + 10
        while len(os.listdir(folder)) < 3:
            assert time.monotonic() < end, "they never met"
            time.sleep(0.001)
        return True

    for i in range(5):
        folder = tmp_path / str(i)
        folder.mkdir()
        dag = handoff.new().add_function(Function("first", (), lambda: 1))
        for name in "abc":
            dag.add_function(
                Function(name, ["first"], lambda _, *a: meet(*a), extra_args=[name, str(folder)],
                         max_retries=0))  # fmt: skip
        results = runtime.execute(dag, timeout=15).results
        assert [results[name] for name in "abc"] == [True] * 3


def test_nothing_waits_behind_a_slow_one(runtime: handoff.Runtime, tmp_path: Path) -> None:
    go = tmp_path / "go"

    def slow() -> bool:
        end = time.monotonic() + 20
        while not go.exists() and time.monotonic() < end:
            time.sleep(0.001)
        return go.exists()

    dag = single(slow)
    for i in range(200):
        dag.add_function(Function(i, (), lambda: 1))
    run = runtime.submit(dag)
    finished = dict(pair for _, pair in zip(range(200), run.as_completed(10), strict=False))
    assert set(finished) == set(range(200))
    go.touch()
    assert run.result(10).results["f"] is True


# Crashes.


def killed_until(path: Path, attempts: int, how: str) -> Callable[[], int]:
    def code() -> int:
        n = count(path)
        if n < attempts:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(10)
            if how == "exit":
                os._exit(7)
            if how == "segfault":
                import ctypes
                import resource

                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                ctypes.string_at(0)
            if how == "abort":
                import resource

                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                os.abort()
        return n

    return code


@pytest.mark.parametrize("how", ["kill", "exit", "segfault", "abort"])
def test_a_worker_that_dies_costs_one_attempt(
    runtime: handoff.Runtime, tmp_path: Path, how: str, claims_at_zero: Any
) -> None:
    dag = single(killed_until(tmp_path / "n", 3, how), cost={"cpu": 1}, max_retries=0)
    dag.add_function(Function("g", ["f"], lambda n: n * 2))
    assert runtime.execute(dag, timeout=15).results["g"] == 6
    claims_at_zero(runtime)
    assert not runtime.status().restarts


@pytest.mark.parametrize(
    ("how", "exit_code"), [("kill", -9), ("exit", 7), ("segfault", -11), ("abort", -6)]
)
def test_poison_is_refused_with_its_history(
    runtime: handoff.Runtime, tmp_path: Path, how: str, exit_code: int, claims_at_zero: Any
) -> None:
    dag = single(killed_until(tmp_path / "n", 99, how), max_crashes=2, cost={"cpu": 2})
    with pytest.raises(handoff.FunctionCrashedError) as caught:
        runtime.execute(dag, timeout=15)
    error = caught.value
    assert error.function_id == "f"
    assert [a.exit_code for a in error.attempts] == [exit_code] * 3
    assert len({a.pid for a in error.attempts}) == 3
    assert {a.node for a in error.attempts} == {runtime.node()}
    words = {-9: "SIGKILL", 7: "7", -11: "SIGSEGV", -6: "SIGABRT"}[exit_code]
    assert words in str(error)
    assert len((tmp_path / "n").read_text().splitlines()) == 3
    claims_at_zero(runtime)
    assert runtime.execute(single(lambda: 1)).results["f"] == 1


def test_at_most_once(runtime: handoff.Runtime, tmp_path: Path) -> None:
    dag = single(killed_until(tmp_path / "n", 99, "kill"), max_crashes=0, max_retries=5)
    with pytest.raises(handoff.FunctionCrashedError) as caught:
        runtime.execute(dag, timeout=15)
    assert len(caught.value.attempts) == 1
    assert len((tmp_path / "n").read_text().splitlines()) == 1


def test_crashes_and_exceptions_have_budgets_of_their_own(
    runtime: handoff.Runtime, tmp_path: Path
) -> None:
    path = tmp_path / "n"

    def code() -> int:
        n = count(path)
        if n in (1, 3):
            os.kill(os.getpid(), signal.SIGKILL)
        if n in (2, 4):
            raise ValueError
        return n

    assert runtime.execute(single(code, max_retries=2, max_crashes=2), timeout=15).results["f"] == 5


def test_an_innocent_in_the_same_batch_is_not_charged(
    runtime: handoff.Runtime, tmp_path: Path
) -> None:
    """Quick functions travel in batches: one that kills its worker must not use up the others."""

    def innocent(i: int) -> int:
        count(tmp_path / f"i{i}")
        return i

    poison = killed_until(tmp_path / "n", 4, "kill")
    dag = handoff.new()
    for i in range(50):
        dag.add_function(Function(i, (), innocent, extra_args=[i], max_crashes=0 if i % 2 else 1))
    dag.add_function(Function("poison", (), poison, max_crashes=3))
    for i in range(50, 100):
        dag.add_function(Function(i, (), innocent, extra_args=[i], max_crashes=1))
    results = runtime.execute(dag, timeout=15).results
    assert results["poison"] == 4
    assert [results[i] for i in range(100)] == list(range(100))
    for i in range(1, 50, 2):
        assert (tmp_path / f"i{i}").read_text() == "x\n", "at most once"


BeforeSend = Callable[[ProcessWorker, Any], None]


@pytest.fixture
def on_send(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[ProcessWorker, Any], None]], None]:
    """Has something done with the worker and the items before each ``send``."""
    send = ProcessWorker.send

    def install(before: BeforeSend) -> None:
        def sending(worker: ProcessWorker, dag_id: Any, items: Any) -> Any:
            before(worker, items)
            return send(worker, dag_id, items)

        monkeypatch.setattr(ProcessWorker, "send", sending)

    return install


def kill(worker: ProcessWorker) -> None:
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(worker.dead)


def test_what_a_process_had_sent_before_it_died_is_read(
    make_runtime: Any, on_send: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found dead by ``send``, when all outcomes of what it held are there to be read."""
    killed: list[int] = []
    receive = ProcessWorker.receive

    def receive_late(worker: ProcessWorker, timeout: float | None = None) -> list[Outcome]:
        return receive(worker, timeout) if killed else []

    def kill_with_outcomes(worker: ProcessWorker, _items: Any) -> None:
        left = set(worker._frame_of)
        if killed or not left:
            return

        def all_came() -> bool:
            frame = worker._reader.read()
            if frame is not None:
                worker._inbox.append(frame)
                left.difference_update(outcome.token for outcome in unpack(*frame))
            return not left

        wait_for(all_came)
        kill(worker)
        killed.append(worker.pid)

    def code(i: int) -> int:
        count(tmp_path / f"i{i}")
        return i

    # There is always room for more, and nothing is heard before more was sent.
    monkeypatch.setattr(ProcessLane, "_quota", lambda lane: len(lane.flying) + 2)
    monkeypatch.setattr(ProcessWorker, "receive", receive_late)
    on_send(kill_with_outcomes)
    runtime = make_runtime(isolation="process", max_workers=1)
    dag = handoff.new()
    for i in range(50):
        dag.add_function(Function(i, (), code, extra_args=[i]))
    results = runtime.execute(dag, timeout=30).results
    assert [results[i] for i in range(50)] == list(range(50))
    assert len(killed) == 1
    assert {(tmp_path / f"i{i}").read_text() for i in range(50)} == {"x\n"}, "each ran once"


def test_nothing_is_sent_behind_what_may_run_at_most_once(
    make_runtime: Any, on_send: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it not alone when its process dies, nobody could tell who is to be charged."""
    monkeypatch.setattr(process_lane, "_LOOK", 0.01)
    path = tmp_path / "n"

    def kill_while_it_runs(worker: ProcessWorker, _items: Any) -> None:
        if path.exists() and worker._frame_of:
            kill(worker)

    def once() -> None:
        count(path)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)

    runtime = make_runtime(isolation="process", max_workers=1)
    dag = handoff.new()
    for i in range(50):
        dag.add_function(Function(i, (), int))
    dag.add_function(Function("once", (), once, max_crashes=0))
    for i in range(50, 100):
        dag.add_function(Function(i, (), int))
    on_send(kill_while_it_runs)
    with pytest.raises(handoff.FunctionCrashedError) as caught:
        runtime.execute(dag, timeout=30)
    assert caught.value.function_id == "once"
    assert path.read_text() == "x\n", "at most once"


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_process_that_dies_before_it_has_a_function_is_charged_the_second_time(
    runtime: handoff.Runtime, on_send: Any, tmp_path: Path, deaths: int
) -> None:
    killed: list[int] = []

    def kill_first(worker: ProcessWorker, _items: Any) -> None:
        if len(killed) < deaths:
            kill(worker)
            killed.append(worker.pid)

    path = tmp_path / "n"
    dag = single(lambda: count(path), max_crashes=0)
    on_send(kill_first)
    if deaths == 1:
        assert runtime.execute(dag, timeout=30).results["f"] == 1
    else:
        with pytest.raises(handoff.FunctionCrashedError):
            runtime.execute(dag, timeout=30)
        assert not path.exists()
    assert len(killed) == deaths


def test_kills_from_outside(runtime: handoff.Runtime, claims_at_zero: Any) -> None:
    dag = handoff.new()
    for i in range(60):
        dag.add_function(
            Function(i, [i - 10] if i >= 10 else [], lambda *a: time.sleep(0.01) or len(a),
                     cost={"cpu": 1}, max_crashes=50))  # fmt: skip
    run = runtime.submit(dag)
    kills = 0
    while not run.done() and kills < 5:
        children = psutil.Process().children()
        if run.progress().finished > kills * 10 and children:
            children[0].kill()
            kills += 1
        time.sleep(0.001)
    results = run.result(15).results
    assert [results[i] for i in range(60)] == [0] * 10 + [1] * 50
    assert kills
    claims_at_zero(runtime)


def test_a_spare_that_is_killed_idle_is_nobodys_business(runtime: handoff.Runtime) -> None:
    runtime.execute(single(os.getpid))
    wait_for(lambda: psutil.Process().children())
    for child in psutil.Process().children():
        child.kill()
        wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert runtime.execute(single(lambda: 5, max_crashes=0), timeout=10).results["f"] == 5
    assert not runtime.status().restarts


def test_a_memory_flood_costs_its_own_run(runtime: handoff.Runtime, claims_at_zero: Any) -> None:
    def flood() -> int:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (500_000_000, hard))
        try:
            hoard = []
            while True:
                hoard.append(bytearray(20_000_000))
        finally:
            hoard.clear()
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    with pytest.raises((handoff.FunctionFailedError, handoff.FunctionCrashedError)) as caught:
        runtime.execute(single(flood, max_retries=1, max_crashes=1, cost={"cpu": 1}), timeout=15)
    if isinstance(caught.value, handoff.FunctionFailedError):
        assert isinstance(caught.value.__cause__, MemoryError)
    assert runtime.execute(single(lambda: 1)).results["f"] == 1
    claims_at_zero(runtime)


@pytest.mark.parametrize(
    "error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError, MemoryError]
)
def test_whatever_is_raised_is_an_outcome(
    runtime: handoff.Runtime, error: type[BaseException]
) -> None:
    def code() -> None:
        if handoff.current().attempt < 3:
            raise error("no")
        if error is RecursionError:
            code()

    if error is RecursionError:
        with pytest.raises(handoff.FunctionFailedError) as caught:
            runtime.execute(single(code, max_retries=2), timeout=15)
        assert type(caught.value.__cause__) is RecursionError
        return
    assert runtime.execute(single(code, max_retries=2), timeout=15).results["f"] is None
    with pytest.raises(handoff.FunctionFailedError) as caught:
        runtime.execute(single(code, max_retries=1), timeout=15)
    assert type(caught.value.__cause__) is error
    assert caught.value.__cause__.args == ("no",)


def test_the_remote_traceback_is_readable(runtime: handoff.Runtime) -> None:
    def deep() -> None:
        raise ValueError("down here")

    def code() -> None:
        try:
            deep()
        except ValueError as error:
            raise KeyError("up") from error

    with pytest.raises(handoff.FunctionFailedError) as caught:
        runtime.execute(single(code, max_retries=0))
    import traceback

    text = "".join(traceback.format_exception(caught.value))
    assert type(caught.value.__cause__) is KeyError
    for word in ("deep", "down here", "test_processes.py", "KeyError"):
        assert word in text


# What cannot cross.


def test_an_unpicklable_result_is_named(runtime: handoff.Runtime) -> None:
    with pytest.raises(handoff.SerializationError) as caught:
        runtime.execute(single(lambda: {"rows": [1, threading.Lock()]}), timeout=15)
    error = caught.value
    assert error.function_id == "f"
    assert "rows" in error.path
    assert "1" in error.path
    assert "f" in str(error)
    assert "lock" in str(error)
    assert runtime.execute(single(lambda: 1)).results["f"] == 1


def test_an_unpicklable_argument_is_named(make_runtime: Any) -> None:
    runtime = make_runtime()
    dag = handoff.new().add_function(Function("a", (), lambda: [threading.Lock()]))
    dag.add_function(Function("b", ["a"], len, isolation="process"))
    with pytest.raises(handoff.SerializationError) as caught:
        runtime.execute(dag, timeout=15)
    assert caught.value.function_id == "b"
    assert "lock" in str(caught.value)
    assert runtime.execute(single(lambda: 1, isolation="process")).results["f"] == 1


def test_unpicklable_code_is_refused_at_admission(runtime: handoff.Runtime) -> None:
    lock = threading.Lock()

    def holds() -> Any:
        return lock

    for dag in (
        single(holds),
        single(lambda x: x, extra_args=[lock]),
        single(lambda k: k, extra_kwargs={"k": [lock]}),
    ):
        with pytest.raises(handoff.SerializationError) as caught:
            runtime.submit(dag)
        assert caught.value.function_id == "f"
        assert "lock" in str(caught.value)
    assert not runtime.status().runs


def test_an_exception_that_cannot_be_pickled_still_tells(runtime: handoff.Runtime) -> None:
    class Odd(Exception):
        def __init__(self, one: int, two: Any) -> None:
            super().__init__("odd one")
            self.lock = threading.Lock()

    def code() -> None:
        raise Odd(1, 2)

    with pytest.raises(handoff.FunctionFailedError) as caught:
        runtime.execute(single(code, max_retries=0), timeout=15)
    cause = caught.value.__cause__
    assert "odd one" in str(cause)
    assert "Odd" in repr(type(cause)) + str(cause)


def test_a_value_that_cannot_be_loaded(runtime: handoff.Runtime) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return _explode, ()

    with pytest.raises((handoff.SerializationError, handoff.FunctionFailedError)) as caught:
        runtime.execute(single(Bomb, max_retries=0), timeout=15)
    assert caught.value.function_id == "f"
    assert runtime.execute(single(lambda: 1)).results["f"] == 1


def _explode() -> None:
    raise RuntimeError("cannot be loaded")


def test_code_that_prints_writes_and_closes_what_it_should_not(runtime: handoff.Runtime) -> None:
    def code() -> int:
        import sys

        with open(os.devnull, "w") as nowhere:
            print("x" * 100_000, file=nowhere)
        sys.stdin.close()
        sys.stdout = None  # type: ignore[assignment]
        return 1

    for i in range(5):
        assert runtime.execute(single(code), dag_id=i, timeout=10).results["f"] == 1


def test_code_that_closes_every_descriptor(runtime: handoff.Runtime) -> None:
    def code() -> None:
        os.closerange(3, 1000)

    with pytest.raises((handoff.FunctionCrashedError, handoff.FunctionFailedError)):
        runtime.execute(single(code, max_crashes=1, max_retries=0), timeout=15)
    assert runtime.execute(single(lambda: 1)).results["f"] == 1


def test_code_that_forks_and_starts_processes(runtime: handoff.Runtime) -> None:
    def code() -> Any:
        import subprocess
        import sys

        pid = os.fork()
        if pid == 0:
            os._exit(3)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out = subprocess.run([sys.executable, "-c", "print(5)"], capture_output=True, text=True)
        return code, out.stdout

    assert runtime.execute(single(code), timeout=15).results["f"] == (3, "5\n")


# Timeouts and cancelling.


def test_a_timeout_kills(runtime: handoff.Runtime, tmp_path: Path, claims_at_zero: Any) -> None:
    path = tmp_path / "pids"

    def code(path: str) -> None:
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        while True:
            pass

    runtime.execute(single(os.getpid))
    started = time.monotonic()
    with pytest.raises(handoff.FunctionTimeoutError) as caught:
        runtime.execute(
            single(code, extra_args=[str(path)], timeout=0.2, max_retries=1, cost={"cpu": 2})
        )
    assert time.monotonic() - started < 10
    assert (caught.value.timeout, caught.value.attempts) == (0.2, 2)
    pids = [int(line) for line in path.read_text().splitlines()]
    assert len(set(pids)) == 2
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    claims_at_zero(runtime)
    assert not runtime.status().workers["abandoned_threads"]


def test_a_timeout_does_not_charge_max_crashes(runtime: handoff.Runtime, tmp_path: Path) -> None:
    path = tmp_path / "n"

    def code() -> int:
        if count(path) < 3:
            time.sleep(20)
        return 1

    dag = single(code, timeout=0.2, max_retries=2, max_crashes=0)
    assert runtime.execute(dag, timeout=15).results["f"] == 1


def test_cancel_ends_the_code(
    runtime: handoff.Runtime, tmp_path: Path, claims_at_zero: Any
) -> None:
    path = tmp_path / "pid"

    def code(path: str) -> None:
        Path(path + ".tmp").write_text(str(os.getpid()))
        os.rename(path + ".tmp", path)
        while True:
            pass

    run = runtime.submit(single(code, extra_args=[str(path)], cost={"cpu": 2}))
    wait_for(path.exists)
    assert run.cancel()
    with pytest.raises(handoff.RunCancelledError):
        run.result(5)
    pid = int(path.read_text())
    wait_for(lambda: not psutil.pid_exists(pid))
    claims_at_zero(runtime)
    assert runtime.execute(single(lambda: 1)).results["f"] == 1


def test_a_run_that_takes_too_long(runtime: handoff.Runtime, claims_at_zero: Any) -> None:
    def code() -> None:
        time.sleep(30)

    with pytest.raises(handoff.ExecutionTimeoutError):
        runtime.execute(single(code, cost={"cpu": 1}), timeout=0.3)
    claims_at_zero(runtime)


def test_a_process_can_see_that_it_is_cancelled(runtime: handoff.Runtime, tmp_path: Path) -> None:
    """Its own run fails: it is told, or killed; either way it ends."""
    path = tmp_path / "pid"

    def code(path: str) -> None:
        Path(path).write_text(str(os.getpid()))
        while not handoff.current().cancelled():
            time.sleep(0.001)

    def bad(path: str) -> None:
        while not os.path.exists(path) or not Path(path).read_text():
            time.sleep(0.001)
        raise ValueError

    dag = single(code, extra_args=[str(path)])
    dag.add_function(Function("bad", (), bad, extra_args=[str(path)], max_retries=0))
    with pytest.raises(handoff.FunctionFailedError):
        runtime.execute(dag, timeout=15)
    assert runtime.execute(single(lambda: 1), timeout=10).results["f"] == 1


# Calls from a worker.


def test_calls_from_a_worker_are_forwarded(runtime: handoff.Runtime) -> None:
    def code() -> Any:
        handoff.store_value("shared", "x", {"a": 1})
        handoff.store_result("shared", "y", 2)
        try:
            handoff.get_local_value("shared", "nothing")
        except handoff.ValueNotFoundError as error:
            missing = (error.dag_id, error.value_id)
        return (
            handoff.get_value("shared", "x"),
            handoff.get_result("shared", "y"),
            handoff.lookup_data_location("shared", "y"),
            handoff.node(),
            handoff.nodes(),
            handoff.discover_nodes(),
            missing,
        )

    me = runtime.node()
    assert runtime.execute(single(code), timeout=15).results["f"] == (
        {"a": 1}, 2, me, me, [], {me: {"cpu": 2, "memory": 1000}}, ("shared", "nothing"),
    )  # fmt: skip
    assert runtime.get_local_value("shared", "x") == {"a": 1}


def nested(depth: int) -> int:
    if depth == 0:
        return 0
    dag = handoff.new().add_function(
        Function("n", (), nested, extra_args=[depth - 1], cost={"cpu": 1}, isolation="process")
    )
    return int(handoff.execute(dag).results["n"]) + 1


def test_nested_runs_with_one_worker_and_one_cpu(make_runtime: Any, claims_at_zero: Any) -> None:
    runtime = make_runtime(isolation="process", max_workers=1, capabilities={"cpu": 1})
    dag = single(nested, extra_args=[3], cost={"cpu": 1})
    assert runtime.execute(dag, timeout=18).results["f"] == 3
    claims_at_zero(runtime)


def test_a_nested_run_is_read_long_after_it_ended(make_runtime: Any) -> None:
    """Nothing is retained, but for whoever submitted it."""
    runtime = make_runtime(isolation="process", max_retained_runs=0)

    def code() -> Any:
        inner = handoff.new("inner").add_function(Function("i", (), lambda: 5, isolation="thread"))
        run = handoff.submit(inner)
        others = handoff.new("others").add_function(Function("i", (), int, isolation="thread"))
        while not run.done():
            time.sleep(0.001)
        for _ in range(20):
            handoff.execute(others)
            time.sleep(0.002)  # time in which what nobody holds is forgotten
        return run.result().results["i"], run.progress().state

    assert runtime.execute(single(code)).results["f"] == (5, "succeeded")
    wait_for(lambda: not runtime.status().runs)


def test_a_nested_run_of_a_process_that_died_makes_room(
    runtime: handoff.Runtime, tmp_path: Path
) -> None:
    """The next attempt runs it under the same dag_id; the one of the dead is cancelled."""

    def outer() -> Any:
        inner = handoff.new("fixed")
        inner.add_function(Function("i", (), kills, isolation="thread", extra_args=(os.getpid(),)))
        return handoff.execute(inner, dag_id="fixed").results["i"]

    def kills(pid: int) -> int:
        times = count(tmp_path / "calls")
        if times == 1:
            os.kill(pid, signal.SIGKILL)
            wait_for(handoff.current().cancelled)
            count(tmp_path / "left")
        return times

    dag = single(outer, max_retries=0)
    assert runtime.execute(dag, timeout=30).results["f"] == 2
    wait_for((tmp_path / "left").exists)


def test_a_nested_failure_comes_home(runtime: handoff.Runtime) -> None:
    def bad() -> None:
        raise ValueError("inner")

    def outer() -> Any:
        dag = handoff.new().add_function(Function("bad", (), bad, max_retries=0))
        return handoff.execute(dag)

    with pytest.raises(handoff.FunctionFailedError) as caught:
        runtime.execute(single(outer, max_retries=0), timeout=15)
    inner = caught.value.__cause__
    assert isinstance(inner, handoff.FunctionFailedError)
    assert inner.function_id == "bad"


def test_a_worker_waits_for_another_functions_result(make_runtime: Any) -> None:
    runtime = make_runtime(isolation="process", max_workers=1, capabilities={"cpu": 1})
    dag = handoff.new("d")
    dag.add_function(
        Function("waits", (), lambda: handoff.get_result("d", "made", 10), cost={"cpu": 1},
                 max_retries=0))  # fmt: skip
    dag.add_function(Function("made", (), lambda: 7, cost={"cpu": 1}))
    assert runtime.execute(dag, timeout=15).results["waits"] == 7


def test_a_worker_killed_while_it_waits_for_a_nested_run(
    runtime: handoff.Runtime, tmp_path: Path, claims_at_zero: Any
) -> None:
    path = tmp_path / "n"

    def inner(parent: int, first: bool) -> int:
        if first:
            os.kill(parent, signal.SIGKILL)
        return 4

    def outer() -> int:
        first = count(path) == 1
        dag = handoff.new().add_function(
            Function("i", (), inner, extra_args=[os.getpid(), first], cost={"cpu": 1})
        )
        return int(handoff.execute(dag).results["i"])

    dag = single(outer, cost={"cpu": 1})
    assert runtime.execute(dag, timeout=15).results["f"] == 4
    claims_at_zero(runtime)


# The caller's script.


def test_classes_of_the_script_come_home_as_themselves(script: Any) -> None:
    done = script(
        """
        print("imported once")
        import dataclasses, enum, typing
        import handoff_actors as handoff

        class Colour(enum.Enum):
            RED = 1

        @dataclasses.dataclass
        class Row:
            colour: Colour
            n: int

        class Odd(Exception):
            def __init__(self, row):
                super().__init__(f"odd {row.n}")
                self.row = row

        class Pair(typing.NamedTuple):
            one: int
            two: "Row"

        LIMIT = 3

        def helper(n):
            return n + LIMIT

        def make():
            return Pair(1, Row(Colour.RED, helper(1)))

        def check(pair):
            assert isinstance(pair, Pair) and isinstance(pair.two, Row)
            assert pair.two.colour is Colour.RED
            return pair

        def fails(pair):
            raise Odd(pair.two)

        handoff.start(isolation="process", max_retries=0)
        dag = handoff.new()
        dag.add_function(handoff.Function("make", (), make))
        dag.add_function(handoff.Function("check", ["make"], check))
        pair = handoff.execute(dag).results["check"]
        assert type(pair) is Pair and type(pair.two) is Row and pair.two.colour is Colour.RED
        assert pair == Pair(1, Row(Colour.RED, 4)), pair
        dag.add_function(handoff.Function("fails", ["check"], fails))
        try:
            handoff.execute(dag)
        except handoff.FunctionFailedError as error:
            try:
                raise error.__cause__
            except Odd as odd:
                assert odd.row == Row(Colour.RED, 4)
                print("odd", odd)
        handoff.stop()
        print("done")
        """
    )
    assert done.stdout == "imported once\nodd odd 4\ndone\n"
    assert done.stderr == ""


def test_ctrl_c_reaches_the_caller_alone(popen: Any) -> None:
    process = popen(
        """
        import os, time
        import handoff_actors as handoff

        handoff.start(isolation="process", shutdown_timeout=1)

        def waits():
            print(os.getpid(), flush=True)
            time.sleep(60)

        dag = handoff.new("d").add_function(handoff.Function("f", (), waits))
        try:
            handoff.execute(dag)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        dag = handoff.new().add_function(handoff.Function("a", (), lambda: 1))
        print(handoff.execute(dag).results["a"], flush=True)
        handoff.stop()
        """
    )
    worker = int(process.stdout.readline())
    os.kill(worker, signal.SIGINT)  # a terminal sends it to the whole group
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == ("interrupted\n1\n", "", 0)
    wait_for(lambda: not psutil.pid_exists(worker))


def test_the_interpreter_exits_quickly_with_runs_in_progress(script: Any) -> None:
    started = time.monotonic()
    done = script(
        """
        import os, sys, time
        import handoff_actors as handoff

        handoff.start(isolation="process", shutdown_timeout=0.5)

        def slow(path):
            open(path, "a").write(f"{os.getpid()} ")
            time.sleep(60)

        path = __file__ + ".pids"
        dag = handoff.new().add_function(handoff.Function("f", (), slow, extra_args=[path]))
        handoff.submit(dag)
        while not os.path.exists(path) or not open(path).read().endswith(" "):
            time.sleep(0.001)
        sys.stdout.write(open(path).read())
        """
    )
    assert time.monotonic() - started < 8
    assert done.stderr == ""
    (pid,) = map(int, done.stdout.split())
    wait_for(lambda: not psutil.pid_exists(pid))


def test_workers_die_with_a_parent_that_is_killed(popen: Any) -> None:
    process = popen(
        """
        import os, time
        import handoff_actors as handoff

        handoff.start(isolation="process")

        def waits():
            print(os.getpid(), flush=True)
            time.sleep(60)

        handoff.execute(handoff.new().add_function(handoff.Function("f", (), waits)))
        """
    )
    worker = int(process.stdout.readline())
    children = psutil.Process(process.pid).children(recursive=True)
    assert worker in {child.pid for child in children}
    process.kill()
    process.wait(10)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_stop_kills_what_will_not_end(leaks: Any, tmp_path: Path) -> None:
    runtime = handoff.Runtime(isolation="process", shutdown_timeout=0.3).start()
    path = tmp_path / "pid"

    def code(path: str) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(path).write_text(str(os.getpid()))
        while True:
            pass

    run = runtime.submit(single(code, extra_args=[str(path)]))
    wait_for(path.exists)
    started = time.monotonic()
    runtime.stop()
    assert time.monotonic() - started < 5
    assert isinstance(run.exception(5), handoff.RunCancelledError)
    assert psutil.Process().children() == []


def test_many_starts_and_stops(leaks: Any) -> None:
    for i in range(5):
        with handoff.Runtime(isolation="process") as runtime:
            assert runtime.execute(single(lambda i=i: i)).results["f"] == i


def test_two_runtimes_have_workers_of_their_own(make_runtime: Any) -> None:
    one, two = (make_runtime(isolation="process", name=name) for name in ("one", "two"))
    code = single(lambda: (os.getpid(), handoff.node()))
    first, second = one.execute(code).results["f"], two.execute(code).results["f"]
    assert first[0] != second[0]
    assert (first[1], second[1]) == ("one", "two")
    one.stop()
    assert two.execute(code).results["f"][1] == "two"


def test_max_workers_bounds_the_processes(make_runtime: Any) -> None:
    runtime = make_runtime(isolation="process", max_workers=2)

    def code() -> int:
        time.sleep(0.01)
        return os.getpid()

    dag = handoff.new()
    for i in range(40):
        dag.add_function(Function(i, (), code))
    pids = set(runtime.execute(dag, timeout=15).results.values())
    assert 1 <= len(pids) <= 2
    assert len(psutil.Process().children()) <= 3, "two, and a warm spare"


def test_stateful_globals_of_a_worker_do_not_change_the_callers(runtime: handoff.Runtime) -> None:
    box = {"n": 0}

    def code() -> int:
        box["n"] += 1
        return box["n"]

    for i in range(3):
        assert runtime.execute(single(code), dag_id=i).results["f"] >= 1
    assert box == {"n": 0}


def test_many_runs_leave_nothing(runtime: handoff.Runtime, claims_at_zero: Any) -> None:
    def code(i: int) -> int:
        if handoff.current().attempt <= i % 3:
            raise ValueError
        return i

    for i in range(60):
        dag = handoff.new(i % 5)
        dag.add_function(Function("a", (), code, extra_args=[i], cost={"cpu": 1}))
        dag.add_function(Function("b", ["a"], code))
        assert runtime.execute(dag, timeout=15).results["b"] == i
    claims_at_zero(runtime)
    assert not [run for run in runtime.status().runs if run.state == "running"]

"""Worker processes: real ones, really killed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
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

from handoff_actors.errors import CrashedAttempt, HandoffError, SerializationError
from handoff_actors.execution.context import current, place
from handoff_actors.execution.workers import process as pool_module
from handoff_actors.execution.workers.process import (
    Outcome,
    ProcessPool,
    ProcessWorker,
    WorkerLost,
    WorkItem,
    check_call,
)
from handoff_actors.graph.calls import Call, InlineCall

SOON = 20.0


class Seen:
    """What a pool told, and a place to wait for it."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.lost: list[CrashedAttempt] = []
        self.requests: list[tuple[Any, ...]] = []
        self._changed = threading.Condition()

    def start(self, pid: int) -> None:
        with self._changed:
            self.started.append(pid)
            self._changed.notify_all()

    def lose(self, crash: CrashedAttempt) -> None:
        with self._changed:
            self.lost.append(crash)
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, SOON)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def pool(seen: Seen) -> Iterator[ProcessPool]:
    def on_request(
        worker: ProcessWorker, token: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        seen.requests.append((worker.pid, token, name))
        if name == "fail":
            raise KeyError(*args)
        if name == "lock":
            return threading.Lock()
        return (name, args, kwargs)

    pool = ProcessPool("test", "here", 2, on_request, seen.start, seen.lose)
    yield pool
    pool.close(2.0)


@pytest.fixture
def worker(pool: ProcessPool) -> ProcessWorker:
    return pool.acquire()


def call(code: Any, n: int = 0, **fields: Any) -> Call:
    return Call("f", code, tuple(range(n)), **fields)


def send(worker: ProcessWorker, *items: tuple[Any, ...], key: int = 1, dag: Any = "dag") -> Any:
    return worker.send(dag, [WorkItem(i, key, "f", 1, values) for i, values in enumerate(items)])


def collect(worker: ProcessWorker, n: int) -> dict[int, Outcome]:
    outcomes: dict[int, Outcome] = {}
    while len(outcomes) < n:
        got = worker.receive(SOON)
        assert got, "no outcome came"
        for outcome in got:
            assert outcome.token not in outcomes, "an outcome came twice"
            outcomes[outcome.token] = outcome
    return outcomes


def run(worker: ProcessWorker, code: Any, *values: Any, **fields: Any) -> Any:
    """Run one function; its value, or raise."""
    key = 1000 + len(worker._known)
    worker.teach(key, call(code, len(values), **fields))
    assert worker.send("dag", [WorkItem(7, key, "f", 1, values)]) == []
    outcome = collect(worker, 1)[7]
    if outcome.ok:
        return outcome.value
    raise outcome.value


# Values.


def test_runs_batches_in_order(worker: ProcessWorker) -> None:
    worker.teach(1, call(lambda a, b: a + b, 2))
    assert worker.knows(1)
    assert not worker.knows(2)
    send(worker, *[(i, 10 * i) for i in range(500)])
    outcomes = collect(worker, 500)
    assert [outcomes[i].value for i in range(500)] == [11 * i for i in range(500)]
    starts = [outcomes[i].started for i in range(500)]
    assert starts == sorted(starts)
    assert all(o.started <= o.ended <= time.perf_counter() for o in outcomes.values())


def test_values_of_every_kind(worker: ProcessWorker) -> None:
    worker.teach(1, call(lambda a, b: (b, a), 2))
    big = os.urandom(3_000_000)
    cases = [(1, None), ("x", 2.5), ([1, [2]], {"k": (1,)}), (big, bytearray(big)), ({1, 2}, b"")]
    assert send(worker, *cases) == []
    outcomes = collect(worker, len(cases))
    assert [outcomes[i].value for i in range(len(cases))] == [(b, a) for a, b in cases]


def test_general_calls(worker: ProcessWorker) -> None:
    inline = InlineCall("i", Call("i", lambda a: a * 100, (5,)))
    worker.teach(1, Call("f", lambda v, x, *, k: (v, x, k), (inline, 9), (), {"k": "K"}))
    worker.teach(2, Call("f", lambda values, x: (values, x), (5, 9), ("extra",), None, True))
    values = {5: 1, 9: [2]}
    worker.send("dag", [WorkItem(0, 1, "f", 1, values), WorkItem(1, 2, "f", 1, values)])
    outcomes = collect(worker, 2)
    assert outcomes[0].value == (100, [2], "K")
    assert outcomes[1].value == ([1, [2]], "extra")


def test_one_object_of_a_batch_crosses_once(worker: ProcessWorker) -> None:
    shared = list(range(100_000))
    worker.teach(1, call(lambda a, b: (a is b, id(a)), 2))
    send(worker, (shared, shared), (shared, 1))
    outcomes = collect(worker, 2)
    assert outcomes[0].value[0] is True
    assert outcomes[0].value[1] == outcomes[1].value[1]


def test_context(worker: ProcessWorker) -> None:
    def code() -> tuple[Any, ...]:
        here = current()
        return here.dag_id, here.function_id, here.attempt, here.node, here.cancelled()

    worker.teach(1, call(code))
    worker.send(("dag", 1), [WorkItem(0, 1, ("f", (1, 2)), 3, ())])
    assert collect(worker, 1)[0].value == (("dag", 1), ("f", (1, 2)), 3, "here", False)


def test_child_is_as_its_parent(worker: ProcessWorker) -> None:
    def code() -> tuple[Any, ...]:
        main = sys.modules["__main__"]
        return sys.path, os.getcwd(), sys.argv, sorted(vars(main)), os.fstat(0).st_rdev

    path, cwd, argv, names, stdin = run(worker, code)
    assert (path, cwd, argv) == (sys.path, os.getcwd(), sys.argv)
    assert all(name.startswith("__") for name in names)
    assert stdin == os.stat(os.devnull).st_rdev


def test_child_holds_only_its_own_descriptors(pool: ProcessPool, worker: ProcessWorker) -> None:
    other = pool.acquire()
    for one in (worker, other):
        sockets = run(
            one,
            lambda: [fd for fd in os.listdir("/proc/self/fd") if _target(fd).startswith("socket")],
        )
        assert len(sockets) == 2


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def test_forget(worker: ProcessWorker) -> None:
    run(worker, lambda: 1)
    worker.teach(1, call(lambda: 1))
    worker.teach(2, call(lambda: 2))
    send(worker, ())
    collect(worker, 1)
    worker.forget([1, 99])
    assert not worker.knows(1)
    assert worker.knows(2)
    send(worker, (), key=1)
    assert isinstance(collect(worker, 1)[0].value, KeyError)
    send(worker, (), key=2)
    assert collect(worker, 1)[0].value == 2
    worker.teach(1, call(lambda: "again"))
    send(worker, (), key=1)
    assert collect(worker, 1)[0].value == "again"


# Errors.


class OddError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one}-{two}")
        self.one = one


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        (SystemExit, (3,)),
        (KeyboardInterrupt, ()),
        (GeneratorExit, ()),
        (MemoryError, ()),
        (OddError, (1, 2)),
    ],
)
def test_wall(worker: ProcessWorker, kind: type[BaseException], args: tuple[Any, ...]) -> None:
    def code(kind: type[BaseException], args: tuple[Any, ...]) -> None:
        raise kind(*args)

    with pytest.raises(kind) as caught:
        run(worker, code, kind, args)
    assert str(caught.value) == str(kind(*args))
    assert run(worker, lambda: "alive") == "alive"


def test_recursion_and_memory(worker: ProcessWorker) -> None:
    def deep(n: int) -> int:
        return deep(n + 1)

    with pytest.raises(RecursionError):
        run(worker, deep, 1)
    with pytest.raises(MemoryError):
        run(worker, lambda: bytearray(1 << 60))
    assert run(worker, lambda: "alive") == "alive"


def test_deep_result_is_an_error_not_a_crash(worker: ProcessWorker) -> None:
    def code() -> Any:
        nest: list[Any] = []
        for _ in range(100_000):
            nest = [nest]
        return nest

    with pytest.raises((SerializationError, RecursionError)):
        run(worker, code)
    assert run(worker, lambda: "alive") == "alive"


def test_argument_that_cannot_be_sent(worker: ProcessWorker) -> None:
    worker.teach(1, call(lambda a: a, 1))
    refused = send(worker, (1,), ([{"x": threading.Lock()}],), (3,))
    assert [token for token, _ in refused] == [1]
    error = refused[0][1]
    assert isinstance(error, SerializationError)
    assert error.function_id == "f"
    assert error.dag_id == "dag"
    assert "argument 0" in str(error)
    assert "'x'" in error.path
    assert {t: o.value for t, o in collect(worker, 2).items()} == {0: 1, 2: 3}
    assert send(worker, (threading.Lock(),))[0][0] == 0
    assert worker.receive(0.0) == []
    assert worker.reusable


def test_code_that_cannot_be_sent(worker: ProcessWorker) -> None:
    lock = threading.Lock()

    def code() -> None:
        lock.acquire()

    for refuse in (lambda: worker.teach(1, call(code)), lambda: check_call(call(code), "dag")):
        with pytest.raises(SerializationError) as caught:
            refuse()
        assert caught.value.function_id == "f"
    assert not worker.knows(1)


def test_result_that_cannot_be_sent(worker: ProcessWorker) -> None:
    with pytest.raises(SerializationError) as caught:
        run(worker, lambda: {"rows": [1, threading.Lock()]})
    assert caught.value.function_id == "f"
    assert "result" in str(caught.value)
    assert "rows" in caught.value.path


class Unreadable:
    """Can be pickled, and raises when it is made anew."""

    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> None:
    raise ZeroDivisionError("not here")


def test_value_that_cannot_be_read_spoils_only_its_own(worker: ProcessWorker) -> None:
    worker.teach(1, call(lambda a: a, 1))
    assert send(worker, (1,), (Unreadable(),), ([2],)) == []
    outcomes = collect(worker, 3)
    assert (outcomes[0].value, outcomes[2].value) == (1, [2])
    assert isinstance(outcomes[1].value, SerializationError)
    assert outcomes[1].value.function_id == "f"
    with pytest.raises(SerializationError, match="result"):
        run(worker, lambda: Unreadable())
    assert run(worker, lambda: "alive") == "alive"


# Deaths.


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        (lambda: os._exit(3), 3, "exited with code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), -9, "SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), -11, "SIGSEGV"),
        (lambda: os.closerange(3, 1000), None, ""),
    ],
)
def test_death(
    worker: ProcessWorker, pool: ProcessPool, seen: Seen, code: Any, exit_code: int, words: str
) -> None:
    worker.teach(1, call(lambda x: x, 1))
    worker.teach(2, call(code))
    send(worker, (1,), (2,))
    assert sorted(collect(worker, 2)) == [0, 1]
    worker.send("dag", [WorkItem(9, 2, "f", 1, ())])
    with pytest.raises(WorkerLost) as lost:
        worker.receive(SOON)
    crash = lost.value.crash
    assert (crash.pid, crash.node) == (worker.pid, "here")
    assert words in crash.reason
    if exit_code is not None:
        assert crash.exit_code == exit_code
    assert not worker.alive
    with pytest.raises(WorkerLost):
        worker.receive(0.0)
    with pytest.raises(WorkerLost):
        send(worker, (1,))
    assert worker.take_back([9], SOON) == []
    seen.wait(lambda: len(seen.lost) == 1)
    assert seen.lost == [crash]
    pool.release(worker)
    assert run(pool.acquire(), lambda: "alive") == "alive"


def test_death_while_a_frame_is_sent(worker: ProcessWorker) -> None:
    worker.teach(1, call(lambda a: os.kill(os.getpid(), signal.SIGSTOP), 1))
    send(worker, (1,))
    process = psutil.Process(worker.pid)
    while process.status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)
    timer = threading.Timer(0.05, worker.kill)
    timer.start()
    with pytest.raises(WorkerLost):
        send(worker, (os.urandom(50_000_000),))
    timer.join()


def test_large_values_both_ways_at_once(worker: ProcessWorker) -> None:
    """Neither side reads while it writes: somebody has to give way."""
    worker.teach(1, call(lambda a: a, 1))
    data = os.urandom(4_000_000)
    for i in range(10):
        worker.send("dag", [WorkItem(i, 1, "f", 1, (data,))])
    assert {len(o.value) for o in collect(worker, 10).values()} == {len(data)}


def forks() -> int:
    pid = os.fork()
    if pid == 0:
        while True:
            time.sleep(60)
    return pid


def hands_all_on() -> int:
    sockets = [int(fd) for fd in os.listdir("/proc/self/fd") if _target(fd).startswith("socket")]
    return subprocess.Popen(["sleep", "60"], pass_fds=sockets).pid


@pytest.mark.parametrize("code", [forks, hands_all_on])
def test_death_while_a_grandchild_lives(worker: ProcessWorker, code: Any) -> None:
    grandchild = run(worker, code)
    try:
        worker.teach(1, call(lambda: os.kill(os.getpid(), signal.SIGKILL)))
        send(worker, ())
        with pytest.raises(WorkerLost):
            worker.receive(SOON)
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_killed_worker_is_replaced_at_once(pool: ProcessPool, seen: Seen) -> None:
    worker = pool.acquire()
    seen.wait(lambda: len(seen.started) == 2)
    worker.teach(1, call(time.sleep, 1))
    send(worker, (60,))
    spares = set(seen.started) - {worker.pid}
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost):
        worker.receive(SOON)
    pool.release(worker)
    other = pool.acquire()
    assert other.pid in spares, "the warm spare was not used"
    assert run(other, lambda: "alive") == "alive"


def test_idle_death_is_noticed(pool: ProcessPool, seen: Seen) -> None:
    pool.release(pool.acquire())
    seen.wait(lambda: len(seen.started) == 2)
    for pid in pool.describe()["pids"]:
        os.kill(pid, signal.SIGKILL)
    seen.wait(lambda: len(seen.lost) == 2 and len(seen.started) >= 3)
    assert {crash.exit_code for crash in seen.lost} == {-9}
    assert run(pool.acquire(), lambda: "alive") == "alive"


# Control.


def gate(path: str) -> None:
    """Wait until a file is there."""
    while not os.path.exists(path):
        time.sleep(0.001)


def begun(path: str) -> None:
    Path(path).touch()


def spin_until(path: str) -> None:
    while not os.path.exists(path):
        pass


def begin_and(wait: Callable[[str], None]) -> Callable[[str, str], None]:
    def code(here: str, there: str) -> None:
        begun(here)
        wait(there)

    return code


@pytest.mark.parametrize("wait", [gate, spin_until])
def test_take_back(worker: ProcessWorker, tmp_path: Path, wait: Any) -> None:
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    worker.teach(1, call(begin_and(wait), 2))
    worker.teach(2, call(lambda x: begun(x), 1))
    ran = [str(tmp_path / str(i)) for i in range(6)]
    worker.send(
        "dag",
        [WorkItem(0, 1, "f", 1, (here, there))]
        + [WorkItem(i, 2, "f", 1, (ran[i],)) for i in (1, 2, 3)],
    )
    worker.send("dag", [WorkItem(i, 2, "f", 1, (ran[i],)) for i in (4, 5)])
    gate(here)
    assert sorted(worker.take_back([0, 2, 3, 4, 77], SOON)) == [2, 3, 4]
    begun(there)
    assert sorted(collect(worker, 3)) == [0, 1, 5]
    assert [os.path.exists(path) for path in ran[1:]] == [True, False, False, False, True]
    assert worker.reusable
    worker.send("dag", [WorkItem(4, 2, "f", 1, (ran[4],))])
    assert sorted(collect(worker, 1)) == [4]
    assert os.path.exists(ran[4])


def test_take_back_too_late(worker: ProcessWorker) -> None:
    """Who took it cannot be known, so the process goes, and all it had counts as lost."""

    def code() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        threading.Event().wait(SOON)  # the other attempt must not begin before it is taken

    worker.teach(1, call(code))
    worker.send("dag", [WorkItem(i, 1, "f", 1, ()) for i in (0, 1)])
    process = psutil.Process(worker.pid)
    while process.status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)
    assert worker.take_back([1], 0.05) == []
    process.resume()
    with pytest.raises(WorkerLost):
        collect(worker, 2)


def test_results_do_not_wait_behind_a_slow_function(worker: ProcessWorker, tmp_path: Path) -> None:
    path = str(tmp_path / "gate")
    for wait in (gate, spin_until):
        worker.teach(1, call(lambda x: x, 1))
        worker.teach(2, call(wait, 1))
        worker.send(
            "dag",
            [WorkItem(0, 1, "f", 1, (5,)), WorkItem(1, 2, "f", 1, (path,))],
        )
        assert worker.receive(SOON)[0].token == 0
        begun(path)
        assert worker.receive(SOON)[0].token == 1
        os.unlink(path)
        worker.forget()


def test_cancel(worker: ProcessWorker) -> None:
    def code() -> str:
        while not current().cancelled():
            time.sleep(0.001)
        return "seen"

    worker.teach(1, call(code))
    worker.teach(2, call(lambda: current().cancelled()))
    worker.send("dag", [WorkItem(3, 1, "f", 1, ()), WorkItem(4, 2, "f", 1, ())])
    worker.cancel([3, 99])
    assert {t: o.value for t, o in collect(worker, 2).items()} == {3: "seen", 4: False}
    worker.send("dag", [WorkItem(3, 2, "f", 1, ())])
    assert collect(worker, 1)[3].value is False


def test_coroutines_run_together(worker: ProcessWorker) -> None:
    worker.teach(1, call(_meet, 1, is_async=True))
    assert send(worker, *[(20,)] * 20) == []
    assert {o.value for o in collect(worker, 20).values()} == {20}


_met = 0
_all_met: asyncio.Event | None = None


async def _meet(n: int) -> int:
    """Returns when ``n`` of these run at once."""
    global _met, _all_met
    _all_met = _all_met or asyncio.Event()
    _met += 1
    if _met == n:
        _all_met.set()
    await _all_met.wait()
    return _met


def test_coroutines_fail_and_are_cancelled_alone(worker: ProcessWorker) -> None:
    async def code(what: str) -> Any:
        if what == "exit":
            raise SystemExit(4)
        if what == "wait":
            await asyncio.sleep(60)
        return what, current().function_id

    worker.teach(1, call(code, 1, is_async=True))
    send(worker, ("exit",), ("wait",), ("x",))
    outcomes = collect(worker, 2)
    assert isinstance(outcomes[0].value, SystemExit)
    assert outcomes[2].value == ("x", "f")
    worker.cancel([1])
    assert isinstance(collect(worker, 1)[1].value, asyncio.CancelledError)
    assert run(worker, lambda: "alive") == "alive"


def test_a_coroutine_cancelled_before_it_begins_has_an_outcome(
    worker: ProcessWorker, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    began, go = tmp_path / "began", tmp_path / "go"

    async def holds_the_loop(held: bool) -> str:
        if held:
            began.touch()
            while not go.exists():
                time.sleep(0.001)
        return "ran"

    worker.teach(1, call(holds_the_loop, 1, is_async=True))
    send(worker, (True,))
    eventually(began.exists)
    worker.send("dag", [WorkItem(5, 1, "f", 1, (False,))])
    worker.cancel([5])
    assert worker.take_back([0], SOON) == []  # what was said before is known there
    go.touch()
    outcomes = collect(worker, 2)
    assert outcomes[0].value == "ran"
    assert isinstance(outcomes[5].value, asyncio.CancelledError)


def home() -> Any:
    here = place.get()
    assert here is not None
    return here.home()


def test_forwarded_calls(worker: ProcessWorker, seen: Seen) -> None:
    def code() -> Any:
        found: list[Any] = [None] * 4
        runtime = home()

        def ask(i: int) -> None:
            found[i] = runtime.execute(i, extra=[i])

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    assert run(worker, code) == [("execute", (i,), {"extra": [i]}) for i in range(4)]
    assert {request[:2] for request in seen.requests} == {(worker.pid, 7)}


def test_forwarded_calls_fail(worker: ProcessWorker) -> None:
    with pytest.raises(KeyError, match="gone"):
        run(worker, lambda: home().fail("gone"))
    with pytest.raises(SerializationError, match="answer"):
        run(worker, lambda: home().lock())
    with pytest.raises(SerializationError, match="arguments of execute"):
        run(worker, lambda: home().execute(threading.Lock()))


def test_forwarded_large_values(worker: ProcessWorker) -> None:
    assert run(worker, lambda: len(home().execute(bytes(5_000_000))[1][0])) == 5_000_000


# The pool.


def test_nothing_runs_before_it_is_wanted(seen: Seen) -> None:
    threads = threading.active_count()
    pool = ProcessPool("idle", "here", 2, lambda *_: None, seen.start, seen.lose)
    assert pool.describe() == {"idle": 0, "starting": 0, "pids": []}
    assert threading.active_count() == threads
    pool.close(1.0)
    with pytest.raises(HandoffError, match="stopped"):
        pool.acquire()


def test_workers_are_used_again(pool: ProcessPool, seen: Seen) -> None:
    first = pool.acquire()
    seen.wait(lambda: len(seen.started) == 2)
    for _ in range(5):
        pool.release(first)
        assert pool.acquire() is first
    assert len(pool.describe()["pids"]) == 2


def test_a_death_is_told_also_when_the_worker_is_given_back_first(
    pool: ProcessPool, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = pool.acquire()
    seen.wait(lambda: len(seen.started) == 2)
    given_back = threading.Event()
    on_control = worker.on_control

    def late() -> bool:
        assert given_back.wait(SOON)
        return on_control()

    monkeypatch.setattr(worker, "on_control", late)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost):
        worker.receive(SOON)
    pool.release(worker)
    given_back.set()
    seen.wait(lambda: [crash.pid for crash in seen.lost] == [worker.pid])


def test_worker_that_holds_something_is_not_used_again(pool: ProcessPool) -> None:
    worker = pool.acquire()
    worker.teach(1, call(time.sleep, 1))
    send(worker, (60,))
    pool.release(worker)
    assert pool.acquire().pid != worker.pid
    assert not psutil.pid_exists(worker.pid) or _gone(worker.pid)


def _gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(SOON)
    return not psutil.pid_exists(pid)


def test_large_code_is_forgotten_when_idle(pool: ProcessPool) -> None:
    worker = pool.acquire()
    data = os.urandom(2_000_000)
    assert run(worker, lambda: len(data)) == len(data)
    assert worker.taught > len(data)
    pool.release(worker)
    assert worker.taught == 0
    assert run(worker, lambda: "alive") == "alive"


def test_many_take_and_release_at_once(pool: ProcessPool) -> None:
    failures: list[BaseException] = []

    def use() -> None:
        try:
            for i in range(5):
                worker = pool.acquire()
                assert run(worker, lambda x: x + 1, i) == i + 1
                pool.release(worker)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_process_that_cannot_start(
    pool: ProcessPool, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(HandoffError, match="/nowhere/python"):
        pool.acquire()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(HandoffError, match="exited with code 1"):
        pool.acquire()
    monkeypatch.undo()
    assert run(pool.acquire(), lambda: "alive") == "alive"
    assert seen.lost == []


def test_workers_that_are_killed_before_they_are_ready_are_no_reason_to_give_up(
    pool: ProcessPool, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, killed = pool_module.start, []

    def killing(node: str) -> Any:
        started = start(node)
        if len(killed) < 8:
            os.kill(started.process.pid, signal.SIGKILL)
            killed.append(started.process.pid)
        return started

    monkeypatch.setattr(pool_module, "start", killing)
    assert run(pool.acquire(), lambda: "alive") == "alive"
    assert len(killed) == 8
    assert seen.lost == []


def test_close_leaves_nothing() -> None:
    gc.collect()
    me = psutil.Process()
    before = (me.num_fds(), threading.active_count(), len(me.children()))
    for busy in (False, True):
        seen = Seen()
        pool = ProcessPool("t", "here", 2, lambda *_: None, seen.start, seen.lose)
        workers = [pool.acquire() for _ in range(3)]
        if busy:
            workers[0].teach(1, call(time.sleep, 1))
            send(workers[0], (60,))
            waiting = threading.Thread(target=_receive_until_lost, args=(workers[0],))
            waiting.start()
        pool.release(workers[1])
        started = time.perf_counter()
        pool.close(0.3)
        assert time.perf_counter() - started < 3.0
        if busy:
            waiting.join(SOON)
            assert not waiting.is_alive()
        for worker in workers:
            pool.release(worker)
        pool.close(1.0)
        assert seen.lost == []
    gc.collect()
    assert (me.num_fds(), threading.active_count(), len(me.children())) == before


def _receive_until_lost(worker: ProcessWorker) -> None:
    with contextlib.suppress(WorkerLost):
        while True:
            worker.receive()


def test_close_while_a_process_starts(monkeypatch: pytest.MonkeyPatch, seen: Seen) -> None:
    starting, closing = threading.Event(), threading.Event()
    pool = ProcessPool("t", "here", 2, lambda *_: None, seen.start, seen.lose)
    pool.acquire()
    seen.wait(lambda: len(seen.started) == 2)
    start = pool_module.start

    def late(node: str) -> Any:
        starting.set()
        assert closing.wait(SOON)
        return start(node)

    monkeypatch.setattr(pool_module, "start", late)
    pool.acquire()
    assert starting.wait(SOON)
    close = threading.Thread(target=pool.close, args=(SOON,))
    close.start()
    while not pool._closed:
        time.sleep(0.001)
    closing.set()
    close.join(SOON / 2)
    assert not close.is_alive()
    assert pool.describe()["pids"] == []


def test_close_runs_exit_handlers(pool: ProcessPool, tmp_path: Path) -> None:
    import atexit

    path = str(tmp_path / "left")
    run(pool.acquire(), lambda: atexit.register(begun, path) and None)
    pool.close(SOON)
    assert os.path.exists(path)


_ORPHANS = """
import sys, threading, time
from handoff_actors.execution.workers.process import ProcessPool, WorkItem
from handoff_actors.graph.calls import Call

def spin():
    while True:
        sum(range(10**9))  # never gives the interpreter away

pool = ProcessPool("t", "here", 2, lambda *a: None, lambda pid: None, lambda crash: None)
workers = [pool.acquire(), pool.acquire()]
workers[0].teach(1, Call("f", spin, ()))
workers[0].send("dag", [WorkItem(0, 1, "f", 1, ())])
while len(pool.describe()["pids"]) < 3 or pool.describe()["starting"]:
    time.sleep(0.001)
print(*pool.describe()["pids"], flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_with_their_parent(how: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _ORPHANS], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        processes = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(processes) == 3
        parent.send_signal(how)
    gone, alive = psutil.wait_procs(processes, timeout=SOON)
    assert (len(gone), alive) == (3, [])


def test_ctrl_c_does_not_reach_workers(worker: ProcessWorker) -> None:
    os.kill(worker.pid, signal.SIGINT)
    assert run(worker, lambda: "alive") == "alive"


def test_face_is_loaded_only_when_asked_for(worker: ProcessWorker) -> None:
    def loaded() -> bool:
        return "handoff_actors.runtime" in sys.modules

    def use() -> Any:
        import handoff_actors

        return handoff_actors.Function, handoff_actors.__version__

    import handoff_actors

    assert run(worker, loaded) is False
    assert run(worker, use) == (handoff_actors.Function, handoff_actors.__version__)
    assert run(worker, loaded) is True


def test_pool_names(pool: ProcessPool) -> None:
    assert pool_module.__all__
    worker = pool.acquire()
    assert worker.alive
    assert str(worker.pid) in repr(worker)

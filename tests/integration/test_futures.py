"""``handoff.Executor``: what the standard library's pools do, and what they do not survive.

CPython's own tests of ``concurrent.futures`` were run against it while it was built.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

import handoff_actors as handoff

DEADLINE = 20.0


@pytest.fixture(params=["thread", "process"])
def pool(request, leaks):
    with handoff.Executor(2, isolation=request.param) as pool:
        yield pool


@pytest.fixture
def processes(leaks):
    with handoff.Executor(2, isolation="process") as pool:
        yield pool


def test_it_is_an_executor(pool):
    assert isinstance(pool, concurrent.futures.Executor)
    future = pool.submit(pow, 2, exp=5)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(DEADLINE) == 32
    done, _ = concurrent.futures.wait([pool.submit(abs, -n) for n in range(9)], DEADLINE)
    assert {f.result() for f in done} == set(range(9))
    values = {f.result() for f in concurrent.futures.as_completed(map(pool.submit, [int] * 3))}
    assert values == {0}


def test_lambdas_and_closures(pool):
    n = 3
    assert pool.submit(lambda: [n] * n).result(DEADLINE) == [3, 3, 3]
    assert list(pool.map(lambda a, b: a + b + n, range(4), range(9))) == [3, 5, 7, 9]


def test_what_a_task_raises_is_the_futures(pool):
    future = pool.submit(int, "x")
    assert isinstance(future.exception(DEADLINE), ValueError)
    with pytest.raises(ValueError, match="invalid literal"):
        future.result()
    assert type(pool.submit(sys.exit, 3).exception(DEADLINE)) is SystemExit
    assert pool.submit(abs, -1).result(DEADLINE) == 1


@pytest.mark.parametrize("chunksize", [1, 7, 1000])
def test_map_keeps_the_order(pool, chunksize):
    assert list(pool.map(pow, range(50), [2] * 60, chunksize=chunksize)) == [
        n * n for n in range(50)
    ]
    results = pool.map(divmod, [5, 5, 5], [2, 0, 1], chunksize=chunksize)
    with pytest.raises(ZeroDivisionError):
        list(results)


def test_map_with_a_buffer_reads_no_further(pool):
    read = []

    def numbers():
        for n in range(1000):
            read.append(n)
            yield n

    results = pool.map(abs, numbers(), buffersize=3)
    assert len(read) == 3
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(read) == 8
    results.close()
    assert list(pool.map(abs, range(5), chunksize=2, buffersize=1)) == [0, 1, 2, 3, 4]
    assert list(pool.map(abs, [], buffersize=1)) == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"chunksize": 0}, ValueError),
        ({"buffersize": 0}, ValueError),
        ({"buffersize": "1"}, TypeError),
    ],
)
def test_what_map_refuses(pool, options, error):
    with pytest.raises(error):
        pool.map(abs, [1], **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_workers": 0}, ValueError),
        ({"max_workers": 1.5}, ValueError),
        ({"isolation": "fibre"}, ValueError),
        ({"initializer": 1}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"max_crashes": -1}, ValueError),
    ],
)
def test_what_cannot_be_made(options, error, leaks):
    with pytest.raises(error):
        handoff.Executor(**options)


def test_map_times_out(leaks):
    go_on = threading.Event()
    with handoff.Executor(2) as pool:
        results = pool.map(lambda event: event.wait(DEADLINE), [go_on], timeout=0.05)
        with pytest.raises(TimeoutError):
            next(results)
        go_on.set()


def test_no_more_than_max_workers_at_once(leaks):
    lock, now, most = threading.Lock(), [0], [0]

    def count(_):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.002)
        with lock:
            now[0] -= 1

    with handoff.Executor(3) as pool:
        list(pool.map(count, range(40)))
    assert most[0] == 3


def test_what_has_not_begun_can_be_cancelled(leaks):
    begun, go_on = threading.Event(), threading.Event()
    with handoff.Executor(1) as pool:
        first = pool.submit(lambda: begun.set() or go_on.wait(DEADLINE))
        assert begun.wait(DEADLINE)
        second, third = pool.submit(int), pool.submit(int)
        assert first.running()
        assert not first.cancel()
        assert second.cancel()
        go_on.set()
        assert third.result(DEADLINE) == 0
    assert second.cancelled()


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_shutdown_cancels_what_has_not_begun(leaks, isolation):
    pool = handoff.Executor(1, isolation=isolation)
    futures = [pool.submit(time.sleep, 0.05) for _ in range(20)]
    pool.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    cancelled = [future.cancelled() for future in futures]
    assert cancelled.count(False) in (1, 2)
    assert cancelled[-1]
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)


def test_shutdown_without_wait_does_what_was_submitted(leaks):
    pool = handoff.Executor(2)
    futures = [pool.submit(abs, n) for n in range(100)]
    pool.shutdown(wait=False)
    assert [future.result(DEADLINE) for future in futures] == list(range(100))
    pool.shutdown()


def test_a_pool_that_nobody_holds_ends(leaks):
    future = handoff.Executor(2).submit(abs, -1)
    gc.collect()
    assert future.result(DEADLINE) == 1


def test_results_are_not_kept(pool):
    class Value(set):
        pass

    for value in pool.map(lambda _: Value(), range(5)):
        gone = weakref.ref(value)
        del value
        gc.collect()
        assert gone() is None


def test_a_killed_worker_costs_one_task(processes):
    before = [processes.submit(time.sleep, 0.01) for _ in range(4)]
    killed = processes.submit(lambda: os.kill(os.getpid(), signal.SIGKILL))
    after = [processes.submit(abs, -n) for n in range(20)]
    error = killed.exception(DEADLINE)
    assert isinstance(error, handoff.FunctionCrashedError)
    assert [attempt.exit_code for attempt in error.attempts] == [-signal.SIGKILL]
    assert [f.result(DEADLINE) for f in before] == [None] * 4
    assert [f.result(DEADLINE) for f in after] == list(range(20))


def note(path, n):
    """A task that leaves a trace of each time it runs."""
    with open(path, "a") as file:
        file.write(f"{n}\n")
    return n


def noted(path):
    return [int(line) for line in path.read_text().splitlines()]


def test_of_many_short_tasks_only_the_one_that_kills_its_worker_fails(processes, tmp_path):
    """They go in batches; none of the others is lost, and none runs twice."""
    path = tmp_path / "ran"
    assert list(processes.map(abs, range(300))) == list(range(300))

    def die(path, n):
        note(path, n)
        os.kill(os.getpid(), signal.SIGKILL)

    futures = [processes.submit(die if n in (150, 400) else note, path, n) for n in range(600)]
    errors = {n: f.exception(DEADLINE) for n, f in enumerate(futures)}
    failed = {n for n, error in errors.items() if error is not None}
    assert failed == {150, 400}
    assert sorted(noted(path)) == list(range(600))


def test_workers_that_are_killed_at_any_moment_cost_a_task_each(leaks, tmp_path):
    path = tmp_path / "ran"
    with (
        handoff.Runtime() as runtime,
        handoff.Executor(2, isolation="process", runtime=runtime) as pool,
    ):
        assert pool.submit(abs, -1).result(DEADLINE) == 1
        futures, kills = [], 0
        for n in range(3000):
            futures.append(pool.submit(note, path, n))
            if n % 300 == 299:
                with contextlib.suppress(handoff.ConfigurationError):  # none is up just now
                    kills += handoff.testing.kill_worker(runtime=runtime) is not None
        errors = [f.exception(DEADLINE) for f in futures]
        failed = [n for n, error in enumerate(errors) if error is not None]
        assert kills
        assert len(failed) <= kills
        assert all(isinstance(errors[n], handoff.FunctionCrashedError) for n in failed)
        ran = noted(path)
        assert len(ran) == len(set(ran))
        assert set(ran) | set(failed) == set(range(3000))


class DiesWhenRead:
    def __reduce__(self):
        return os._exit, (3,)


def test_an_argument_that_kills_whoever_reads_it_fails_its_task_alone(processes):
    before = [processes.submit(abs, n) for n in range(50)]
    bad = processes.submit(id, DiesWhenRead())
    after = [processes.submit(abs, n) for n in range(50)]
    assert isinstance(bad.exception(DEADLINE), handoff.FunctionCrashedError)
    assert [f.result(DEADLINE) for f in before + after] == 2 * list(range(50))


def test_what_waits_behind_a_slow_task_goes_to_another_worker(processes, tmp_path):
    go_on = tmp_path / "go on"

    def slow():
        while not go_on.exists():
            time.sleep(0.002)

    assert list(processes.map(abs, range(500))) == list(range(500))
    first = processes.submit(slow)
    others = [processes.submit(abs, n) for n in range(500)]
    assert [f.result(DEADLINE) for f in others] == list(range(500))
    assert not first.done()
    go_on.touch()
    assert first.result(DEADLINE) is None


def test_a_crash_that_is_allowed_runs_the_task_again(leaks, tmp_path):
    path = tmp_path / "ran"

    def die(often):
        note(path, 0)
        if len(noted(path)) <= often:
            os.kill(os.getpid(), signal.SIGKILL)
        return handoff.current().attempt

    with handoff.Executor(2, isolation="process", max_crashes=2) as pool:
        assert pool.submit(die, 2).result(DEADLINE) == 3
        error = pool.submit(die, 99).exception(DEADLINE)
    assert isinstance(error, handoff.FunctionCrashedError)
    assert len(error.attempts) == 3
    assert "max_crashes=2" in str(error)


def test_options_of_tasks(leaks, tmp_path):
    def once(what):
        mark = tmp_path / what
        if not mark.exists():
            mark.touch()
            os.abort() if what == "crash" else int(what)
        return handoff.current().attempt

    with handoff.Executor(2, isolation="process", max_crashes=1, max_retries=1, timeout=5) as pool:
        assert list(pool.map(once, ["crash", "raise"])) == [2, 2]
    with handoff.Executor(2, isolation="process", timeout=0.1) as pool:
        error = pool.submit(time.sleep, 30).exception(DEADLINE)
        assert isinstance(error, handoff.FunctionTimeoutError)
        assert pool.submit(int).result(DEADLINE) == 0


@pytest.mark.parametrize("bad", ["argument", "result"])
def test_what_cannot_be_pickled_costs_one_task(processes, bad):
    lock = threading.Lock()
    future = (
        processes.submit(id, lock)
        if bad == "argument"
        else processes.submit(lambda: sys._getframe())
    )
    assert isinstance(future.exception(DEADLINE), handoff.SerializationError)
    assert processes.submit(int).result(DEADLINE) == 0


def test_nested_tasks_never_deadlock(leaks):
    with handoff.Executor(1) as pool:

        def depth(n):
            return 0 if not n else 1 + pool.submit(depth, n - 1).result()

        assert pool.submit(depth, 5).result(DEADLINE) == 5


def test_nested_tasks_with_options(leaks):
    with handoff.Executor(1, max_retries=1) as pool:
        assert pool.submit(lambda: pool.submit(abs, -2).result()).result(DEADLINE) == 2


def test_a_task_can_use_the_runtime(pool):
    def run():
        dag = handoff.new()
        dag.add_function(handoff.Function("a", (), lambda: 4))
        return handoff.execute(dag).results["a"]

    assert pool.submit(run).result(DEADLINE) == 4


def test_the_initializer_is_called_in_each_worker(pool):
    isolation = "process" if pool.submit(os.getpid).result() != os.getpid() else "thread"
    with handoff.Executor(
        2, isolation=isolation, initializer=setattr, initargs=(os, "handoff_test", 7)
    ) as other:
        assert other.submit(lambda: os.handoff_test).result(DEADLINE) == 7
    if isolation == "thread":
        del os.handoff_test


def test_an_initializer_that_fails_breaks_the_pool(pool):
    isolation = "process" if pool.submit(os.getpid).result() != os.getpid() else "thread"
    with handoff.Executor(2, isolation=isolation, initializer=int, initargs=("x",)) as other:
        with pytest.raises(concurrent.futures.BrokenExecutor, match="initializer"):
            other.submit(abs, 1).result(DEADLINE)
        with pytest.raises(concurrent.futures.BrokenExecutor, match="invalid literal"):
            other.submit(abs, 1)


def test_it_uses_the_runtime_that_is_there(default, leaks):
    runtime = default.start(max_workers=2)
    with handoff.Executor(2) as pool:
        assert pool.runtime is runtime
        assert pool.submit(abs, -1).result(DEADLINE) == 1
    assert runtime.running
    with handoff.Runtime() as own, handoff.Executor(1, runtime=own) as pool:
        assert pool.runtime is own
        assert pool.submit(handoff.node).result(DEADLINE) == own.node()


def test_a_runtime_that_stops_fails_what_waits(leaks, eventually):
    begun, go_on = threading.Event(), threading.Event()
    runtime = handoff.Runtime(shutdown_timeout=0.2).start()
    pool = handoff.Executor(1, runtime=runtime)
    first = pool.submit(lambda: begun.set() or go_on.wait(DEADLINE))
    second = pool.submit(int)
    assert begun.wait(DEADLINE)
    runtime.stop()
    assert isinstance(second.exception(DEADLINE), handoff.HandoffError)
    go_on.set()
    assert first.result(DEADLINE) is True
    with pytest.raises(handoff.NotStartedError):
        pool.submit(int).result(DEADLINE)
    pool.shutdown()


def test_actors_may_crash_meanwhile(leaks):
    with handoff.Runtime(max_restarts=100) as runtime, handoff.Executor(2, runtime=runtime) as pool:
        results = pool.map(lambda n: time.sleep(0.001) or n, range(200), buffersize=20)
        for n, value in enumerate(results):
            assert n == value
            if n % 40 == 0:
                handoff.testing.crash("distributed_executor", runtime=runtime)


def test_retained_runs_of_others_are_not_pushed_out(leaks):
    with handoff.Runtime(max_retained_runs=2) as runtime:
        dag = handoff.new("kept")
        dag.add_function(handoff.Function("a", (), lambda: 1))
        runtime.execute(dag)
        with handoff.Executor(2, runtime=runtime, max_retries=1) as pool:
            list(pool.map(abs, range(50)))
        assert runtime.get_local_value("kept", "a") == 1


def test_what_was_submitted_is_done_before_the_interpreter_ends():
    code = (
        "import handoff_actors, time\n"
        "handoff_actors.Executor(2).submit(lambda: time.sleep(0.2) or print('done', flush=True))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("done\n", "")

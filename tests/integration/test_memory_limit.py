"""A limit to the memory of values: nobody sees it, but for the memory and the disk."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import handoff_actors as handoff
from handoff_actors.results import budget as budgets
from handoff_actors.results.spill_file import Spilled
from handoff_actors.testing import crash

SIZE = 20_000
N = 12


@pytest.fixture(autouse=True)
def _collected(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whoever holds a value on disk holds the file's descriptor, also in a cycle."""
    if "make_runtime" in request.fixturenames:
        request.getfixturevalue("leaks")  # which is looked at after this
    yield
    gc.collect()


def make(number: int) -> bytes:
    return bytes([number]) * SIZE


def join(*parts: bytes) -> bytes:
    return b"".join(part[: SIZE // len(parts)] for part in parts)


async def join_soon(*parts: bytes) -> bytes:
    await asyncio.sleep(0)
    return join(*parts)


async def _late(_: Any, *parts: bytes) -> bytes:
    return await join_soon(*parts)


def wide(last: Callable[..., Any] = join, **options: Any) -> handoff.DAG:
    """Some makers, each two of which are joined, and then all."""
    dag = handoff.DAG("wide")
    for k in range(N):
        dag.add_function(handoff.Function(k, (), make, extra_args=[k], **options))
    for k in range(0, N, 2):
        dag.add_function(handoff.Function(f"pair {k}", (k, k + 1), last, **options))
    dag.add_function(handoff.Function("all", tuple(range(N)), last, **options))
    return dag


def expected() -> dict[Any, bytes]:
    values: dict[Any, bytes] = {k: make(k) for k in range(N)}
    values |= {f"pair {k}": join(make(k), make(k + 1)) for k in range(0, N, 2)}
    return values | {"all": join(*map(make, range(N)))}


def memory_of(runtime: handoff.Runtime) -> handoff.MemoryStatus:
    memory = runtime.status().memory
    assert memory is not None
    return memory


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("limit", [1, "70 KB"])
def test_values_go_to_disk_and_are_read_back(
    make_runtime: Callable[..., handoff.Runtime],
    eventually: Callable[..., None],
    tmp_path: Path,
    isolation: str,
    limit: Any,
) -> None:
    runtime = make_runtime(memory_limit=limit, spill_directory=tmp_path, isolation=isolation)
    result = runtime.execute(wide())
    # The answer of a run does not wait for the disk; the next function does.
    eventually(lambda: memory_of(runtime).held <= memory_of(runtime).limit)
    memory = memory_of(runtime)
    assert memory.values >= N
    assert memory.problem is None
    assert "on disk" in str(runtime.status())
    assert not list(tmp_path.iterdir()), "the file has no name, so nothing can be left of it"
    assert dict(result.results) == expected()
    assert runtime.get_value("wide", 3) == make(3)
    assert runtime.get_local_value("wide", 4) == make(4)
    assert runtime.get_result("wide", 5) == make(5)
    assert runtime.synchronize("wide", [6, "all"]) == {6: make(6), "all": expected()["all"]}
    assert memory_of(runtime).held <= memory.limit
    result.release()
    del result
    runtime.clear("wide")
    gc.collect()
    assert runtime.status().memory == handoff.MemoryStatus(memory.limit, 0, 0, 0, 0, None)


def test_coroutines_read_on_another_thread(
    make_runtime: Callable[..., handoff.Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: set[str] = set()
    real = Spilled.load

    def load(spilled: Spilled) -> Any:
        readers.add(threading.current_thread().name)
        return real(spilled)

    monkeypatch.setattr(Spilled, "load", load)
    runtime = make_runtime(memory_limit=1)
    dag = wide(join_soon)
    dag.add_function(handoff.Function("full", ["all"], lambda _: runtime._budget.relieve()))
    late = handoff.Function("late", ["full", 0, 1], _late)
    result = runtime.execute(dag.add_function(late))
    assert result.results["late"] == join(make(0), make(1))
    assert readers
    assert not [name for name in readers if "loop" in name or "coroutine" in name], readers
    assert result.results["all"] == expected()["all"]


def test_what_users_store_counts_too(make_runtime: Callable[..., handoff.Runtime]) -> None:
    runtime = make_runtime(memory_limit="50 KB")
    for k in range(10):
        runtime.store_value("mine", k, make(k))
        runtime.store_result("results", k, make(k))
    runtime.execute(
        handoff.DAG("other").add_function(handoff.Function(0, (), make, extra_args=[0]))
    )
    memory = memory_of(runtime)
    assert memory.held + memory.spilled >= 20 * SIZE
    for k in range(10):
        assert runtime.get_local_value("mine", k) == make(k)
        assert runtime.get_value("results", k) == make(k)
    for dag_id in ("mine", "results", "other"):
        runtime.clear(dag_id)
    gc.collect()
    memory = memory_of(runtime)
    assert (memory.held, memory.spilled) == (0, 0)


def test_inputs_count_and_freed_values_do_not(make_runtime: Callable[..., handoff.Runtime]) -> None:
    runtime = make_runtime(memory_limit="1 MB")
    dag = handoff.DAG("d").add_function(handoff.Function("in", type="input"))
    dag.add_function(handoff.Function("a", ["in"], lambda value: value + value))
    dag.add_function(handoff.Function("b", ["a"], len))
    result = runtime.execute(dag, inputs={"in": make(1)}, keep="sinks")
    memory = memory_of(runtime)
    assert SIZE <= memory.held < 2 * SIZE, "the input is there, the result of a was freed"
    assert result.results["b"] == 2 * SIZE


def test_a_value_that_cannot_be_pickled_stays_in_memory(
    make_runtime: Callable[..., handoff.Runtime], eventually: Callable[..., None]
) -> None:
    runtime = make_runtime(memory_limit=1)
    dag = handoff.DAG("d")
    dag.add_function(handoff.Function("lock", (), lambda: (threading.Lock(), make(1))))
    dag.add_function(handoff.Function("plain", (), make, extra_args=[2]))
    dag.add_function(handoff.Function("both", ["lock", "plain"], lambda a, b: (a[1] + b, len(b))))
    result = runtime.execute(dag)
    assert result.results["lock"][1] == make(1)
    assert result.results["both"] == (make(1) + make(2), SIZE)
    eventually(lambda: memory_of(runtime).unspillable and memory_of(runtime).values >= 2)
    memory = memory_of(runtime)
    assert SIZE <= memory.unspillable <= memory.held < 2 * SIZE


def test_crashes_while_values_are_on_disk(
    make_runtime: Callable[..., handoff.Runtime], caplog: pytest.LogCaptureFixture
) -> None:
    runtime = make_runtime(memory_limit=1, max_restarts=1000)
    calls: list[int] = []
    gate = threading.Event()

    def slow(*parts: bytes) -> bytes:
        calls.append(1)
        gate.wait(20)
        return join(*parts)

    dag = wide()
    dag.add_function(handoff.Function("late", tuple(range(N)), slow))
    dag.add_function(handoff.Function("last", ["late", 0], join))
    run = runtime.submit(dag)
    with runtime.subscribe(lambda _: None):
        while not calls:
            gate.wait(0.005)
        for name in ("run:wide", "result_store", "distributed_executor", "execution_supervisor"):
            crash(name, runtime=runtime)
        gate.set()
        found = run.result(20).results
    late = expected()["all"]
    assert dict(found) == expected() | {"late": late, "last": join(late, make(0))}
    assert len(calls) == 1
    caplog.clear()  # the tracebacks of crashes hold what the actors held


def test_a_full_disk_costs_memory_and_nothing_else(
    make_runtime: Callable[..., handoff.Runtime],
    script: Callable[..., Any],
) -> None:
    told = script(
        """
        import resource, signal
        import handoff_actors as handoff
        from handoff_actors.events import SpillFailed
        from handoff_actors.results import budget

        budget._TRY_AGAIN = 1e6
        events = []
        with handoff.Runtime(memory_limit="30 KB") as runtime:
            runtime.subscribe(events.append, [SpillFailed])
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
            dag = handoff.DAG("d")
            for k in range(10):
                dag.add_function(handoff.Function(k, (), lambda k=k: bytes([k]) * 20_000))
            results = runtime.execute(dag).results
            runtime._budget.relieve()
            full = runtime.status().memory
            assert all(results[k] == bytes([k]) * 20_000 for k in range(10))
            assert full.problem and "File too large" in full.problem, full
            assert full.spilled <= 50_000 and full.held > full.limit, full
            assert "nothing can be written" in str(runtime.status())
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            runtime._budget._again = 0.0
            again = runtime.execute(dag, dag_id="again").results
            assert all(again[k] == bytes([k]) * 20_000 for k in range(10))
            runtime._budget.relieve()
            after = runtime.status().memory
            assert after.problem is None and after.held <= after.limit, after
        assert events and events[0].bytes > 20_000 and events[0].error, events
        print("right")
        """
    )
    assert told.stdout == "right\n"


def test_a_directory_that_is_gone_is_a_problem_of_the_disk(
    make_runtime: Callable[..., handoff.Runtime], tmp_path: Path
) -> None:
    place = tmp_path / "gone"
    place.mkdir()
    runtime = make_runtime(memory_limit=1, spill_directory=str(place))
    place.rmdir()
    assert dict(runtime.execute(wide()).results) == expected()
    memory = memory_of(runtime)
    assert memory.problem is not None
    assert str(place) in memory.problem


def test_a_value_that_the_disk_has_lost_is_a_clear_error(
    make_runtime: Callable[..., handoff.Runtime],
) -> None:
    runtime = make_runtime(memory_limit=1)
    ready, damaged = threading.Event(), threading.Event()

    def wait() -> None:
        ready.set()
        damaged.wait(20)

    dag = handoff.DAG("d")
    dag.add_function(handoff.Function("large", (), make, extra_args=[7]))
    dag.add_function(handoff.Function("wait", ["large"], lambda _: wait()))
    dag.add_function(handoff.Function("after", ["wait", "large"], lambda _, large: len(large)))
    run = runtime.submit(dag, max_retries=0)
    assert ready.wait(20)
    assert runtime.get_value("d", "large") == make(7)
    runtime._budget.relieve()
    (data,) = (entry.data for entry in runtime.entries())
    spilled = data.peek(data.plan.index["large"])
    assert isinstance(spilled, Spilled)
    os.pwrite(spilled._file.fd, b"?", spilled._start + 500)
    damaged.set()
    with pytest.raises(handoff.FunctionFailedError, match="after") as caught:
        run.result(20)
    assert isinstance(caught.value.__cause__, handoff.SpillError)
    with pytest.raises(handoff.SpillError, match="'large' of DAG 'd'"):
        runtime.get_value("d", "large")


def test_stop_leaves_nothing_and_what_somebody_holds_stays_readable(
    make_runtime: Callable[..., handoff.Runtime],
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    runtime = make_runtime(memory_limit=1)
    runtime.execute(wide())
    result = runtime.execute(wide(), dag_id="held")
    runtime.stop()
    assert dict(result.results) == expected()
    del result
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) - before == set()
    runtime.start()
    assert dict(runtime.execute(wide()).results) == expected()


def test_nothing_is_left_of_a_killed_process(tmp_path: Path, script: Callable[..., Any]) -> None:
    told = script(
        f"""
        import os, signal
        import handoff_actors as handoff

        runtime = handoff.Runtime(memory_limit=1, spill_directory={str(tmp_path)!r}).start()
        dag = handoff.DAG("d")
        for k in range(10):
            dag.add_function(handoff.Function(k, (), lambda k=k: bytes([k]) * 200_000))
        result = runtime.execute(dag)
        runtime._budget.relieve()
        assert runtime.status().memory.spilled >= 1_800_000
        print("spilled", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        check=False,
    )
    assert told.stdout == "spilled\n"
    assert told.returncode == -9
    assert [path for path in tmp_path.iterdir() if path.suffix != ".py"] == []


def test_over_nodes(
    make_runtime: Callable[..., handoff.Runtime],
    eventually: Callable[..., None],
    tmp_path: Path,
) -> None:
    runtime = make_runtime(
        name="home", memory_limit=1, spill_directory=tmp_path, capabilities={"cpu": 2}
    )
    (away,) = runtime.start_nodes(1, names=["away"], capabilities={"cpu": 2})
    dag = handoff.DAG("d")
    large = 60_000  # so large that it stays where it is made
    for k in range(6):
        node = away if k % 2 else "home"
        dag.add_function(
            handoff.Function(k, (), lambda k=k: bytes([k]) * large, node=node)  # type: ignore[misc]
        )
    for node in (away, "home"):
        dag.add_function(
            handoff.Function(
                f"on {node}", tuple(range(6)), lambda *p: [(len(x), x[0]) for x in p], node=node
            )
        )
    result = runtime.execute(dag)
    wanted = [(large, k) for k in range(6)]
    assert result.results[f"on {away}"] == result.results["on home"] == wanted
    for k in range(6):
        assert result.results[k] == bytes([k]) * large
        assert runtime.get_value("d", k) == bytes([k]) * large
    eventually(lambda: memory_of(runtime).held <= 1)

    def held_there() -> Any:
        return handoff.status().memory

    there = handoff.DAG("there").add_function(handoff.Function("m", (), held_there, node=away))
    found = runtime.execute(there).results["m"]
    assert found.limit == 1
    assert found.held <= 1, "a node that was started has the limit too"
    assert found.values >= 3


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edges=st.lists(st.lists(st.integers(0, 30), max_size=3), min_size=1, max_size=14),
    limit=st.sampled_from([1, 3_000, 10_000, 10**9]),
    keep=st.sampled_from(["all", "sinks"]),
    kinds=st.lists(st.sampled_from(["thread", "thread", "process", "async"]), min_size=14,
                   max_size=14),
)  # fmt: skip
def test_any_dag_has_the_same_results_with_a_limit(
    edges: list[list[int]], limit: int, keep: str, kinds: list[str]
) -> None:
    def value(number: int, *parts: bytes) -> bytes:
        rng = random.Random(repr((number, parts)))
        return rng.randbytes(rng.randrange(5_000))

    dag, wanted = handoff.DAG("any"), {}
    for i, wishes in enumerate(edges):
        args = sorted({w % i for w in wishes}) if i else []
        wanted[i] = value(i, *(wanted[a] for a in args))
        kind = kinds[i]

        def plain(*parts: bytes, i: int = i) -> bytes:
            return value(i, *parts)

        async def soon(*parts: bytes, i: int = i) -> bytes:
            return value(i, *parts)

        dag.add_function(
            handoff.Function(
                i, args, soon if kind == "async" else plain,
                isolation="process" if kind == "process" else None,
            )
        )  # fmt: skip
    runtime = runtime_of(limit)
    results = runtime.execute(dag, keep=keep, dag_id=random.random()).results
    sinks = {i for i in wanted if not any(i in f.args for f in dag.functions.values())}
    assert dict(results) == {i: v for i, v in wanted.items() if keep == "all" or i in sinks}


_runtimes: dict[int, handoff.Runtime] = {}


def runtime_of(limit: int) -> handoff.Runtime:
    if limit not in _runtimes:
        _runtimes[limit] = handoff.Runtime(memory_limit=limit, max_retained_runs=3).start()
    return _runtimes[limit]


@pytest.fixture(scope="module", autouse=True)
def _stopped() -> Any:
    yield
    for runtime in _runtimes.values():
        runtime.stop()


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("10 B", 10), ("2 GB", 2 * 10**9), ("1.5kb", 1500), ("2GiB", 2**31), (7, 7)],
)
def test_how_a_limit_is_said(text: Any, number: int) -> None:
    assert handoff.Runtime(memory_limit=text).options.memory_bytes == number


@pytest.mark.parametrize(
    "limit", [0, -1, True, 1.5, "", "0", "much", "-1 GB", "1 XB", [], "1 GB 2"]
)
def test_limits_that_are_refused(limit: Any) -> None:
    with pytest.raises(handoff.ConfigurationError, match="memory_limit"):
        handoff.Runtime(memory_limit=limit)


def test_directories_that_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (tmp_path / "missing", file, 3):
        with pytest.raises(handoff.ConfigurationError, match="spill_directory"):
            handoff.Runtime(spill_directory=path)  # type: ignore[arg-type]


def test_without_a_limit_nothing_of_it_is_there(script: Callable[..., Any]) -> None:
    told = script(
        """
        import sys
        import handoff_actors as handoff

        with handoff.Runtime() as runtime:
            dag = handoff.DAG("d").add_function(handoff.Function("a", (), lambda: bytes(10_000)))
            runtime.execute(dag)
            (entry,) = runtime.entries()
            print(type(entry.data.values) is list, runtime.status().memory)
            print([name for name in sys.modules if name.endswith(("budget", "spill_file"))])
        """
    )
    assert told.stdout == "True None\n[]\n"
    assert budgets.SMALLEST

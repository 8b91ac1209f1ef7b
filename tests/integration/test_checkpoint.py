"""Checkpoints: leaving by SIGKILL and coming back, changes of everything that counts, bad files."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import handoff_actors as handoff
from handoff_actors import Function, events, testing

ROOT = Path(__file__).parents[2]


def note(path: str, text: str) -> None:
    with open(path, "a") as file:
        file.write(text + "\n")


@pytest.fixture
def log(tmp_path: Path) -> Callable[[], list[str]]:
    """What the functions noted since the last time it was asked."""
    path = tmp_path / "log"
    path.touch()

    def read() -> list[str]:
        lines = path.read_text().split()
        path.write_text("")
        return sorted(lines)

    read.path = str(path)  # type: ignore[attr-defined]
    return read


def noting(path: str, name: str, value: int, *args: int) -> int:
    note(path, name)
    return value + sum(args)


def diamond(path: str, **changes: Any) -> handoff.DAG:
    """a → b, c → d, with values that ``changes`` changes."""
    dag = handoff.new()
    for name, args, value in (
        ("a", [], 1),
        ("b", ["a"], 10),
        ("c", ["a"], 100),
        ("d", ["b", "c"], 0),
    ):
        extra = {k[2:]: v for k, v in changes.items() if k.startswith(name + "_")}
        code = extra.pop("code", None)
        if code is None:

            def code(*args: int, path: str, name: str, value: int) -> int:
                return noting(path, name, value, *args)

        kwargs = {"path": path, "name": name, "value": value}
        dag.add_function(Function(name, args, code, extra_kwargs=kwargs, **extra))
    return dag


VALUES = {"a": 1, "b": 11, "c": 101, "d": 112}


def test_what_has_finished_does_not_run_again(
    runtime: handoff.Runtime, tmp_path: Path, log: Any
) -> None:
    file = tmp_path / "run.checkpoint"
    for expected in (["a", "b", "c", "d"], [], []):
        result = runtime.execute(diamond(log.path), checkpoint=file)
        assert dict(result.results) == VALUES
        assert set(result.allocations) == set("abcd")
        assert all(timing.start >= 0 for timing in result.timings.values())
        assert log() == expected
    run = runtime.submit(diamond(log.path), checkpoint=str(file))
    assert sorted(run.as_completed(10)) == sorted(VALUES.items())
    assert run.progress() == handoff.Progress(4, 4, "succeeded")
    assert runtime.get_result(run.dag_id, "d") == 112
    assert runtime.execute(diamond(log.path), checkpoint=file, synchronous=True).results["d"] == 112
    assert dict(runtime.execute(diamond(log.path), checkpoint=file, keep="sinks").results) == {
        "d": 112
    }
    assert log() == []
    assert runtime.execute(diamond(log.path)).results["d"] == 112
    assert log() == ["a", "b", "c", "d"], "without a checkpoint nothing is taken from one"


@pytest.mark.parametrize(
    "options", [{}, {"synchronous": True}, {"keep": "sinks"}, {"max_concurrency": 1}]
)
def test_a_run_that_failed_goes_on(
    runtime: handoff.Runtime, tmp_path: Path, log: Any, options: Any
) -> None:
    file, flag = tmp_path / "c", tmp_path / "fail"
    flag.touch()
    flag_path = str(flag)

    def c(*args: int, path: str, name: str, value: int) -> int:
        note(path, name)
        if os.path.exists(flag_path):
            # What is still running when a run fails has no result, so it would run again.
            handoff.get_result(handoff.current().dag_id, "b", 20)
            raise ValueError("not yet")
        return value + sum(args)

    dag = diamond(log.path, c_code=c, c_max_retries=0, b_cost={"cpu": 1})
    with pytest.raises(handoff.FunctionFailedError):
        runtime.execute(dag, checkpoint=file, **options)
    first = log()
    flag.unlink()
    result = runtime.execute(dag, checkpoint=file, **options)
    assert result.results["d"] == 112
    second = log()
    assert "a" not in second
    assert {"c", "d"} <= set(second)
    assert first.count("b") + second.count("b") == 1


def test_only_what_depends_on_a_change_runs_again(
    runtime: handoff.Runtime, tmp_path: Path, log: Any
) -> None:
    file = tmp_path / "c"
    runtime.execute(diamond(log.path), checkpoint=file)
    log()

    def b(*args: int, path: str, name: str, value: int) -> int:
        return noting(path, name, value, *args) + 1

    assert runtime.execute(diamond(log.path, b_code=b), checkpoint=file).results["d"] == 113
    assert log() == ["b", "d"]
    assert runtime.execute(diamond(log.path), checkpoint=file).results["d"] == 112
    assert log() == [], "what was made before the change is there still"
    runtime.execute(diamond(log.path, c_version=2), checkpoint=file)
    assert log() == ["c", "d"]
    runtime.execute(diamond(log.path, c_version=2, c_code=b), checkpoint=file)
    assert log() == [], "the version speaks for the code"
    runtime.execute(
        diamond(log.path, a_cost={"cpu": 1}, a_timeout=9.0, a_max_retries=0), checkpoint=file
    )
    assert log() == [], "how it is run does not count"
    dag = diamond(log.path)
    dag.add_function(Function("e", ["d"], lambda d: d))
    assert runtime.execute(dag, checkpoint=file).results["e"] == 112
    assert log() == []


def test_inputs_count(runtime: handoff.Runtime, tmp_path: Path, log: Any) -> None:
    path = log.path
    dag = handoff.new()
    dag.add_function(Function("x", type="input"))
    dag.add_function(Function("y", type="input"))
    dag.add_function(Function("twice", ["x"], lambda x: x * 2, type="inline"))
    dag.add_function(Function("f", ["twice"], lambda x: (note(path, "f"), x)[1]))
    dag.add_function(Function("g", ["y"], lambda y: (note(path, "g"), y)[1]))
    file = tmp_path / "c"
    for inputs, expected in (({"x": 1, "y": [1]}, ["f", "g"]), ({"x": 2, "y": [1]}, ["f"]),
                             ({"x": 2, "y": [1.0]}, ["g"]),
                             ({"x": 1, "y": [1.0]}, [])):  # fmt: skip
        result = runtime.execute(dag, checkpoint=file, inputs=inputs)
        assert (result.results["f"], result.results["g"]) == (inputs["x"] * 2, inputs["y"])
        assert log() == expected


def test_what_cannot_be_identified_runs_again_and_says_so(
    runtime: handoff.Runtime, tmp_path: Path, log: Any
) -> None:
    lock, path = threading.Lock(), log.path

    def locked() -> int:
        note(path, "locked")
        with lock:
            return 1

    dag = handoff.new().add_function(Function("locked", (), locked))
    dag.add_function(Function("after", ["locked"], lambda x: (note(path, "after"), x)[1]))
    dag.add_function(Function("other", [], lambda: (note(path, "other"), 2)[1]))
    told: list[events.ResultNotKept] = []
    runtime.subscribe(told.append, [events.ResultNotKept])  # type: ignore[arg-type]
    runtime.execute(dag, checkpoint=tmp_path / "c")
    assert log() == ["after", "locked", "other"]
    runtime.execute(dag, checkpoint=tmp_path / "c")
    assert log() == ["after", "locked"]
    runtime.events.flush()
    assert {event.function_id for event in told} == {"locked"}
    assert "lock" in told[0].reason
    assert "version=" in told[0].reason


def test_a_result_that_cannot_be_pickled_is_not_kept_and_says_so(
    runtime: handoff.Runtime, tmp_path: Path, log: Any
) -> None:
    path = log.path
    dag = handoff.new().add_function(
        Function("gen", (), lambda: (note(path, "gen"), (i for i in "ab"))[1])
    )
    dag.add_function(Function("b", ["gen"], lambda g: (note(path, "b"), "".join(g))[1]))
    told: list[events.ResultNotKept] = []
    runtime.subscribe(told.append, [events.ResultNotKept])  # type: ignore[arg-type]
    assert runtime.execute(dag, checkpoint=tmp_path / "c").results["b"] == "ab"
    runtime.events.flush()
    assert [event.function_id for event in told] == ["gen"]
    assert log() == ["b", "gen"]
    assert runtime.execute(dag, checkpoint=tmp_path / "c").results["b"] == "ab"
    assert log() == ["gen"], "what it was for has finished"
    assert dict(runtime.execute(dag, checkpoint=tmp_path / "c", keep="sinks").results) == {
        "b": "ab"
    }
    assert log() == [], "nobody needs it"


SCRIPT = """
    import functools, os, sys, time
    import handoff_actors as handoff
    from handoff_actors import Function

    class Point:
        def __init__(self, x):
            self.x = x

    def helper(x):
        return x + {constant}

    def code(i, *args):
        with open("log", "a") as file:
            file.write(f"{{i}}\\n")
        time.sleep({pause})
        return Point(helper(i) + sum(p.x for p in args))

    handoff.start(capabilities={{"cpu": 2}}, isolation={isolation!r})
    dag = handoff.new()
    for i in range({n}):
        dag.add_function(Function(i, range(max(0, i - 2), i), functools.partial(code, i),
                                  cost={{"cpu": 1}} if i % 2 else None))
    print("go", flush=True)
    result = handoff.execute(dag, checkpoint="c")
    assert type(result.results[0]) is Point
    print(sum(p.x for p in result.results.values()) % 1000003, flush=True)
    handoff.stop()
    """


def run_script(folder: Path, **values: Any) -> subprocess.Popen[str]:
    values = {"constant": 1, "pause": 0.004, "isolation": "thread", "n": 150, **values}
    path = folder / "script.py"
    path.write_text(textwrap.dedent(SCRIPT).format(**values))
    return subprocess.Popen(
        [sys.executable, str(path)], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def expected_sum(n: int, constant: int) -> int:
    values: list[int] = []
    for i in range(n):
        values.append(i + constant + sum(values[max(0, i - 2) : i]))
    return sum(values) % 1000003


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_after_a_sigkill_the_same_call_goes_on(
    tmp_path: Path, eventually: Any, isolation: str
) -> None:
    log = tmp_path / "log"
    lines = lambda: log.read_text().split() if log.exists() else []  # noqa: E731
    for kill_at in (25, 60, 100):
        process = run_script(tmp_path, isolation=isolation)
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        eventually(lambda kill_at=kill_at: len(set(lines())) >= kill_at)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before = lines()
    process = run_script(tmp_path, isolation=isolation)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.split() == ["go", str(expected_sum(150, 1))]
    after = lines()
    assert set(after) == {str(i) for i in range(150)}
    assert len(after) - len(set(after)) < 40, "little more than what was in the air ran twice"
    assert len(after) - len(before) < 75
    process = run_script(tmp_path, isolation=isolation, constant=2)
    out, err = process.communicate(timeout=60)
    assert out.split() == ["go", str(expected_sum(150, 2))], err
    assert len(lines()) - len(after) == 150, "a helper changed"
    process = run_script(tmp_path, isolation=isolation, constant=1)
    out, err = process.communicate(timeout=60)
    assert out.split() == ["go", str(expected_sum(150, 1))], err
    assert len(lines()) - len(after) == 150, "both are there"


def test_two_at_once(runtime: handoff.Runtime, tmp_path: Path) -> None:
    file = tmp_path / "c"
    gate = threading.Event()
    dag = handoff.new().add_function(Function("f", (), lambda: gate.wait(20), version=1))
    run = runtime.submit(dag, checkpoint=file)
    with pytest.raises(handoff.CheckpointError, match="in use") as caught:
        runtime.execute(dag, checkpoint=file, dag_id="second")
    assert caught.value.path == str(file)
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(f"""
            import handoff_actors as handoff
            handoff.start()
            try:
                handoff.execute(handoff.new(), checkpoint={str(file)!r})
            except handoff.CheckpointError as error:
                print("refused:", error)
            """)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=30,
    )  # fmt: skip
    assert "refused: checkpoint" in process.stdout, process.stderr
    assert "in use" in process.stdout
    gate.set()
    run.result(10)
    assert runtime.execute(dag, checkpoint=file, dag_id="second").results["f"] is True


def test_a_file_that_another_program_has_open_is_not_called_damaged(
    runtime: handoff.Runtime, tmp_path: Path, log: Any
) -> None:
    file = tmp_path / "c"
    runtime.execute(diamond(log.path), checkpoint=file)
    assert log() == ["a", "b", "c", "d"]
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM results").fetchone()
        with pytest.raises(handoff.CheckpointError, match="in use") as caught:
            runtime.execute(diamond(log.path), checkpoint=file)
        assert "delete" not in str(caught.value)
    assert dict(runtime.execute(diamond(log.path), checkpoint=file).results) == VALUES
    assert log() == []


def test_bad_files(runtime: handoff.Runtime, tmp_path: Path, log: Any) -> None:
    dag = diamond(log.path)
    good = tmp_path / "good"
    runtime.execute(dag, checkpoint=good)
    whole = good.read_bytes()
    log()

    def refused(path: Path, match: str) -> None:
        content = path.read_bytes()
        with pytest.raises(handoff.CheckpointError, match=match):
            runtime.execute(dag, checkpoint=path)
        assert log() == []
        assert path.read_bytes() == content, "and it is left as it was"

    text = tmp_path / "text"
    text.write_text("this is no database, whatever its name")
    refused(text, "is no checkpoint")
    foreign = tmp_path / "foreign"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE mine (x)")
    database.close()
    refused(foreign, "something else")
    cut = tmp_path / "cut"
    cut.write_bytes(whole[: len(whole) // 2])
    refused(cut, "damaged")
    for position in range(200, len(whole), max(1, len(whole) // 40)):
        flipped = tmp_path / "flipped"
        flipped.write_bytes(
            whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]
        )
        try:
            result = runtime.execute(dag, checkpoint=flipped)
        except handoff.CheckpointError:
            assert log() == []
        else:
            assert dict(result.results) == VALUES
            log()
        for name in ("flipped", "flipped-wal", "flipped-shm"):
            (tmp_path / name).unlink(missing_ok=True)
    empty = tmp_path / "empty"
    empty.touch()
    assert dict(runtime.execute(dag, checkpoint=empty).results) == VALUES
    for wrong in (tmp_path, tmp_path / "no" / "folder", 7, b"\0"):
        with pytest.raises(handoff.ConfigurationError):
            runtime.execute(dag, checkpoint=wrong)  # type: ignore[arg-type]


def test_the_file_is_free_however_the_run_ends(runtime: handoff.Runtime, tmp_path: Path) -> None:
    file = tmp_path / "c"
    gate = threading.Event()
    dag = handoff.new("d").add_function(Function("f", (), lambda: gate.wait(20), version=1))
    run = runtime.submit(dag, checkpoint=file)
    with pytest.raises(handoff.AlreadyRunningError):
        runtime.submit(dag, checkpoint=tmp_path / "other")
    assert run.cancel()
    gate.set()
    assert runtime.execute(handoff.new().add_function(Function("g", (), lambda: 1)),
                           checkpoint=tmp_path / "other").results["g"] == 1  # fmt: skip
    assert runtime.submit(dag, checkpoint=file, dag_id="e").result(10).results["f"] is True
    gate.clear()
    run = runtime.submit(dag, checkpoint=tmp_path / "third", dag_id="t")
    gate.set()
    runtime.stop()
    runtime.start()
    assert runtime.execute(dag, checkpoint=tmp_path / "third").results["f"] is True


def test_the_file_is_free_when_the_run_is_refused_or_interrupted_before_it_begins(
    runtime: handoff.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c"
    dag = handoff.new("d").add_function(Function("f", (), lambda: 1))
    for execute in (runtime.execute, runtime.submit):
        with pytest.raises(handoff.ConfigurationError, match="progress must be"):
            execute(dag, checkpoint=file, progress=3)  # type: ignore[arg-type]

        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        for place in ("handoff_actors.progress.show", "handoff_actors.runtime.Admit"):
            with monkeypatch.context() as patch:
                patch.setattr(place, interrupt)
                with pytest.raises(KeyboardInterrupt):
                    execute(dag, checkpoint=file, progress=lambda _: None)
    assert runtime.execute(dag, checkpoint=file).results["f"] == 1


def test_crashes_do_not_keep_results_from_the_file(
    make_runtime: Any, tmp_path: Path, log: Any
) -> None:
    runtime = make_runtime(capabilities={"cpu": 2}, max_restarts=1_000_000)
    for seed in range(12):
        file = tmp_path / f"c{seed}"
        dag = diamond(log.path)
        plan = testing.FaultPlan(seed=seed, runtime=runtime)
        with plan.applied(dag) as faulty:
            assert dict(runtime.execute(faulty, checkpoint=file).results) == VALUES
            log()
            assert dict(runtime.execute(faulty, checkpoint=file).results) == VALUES
            assert log() == []


@settings(max_examples=40, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture,
                                 HealthCheck.too_slow])  # fmt: skip
@given(dag=testing.dags(inputs=True), value=st.integers(0, 99),
       keep=st.sampled_from(["all", "sinks"]))  # fmt: skip
def test_any_dag_comes_back_as_it_was(
    handoff_runtime: handoff.Runtime, tmp_path: Path, dag: handoff.DAG, value: int, keep: str
) -> None:
    inputs = {f.id: value for f in dag.functions.values() if f.type == "input"}
    file = tmp_path / "c"
    first = dict(handoff.execute(dag, inputs=inputs, checkpoint=file, keep=keep).results)
    started: list[Any] = []
    with handoff.subscribe(started.append, [events.FunctionsFinished]):
        second = dict(handoff.execute(dag, inputs=inputs, checkpoint=file, keep=keep).results)
        handoff_runtime.events.flush()
    assert first == second
    assert not started
    assert testing.sequential(dag, inputs).items() >= first.items()

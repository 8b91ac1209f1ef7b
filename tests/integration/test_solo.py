"""Runs of a single function, which have no runner until something happens to them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import Function
from handoff_actors.actors.mailbox import Mailbox
from handoff_actors.execution.runner import Listen, Runner
from handoff_actors.execution.solo import Solo
from handoff_actors.testing import crash

Make = Callable[..., handoff.Runtime]


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The runners that were started."""
    started: list[Any] = []
    init = Runner.init

    def counted(self: Runner) -> None:
        started.append(self.data.dag_id)
        init(self)

    monkeypatch.setattr(Runner, "init", counted)
    return started


class Gate:
    """Code that says that it has begun, and waits to go on."""

    def __init__(self) -> None:
        self.calls = 0
        self.begun = threading.Event()
        self.open = threading.Event()
        self.seen: list[bool] = []

    def __call__(self) -> int:
        self.calls += 1
        self.begun.set()
        assert self.open.wait(20)
        self.seen.append(handoff.current().cancelled())
        return self.calls


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open.set()


def one(code: Any, id_: Any = "d", **fields: Any) -> handoff.DAG:
    return handoff.DAG(id_).add_function(Function("f", (), code, **fields))


def threads_busy(runtime: handoff.Runtime) -> int:
    return int(runtime.status().workers["threads"]["busy"])


def test_one_function_that_returns_has_no_runner(
    runtime: handoff.Runtime, runners: list[Any]
) -> None:
    dag = handoff.DAG("d")
    dag.add_function(Function("x", type="input"))
    dag.add_function(Function("i", ["x"], lambda x: x + 1, type="inline"))
    dag.add_function(Function("f", ["x", "i"], lambda *a, b: (*a, b), extra_kwargs={"b": 3}))
    result = runtime.execute(dag, inputs={"x": 1})
    assert dict(result.results) == {"f": (1, 2, 3)}
    assert result.allocations == {"f": runtime.node()}
    assert result.timings["f"].duration >= 0
    assert runtime.execute(one(lambda: None)).results["f"] is None
    assert runners == []
    assert runtime.get_result("d", "f") is None


@pytest.mark.parametrize("keep", ["sinks", ["f"], "all"])
def test_what_is_kept_is_there(runtime: handoff.Runtime, keep: Any) -> None:
    assert dict(runtime.execute(one(lambda: 1), keep=keep).results) == {"f": 1}


def test_what_is_not_kept_is_freed(runtime: handoff.Runtime) -> None:
    assert dict(runtime.execute(one(lambda: 1), keep=[]).results) == {}


def test_it_is_cancelled_while_it_runs(
    runtime: handoff.Runtime, gate: Gate, eventually: Any, runners: list[Any]
) -> None:
    run = runtime.submit(one(gate))
    assert gate.begun.wait(10)
    assert run.progress() == handoff.Progress(1, 0, "running")
    (at_work,) = runtime.status().running
    assert (at_work.dag_id, at_work.function_id, at_work.attempt) == ("d", "f", 1)
    assert run.cancel()
    with pytest.raises(handoff.RunCancelledError):
        run.result(0)
    assert run.progress().state == "cancelled"
    assert [s.state for s in runtime.status().runs] == ["cancelled"]
    # Another of the same name may run at once, beside the code that does not end.
    assert runtime.execute(one(lambda: 7)).results["f"] == 7
    gate.open.set()
    eventually(lambda: threads_busy(runtime) == 0)
    assert gate.seen == [True]
    assert runners == ["d"]


def test_it_is_cancelled_before_it_begins(make_runtime: Make, gate: Gate, eventually: Any) -> None:
    runtime = make_runtime(max_workers=1)
    first = runtime.submit(one(gate, "first"))
    assert gate.begun.wait(10)
    called: list[int] = []
    second = runtime.submit(one(lambda: called.append(1), "second"))
    assert second.cancel()
    gate.open.set()
    assert first.result(10).results["f"] == 1
    assert runtime.execute(one(lambda: 3, "third")).results["f"] == 3
    eventually(lambda: threads_busy(runtime) == 0)
    assert not called


def test_its_runner_crashes_before_there_is_one(
    runtime: handoff.Runtime, gate: Gate, eventually: Any
) -> None:
    run = runtime.submit(one(gate))
    assert gate.begun.wait(10)
    tree = runtime.status().to_dict()["tree"]
    supervisor = next(c for c in tree["children"] if c["name"] == "execution_supervisor")
    assert [(c["name"], c["state"]) for c in supervisor["children"]] == [("run:d", "up")]
    for times in (1, 2):
        crash("run:d", runtime=runtime)
        eventually(lambda times=times: runtime.status().restarts == {"run:d": times})
    gate.open.set()
    assert run.result(10).results["f"] == 1
    assert gate.calls == 1
    eventually(lambda: threads_busy(runtime) == 0)


def test_it_is_followed_while_it_runs(runtime: handoff.Runtime, gate: Gate) -> None:
    run = runtime.submit(one(gate))
    assert gate.begun.wait(10)
    seen: list[Any] = []
    follower = threading.Thread(target=lambda: seen.extend(run.as_completed(10)))
    follower.start()
    gate.open.set()
    follower.join(10)
    assert seen == [("f", 1)]
    assert list(run.as_completed()) == [("f", 1)]


def test_a_value_is_awaited_while_it_runs(runtime: handoff.Runtime, gate: Gate, spawn: Any) -> None:
    run = runtime.submit(one(gate))
    assert gate.begun.wait(10)
    waiting = spawn(lambda: runtime.get_result("d", "f", 10))
    gate.open.set()
    assert waiting.result(10) == 1
    assert run.result(10).results["f"] == 1


def test_a_message_comes_between_its_return_and_its_end(
    runtime: handoff.Runtime, eventually: Any, runners: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    signal = Mailbox.signal

    def late(self: Mailbox) -> None:
        if isinstance(self._host, Solo):
            # Its code has returned, and nobody knows it yet.
            monkeypatch.setattr(Mailbox, "signal", signal)
            self.put(Listen(SimpleQueue()))
            eventually(lambda: runners == ["d"])
        signal(self)

    monkeypatch.setattr(Mailbox, "signal", late)
    result = runtime.execute(one(lambda: calls.append(1) or len(calls)), timeout=20)
    assert result.results["f"] == 1
    assert calls == [1]


def test_its_events_are_those_of_any_run(runtime: handoff.Runtime) -> None:
    seen: list[str] = []
    with runtime.subscribe(lambda event: seen.append(type(event).__name__)):
        runtime.execute(one(lambda: 1))
        with pytest.raises(handoff.FunctionFailedError):
            runtime.execute(one(lambda: 1 / 0, max_retries=1))
        runtime.events.flush()
    assert seen == [
        "RunStarted", "FunctionsFinished", "RunFinished",
        "RunStarted", "AttemptFailed", "AttemptFailed", "RunFinished",
    ]  # fmt: skip


def test_what_raises_runs_again(runtime: handoff.Runtime, eventually: Any) -> None:
    attempts: list[int] = []

    def code() -> int:
        attempts.append(handoff.current().attempt)
        if len(attempts) < 3:
            raise SystemExit(len(attempts))
        return len(attempts)

    assert runtime.execute(one(code, retry_delay=0.001)).results["f"] == 3
    assert attempts == [1, 2, 3]
    eventually(lambda: threads_busy(runtime) == 0)


def test_a_run_that_takes_too_long_is_ended(
    runtime: handoff.Runtime, gate: Gate, eventually: Any
) -> None:
    with pytest.raises(handoff.ExecutionTimeoutError):
        runtime.execute(one(gate), timeout=0.05)
    gate.open.set()
    eventually(lambda: threads_busy(runtime) == 0)


def test_the_runtime_stops_under_it(make_runtime: Make, gate: Gate, spawn: Any) -> None:
    runtime = make_runtime(shutdown_timeout=0.1)
    waiting = spawn(lambda: runtime.execute(one(gate)))
    assert gate.begun.wait(10)
    runtime.stop()
    with pytest.raises(handoff.RunCancelledError):
        waiting.result(1)


def test_it_waits_for_runs_of_its_own_on_a_single_worker(
    make_runtime: Make, eventually: Any
) -> None:
    runtime = make_runtime(max_workers=1)

    def nested(depth: int) -> int:
        if not depth:
            return 0
        inner = one(nested, depth, extra_args=(depth - 1,))
        return int(handoff.execute(inner).results["f"]) + 1

    assert runtime.execute(one(nested, extra_args=(12,))).results["f"] == 12
    eventually(lambda: threads_busy(runtime) == 0)


def test_a_callback_that_raises_costs_nobody_anything(
    runtime: handoff.Runtime, gate: Gate, eventually: Any
) -> None:
    run = runtime.submit(one(gate))

    def callback(_: object) -> None:
        raise SystemExit("from a callback")

    run.add_done_callback(callback)
    gate.open.set()
    assert run.result(10).results["f"] == 1
    assert runtime.execute(one(lambda: 2)).results["f"] == 2
    eventually(lambda: threads_busy(runtime) == 0)


def test_nothing_is_lost_whatever_happens_to_them(make_runtime: Make, eventually: Any) -> None:
    """Cancels, crashes, failures and nested runs at every moment; each run has its one answer."""
    runtime = make_runtime(max_workers=3, max_restarts=1_000_000, max_retained_runs=4)
    rng = random.Random(2)
    wrong: list[Any] = []

    def code(kind: int, number: int, name: str) -> int:
        if kind == 1 and handoff.current().attempt == 1:
            raise ValueError(number)
        if kind == 2:
            return int(handoff.execute(one(lambda: number, (name, "in"))).results["f"])
        return number

    def caller(seed: int) -> None:
        mine = random.Random(seed)
        for number in range(120):
            name = f"{seed}-{number}"
            run = runtime.submit(one(code, name, extra_args=(mine.randrange(4), number, name)))
            what = mine.randrange(4)
            try:
                if what == 0:
                    run.cancel()
                elif what == 1:
                    crash(f"run:{name}", runtime=runtime)
            except handoff.ConfigurationError:
                pass  # it has ended
            try:
                if run.result(20).results["f"] != number:
                    wrong.append((name, what))
            except handoff.RunCancelledError:
                if what:
                    wrong.append((name, what))
            except BaseException as error:
                wrong.append((name, what, error))
            del run  # the tracebacks of cancelled runs have this frame

    callers = [threading.Thread(target=caller, args=(i,)) for i in range(4)]
    for thread in callers:
        thread.start()
    while any(thread.is_alive() for thread in callers):
        crash(rng.choice(["distributed_executor", "execution_supervisor"]), runtime=runtime)
        time.sleep(0.01)  # the pace of the crashes
    assert not wrong
    eventually(lambda: threads_busy(runtime) == 0)
    eventually(lambda: len(runtime.status().runs) <= 4)

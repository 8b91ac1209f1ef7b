"""Every error of the design, raised by what raises it: its fields, its text, and both pickled."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import Argument, Collocated, Function
from handoff_actors.actors.server import Actor
from handoff_actors.testing import crash

Make = Callable[..., handoff.Runtime]


@dataclass(frozen=True)
class Here:
    """What a situation may use."""

    runtime: handoff.Runtime
    make: Make
    folder: Path


def one(code: Any, **fields: Any) -> handoff.DAG:
    return handoff.DAG("d").add_function(Function("f", (), code, **fields))


def not_started(here: Here) -> None:
    handoff.Runtime().execute(one(int))


def already_started(_: Here) -> None:
    handoff.start(max_retries=1)
    handoff.start(max_retries=2, max_workers=3)


def gave_up(here: Here) -> None:
    runtime = here.make(max_restarts=0)
    crash("result_store", ValueError("torn"), runtime=runtime)
    runtime.get_result("d", "f", timeout=10)


def bad_option(_: Here) -> None:
    handoff.Runtime(max_workers=0)


def missing(here: Here) -> None:
    here.runtime.execute(handoff.DAG("d").add_function(Function("f", ["g"], abs)))


def cycle(here: Here) -> None:
    dag = handoff.DAG("d")
    for id_, arg in (("out", "c"), ("a", "c"), ("c", "b"), ("b", "a"), ("free", "b")):
        dag.add_function(Function(id_, [arg], abs))
    here.runtime.execute(dag)


def duplicate(_: Here) -> None:
    one(int).add_function(Function("f", (), float))


def bad_field(_: Here) -> None:
    Function("f", (), int, retry_delay=-1.0)


def bad_arity(_: Here) -> None:
    Function("f", ["a", "b"], lambda a: a)


def pins(here: Here) -> None:
    dag = handoff.DAG("d")
    dag.add_function(Function("f", (), int, node="x"))
    dag.add_function(Function("g", (), int, node=Collocated("h")))
    here.runtime.execute(dag)


def inputs(here: Here) -> None:
    dag = handoff.DAG("d").add_function(Function("x", type="input"))
    here.runtime.execute(dag, inputs={"y": 1})


def too_much(here: Here) -> None:
    here.runtime.execute(one(int, cost={"cpu": 1, "memory": 5000}))


def nowhere(here: Here) -> None:
    here.runtime.execute(one(int, node="moon"))


def running(here: Here) -> None:
    gate = threading.Event()
    run = here.runtime.submit(one(gate.wait))
    try:
        here.runtime.execute(one(int))
    finally:
        gate.set()
        run.result(10)


class Odd(Exception):
    """Of the user's own."""


def raises() -> None:
    raise Odd("no")


def failed(here: Here) -> None:
    here.runtime.execute(one(raises, max_retries=1))


def die(file: str) -> None:
    with open(file, "a", encoding="utf-8") as out:
        out.write(f"{os.getpid()}\n")
    os.kill(os.getpid(), signal.SIGKILL)


def crashed(here: Here) -> None:
    file = str(here.folder / "pids")
    here.runtime.execute(one(die, extra_args=(file,), isolation="process", max_crashes=1))


def slow(here: Here) -> None:
    gate = threading.Event()
    try:
        here.runtime.execute(one(gate.wait, timeout=0.02, max_retries=1))
    finally:
        gate.set()


def code_that_stays(here: Here) -> None:
    lock = threading.Lock()
    here.runtime.execute(one(lambda: lock, isolation="process"))


def argument_that_stays(here: Here) -> None:
    dag = handoff.DAG("d").add_function(Function("lock", (), lambda: {"a": [threading.Lock()]}))
    here.runtime.execute(dag.add_function(Function("f", ["lock"], len, isolation="process")))


def result_that_stays(here: Here) -> None:
    here.runtime.execute(one(threading.Lock, isolation="process", max_retries=0))


def converter_that_raises(here: Here) -> None:
    dag = handoff.DAG("d").add_function(Function("x", (), int))
    argument = Argument("x", lambda *_: raises())
    here.runtime.execute(dag.add_function(Function("f", [argument], abs, max_retries=0)))


def cancelled(here: Here) -> None:
    gate = threading.Event()
    run = here.runtime.submit(one(gate.wait))
    run.cancel()
    gate.set()
    run.result(10)


def out_of_time(here: Here) -> None:
    gate = threading.Event()
    try:
        here.runtime.execute(one(gate.wait), timeout=0.05)
    finally:
        gate.set()


def no_checkpoint(here: Here) -> None:
    path = here.folder / "kept"
    path.write_text("something else")
    here.runtime.execute(one(int), checkpoint=str(path))


def not_there(here: Here) -> None:
    here.runtime.get_local_value("d", "f")


def not_yet(here: Here) -> None:
    here.runtime.get_result("d", "f", timeout=0.02)


def unknown_node(here: Here) -> None:
    here.runtime.get_value("d", "f", from_node="moon")


def nobody(here: Here) -> None:
    here.runtime.connect("127.0.0.1:9", timeout=2)


def other_key(here: Here) -> None:
    other = here.make(listen="127.0.0.1:0", authkey="ab" * 32)
    address = other.node_info().address
    assert address is not None
    here.make(authkey="cd" * 32).connect(address)


class Deaf(Actor):
    """Dies of what it hears, or does not hear."""

    def __init__(self, hears: threading.Event | None = None) -> None:
        self.hears = hears

    def handle(self, message: Any) -> Any:
        if self.hears is None:
            raise Odd(message)
        self.hears.wait(10)


def actor_crashed(here: Here) -> None:
    assert here.runtime._system is not None
    here.runtime._system.start(Deaf(), "deaf").call("hello")


def actor_silent(here: Here) -> None:
    gate = threading.Event()
    assert here.runtime._system is not None
    try:
        here.runtime._system.start(Deaf(gate), "deaf").call("hello", timeout=0.02)
    finally:
        gate.set()


def stream(here: Here, code: Any, **options: Any) -> handoff.Pipeline:
    dag = handoff.DAG("s").add_function(Function("x", type="input"))
    return here.runtime.stream(dag.add_function(Function("f", ["x"], code)), **options)


def item(here: Here) -> None:
    with stream(here, lambda _: raises()) as pipeline:
        (outcome,) = pipeline.map([1])
        raise outcome


def full(here: Here) -> None:
    with stream(here, abs, max_pending=1) as pipeline:
        try:
            pipeline.push(1)
            pipeline.push(2, timeout=0.02)
        finally:
            pipeline.stop()


def stopped(here: Here) -> None:
    pipeline = stream(here, abs)
    pipeline.stop()
    pipeline.push(1)


def no_state(here: Here) -> None:
    dag = handoff.DAG("s").add_function(Function("x", type="input"))
    dag.add_function(Function("f", ["x"], lambda s, x: (x, s), init=raises))
    here.runtime.stream(dag)


NODE = "NODE"
"""Stands for the name of the runtime's node."""

SITUATIONS: dict[Callable[[Here], None], tuple[str, dict[str, Any], str]] = {
    not_started: ("NotStartedError", {}, "call start"),
    already_started: ("AlreadyStartedError", {"options": ["max_workers", "max_retries"]},
                      "other max_workers, max_retries.*stop"),
    gave_up: ("RuntimeFailedError", {}, "gave up.*torn.*stop.*start"),
    bad_option: ("ConfigurationError", {}, "max_workers must be an int >= 1, not 0"),
    missing: ("MissingFunctionError", {"function_id": "f", "missing": "g"}, "'f'.*'g'"),
    cycle: ("CyclicDependencyError", {}, "'[abc]' .*'[abc]' .*'[abc]'"),
    duplicate: ("DuplicateFunctionError", {"function_id": "f"}, "'d' has.*'f' already.*another id"),
    bad_field: ("InvalidFunctionError", {"function_id": "f", "field": "retry_delay"}, "'f'.*-1"),
    bad_arity: ("InvalidFunctionError", {"function_id": "f"}, "'f'.*2"),
    pins: ("InvalidFunctionError", {"function_id": "g", "field": "node"}, "'g'.*'h'"),
    inputs: ("MissingInputError", {"missing": ["x"], "unknown": ["y"]}, "'d'.*'x'"),
    too_much: ("AllocationError",
               {"function_id": "f", "resource": "memory", "asked": 5000.0, "most": 1000.0},
               "'f' of DAG 'd' needs memory=5000.*1000"),
    nowhere: ("AllocationError", {"function_id": "f", "resource": None}, "'f'.*'moon'.*connect"),
    running: ("AlreadyRunningError", {"dag_id": "d"}, "'d' is running.*dag_id="),
    failed: ("FunctionFailedError",
             {"dag_id": "d", "function_id": "f", "node": NODE, "attempts": 2}, "'f'.*'d'.*Odd.*no"),
    crashed: ("FunctionCrashedError", {"dag_id": "d", "function_id": "f"}, "'f'.*SIGKILL"),
    slow: ("FunctionTimeoutError",
           {"dag_id": "d", "function_id": "f", "timeout": 0.02, "attempts": 2}, "'f'.*0.02"),
    code_that_stays: ("SerializationError", {"dag_id": "d", "function_id": "f"},
                      "code of function 'f'.*lock"),
    argument_that_stays: ("SerializationError", {"dag_id": "d", "function_id": "f"},
                          r"argument 0 of function 'f'.*\['a'\]\[0\].*lock"),
    result_that_stays: ("SerializationError", {"dag_id": "d", "function_id": "f"},
                        "result of function 'f'.*lock"),
    converter_that_raises: ("FunctionFailedError", {"function_id": "f", "attempts": 1}, "'f'.*no"),
    cancelled: ("RunCancelledError", {"dag_id": "d", "function_id": None}, "'d' was cancelled"),
    out_of_time: ("ExecutionTimeoutError", {"dag_id": "d", "timeout": 0.05}, "'d'.*0.05 s"),
    no_checkpoint: ("CheckpointError", {}, "kept"),
    not_there: ("ValueNotFoundError", {"dag_id": "d", "value_id": "f"}, "'f'.*'d'"),
    not_yet: ("ResultTimeoutError", {"dag_id": "d", "value_id": "f"}, "'f'.*'d'.*0.02 s"),
    unknown_node: ("NodeDownError", {"node": "moon"}, "moon"),
    nobody: ("NodeUnreachableError", {"node": "127.0.0.1:9"}, "127.0.0.1:9"),
    other_key: ("AuthenticationError", {}, "key"),
    actor_crashed: ("ActorCrashedError", {"name": "deaf"}, "deaf.*hello"),
    actor_silent: ("ActorTimeoutError", {"name": "deaf", "timeout": 0.02}, "deaf.*'hello'.*0.02 s"),
    item: ("ItemFailedError", {"function_id": "f", "node": NODE}, "'f'.*Odd.*no"),
    full: ("PipelineFullError", {}, "0.02 s"),
    stopped: ("PipelineStoppedError", {}, "stop"),
    no_state: ("PipelineError", {}, "'f'.*no"),
}  # fmt: skip

BUILT_IN = {
    "ConfigurationError": ValueError,
    "InvalidDAGError": ValueError,
    "FunctionTimeoutError": TimeoutError,
    "ExecutionTimeoutError": TimeoutError,
    "RunCancelledError": concurrent.futures.CancelledError,
    "ValueNotFoundError": LookupError,
    "ResultTimeoutError": TimeoutError,
    "ActorTimeoutError": TimeoutError,
    "PipelineFullError": TimeoutError,
}


def raised(here: Here, situation: Callable[[Here], None]) -> handoff.HandoffError:
    try:
        with pytest.raises(handoff.HandoffError) as caught:
            situation(here)
    finally:
        handoff.stop()
    return caught.value


@pytest.fixture
def here(make_runtime: Make, runtime: handoff.Runtime, tmp_path: Path) -> Here:
    return Here(runtime, make_runtime, tmp_path)


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.__name__)
def test_an_error_says_what_of_what_it_is_about(
    here: Here, situation: Callable[[Here], None]
) -> None:

    name, fields, text = SITUATIONS[situation]
    error = raised(here, situation)
    assert type(error) is getattr(handoff, name)
    assert re.search(text, str(error), re.DOTALL), str(error)
    for field, value in fields.items():
        assert getattr(error, field) == (here.runtime.node() if value == NODE else value)
    # All that is promised is there, also what differs from time to time.
    for cls in type(error).__mro__:
        assert set(vars(cls).get("__annotations__", ())) <= set(vars(error)), cls
    for base, built_in in BUILT_IN.items():
        assert not isinstance(error, getattr(handoff, base)) or isinstance(error, built_in)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again).keys() == vars(error).keys()


def test_a_cycle_is_in_order(here: Here) -> None:
    error = raised(here, cycle)
    assert isinstance(error, handoff.CyclicDependencyError)
    found = list(error.cycle)
    assert sorted(found) == ["a", "b", "c"]
    takes = {"a": "c", "c": "b", "b": "a"}
    steps = list(zip(found, [*found[1:], found[0]], strict=True))
    forwards = all(takes[after] == before for before, after in steps)
    backwards = all(takes[before] == after for before, after in steps)
    assert forwards or backwards


def test_what_raised_is_the_cause(here: Here) -> None:
    for situation in (failed, converter_that_raises, item, no_state, actor_crashed):
        cause = raised(here, situation).__cause__
        assert isinstance(cause, Odd), situation


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_text_of_megabytes_is_the_cause_s_alone(here: Here, isolation: str) -> None:
    def fails() -> None:
        raise ValueError("begins " + "x" * 10_000_000)

    seen: list[str] = []
    dag = one(fails, max_retries=0, isolation=isolation)
    kinds = [handoff.events.AttemptFailed, handoff.events.RunFinished]
    with here.runtime.subscribe(lambda event: seen.append(event.error), kinds):
        with pytest.raises(handoff.FunctionFailedError, match="ValueError: begins xxx") as caught:
            here.runtime.execute(dag)
        here.runtime.events.flush(20)
    assert str(caught.value).endswith("… (9,998,007 more characters)")
    assert len(str(caught.value)) < 3000
    assert len(str(caught.value.__cause__)) == 10_000_007
    assert len(seen) == 2
    assert all(len(text) < 3000 for text in seen)


def test_a_crash_lists_each_attempt(here: Here) -> None:
    error = raised(here, crashed)
    assert isinstance(error, handoff.FunctionCrashedError)
    pids = [int(line) for line in (here.folder / "pids").read_text().split()]
    assert [a.pid for a in error.attempts] == pids
    assert len(set(pids)) == 2
    for attempt in error.attempts:
        assert attempt.node == here.runtime.node()
        assert attempt.exit_code == -signal.SIGKILL
        assert "SIGKILL" in attempt.reason
        assert str(attempt.pid) in str(error)


@pytest.mark.parametrize(
    ("situation", "path"),
    [
        (code_that_stays, "lock"),
        (argument_that_stays, "['a'][0]"),
        (result_that_stays, "result"),
    ],
)
def test_what_cannot_cross_is_named(
    here: Here, situation: Callable[[Here], None], path: str
) -> None:
    error = raised(here, situation)
    assert isinstance(error, handoff.SerializationError)
    assert path in error.path
    assert "_thread.lock object at" in error.object
    assert error.object in str(error)


def test_the_first_crash_is_the_cause_of_a_runtime_that_gave_up(here: Here) -> None:
    error = raised(here, gave_up)
    assert isinstance(error, handoff.RuntimeFailedError)
    assert isinstance(error.cause, ValueError)
    assert error.__cause__ is error.cause


def test_every_error_has_its_situation() -> None:
    """But for bases, and what takes two versions or a disk: test_cluster, test_memory_limit."""
    known = {name for name, _, _ in SITUATIONS.values()}
    bases = {"HandoffError", "InvalidDAGError", "ExecutionError", "NodeError", "ActorError"}
    elsewhere = {"IncompatibleNodeError", "NameTakenError", "SpillError"}
    public = {name for name in handoff.__all__ if name.endswith("Error")}
    assert public - known == bases | elsewhere & public

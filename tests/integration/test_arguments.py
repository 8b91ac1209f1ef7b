"""What a function is called with, and what may be called."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import Argument, Function
from tests.functions import fails_until, single


@pytest.mark.parametrize("synchronous", [False, True])
def test_arguments(runtime: handoff.Runtime, synchronous: bool) -> None:
    def gather(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    dag = handoff.new()
    dag.add_function(Function("a", (), lambda: 1))
    dag.add_function(Function("b", (), lambda: None))
    dag.add_function(Function("c", ["a", "b", "a"], gather, extra_args=[9], extra_kwargs={"k": 8}))
    dag.add_function(
        Function("l", ["b", "a"], gather, argument_inclusion="as_list", extra_args=[7])
    )
    dag.add_function(Function("none", (), gather, argument_inclusion="as_list"))
    results = runtime.execute(dag, synchronous=synchronous).results
    assert results["c"] == ((1, None, 1, 9), {"k": 8})
    assert results["l"] == (([None, 1], 7), {})
    assert results["none"] == (([],), {})


@pytest.mark.parametrize("synchronous", [False, True])
def test_inlines(runtime: handoff.Runtime, synchronous: bool) -> None:
    calls: list[str] = []

    def log(name: str, value: Any) -> Any:
        calls.append(name)
        return value

    dag = handoff.new()
    dag.add_function(Function("a", (), lambda: 1))
    dag.add_function(Function("i", ["a"], lambda a: log("i", a + 10), type="inline"))
    dag.add_function(Function("j", ["i", "a"], lambda i, a: log("j", i + a), type="inline"))
    dag.add_function(Function("b", ["j", "i"], lambda j, i: (j, i)))
    dag.add_function(Function("c", ["j"], lambda j: j))
    result = runtime.execute(dag, synchronous=synchronous)
    assert dict(result.results) == {"a": 1, "b": (12, 11), "c": 12}
    assert "i" not in result.results
    assert sorted(calls) == ["i", "i", "j", "j"], "once for each attempt of a dependent"


def test_an_inline_that_fails_is_a_failure_of_its_dependent(runtime: handoff.Runtime) -> None:
    code = fails_until(2)
    dag = handoff.new().add_function(Function("i", (), code, type="inline"))
    dag.add_function(Function("b", ["i"], lambda i: i))
    assert runtime.execute(dag).results["b"] == 2
    dag = handoff.new().add_function(Function("i", (), fails_until(99), type="inline"))
    dag.add_function(Function("b", ["i"], lambda i: i, max_retries=1))
    with pytest.raises(handoff.FunctionFailedError) as caught:
        runtime.execute(dag)
    assert caught.value.attempts == 2
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("synchronous", [False, True])
def test_inputs(runtime: handoff.Runtime, synchronous: bool) -> None:
    execute = functools.partial(runtime.execute, synchronous=synchronous)
    dag = handoff.new("d")
    dag.add_function(Function("x", type="input"))
    dag.add_function(Function("y", type="input"))
    dag.add_function(Function("sum", ["x", "y"], lambda x, y: (x, y)))
    assert execute(dag, inputs={"x": 1, "y": None}).results["sum"] == (1, None)
    assert execute(dag, inputs={"x": 2, "y": 3}).results["sum"] == (2, 3)
    for inputs in (None, {}, {"x": 1}):
        with pytest.raises(handoff.MissingInputError) as caught:
            execute(dag, inputs=inputs)
        assert "y" in caught.value.missing
    with pytest.raises(handoff.MissingInputError) as unknown:
        execute(dag, inputs={"x": 1, "y": 1, "z": 1})
    assert list(unknown.value.unknown) == ["z"]


@pytest.mark.parametrize("synchronous", [False, True])
def test_serialisers(runtime: handoff.Runtime, synchronous: bool) -> None:
    me, seen = runtime.node(), []

    def out(data: Any, source: str, target: str, *extra: Any) -> Any:
        seen.append(("out", source, target, extra))
        return [data]

    def back(data: Any, source: str, target: str, *extra: Any) -> Any:
        seen.append(("back", source, target, extra))
        return data[0] * 2

    dag = handoff.new().add_function(Function("a", (), lambda: 21))
    dag.add_function(Function("b", [Argument("a", (out, [1, 2]), back)], lambda x: x))
    dag.add_function(Function("c", [Argument("a", out), "a"], lambda x, y: (x, y)))
    results = runtime.execute(dag, synchronous=synchronous).results
    assert results["b"] == 42
    assert results["c"] == ([21], 21)
    assert ("out", me, me, (1, 2)) in seen
    assert ("back", me, me, ()) in seen
    assert len(seen) == 3


def test_a_serialiser_that_raises(runtime: handoff.Runtime) -> None:
    def out(*_: Any) -> Any:
        raise ValueError("cannot")

    dag = handoff.new().add_function(Function("a", (), lambda: 21))
    dag.add_function(Function("b", [Argument("a", out)], lambda x: x, max_retries=0))
    with pytest.raises((handoff.FunctionFailedError, handoff.SerializationError)) as caught:
        runtime.execute(dag)
    assert caught.value.function_id == "b"
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("synchronous", [False, True])
def test_init_and_batches_are_streams_of_one_item(
    runtime: handoff.Runtime, synchronous: bool
) -> None:
    dag = handoff.new().add_function(Function("a", (), lambda: 5))
    dag.add_function(Function("i", ["a"], lambda s, a: ((s, a), s), init=lambda: "state"))
    dag.add_function(
        Function("j", ["a"], lambda s, a: (s + a, s), init=(lambda x, y: x + y, [1, 2]))
    )
    dag.add_function(Function("k", ["a"], lambda items: [x * 2 for (x,) in items], batch_size=10))
    results = runtime.execute(dag, synchronous=synchronous).results
    assert results["i"] == ("state", 5)
    assert results["j"] == 8
    assert results["k"] == 10


def test_an_init_that_raises_and_a_state_that_is_no_pair(runtime: handoff.Runtime) -> None:
    def bad() -> None:
        raise ValueError("init")

    with pytest.raises(handoff.FunctionFailedError) as caught:
        runtime.execute(single(lambda s: (1, s), init=bad, max_retries=0))
    assert str(caught.value.__cause__) == "init"
    with pytest.raises(handoff.FunctionFailedError):
        runtime.execute(single(lambda s: 7, init=lambda: 1, max_retries=0))
    with pytest.raises(handoff.FunctionFailedError):
        runtime.execute(single(lambda items: [1, 2, 3], batch_size=5, max_retries=0))


@pytest.mark.parametrize("synchronous", [False, True])
def test_callables_of_all_kinds(runtime: handoff.Runtime, synchronous: bool) -> None:
    class Adder:
        def __init__(self, n: int) -> None:
            self.n = n

        def __call__(self, x: int) -> int:
            return x + self.n

        def method(self, x: int) -> int:
            return x * self.n

        @staticmethod
        def static(x: int) -> int:
            return -x

        async def awaited(self, x: int) -> int:
            await asyncio.sleep(0)
            return x - self.n

    adder = Adder(3)
    codes: dict[str, Any] = {
        "object": adder,
        "method": adder.method,
        "static": Adder.static,
        "partial": functools.partial(pow, 2),
        "builtin": abs,
        "type": str,
        "name": "math:sqrt",
        "dotted": "os.path:basename",
        "async method": adder.awaited,
    }
    dag = handoff.new().add_function(Function("x", (), lambda: 4))
    for name, code in codes.items():
        if name != "dotted":
            dag.add_function(Function(name, ["x"], code))
    dag.add_function(Function("path", (), lambda: "/a/b"))
    dag.add_function(Function("dotted", ["path"], codes["dotted"]))
    results = runtime.execute(dag, synchronous=synchronous).results
    assert [results[name] for name in codes] == [7, 12, -4, 16, 4, "4", 2.0, "b", 1]


def test_unusual_ids_and_values(runtime: handoff.Runtime) -> None:
    class Awkward:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("compared")

        __hash__ = None  # type: ignore[assignment]

        def __bool__(self) -> bool:
            raise RuntimeError("asked for truth")

        def __repr__(self) -> str:
            raise RuntimeError("shown")

        def __len__(self) -> int:
            raise RuntimeError("measured")

    dag = handoff.new(("a", "tuple"))
    dag.add_function(Function(0, (), Awkward))
    dag.add_function(Function("", [0], lambda x: x))
    dag.add_function(Function((1, 2), ["", 0], lambda x, y: x is y))
    dag.add_function(Function(frozenset({1}), [(1, 2)], lambda x: ValueError("value")))
    results = runtime.execute(dag).results
    assert results[1, 2] is True
    assert isinstance(results[frozenset({1})], ValueError)
    assert isinstance(runtime.get_value(("a", "tuple"), 0), Awkward)


def test_each_attempt_has_a_copy_of_the_callers_context(runtime: handoff.Runtime) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")
    seen: list[str] = []

    def code() -> None:
        seen.append(variable.get())
        variable.set("changed inside")
        if len(seen) < 3:
            raise ValueError

    async def coroutine(_: Any) -> str:
        await asyncio.sleep(0)
        return variable.get()

    variable.set("callers")
    dag = single(code).add_function(Function("g", ["f"], coroutine))
    run = runtime.submit(dag)
    variable.set("later")
    assert run.result(10).results["g"] == "callers"
    assert seen == ["callers"] * 3
    assert variable.get() == "later"

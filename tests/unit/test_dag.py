"""DAG: adding, the decorator, validation, and its life as an object."""

from __future__ import annotations

import copy
import functools
import pickle
import re

import pytest

from handoff_actors.errors import (
    CyclicDependencyError,
    DuplicateFunctionError,
    InvalidDAGError,
    InvalidFunctionError,
    MissingFunctionError,
)
from handoff_actors.graph import DAG, Argument, Collocated, Function


def many(*values):
    return values


def make(*functions):
    dag = DAG("test")
    for f in functions:
        dag.add_function(f)
    return dag


def f(id_, *args, **fields):
    return Function(id_, args, many, **fields)


def test_ids_are_unique_when_not_given():
    ids = {DAG().id for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"dag-[0-9a-f]{12}", id_) for id_ in ids)
    assert DAG(("any", 1)).id == ("any", 1)
    with pytest.raises(InvalidDAGError, match="hashable"):
        DAG([])


def test_adding_chains_and_reads_back():
    a, b = f("a"), f("b", "a")
    dag = DAG().add_function(a).add_function(b)
    assert dag.functions == {"a": a, "b": b}
    assert list(dag.functions) == ["a", "b"]
    assert len(dag) == 2
    assert "a" in dag
    assert "c" not in dag
    assert repr(make(a)) == "<DAG 'test' of 1 function>"
    with pytest.raises(TypeError):
        dag.functions["c"] = a


def test_a_second_function_of_an_id_is_refused():
    a = f("a")
    dag = make(a)
    for again in (a, f("a")):
        with pytest.raises(DuplicateFunctionError, match="'a'") as caught:
            dag.add_function(again)
        assert caught.value.function_id == "a"
    assert dag.functions["a"] is a


@pytest.mark.parametrize("thing", [None, many, "a", Argument("a")])
def test_only_functions_are_added(thing):
    with pytest.raises(InvalidDAGError, match="Function"):
        DAG().add_function(thing)


def test_the_decorator_gives_the_function_back():
    dag = DAG()

    @dag.function
    def load():
        return 1

    @dag.function
    def double(load, factor=2):
        return load * factor

    @dag.function(id="other", args=["load", "double"], cost={"cpu": 1}, timeout=3)
    def add(x, y):
        return x + y

    @dag.function()
    def last(other, *rest, flag=True, **more):
        return other

    assert double(4) == 8
    assert add(1, 2) == 3
    assert {k: v.args for k, v in dag.functions.items()} == {
        "load": (),
        "double": ("load",),
        "other": ("load", "double"),
        "last": ("other",),
    }
    assert dag.functions["other"].cost == {"cpu": 1}
    assert dag.functions["double"].code is double
    dag.validate()


def test_the_decorator_leaves_out_what_is_filled_otherwise():
    dag = DAG()

    def state_first(state, a, b):
        return state, a, b

    def plain(a, b, c):
        return a, b, c

    def defaults(a, b=1):
        return a, b

    dag.function(id=1, init=dict)(state_first)
    dag.function(id=2, extra_kwargs={"b": 5, "c": 6})(plain)
    dag.function(id=3, extra_args=[5])(plain)
    dag.function(id=4, extra_args=[5])(defaults)
    dag.function(id=5, extra_args=[5])(lambda a, *more: a)
    dag.function(id=6, args=[])(lambda: 0)
    got = [dag.functions[i].args for i in range(1, 7)]
    assert got == [("a", "b"), ("a",), ("a", "b"), ("a",), ("a",), ()]


def test_the_decorator_follows_a_wrapper_to_the_names():
    dag = DAG()

    def logged(code):
        @functools.wraps(code)
        def inner(*args, **kwargs):
            return code(*args, **kwargs)

        return inner

    @dag.function
    @logged
    def total(a, b):
        return a + b

    assert dag.functions["total"].args == ("a", "b")


def test_the_decorator_asks_when_it_cannot_know():
    dag = DAG()
    with pytest.raises(InvalidFunctionError, match="'k' is keyword-only") as caught:

        @dag.function
        def wants(a, *, k):
            return a, k

    assert caught.value.function_id == "wants"
    with pytest.raises(InvalidFunctionError, match="id="):
        dag.function(lambda: 0)
    with pytest.raises(InvalidFunctionError, match="id="):
        dag.function(functools.partial(many))
    with pytest.raises(InvalidFunctionError, match="args="):
        dag.function(batch_size=2)(many)
    with pytest.raises(InvalidFunctionError, match="args="):
        dag.function(argument_inclusion="as_list")(many)
    with pytest.raises(TypeError, match="no_such_field"):
        dag.function(no_such_field=2)(many)
    assert len(dag) == 0


def test_what_is_missing_is_named_with_the_nearest():
    with pytest.raises(MissingFunctionError, match="did you mean 'load_data'") as caught:
        make(f("load_data"), f("b", "load_dat")).validate()
    assert (caught.value.function_id, caught.value.missing) == ("b", "load_dat")
    with pytest.raises(MissingFunctionError, match=r"did you mean 1, which is no str"):
        make(f(1), f("b", "1")).validate()
    with pytest.raises(MissingFunctionError, match="input"):
        make(f("a"), f("b", Argument(("x", 1)))).validate()
    with pytest.raises(MissingFunctionError):
        make(f("i", "nothing", type="inline")).validate()


def test_cycles_are_told_in_order():
    with pytest.raises(CyclicDependencyError) as caught:
        make(f("x"), f("a", "x", "c"), f("b", "a"), f("c", "b"), f("d", "c")).validate()
    cycle = caught.value.cycle
    start = cycle.index("a")
    assert cycle[start:] + cycle[:start] == ["a", "b", "c"]
    with pytest.raises(CyclicDependencyError, match="'a' → 'a'") as caught:
        make(f("a", "a")).validate()
    assert caught.value.cycle == ["a"]
    with pytest.raises(CyclicDependencyError) as caught:
        make(f("a", "i"), f("i", Argument("a"), type="inline")).validate()
    assert sorted(caught.value.cycle) == ["a", "i"]
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_long_cycle_is_found_and_its_message_is_short():
    n = 20_000
    dag = make(*[f(i, (i + 1) % n) for i in range(n)])
    with pytest.raises(CyclicDependencyError) as caught:
        dag.validate()
    assert sorted(caught.value.cycle) == list(range(n))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("kind", ["regular", "inline"])
def test_depth_costs_no_stack(backwards, kind):
    n = 100_000
    functions = [f(0), *[f(i, i - 1, type=kind) for i in range(1, n)]]
    if backwards:
        functions.reverse()
    dag = make(*functions)
    dag.validate()
    assert dag.plan().n == (n if kind == "regular" else 1)


@pytest.mark.parametrize(
    "functions",
    [
        [f("a", node=Collocated("nothing"))],
        [f("i", type="inline"), f("a", node=Collocated("i"))],
        [Function("i", type="input"), f("a", node=Collocated("i"))],
        [f("a", node=Collocated("a"))],
        [f("a", node=Collocated("b")), f("b", node=Collocated("c")), f("c", node=Collocated("b"))],
    ],
)
def test_collocations_that_cannot_be(functions):
    with pytest.raises(InvalidFunctionError) as caught:
        make(*functions).validate()
    assert caught.value.field == "node"


def test_what_needs_no_functions_is_valid():
    for functions in ([], [f("i", type="inline")], [Function("x", type="input")]):
        dag = make(*functions)
        dag.validate()
        assert dag.plan().n == 0
        assert dag.plan().sinks == []


def test_the_plan_is_kept_until_a_function_is_added():
    dag = make(f("a"))
    plan = dag.plan()
    dag.validate()
    assert dag.plan() is plan
    dag.add_function(f("b", "a"))
    assert dag.plan() is not plan
    assert dag.plan().n == 2


def test_a_dag_that_failed_can_be_mended():
    dag = make(f("b", "a"))
    with pytest.raises(MissingFunctionError):
        dag.validate()
    dag.add_function(f("a"))
    dag.validate()


def test_a_dag_pickles_without_its_plan():
    dag = make(f("a"), f("b", "a"))
    dag.plan()
    for again in (pickle.loads(pickle.dumps(dag)), copy.copy(dag), copy.deepcopy(dag)):
        assert again.id == "test"
        assert again.functions == dag.functions
        assert again.plan() is not dag.plan()
        again.add_function(f("c"))
        assert "c" not in dag

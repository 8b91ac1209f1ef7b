"""The compiled plan: columns, calls, classes, groups."""

from __future__ import annotations

import gc
import pickle
import tracemalloc

import pytest

from handoff_actors.errors import InvalidFunctionError
from handoff_actors.graph import (
    DAG,
    Argument,
    Collocated,
    Converted,
    Function,
    InlineCall,
    LaneClass,
    compile_plan,
)


def many(*values, **named):
    return values


async def later(*values):
    return values


def pack(data, source, target):
    return data


def unpack(data, source, target, extra):
    return data


def plan_of(*functions):
    dag = DAG("test")
    for function in functions:
        dag.add_function(function)
    return compile_plan(dag)


def f(id_, *args, **fields):
    return Function(id_, args, many, **fields)


def inline(id_, *args):
    return f(id_, *args, type="inline")


def test_the_columns_of_a_diamond():
    x = Function("x", type="input")
    p = plan_of(x, f("a", "x"), f("b", "a"), f("c", "a", "x"), f("d", "b", "c"))
    assert (p.n, p.n_inputs) == (4, 1)
    assert p.ids == ["a", "b", "c", "d", "x"]
    assert p.index == {"a": 0, "b": 1, "c": 2, "d": 3, "x": 4}
    assert [g.id for g in p.functions] == p.ids
    assert p.deps == [(4,), (0,), (0, 4), (1, 2)]
    assert p.dependents == [[1, 2], [3], [3], [], [0, 2]]
    assert p.indegree == [0, 1, 1, 2]
    assert p.consumers == [2, 1, 1, 0, 2]
    assert p.sinks == [3]
    assert p.plain == [(4,), (0,), (0, 4), (1, 2)]
    assert p.codes == [many] * 4
    assert p.calls == {}
    assert p.class_of == [0] * 4
    assert p.classes == [LaneClass()]


def test_insertion_order_is_kept_where_it_can_be():
    assert plan_of(f("b"), f("c", "b"), f("a")).ids == ["b", "c", "a"]
    assert plan_of(f("z", "a"), f("b"), f("a")).ids == ["a", "z", "b"]
    assert plan_of(f("c", "b"), f("b", "a"), f("a"), f("d")).ids == ["a", "b", "c", "d"]


def test_a_repeated_argument_is_one_dependency_and_still_plain():
    p = plan_of(f("a"), f("b"), f("c", "a", "b", "a"))
    assert p.plain[2] == (0, 1, 0)
    assert p.deps[2] == (0, 1)
    assert p.dependents[0] == [2]
    assert p.indegree[2] == 2


def test_an_argument_without_conversion_is_plain():
    p = plan_of(f("a"), f("b", Argument("a")))
    assert p.plain[1] == (0,)


@pytest.mark.parametrize(
    "fields",
    [{"extra_args": [1]}, {"extra_kwargs": {"k": 1}}, {"argument_inclusion": "as_list"}]
    + [{"init": dict}, {"batch_size": 2}],
)
def test_what_is_more_than_a_call_is_not_plain(fields):
    p = plan_of(f("a"), f("b", "a", **fields))
    assert p.plain == [(), None]
    call = p.calls[1]
    assert p.call(1) is call
    assert (call.id, call.code, call.sources) == ("b", many, (0,))
    assert call.extra_args == tuple(fields.get("extra_args", ()))
    assert call.extra_kwargs == fields.get("extra_kwargs")
    assert call.as_list == ("argument_inclusion" in fields)
    assert call.init == ((dict, ()) if "init" in fields else None)
    assert call.batching == ("batch_size" in fields)
    assert not call.is_async
    assert p.deps[1] == (0,)


def test_async_code_is_not_plain():
    p = plan_of(Function("a", (), later))
    assert p.plain == [None]
    assert p.calls[0].is_async
    assert p.classes == [LaneClass(is_async=True)]


def test_the_call_of_a_plain_function_is_made_on_demand():
    p = plan_of(f("a"), f("b", "a"))
    call = p.call(1)
    assert (call.id, call.code, call.sources, call.as_list) == ("b", many, (0,), False)
    assert p.calls == {}


def test_inlines_are_seen_through():
    x = Function("x", type="input")
    p = plan_of(
        x, f("a"), inline("i", "a", "x"), inline("j", "i", "a"), f("b", "j", "i"), f("c", "b")
    )
    assert p.ids == ["a", "b", "c", "x"]
    assert p.deps == [(), (0, 3), (1,)]
    assert p.dependents == [[1], [2], [], [1]]
    assert p.indegree == [0, 1, 1]
    assert p.plain == [(), None, (1,)]
    j, i = p.calls[1].sources
    assert isinstance(j, InlineCall)
    assert isinstance(i, InlineCall)
    assert (j.key, i.key) == ("j", "i")
    assert j.call.sources == (i, 0)
    assert j.call.sources[0] is i
    assert i.call.sources == (0, 3)


def test_an_inline_without_arguments_adds_no_dependency():
    p = plan_of(inline("i"), f("a", "i"))
    assert p.deps == [()]
    assert p.indegree == [0]


def test_a_large_inline_is_walked_and_gives_the_same():
    n = 100
    p = plan_of(
        *[f(i) for i in range(n)],
        inline(("i", 0), 0),
        *[inline(("i", k), ("i", k - 1), k) for k in range(1, n)],
        f("end", ("i", n - 1)),
        f("other", ("i", 3), ("i", n - 1)),
    )
    assert sorted(p.deps[n]) == list(range(n))
    assert sorted(p.deps[n + 1]) == list(range(n))
    assert p.dependents[0] == [n, n + 1]


@pytest.mark.timeout(30)
def test_many_functions_above_many_inlines_stay_linear():
    n = 20_000  # 400 million steps if each function walked the chain
    chain = [inline(("i", 0), "a"), *[inline(("i", k), ("i", k - 1)) for k in range(1, n)]]
    p = plan_of(f("a"), *chain, *[f(k, ("i", n - 1)) for k in range(n)])
    assert p.deps[1:] == [(0,)] * n


@pytest.mark.timeout(30)
def test_each_inline_is_walked_once_however_many_ways_lead_to_it():
    n = 60  # 2 ** 60 ways
    wide = inline(("i", 0), *range(100))
    rest = [inline(("i", k), ("i", k - 1), Argument(("i", k - 1), pack)) for k in range(1, n)]
    p = plan_of(*[f(k) for k in range(100)], wide, *rest, f("end", ("i", n - 1)))
    assert p.deps[100] == tuple(range(100))


def test_conversions():
    p = plan_of(
        f("a"),
        inline("i", Argument("a", pack)),
        f("b", Argument("a", pack, (unpack, [7])), Argument("i", None, (unpack, (8,))), "a"),
    )
    first, second, third = p.calls[1].sources
    assert isinstance(first, Converted)
    assert (first.source, first.producer) == (0, 0)
    assert first.serialize == (pack, ())
    assert first.deserialize == (unpack, (7,))
    assert isinstance(second, Converted)
    assert isinstance(second.source, InlineCall)
    assert (second.producer, second.serialize) == (None, None)
    assert second.source.call.sources[0].serialize == (pack, ())
    assert third == 0
    assert p.deps[1] == (0,)


def test_calls_pickle_and_are_equal_only_to_themselves():
    p = plan_of(f("a"), inline("i", "a"), f("b", "i", Argument("a", pack), extra_args=[1]))
    call = p.calls[1]
    again = pickle.loads(pickle.dumps(call))
    assert again != call
    assert (again.id, again.code, again.extra_args) == ("b", many, (1,))
    assert again.sources[0].call.sources == (0,)
    assert again.sources[1].serialize == (pack, ())


def test_a_path_is_imported_when_the_plan_is_made():
    p = plan_of(
        Function("a", (), "operator:add", extra_args=[1, 2]), Function("b", (), "os:getcwd")
    )
    assert p.codes[0](1, 2) == 3
    assert p.plain == [None, ()]
    p = plan_of(Function("a", (), "asyncio:sleep", extra_args=[0]))
    assert p.calls[0].is_async
    assert p.classes == [LaneClass(is_async=True)]
    for code, args in (("os:nothing", ()), ("no_such_module_x:f", ()), ("os:getcwd", ("a",))):
        with pytest.raises(InvalidFunctionError) as caught:
            plan_of(f("a"), Function("b", args, code))
        assert caught.value.function_id == "b"
    with pytest.raises(InvalidFunctionError, match="async"):
        plan_of(Function("a", (), "asyncio:sleep", extra_args=[0], type="inline"))


def test_classes_hold_what_can_share_workers():
    p = plan_of(
        f("plain"),
        f("cheap", cost={"cpu": 1}),
        f("same", cost={"cpu": 1.0, "gpu": 0}),
        f("two", cost={"cpu": 1, "memory": 0.5}),
        f("two again", cost={"memory": 0.5, "cpu": 1}),
        f("free", cost={"cpu": 0}),
        f("process", isolation="process"),
        f("timed", timeout=1),
        f("timed too", timeout=9),
        f("state", init=dict),
        f("batch", batch_size=3),
        f("pinned", node="n"),
        f("pinned too", node="n", cost={}),
    )
    of = dict(zip(p.ids, p.class_of, strict=True))
    assert of["cheap"] == of["same"]
    assert of["two"] == of["two again"]
    assert of["free"] == of["plain"] == 0
    assert of["timed"] == of["timed too"]
    assert of["state"] == of["batch"]
    assert of["pinned"] == of["pinned too"]
    assert sorted(set(p.class_of)) == list(range(len(p.classes)))
    assert p.classes[of["cheap"]] == LaneClass(cost={"cpu": 1_000_000})
    assert p.classes[of["two"]] == LaneClass(cost={"cpu": 1_000_000, "memory": 500_000})
    assert p.classes[of["process"]] == LaneClass(isolation="process")
    assert p.classes[of["timed"]] == LaneClass(timed=True)
    assert p.classes[of["state"]] == LaneClass(stateful=True)
    assert p.classes[of["pinned"]] == LaneClass(pin="n")


def test_no_class_is_empty():
    assert plan_of(f("a", cost={"cpu": 1})).classes == [LaneClass(cost={"cpu": 1_000_000})]
    assert plan_of(Function("a", (), "os:getcwd")).classes == [LaneClass()]
    assert plan_of(inline("i"), Function("x", type="input")).classes == []
    assert plan_of(f("a"), f("b", node=Collocated("a"))).classes == [LaneClass(group=0)]


def test_groups_follow_chains():
    p = plan_of(
        f("far", node=Collocated("mid")),
        f("root"),
        f("mid", node=Collocated("root")),
        f("alone"),
        f("with pinned", node=Collocated("pinned")),
        f("pinned", node="n"),
    )
    ids = p.ids
    assert [sorted(ids[i] for i in group) for group in p.groups] == [
        ["far", "mid", "root"],
        ["pinned", "with pinned"],
    ]
    assert p.group_pins == [None, "n"]
    assert {ids[i]: g for i, g in p.group_of.items()} == {
        "far": 0, "mid": 0, "root": 0, "pinned": 1, "with pinned": 1,
    }  # fmt: skip
    classes = {id_: p.classes[p.class_of[p.index[id_]]] for id_ in ids}
    assert classes["far"] == classes["root"] == LaneClass(group=0)
    assert classes["with pinned"] == classes["pinned"] == LaneClass(pin="n")
    assert classes["alone"] == LaneClass()


def test_levels_width_and_critical_path():
    x = Function("x", type="input")
    p = plan_of(x, f("a", "x"), f("b", "a"), f("c", "a"), f("d", "b", "c"), f("e"))
    assert [[p.ids[i] for i in level] for level in p.levels()] == [["a", "e"], ["b", "c"], ["d"]]
    assert p.width() == 2
    assert len(p.critical_path()) == 3
    for heavy in "bc":
        weights = [5.0 if id_ == heavy else 1.0 for id_ in p.ids]
        assert [p.ids[i] for i in p.critical_path(weights)] == ["a", heavy, "d"]
    alone = [1.0, 1.0, 5.0, 1.0, 50.0]
    assert [p.ids[i] for i in p.critical_path(alone)] == ["e"]
    empty = plan_of()
    assert (empty.levels(), empty.width(), empty.critical_path()) == ([], 0, [])


def test_memory_of_a_plan():
    dag = DAG()
    for level in range(100):
        for i in range(100):
            args = [(level - 1, (i + k) % 100) for k in range(3)] if level else []
            dag.add_function(Function((level, i), args, many))
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        plan = compile_plan(dag)
        gc.collect()
        per_function = (tracemalloc.get_traced_memory()[0] - before) / plan.n
    finally:
        tracemalloc.stop()
    assert per_function < 400

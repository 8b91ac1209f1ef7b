"""The plan of any DAG against a naive reading of the DAG itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handoff_actors.errors import CyclicDependencyError, InvalidDAGError, MissingFunctionError
from handoff_actors.graph import (
    DAG,
    Argument,
    Collocated,
    Converted,
    Function,
    InlineCall,
    compile_plan,
)


def many(*values, **named):
    return values


async def later(*values, **named):
    return values


def convert(data, source, target):
    return data


FIELDS = [
    {}, {}, {}, {"extra_args": (1,)}, {"extra_kwargs": {"k": 1}}, {"argument_inclusion": "as_list"},
    {"cost": {"cpu": 1}}, {"cost": {"cpu": 0}}, {"cost": {"cpu": 0.5, "gpu": 1}}, {"timeout": 1.0},
    {"node": "n1"}, {"isolation": "process"}, {"init": dict}, {"batch_size": 2},
]  # fmt: skip


@st.composite
def functions(draw, most=12, collocated=True):
    """Functions of a valid DAG, dependencies first."""
    made: list[Function] = []
    kinds: list[str] = []
    for i in range(draw(st.integers(0, most))):
        kind = draw(st.sampled_from(["regular", "regular", "regular", "inline", "input"]))
        id_ = draw(st.sampled_from([i, f"f{i}", ("f", i)]))
        if kind == "input":
            made.append(Function(id_, type="input"))
            kinds.append(kind)
            continue
        chosen = draw(st.lists(st.sampled_from(made), max_size=4)) if made else []
        args = [
            Argument(c.id, *draw(st.sampled_from([(), (convert,), (None, convert)])))
            if draw(st.integers(0, 4)) == 0
            else c.id
            for c in chosen
        ]
        fields = {} if kind == "inline" else dict(draw(st.sampled_from(FIELDS)))
        regular = [f.id for f, k in zip(made, kinds, strict=True) if k == "regular"]
        if kind == "regular" and collocated and regular and draw(st.integers(0, 5)) == 0:
            fields["node"] = Collocated(draw(st.sampled_from(regular)))
        code = later if kind == "regular" and draw(st.integers(0, 6)) == 0 else many
        made.append(Function(id_, args, code, type=kind, **fields))
        kinds.append(kind)
    return made


def dag_of(made):
    dag = DAG("test")
    for function in made:
        dag.add_function(function)
    return dag


def arg_id(arg):
    return arg.id if isinstance(arg, Argument) else arg


def naive_needs(by_id, function):
    """The ids of the regular functions and inputs that ``function`` needs."""
    needs = set()
    for arg in function.args:
        taken = by_id[arg_id(arg)]
        if taken.type == "inline":
            needs |= naive_needs(by_id, taken)
        else:
            needs.add(taken.id)
    return needs


def shown(plan, source):
    """A source with ids for indices, so that plans with other numbers can be compared."""
    if isinstance(source, InlineCall):
        return ("inline", source.key, tuple(shown(plan, s) for s in source.call.sources))
    if isinstance(source, Converted):
        producer = None if source.producer is None else plan.ids[source.producer]
        return (shown(plan, source.source), producer, source.serialize, source.deserialize)
    return plan.ids[source]


def meaning(plan):
    """All that a plan says, by id."""
    said = {}
    for i in range(plan.n):
        call = plan.call(i)
        klass = plan.classes[plan.class_of[i]]
        group = plan.group_of.get(i)
        members = None if group is None else {plan.ids[j] for j in plan.groups[group]}
        said[plan.ids[i]] = (
            {plan.ids[d] for d in plan.deps[i]},
            {plan.ids[d] for d in plan.dependents[i]},
            [shown(plan, s) for s in call.sources],
            (call.extra_args, call.extra_kwargs, call.as_list, call.is_async, call.init),
            (klass.isolation, klass.is_async, klass.cost, klass.pin, klass.timed, klass.stateful),
            (members, klass.group is None, None if group is None else plan.group_pins[group]),
            plan.plain[i] is None,
            i in plan.sinks,
        )
    inputs = {plan.ids[v]: plan.consumers[v] for v in range(plan.n, plan.n + plan.n_inputs)}
    return said, inputs


@st.composite
def usual_functions(draw):
    """The same of functions that are no more than ``code(*results)``, for which there is a short
    way to a plan."""
    made: list[Function] = []
    edges = draw(st.booleans())
    for i in range(draw(st.integers(1, 12))):
        taken = draw(st.lists(st.sampled_from(made), max_size=4, unique=True)) if made else []
        made.append(Function(i, [f.id for f in taken] if edges else (), many))
    return made


valid = functions() | usual_functions()


@given(valid)
def test_the_columns_agree_with_the_functions(made):
    plan = compile_plan(dag_of(made))
    by_id = {f.id: f for f in made}
    n, total = plan.n, plan.n + plan.n_inputs
    assert n == sum(f.type == "regular" for f in made)
    assert plan.n_inputs == sum(f.type == "input" for f in made)
    assert {plan.ids[v]: v for v in range(total)} == plan.index
    assert [by_id[id_] for id_ in plan.ids] == plan.functions
    for i in range(n):
        function = plan.functions[i]
        assert function.type == "regular"
        assert {plan.ids[d] for d in plan.deps[i]} == naive_needs(by_id, function)
        assert len(set(plan.deps[i])) == len(plan.deps[i])
        assert all(d < i or d >= n for d in plan.deps[i]), "dependencies come first"
        assert plan.indegree[i] == sum(d < n for d in plan.deps[i])
        klass = plan.classes[plan.class_of[i]]
        assert klass.is_async == (function.code is later)
        assert klass.timed == (function.timeout is not None)
    assert all(plan.functions[v].type == "input" for v in range(n, total))
    for v in range(total):
        assert plan.dependents[v] == [i for i in range(n) if v in plan.deps[i]]
        assert plan.consumers[v] == len(plan.dependents[v])
    assert plan.sinks == [i for i in range(n) if not plan.dependents[i]]
    assert set(plan.class_of) == set(range(len(plan.classes)))


@given(valid)
def test_a_call_takes_its_arguments_in_order(made):
    plan = compile_plan(dag_of(made))
    for i in range(plan.n):
        function, call = plan.functions[i], plan.call(i)
        assert len(call.sources) == len(function.args)
        for arg, source in zip(function.args, call.sources, strict=True):
            inner = source.source if isinstance(source, Converted) else source
            got = inner.key if isinstance(inner, InlineCall) else plan.ids[inner]
            assert got == arg_id(arg)
            converts = isinstance(arg, Argument) and (
                arg.serialization_fn or arg.deserialization_fn
            )
            assert isinstance(source, Converted) == bool(converts)
        if plan.plain[i] is not None:
            assert i not in plan.calls
            assert call.sources == plan.plain[i]
            assert (call.extra_args, call.extra_kwargs, call.as_list) == ((), None, False)
            assert (call.is_async, call.init, call.batching) == (False, None, False)
        else:
            assert plan.calls[i] is call


@given(functions())
def test_groups_are_the_closure_of_collocation(made):
    plan = compile_plan(dag_of(made))
    by_id = {f.id: f for f in made}
    roots = {}
    for f in made:
        here = f
        while isinstance(here.node, Collocated):
            here = by_id[here.node.id]
        roots.setdefault(here.id, set()).add(f.id)
    expected = {root: ids for root, ids in roots.items() if len(ids) > 1}
    got = [{plan.ids[i] for i in group} for group in plan.groups]
    assert sorted(map(sorted_ids, got)) == sorted(map(sorted_ids, expected.values()))
    for group, ids in enumerate(got):
        root = next(r for r, members in expected.items() if members == ids)
        assert plan.group_pins[group] == by_id[root].node


@given(usual_functions())
def test_the_short_way_to_a_plan_says_what_the_long_one_says(made):
    marked = Function("not so usual", (), many, extra_args=(1,))
    short, long = compile_plan(dag_of(made)), compile_plan(dag_of([*made, marked]))
    said, inputs = meaning(long)
    del said[marked.id]
    assert meaning(short) == (said, inputs)


def sorted_ids(ids):
    return sorted(map(repr, ids))


@given(valid.flatmap(lambda made: st.tuples(st.just(made), st.permutations(made))))
def test_the_order_of_adding_changes_only_the_numbers(both):
    made, shuffled = both
    plan = compile_plan(dag_of(shuffled))
    assert meaning(plan) == meaning(compile_plan(dag_of(made)))
    for i in range(plan.n):
        assert all(d < i or d >= plan.n for d in plan.deps[i])


@given(valid)
def test_an_order_that_can_run_is_kept(made):
    plan = compile_plan(dag_of(made))
    assert plan.ids == [f.id for f in made if f.type == "regular"] + [
        f.id for f in made if f.type == "input"
    ]


@st.composite
def any_graphs(draw):
    """Functions whose arguments may be anything: cyclic, missing, themselves."""
    n = draw(st.integers(1, 8))
    return [
        Function(
            i,
            draw(st.lists(st.integers(0, n - draw(st.integers(0, 1))), max_size=3)),
            many,
            type=draw(st.sampled_from(["regular", "regular", "inline"])),
        )
        for i in range(n)
    ]


@given(any_graphs())
def test_what_is_refused_is_really_wrong_and_the_rest_is_right(made):
    by_id = {f.id: f for f in made}
    missing = any(a not in by_id for f in made for a in f.args)
    if not missing and not has_cycle(by_id):
        plan = compile_plan(dag_of(made))
        for i in range(plan.n):
            assert all(d < i for d in plan.deps[i])
        return
    with pytest.raises((CyclicDependencyError, MissingFunctionError)) as caught:
        compile_plan(dag_of(made))
    error = caught.value
    if isinstance(error, MissingFunctionError):
        assert error.missing not in by_id
        assert error.missing in by_id[error.function_id].args
    else:
        cycle = error.cycle
        assert len(set(cycle)) == len(cycle) > 0
        for before, after in zip(cycle, cycle[1:] + cycle[:1], strict=True):
            assert before in by_id[after].args


def has_cycle(by_id):
    left = dict(by_id)  # what is missing is not in it, so holds nobody back
    while left:
        free = [i for i, f in left.items() if not any(a in left for a in f.args)]
        if not free:
            return True
        for i in free:
            del left[i]
    return False


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_collocation_is_refused_only_when_it_closes(targets):
    made = [Function(i, (), many, node=Collocated(t)) for i, t in enumerate(targets)]
    made.extend(Function(i, (), many) for i in range(len(made), 7))
    closes = False
    for start in range(7):
        seen, here = set(), start
        while here < len(targets) and here not in seen:
            seen.add(here)
            here = targets[here]
        closes |= here < len(targets)
    if closes:
        with pytest.raises(InvalidDAGError):
            compile_plan(dag_of(made))
    else:
        plan = compile_plan(dag_of(made))
        assert len(plan.group_of) == sum(map(len, plan.groups))

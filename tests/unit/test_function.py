"""Function, Argument, Collocated: what they take, what they refuse, and that they are values."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import functools
import operator
import pickle
from decimal import Decimal
from fractions import Fraction

import pytest

from handoff_actors.errors import InvalidDAGError, InvalidFunctionError
from handoff_actors.graph import Argument, Collocated, Function, is_coroutine_callable, to_micro
from handoff_actors.graph.callables import misfit, resolve_code


def none():
    return 0


def one(a):
    return a


def two(a, b):
    return a, b


def with_default(a, b=1):
    return a, b


def many(*values):
    return values


def keyword_only(a, *, k):
    return a, k


def convert(data, source, target):
    return data


def convert_more(data, source, target, extra):
    return data, extra


async def later(a):
    return a


class Unhashable:
    __hash__ = None

    def __repr__(self):
        return "Unhashable()"


class Worker:
    def method(self, a):
        return a

    def __call__(self, a, b):
        return a, b


class AsyncWorker:
    async def __call__(self, a):
        return a


def refused(field, *args, **fields):
    with pytest.raises(InvalidFunctionError) as caught:
        Function(*args, **fields)
    assert caught.value.field == field
    assert isinstance(caught.value, InvalidDAGError)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def test_the_defaults_are_those_of_the_design():
    f = Function("f", ["a"], one)
    assert (f.id, f.args, f.code, f.extra_args, f.extra_kwargs) == ("f", ("a",), one, (), None)
    assert (f.cost, f.node, f.type, f.argument_inclusion) == (None, None, "regular", "variadic")
    assert (f.max_retries, f.retry_delay, f.max_crashes, f.timeout) == (None, 0.0, 3, None)
    assert (f.isolation, f.init, f.parallelism) == (None, None, 1)
    assert (f.batch_size, f.batch_timeout, f.version) == (None, None, None)


def test_only_the_first_three_are_positional():
    with pytest.raises(TypeError):
        Function("f", (), none, ())


@pytest.mark.parametrize("value", [("a", 1), 7, None, frozenset({1}), b"x", 1.5, Ellipsis])
def test_any_hashable_is_an_id(value):
    assert Function(value, (), none).id == value
    assert Function("f", (value,), one).args == (value,)


@pytest.mark.parametrize("value", [[], {}, Unhashable(), ([],)])
def test_an_unhashable_id_is_refused(value):
    assert "hashable" in refused("id", value, (), none)
    assert "hashable" in refused("args", "f", (value,), one)
    with pytest.raises(InvalidFunctionError, match="hashable"):
        Argument(value)
    with pytest.raises(InvalidFunctionError, match="hashable"):
        Collocated(value)


def test_the_objects_themselves_are_no_ids():
    f = Function("f", (), none)
    assert ".id" in refused("args", "g", (f,), one)
    refused("id", Argument("a"), (), none)
    with pytest.raises(InvalidFunctionError):
        Argument(Argument("a"))


def test_a_function_is_frozen_and_has_no_dict():
    f = Function("f", (), none)
    with pytest.raises(dataclasses.FrozenInstanceError):
        f.id = "g"
    assert not hasattr(f, "__dict__")
    for other in (Argument("a"), Collocated("a")):
        assert not hasattr(other, "__dict__")
        with pytest.raises(dataclasses.FrozenInstanceError):
            other.id = "b"


def test_what_the_caller_keeps_cannot_change_it():
    args, cost, kwargs = ["a"], {"cpu": 1}, {"b": 2}
    f = Function("f", args, with_default, cost=cost, extra_kwargs=kwargs)
    args.append("z")
    cost["cpu"] = -1
    kwargs["c"] = 1
    assert (f.args, f.cost, f.extra_kwargs) == (("a",), {"cpu": 1}, {"b": 2})


@pytest.mark.parametrize("args", ["abc", b"abc", {"a"}, {"a": 1}, 5, None])
def test_args_must_be_in_order(args):
    text = refused("args", "f", args, many)
    if isinstance(args, str):
        assert "[" in text
        assert "abc" in text


def test_any_iterable_with_an_order_does():
    assert Function("f", (x for x in "ab"), two).args == ("a", "b")
    assert Function("f", dict.fromkeys("ab").keys(), two).args == ("a", "b")


@pytest.mark.parametrize(
    "code", [None, 5, "no colon", "module:", ":name", "a b:c", "m:<lambda>", "m:f.<locals>.g", ""]
)
def test_code_must_be_callable_or_a_path(code):
    refused("code", "f", (), code)


@pytest.mark.parametrize("code", ["os:getcwd", "os.path:join", "collections:OrderedDict.fromkeys"])
def test_a_path_is_not_imported_before_it_is_needed(code):
    assert Function("f", (), code).code == code


def test_resolving():
    assert resolve_code("operator:add") is operator.add
    assert resolve_code("collections:OrderedDict.keys").__name__ == "keys"
    assert resolve_code(one) is one
    for path in ("no_such_module_here:x", "operator:nothing", "string:digits"):
        with pytest.raises(InvalidFunctionError, match=path.split(":")[0]) as caught:
            resolve_code(path, "f")
        assert (caught.value.function_id, caught.value.field) == ("f", "code")


FITS = [
    (none, 0),
    (one, 1),
    (two, 2),
    (with_default, 1),
    (with_default, 2),
    (many, 0),
    (many, 9),
    (lambda a, b=2, *c: a, 5),
    (functools.partial(two, 1), 1),
    (functools.partial(two, b=1), 1),
    (Worker().method, 1),
    (Worker(), 2),
    (Worker, 0),
    (operator.add, 2),
    (len, 1),
    (max, 3),
    (dict, 1),
    (int, 1),
    (later, 1),
]
MISFITS = [
    (none, 1),
    (one, 0),
    (one, 2),
    (two, 1),
    (with_default, 0),
    (with_default, 3),
    (functools.partial(two, 1), 2),
    (Worker().method, 2),
    (Worker(), 1),
    (Worker, 1),
    (operator.add, 3),
    (len, 2),
    (keyword_only, 1),
    (later, 2),
]


@pytest.mark.parametrize(("code", "count"), FITS)
def test_a_call_that_fits(code, count):
    Function("f", range(count), code)
    assert misfit(code, count) is None


@pytest.mark.parametrize(("code", "count"), MISFITS)
def test_a_call_that_does_not_fit(code, count):
    text = refused("args", "the function", range(count), code)
    assert "the function" in text
    assert f"{count} positional" in text


def test_every_way_to_pass_arguments_counts():
    Function("f", ["a"], two, extra_args=[1])
    Function("f", ["a"], two, extra_kwargs={"b": 1})
    Function("f", ["a"], keyword_only, extra_kwargs={"k": 1})
    Function("f", ["a", "b", "c"], one, argument_inclusion="as_list")
    Function("f", ["a", "b", "c"], two, argument_inclusion="as_list", extra_args=(1,))
    Function("f", ["a"], two, init=dict)
    Function("f", ["a", "b", "c"], one, batch_size=2)
    Function("f", ["a", "b", "c"], two, batch_size=2, init=(dict, [()]))
    refused("args", "f", ["a"], one, extra_args=[1])
    refused("args", "f", ["a"], one, extra_kwargs={"b": 1})
    refused("args", "f", ["a"], one, extra_kwargs={"a": 1})
    refused("args", "f", ["a", "b"], two, argument_inclusion="as_list")
    refused("args", "f", ["a"], one, init=dict)
    refused("args", "f", ["a", "b"], two, batch_size=2)


def test_a_wrapper_is_judged_by_what_it_takes_itself():
    @functools.wraps(two)
    def adds_one(a):
        return two(a, 1)

    Function("f", ["a"], adds_one)
    refused("args", "f", ["a", "b"], adds_one)


def test_without_a_readable_signature_nothing_is_checked():
    class Odd:
        @property
        def __signature__(self):
            raise RuntimeError("no")

        def __call__(self):
            return 0

    Function("f", ["a", "b"], Odd())


@pytest.mark.parametrize("name", ["cpu", "memory"])
@pytest.mark.parametrize(
    "amount",
    [-1, -0.5, float("nan"), float("inf"), -float("inf"), True, "1", None, 1j, [1], 10**400]
    + [Decimal("NaN"), Decimal("sNaN"), Decimal("-1"), Decimal("Infinity"), Fraction(-1, 2)],
)
def test_a_cost_must_be_a_finite_amount(name, amount):
    assert name in refused("cost", "f", (), none, cost={name: amount})


@pytest.mark.parametrize("cost", [5, "cpu", ["cpu"], {1: 1}, {"": 1}, {None: 1}])
def test_a_cost_must_map_names(cost):
    refused("cost", "f", (), none, cost=cost)


@pytest.mark.parametrize(
    ("amount", "micro"),
    [(1, 1_000_000), (0.1, 100_000), (0, 0), (1e-7, 0), (2.5, 2_500_000)]
    + [(Decimal("0.3"), 300_000), (Fraction(1, 3), 333_333)],
)
def test_amounts_are_counted_in_millionths(amount, micro):
    Function("f", (), none, cost={"cpu": amount})
    assert to_micro(amount) == micro
    assert type(to_micro(amount)) is int


def test_numpy_numbers_are_numbers():
    np = pytest.importorskip("numpy")
    Function("f", (), none, cost={"a": np.float32(1), "b": np.int8(1)}, timeout=np.float64(1))
    refused("cost", "f", (), none, cost={"a": np.bool_(True)})


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "1", [], 1j])
@pytest.mark.parametrize("field", ["timeout", "batch_timeout"])
def test_timeouts_are_above_zero(field, timeout):
    refused(field, "f", (), many, batch_size=1, **{field: timeout})


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), True, False, "1", None])
def test_a_retry_delay_is_not_negative(delay):
    refused("retry_delay", "f", (), none, retry_delay=delay)


@pytest.mark.parametrize("value", [-1, 1.0, True, "1", [1]])
@pytest.mark.parametrize("field", ["max_retries", "max_crashes", "parallelism", "batch_size"])
def test_counts_are_ints(field, value):
    refused(field, "f", (), many, **{field: value})


def test_the_least_counts():
    Function("f", (), none, max_retries=0, max_crashes=0, retry_delay=0)
    refused("parallelism", "f", (), none, parallelism=0)
    refused("batch_size", "f", (), many, batch_size=0)
    refused("max_crashes", "f", (), none, max_crashes=None)
    refused("batch_timeout", "f", (), many, batch_timeout=1)


@pytest.mark.parametrize("field", ["type", "argument_inclusion", "isolation"])
@pytest.mark.parametrize("value", ["other", 1, [], True])
def test_choices(field, value):
    assert "one of" in refused(field, "f", (), none, **{field: value})


@pytest.mark.parametrize("node", ["", 5, ["a"], Function("f", (), none)])
def test_a_node_is_a_name_or_collocated(node):
    refused("node", "f", (), none, node=node)


@pytest.mark.parametrize("init", [5, "m:f", (dict,), (dict, 1), (5, []), ("a", []), (one, []), one])
def test_init_is_a_callable_or_a_pair(init):
    refused("init", "f", (), many, init=init)


def test_init_may_come_with_arguments():
    for init in (dict, (one, [1]), (two, (1, 2)), functools.partial(one, 1)):
        Function("f", (), one, init=init)


@pytest.mark.parametrize("kwargs", [5, [1], {1: 2}, "ab"])
def test_extra_kwargs_map_names(kwargs):
    refused("extra_kwargs", "f", (), none, extra_kwargs=kwargs)


@pytest.mark.parametrize(
    ("field", "value"),
    [("node", "x"), ("node", Collocated("g")), ("init", dict), ("cost", {"cpu": 1})]
    + [("timeout", 1), ("isolation", "process"), ("batch_size", 2)],
)
def test_an_inline_is_not_scheduled(field, value):
    assert "inline" in refused(field, "f", (), many, type="inline", **{field: value})
    Function("f", ["a"], one, type="inline")


def test_an_inline_is_evaluated_on_a_thread():
    assert "async" in refused("code", "f", ["a"], later, type="inline")


@pytest.mark.parametrize(
    ("field", "value"),
    [("code", none), ("args", ("a",)), ("cost", {"cpu": 1}), ("init", dict), ("extra_args", (1,))]
    + [("extra_kwargs", {"a": 1}), ("node", "x"), ("timeout", 1), ("isolation", "thread")]
    + [("batch_size", 1), ("argument_inclusion", "as_list")],
)
def test_an_input_has_only_a_value(field, value):
    assert "input" in refused(field, "f", type="input", **{field: value})
    Function("f", type="input")


@pytest.mark.parametrize("name", ["serialization_fn", "deserialization_fn"])
def test_serialisers(name):
    for good in (convert, (convert_more, [1]), (convert_more, (1,)), many, None):
        Argument("a", **{name: good})
    for bad in (5, "x", (convert,), (convert, 1), one, (convert, [1]), convert_more):
        with pytest.raises(InvalidFunctionError) as caught:
            Argument("a", **{name: bad})
        assert caught.value.field == name


def test_arguments_are_hashable_even_with_unhashable_extras():
    a = Argument("a", (convert_more, [{}]))
    assert hash(a) == hash(Argument("a", (convert_more, [{}])))
    assert a == Argument("a", (convert_more, [{}]))
    assert a != Argument("a")


def test_coroutine_callables():
    for code in (
        later,
        functools.partial(later, 1),
        functools.partial(functools.partial(later), 1),
    ):
        assert is_coroutine_callable(code)
    assert is_coroutine_callable(AsyncWorker())
    assert is_coroutine_callable(AsyncWorker().__call__)
    assert is_coroutine_callable(functools.partial(AsyncWorker(), 1))
    assert is_coroutine_callable(asyncio.sleep)
    for code in (one, Worker(), Worker().method, AsyncWorker, len, functools.partial(one), 5):
        assert not is_coroutine_callable(code)


def test_a_function_pickles_with_all_its_fields():
    f = Function(
        ("f", 1), [Argument("a", convert), "b"], many, extra_args=[3], extra_kwargs=None,
        cost={"cpu": 0.5}, node=Collocated("g"), max_retries=2, retry_delay=0.1, max_crashes=0,
        timeout=1.5, isolation="process", init=dict, parallelism=2, batch_size=3,
        batch_timeout=0.5, version="2",
    )  # fmt: skip
    for again in (pickle.loads(pickle.dumps(f)), copy.copy(f), copy.deepcopy(f)):
        assert again == f
        assert again.shape == f.shape
        assert hash(again) == hash(f)
    assert dataclasses.replace(f, version="3").version == "3"
    assert dataclasses.replace(f, version="3") != f


def test_a_function_hashes_as_its_id_whatever_it_holds():
    f = Function("f", ["a"], many, extra_args=[[]], extra_kwargs=None, cost={"cpu": 1})
    assert hash(f) == hash("f")


def test_a_repr_tells_what_is_not_default():
    text = repr(Function("f", ["a"], one, timeout=2.0))
    assert text == "Function('f', args=('a',), code=one, timeout=2.0)"
    assert "lambda" in repr(Function("f", (), lambda: 0))

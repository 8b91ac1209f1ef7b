"""What counts as content and what does not: the same in every process, another for every change."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import threading
import types
from typing import Any, NamedTuple

import pytest

from handoff_actors import Function
from handoff_actors import new as new_dag
from handoff_actors.checkpoint.content import UnidentifiableError, digest
from handoff_actors.checkpoint.keys import keys


def module(source: str, name: str = "made", file: str = "made.py") -> types.ModuleType:
    """A module of the user's own."""
    made = types.ModuleType(name)
    exec(compile(textwrap.dedent(source), file, "exec"), made.__dict__)
    return made


def function(source: str, **more: Any) -> Any:
    return module(source, **more).f


BASE = """
    import math
    LIMIT = 3
    TABLE = {"a": [1, 2], "b": {3, 4}}

    def deep(x):
        return x + 1

    def helper(x):
        return deep(x) * LIMIT

    class Point:
        scale = 2
        def __init__(self, x):
            self.x = x
        def size(self):
            return helper(self.x) * self.scale

    def unused(x):
        return 0

    def f(x, y=5, *, z=6):
        def inner(v):
            return v + 1
        return [inner(Point(x).size()) for _ in range(y)], TABLE, math.pi
    """


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("v + 1", "v + 2"),
        ("y=5", "y=7"),
        ("z=6", "z=7"),
        ("x + 1\n", "x - 1\n"),
        ("LIMIT = 3", "LIMIT = 4"),
        ("LIMIT = 3", "LIMIT = 3.0"),
        ("* LIMIT", "+ LIMIT"),
        ("scale = 2", "scale = 3"),
        ("self.x = x", "self.x = -x"),
        ("[1, 2]", "[2, 1]"),
        ("{3, 4}", "{3, 5}"),
        ("math.pi", "math.e"),
        ("helper(self.x)", "deep(self.x)"),
        ("class Point:", "class Point(dict):"),
    ],
)
def test_every_change_shows(old: str, new: str) -> None:
    assert old in BASE
    assert digest(function(BASE)) != digest(function(BASE.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import math", "import math\n\n\n\n"),
        ("return 0", "return 1"),
        ("    def deep", "    # a remark\n    def deep"),
        ("LIMIT = 3", "LIMIT = 3\n    OTHER = 4"),
        ("{3, 4}", "{4, 3}"),
        ("x + 1\n", "(x + 1)\n"),
    ],
)
def test_what_does_not_count(old: str, new: str) -> None:
    assert old in BASE
    changed = function(BASE.replace(old, new), name="other", file="/elsewhere/x.py")
    assert digest(function(BASE)) == digest(changed)


def test_closures_defaults_and_partials() -> None:
    def make(a: Any) -> Any:
        return lambda x: x + a

    assert digest(make(1)) == digest(make(1))
    assert digest(make(1)) != digest(make(2))
    assert digest(make([1, {"k": (2,)}])) == digest(make([1, {"k": (2,)}]))
    assert digest(functools.partial(make, 1)) != digest(functools.partial(make, 2))
    assert digest(functools.partial(make, a=1)) != digest(functools.partial(make, 1))


def test_recursion_of_every_kind() -> None:
    source = """
        def f(n):
            return 1 if n == 0 else g(n - 1)
        def g(n):
            return f(n) + h(n)
        def h(n):
            return f(n) if n else K
        K = {k}
        """
    one = [module(source.replace("{k}", k)) for k in "112"]
    for name in "fgh":
        assert digest(getattr(one[0], name)) == digest(getattr(one[1], name))
        assert digest(getattr(one[0], name)) != digest(getattr(one[2], name))
    loop: list[Any] = []
    loop.append(loop)
    assert digest(loop) == digest(loop)
    many = "\n".join(
        f"def {'f' if i == 0 else f'g{i}'}(x): return ["
        + ", ".join(f"g{j}(x)" for j in range(1, 60))
        + "]"
        for i in range(60)
    )
    assert digest(function(many)) == digest(function(many))


def test_shared_or_equal_is_the_same() -> None:
    x = [1, 2]
    assert digest((x, x)) == digest(([1, 2], [1, 2]))
    deep: Any = 1
    for _ in range(60):
        deep = (deep, deep)  # a walk that did not remember would never end
    assert digest(deep) == digest(deep)


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Data:
    x: int = 0
    more: list[int] = dataclasses.field(default_factory=list)


class Pair(NamedTuple):
    a: int
    b: int


class Callable_:
    def __init__(self, k: int) -> None:
        self.k = k

    def __call__(self, x: int) -> int:
        return x + self.k


VALUES: list[Any] = [
    None, True, 1, 1.0, -0.0, 0.0, "1", b"1", 1j, (), [], {}, set(), frozenset([1]), (1,), [1],
    {1: 2}, {2: 1}, {1, 2}, Color.RED, Color.BLUE, Data(), Data(1), Data(1, [2]), Pair(1, 2),
    Callable_(1), Callable_(2), Callable_(1).__call__, decimal.Decimal("1.5"), pathlib.Path("/x"),
    datetime.date(2020, 1, 1), re.compile("a"), re.compile("b"), print, len, str.upper, "x".upper,
    functools.lru_cache(digest), Color, Data, Pair, dict, os.path.join, ..., range(3), range(4),
    10**5000, bytearray(b"2"), collections.OrderedDict(a=1), collections.Counter("aab"),
]  # fmt: skip


def test_values_of_all_kinds_are_told_apart() -> None:
    digests = [digest(value) for value in VALUES]
    assert len(set(digests)) == len(VALUES)
    assert digests == [digest(value) for value in VALUES]


@pytest.mark.parametrize(
    "value",
    [threading.Lock(), (i for i in "a"), sys.stdout, {"k": [threading.local()]}, sys._getframe()],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_cannot_be_told_for_sure_is_refused(value: Any) -> None:
    with pytest.raises(UnidentifiableError):
        digest(value)
    with pytest.raises(UnidentifiableError):
        digest(lambda: value)


@pytest.mark.parametrize("call", ["eval('1')", "exec('1')", "globals()", "__import__('os')"])
def test_code_that_may_depend_on_anything_is_refused(call: str) -> None:
    with pytest.raises(UnidentifiableError, match="anything"):
        digest(function(f"def g(): return {call}\ndef f(): return g()"))


def test_modules_of_ones_own_count_as_far_as_they_are_used(tmp_path: pathlib.Path) -> None:
    script = """
        import sys
        sys.path.insert(0, {path!r})
        import own, json
        from handoff_actors.checkpoint.content import digest
        def f(x):
            import own.inner
            return own.helper(x), own.inner.deep(x), json.dumps(x)
        print(digest(f).hex())
        """

    def run(seed: str, helper: str = "x", deep: str = "x", other: str = "1") -> str:
        folder = tmp_path / "own"
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").write_text(
            f"def helper(x): return {helper}\ndef other(): return {other}\n"
        )
        (folder / "inner.py").write_text(
            f"S = {{'a', 'b', 'c', 'd'}}\ndef deep(x): return {deep}, S\n"
        )
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(script).format(path=str(tmp_path)))
        done = subprocess.run(
            [sys.executable, "-B", str(path)], capture_output=True, text=True,
            env={**os.environ, "PYTHONHASHSEED": seed,
                 "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run("1")
    assert run("2") == first, "the same in every process"
    assert run("1", other="2") == first
    assert run("1", helper="x+1") != first
    assert run("1", deep="x+1") != first


def test_keys_of_a_dag() -> None:
    def dag(**changes: Any) -> Any:
        made = new_dag()
        made.add_function(Function("x", type="input"))
        made.add_function(Function("i", ["x"], lambda x: x, type="inline"))
        made.add_function(Function("a", ["i"], lambda x: x, **changes))
        made.add_function(Function("b", ["a"], lambda x: x))
        made.add_function(Function("c", ["x"], lambda x: x))
        return made

    base = keys(dag(), {"x": 1}).of
    assert set(base) == {"x", "i", "a", "b", "c"}
    assert len(set(base.values())) == 5, "also of functions that differ in nothing but the id"
    for changes in ({"version": 1}, {"argument_inclusion": "as_list"}, {"extra_kwargs": {}}):
        other = keys(dag(**changes), {"x": 1}).of
        assert {name for name in base if base[name] != other[name]} == {"a", "b"}, changes
    assert {n for n, k in keys(dag(), {"x": 2}).of.items() if k != base[n]} == set(base)
    lost = keys(dag(), {"x": threading.Lock()})
    assert not lost.of
    assert set(lost.unknown) == {"x"}
    for same in (
        {"cost": {"cpu": 1}},
        {"max_retries": 7},
        {"timeout": 3.0},
        {"isolation": "process"},
    ):
        assert keys(dag(**same), {"x": 1}).of == base

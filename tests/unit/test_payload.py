"""Payloads cross between real processes: a script with classes of its own, and a peer.

Each case is a script that is run as ``__main__``; ``far(function, *args)`` runs in another process.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
import threading
import traceback
from pathlib import Path
from typing import Self

import pytest

import handoff_actors
from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.cluster.remote_errors import dump_exception, load_exception
from handoff_actors.errors import SerializationError

_ROOT = str(Path(handoff_actors.__file__).parents[1])

_PEER = """
import pickle, struct, subprocess, sys
from handoff_actors.cluster.payload import dumps, loads
from handoff_actors.cluster.remote_errors import dump_exception, load_exception

def put(file, obj):
    data = pickle.dumps(obj, 5)
    file.write(struct.pack("<Q", len(data)) + data)
    file.flush()

def take(file):
    size = file.read(8)
    return pickle.loads(file.read(struct.unpack("<Q", size)[0])) if size else None

class Peer:
    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import peer; peer.serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )

    def __call__(self, function, *args):
        put(self.process.stdin, dumps((function, args)))
        ok, payload = take(self.process.stdout)
        if ok:
            return loads(payload)
        raise load_exception(payload)

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(10) == 0
        self.process.stdout.close()

def serve():
    out = sys.stdout.buffer
    while (payload := take(sys.stdin.buffer)) is not None:
        try:
            function, args = loads(payload)
            answer = True, dumps(function(*args))
        except BaseException as error:
            answer = False, dump_exception(error)
        put(out, answer)
"""

_SCRIPT = """
import abc, collections, dataclasses, enum, functools, os, threading, traceback, typing
import concurrent.futures, xml.etree.ElementTree
from peer import Peer
far = Peer()
{}
far.close()
print("passed")
"""

CASES = {
    "a function brings its helpers, globals and imports": """
        SCALE = 3
        def helper(x): return x * SCALE
        def outer(x): return helper(x) + 1
        assert far(outer, 2) == 7
        SCALE = 4
        assert far(outer, 2) == 9
        assert far(lambda x: outer(x) * SCALE, 1) == 20
        assert far(functools.partial(outer, 2)) == 9
        assert far(lambda: os.path.join("a", "b")) == "a/b"
        assert far(lambda: concurrent.futures.ThreadPoolExecutor.__name__) == "ThreadPoolExecutor"
        assert far(lambda: xml.etree.ElementTree.Element("a").tag) == "a"
        def body():
            class Inner:
                scale = SCALE
            return Inner.scale
        assert far(body) == 4
        assert far(lambda: outer)(2) == 9
    """,
    "closures, recursion, defaults and caches": """
        k = [5]
        def nest(n=2, *, m=k):
            total = 0
            def add(x):
                nonlocal total
                total += x * n + m[0]
                return total
            return add
        assert far(nest(3), 1) == 8
        assert far(lambda f: (f(1), f(1)), nest()) == (7, 14)
        def factorial(n): return 1 if n == 0 else n * factorial(n - 1)
        assert far(factorial, 5) == 120
        def pair():
            def even(n): return n == 0 or odd(n - 1)
            def odd(n): return n != 0 and even(n - 1)
            return even
        assert far(pair(), 10) is True
        @functools.lru_cache
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
        assert far(fib, 30) == 832040
        shared = []
        f, g = (lambda: shared.append(1)), (lambda: len(shared))
        assert far(lambda f, g: (f(), g())[1], f, g) == 1
    """,
    "dataclasses are one class per process": """
        @dataclasses.dataclass
        class P:
            x: int
            y: list = dataclasses.field(default_factory=list)
            def twice(self): return P(self.x * 2)
        @dataclasses.dataclass(slots=True, frozen=True)
        class S:
            a: int
            b: str = "b"
        for value in (P(1, [2]), S(1)):
            got = far(lambda x: x, value)
            assert type(got) is type(value) and got == value
        assert far(P(2).twice) == P(4)
        assert far(lambda p: isinstance(p, P), P(1)) is True
        assert far(lambda s: dataclasses.replace(s, a=2), S(1)) == S(2)
        assert far(lambda: P) is P
        assert far(lambda: [f.name for f in dataclasses.fields(S)]) == ["a", "b"]
    """,
    "members of enums are themselves": """
        class Color(enum.Enum):
            RED = 1; GREEN = 2; CRIMSON = 1
            def nice(self): return self.name.lower()
        class Perm(enum.Flag):
            R = 1; W = 2; X = 4; RW = 3
        class Number(enum.IntEnum):
            A = 1; B = 2
        class Text(enum.StrEnum):
            A = enum.auto(); B = "bee"
        class Planet(enum.Enum):
            EARTH = (5.9, 6.3); MARS = (6.4, 3.3)
            def __init__(self, mass, radius): self.mass, self.radius = mass, radius
        class Odd(bytes, enum.Enum):
            def __new__(cls, value, label):
                made = bytes.__new__(cls, [value])
                made._value_, made.label = value, label
                return made
            X = (0, "x"); Y = (1, "y")
        class Unhashable(enum.Enum):
            A = [1]; B = {2: 3}
        for cls in (Color, Perm, Number, Text, Planet, Odd, Unhashable):
            assert far(lambda c=cls: c) is cls
            for member in cls:
                assert far(lambda m: m, member) is member, member
                assert far(lambda m: type(m)(m.value) is m, member) is True, member
        assert far(lambda: Color.RED.nice()) == "red"
        assert far(lambda: (Color.CRIMSON is Color.RED, len(Color))) == (True, 2)
        assert far(lambda: (Planet.EARTH.mass, Odd.Y.label)) == (5.9, "y")
        assert far(lambda: Perm.R | Perm.X) is Perm.R | Perm.X
        assert far(lambda: [m.name for m in ~Perm.R]) == ["W", "X"]
        assert far(lambda: Color["GREEN"]) is Color.GREEN
    """,
    "tuples with names, generic classes, new types": """
        T = typing.TypeVar("T")
        UserId = typing.NewType("UserId", int)
        class Named(typing.NamedTuple):
            a: int
            b: str = "q"
            def both(self): return self.a, self.b
        Short = collections.namedtuple("Short", "u v")
        class Box(typing.Generic[T]):
            owner: UserId
            def __init__(self, v: T): self.v = v
        class Typed(typing.TypedDict):
            a: int
        class Proto(typing.Protocol):
            def m(self) -> int: ...
        got = far(lambda n: (n.both(), n._replace(a=5)), Named(3))
        assert got == ((3, "q"), Named(5)) and type(got[1]) is Named
        assert type(far(lambda: Short(1, 2)._replace(u=3))) is Short
        assert type(far(Box[int], 3)) is Box and far(lambda: Box[int]) == Box[int]
        assert typing.get_args(far(lambda: Box[T])) == (T,)
        assert far(lambda: Typed(a=1)) == {"a": 1}
        assert far(lambda: UserId) is UserId
        assert far(lambda: Proto) is Proto
    """,
    "classes that refer to each other, metaclasses, slots, hooks": """
        class A:
            def b(self): return B()
            @classmethod
            def make(cls): return cls()
            @staticmethod
            def same(): return A
            @property
            def other(self): return B
            @functools.cached_property
            def nine(self): return 9
        class B(A):
            def a(self): return A()
            def b(self): return super().b()
        class Base:
            subs = []
            def __init_subclass__(cls, /, tag): cls.tag = tag; Base.subs.append(cls)
        class Sub(Base, tag="one"): pass
        class Abstract(abc.ABC):
            @abc.abstractmethod
            def m(self): ...
        class Concrete(Abstract):
            def m(self): return 5
        class Meta(type):
            made = 0
            def __new__(meta, *args): Meta.made += 1; return super().__new__(meta, *args)
            def hello(cls): return cls.__name__
        class Made(metaclass=Meta): pass
        class Slotted:
            __slots__ = ("x", "__y", "__weakref__")
            def __init__(self): self.x, self.__y = 1, 2
            def y(self): return self.__y
        assert type(far(lambda: B().b())) is B and type(far(lambda: B().a())) is A
        assert far(B.same) is A and type(far(B.make)) is B
        assert far(lambda a: (a.other is B, a.nine), A()) == (True, 9)
        assert far(lambda: [c.tag for c in Base.subs]) == ["one"]
        assert far(lambda: Sub) is Sub
        assert far(lambda: Concrete().m()) == 5
        try:
            far(Abstract)
        except TypeError as error:
            assert "abstract" in str(error)
        else:
            raise AssertionError
        assert far(lambda: (Made.hello(), Meta.made)) == ("Made", 1)
        assert far(lambda s: s.y(), Slotted()) == 2 and type(far(Slotted)) is Slotted
    """,
    "what changes at home is seen on the other side, in the same class": """
        SCALE, CONFIG = 3, {"rate": 1}
        class Model:
            n, seen = 0, []
            def __init__(self): Model.n += 1
            def scaled(self): return SCALE
            def rate(self): return CONFIG["rate"]
            def see(self): self.seen.append(1); return len(self.seen)
        m = Model()
        far(lambda: setattr(__import__("builtins"), "kept", Model))
        assert far(lambda m: (m.scaled(), m.rate(), m.see()), m) == (3, 1, 1)
        SCALE = 4
        assert far(lambda m: m.scaled(), m) == 4
        CONFIG["rate"] = 2
        assert far(lambda m: m.rate(), m) == 2
        Model.late = lambda self: "late"
        assert far(lambda m: m.late(), m) == "late"
        del Model.late
        assert far(lambda m: hasattr(m, "late"), m) is False
        for _ in range(3):
            assert far(lambda m: isinstance(m, kept), Model()) is True
        Quiet = type("Quiet", (), {"seen": [], "see": Model.see})
        assert [far(lambda q: q.see(), Quiet()) for _ in range(2)] == [1, 2]  # unchanged: kept
    """,
    "a class defined anew is another, and both work": """
        class P: version = 1
        first, old = P(), P
        assert far(lambda p: p.version, first) == 1
        class P: version = 2
        assert far(lambda p: (isinstance(p, P), p.version, P.version), first) == (False, 1, 2)
        assert type(far(lambda p: p, first)) is old and type(far(lambda: P())) is P
    """,
    "classes made on the other side come home": """
        def make():
            class Local:
                def __init__(self, x): self.x = x
                def more(self): return type(self)(self.x + 1)
            make.cls = Local
            return Local(1)
        one, two = far(lambda: (make(), make.cls(5)))
        assert type(one) is type(two) and one.more().x == 2
        assert far(lambda a, b: type(a) is type(b), one, two) is True
    """,
    "exceptions are caught by their own class, with fields, chain, notes and traceback": """
        class Err(Exception):
            def __init__(self, a, *, b): super().__init__(f"{a}-{b}"); self.a, self.b = a, b
        class Prefixed(Exception):
            def __init__(self, text="x"): super().__init__("pre " + text)
        class Wrong(OSError):
            def __init__(self, path): super().__init__(5, "bad", path); self.path = path
        def fail():
            try:
                try:
                    1 / 0
                except ZeroDivisionError as error:
                    raise KeyError("k") from error
            except KeyError:
                error = Err(1, b=2)
                error.add_note("a note")
                error.lock = threading.Lock()
                raise error
        try:
            far(fail)
        except Err as error:
            assert (error.a, error.b, str(error), error.__notes__) == (1, 2, "1-2", ["a note"])
            assert not hasattr(error, "lock")
            assert type(error.__context__) is KeyError and error.__cause__ is None
            assert type(error.__context__.__cause__) is ZeroDivisionError
            text = "".join(traceback.format_exception(error))
            assert "1 / 0" in text and "raise error" in text and "in fail" in text, text
        else:
            raise AssertionError
        def throw(make): raise make()
        for make in (lambda: Prefixed("m"), lambda: Wrong("/p")):
            try:
                far(throw, make)
            except (Prefixed, Wrong) as error:
                assert repr(error) == repr(make()) and str(error) == str(make())
                assert getattr(error, "errno", 5) == 5
            else:
                raise AssertionError
        def group():
            raise ExceptionGroup("g", [Err(1, b=2), ExceptionGroup("h", [ValueError("v")])])
        try:
            far(group)
        except* Err as errors:
            assert errors.exceptions[0].a == 1
        except* ValueError as errors:
            assert str(errors.exceptions[0].exceptions[0]) == "v"
        def deep(): return deep()
        try:
            far(deep)
        except RecursionError as error:
            assert len(traceback.format_exception(error)) < 1000
        else:
            raise AssertionError
    """,
}


def _run(script: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": _ROOT},
        cwd=script.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "passed\n"


@pytest.mark.parametrize("name", CASES)
def test_across_processes(name: str, tmp_path: Path) -> None:
    (tmp_path / "peer.py").write_text(_PEER)
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.format(textwrap.dedent(CASES[name])))
    _run(script)


def test_modules_off_the_path_travel_by_value(tmp_path: Path) -> None:
    (tmp_path / "peer.py").write_text(_PEER)
    (tmp_path / "off").mkdir()
    (tmp_path / "off" / "stray.py").write_text(
        "import enum\nSCALE = 3\nclass Color(enum.Enum):\n    RED = 1\n"
        "def scaled(x):\n    return x * SCALE\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        _SCRIPT.format(
            textwrap.dedent("""
            import importlib.util, sys
            spec = importlib.util.spec_from_file_location("stray", "off/stray.py")
            stray = sys.modules["stray"] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(stray)
            assert far(stray.scaled, 2) == 6
            assert far(lambda c: c.name, stray.Color.RED) == "RED"
            assert far(lambda c: c, stray.Color.RED) is stray.Color.RED
            """)
        )
    )
    _run(script)


class _Holder:
    def __init__(self, conn: object) -> None:
        self.conn = conn


class _Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: object) -> None:
        self.inner = inner


def _generator() -> object:
    return (i for i in range(3))


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (threading.Lock(), "result"),
        ({"rows": [1, 2, 3, _Holder(threading.Lock())]}, "result['rows'][3].conn"),
        ((1, _Slotted(_generator())), "result[1].inner"),
        ({(1, 2): sys.stderr}, "result[(1, 2)]"),
        ([threading.current_thread], None),
        ([sys._getframe()], "result[0]"),
        (io.StringIO, None),
    ],
)
def test_refusals_name_the_part(value: object, path: str | None) -> None:
    if path is None:
        assert loads(dumps(value)) == value
        return
    with pytest.raises(SerializationError) as caught:
        dumps(value, "result of function 'x'")
    assert caught.value.path == path
    assert str(caught.value).startswith("result of function 'x' cannot cross")
    assert path in str(caught.value)


def test_refusals_look_into_functions() -> None:
    lock = threading.Lock()

    def guarded() -> None:
        lock.acquire()

    with pytest.raises(SerializationError) as caught:
        dumps([guarded], "code of function 'x'")
    assert caught.value.path == "code[0].closure['lock']"


def test_what_refers_to_itself_is_refused_in_time() -> None:
    loop: list[object] = [threading.Lock()]
    loop.insert(0, loop)
    with pytest.raises(SerializationError) as caught:
        dumps(loop)
    assert caught.value.path == "value[1]"


def test_a_reducer_that_exits_is_an_error() -> None:
    class Exits:
        def __reduce__(self) -> str:
            raise SystemExit(3)

    with pytest.raises(SerializationError, match="SystemExit"):
        dumps([Exits()])


def test_nesting_without_end_is_an_error() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SerializationError, match="nested too deeply"):
        dumps(deep)


def test_what_cannot_be_read_is_an_error() -> None:
    with pytest.raises(SerializationError, match="ModuleNotFoundError"):
        loads(Payload(b"cno_such_module_here\nthing\n."))


def test_large_bytes_are_not_copied() -> None:
    data = bytes(3 << 20)
    payload = dumps({"a": data, "b": 1})
    assert len(payload.head) < 1000
    assert [memoryview(b).nbytes for b in payload.buffers] == [3 << 20]
    assert payload.nbytes == len(payload.head) + (3 << 20)
    assert loads(payload) == {"a": data, "b": 1}


def test_arrays_are_views_and_stay_writable() -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(200_000)
    payload = dumps([array])
    assert payload.nbytes - len(payload.head) == array.nbytes
    moved = Payload(payload.head, [bytearray(memoryview(b)) for b in payload.buffers])
    (copy,) = loads(moved)
    copy += 1
    assert int(copy[7]) == 8
    assert int(array[7]) == 7


def test_shared_parts_stay_shared() -> None:
    shared = [1]
    a, b = loads(dumps(((lambda: shared), shared)))
    assert a() is b


BUILT_IN = [
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    OSError(2, "no", "file"),
    FileNotFoundError(2, "no", "f"),
    UnicodeDecodeError("utf8", b"x", 0, 1, "r"),
    ImportError("i", name="n", path="p"),
    StopIteration(4),
    SyntaxError("bad", ("f", 1, 2, "t")),
    KeyError("k"),
    BaseExceptionGroup("b", [KeyboardInterrupt()]),
    SerializationError("no", path="a[0]"),
]


@pytest.mark.parametrize("error", BUILT_IN, ids=lambda e: type(e).__name__)
def test_built_in_exceptions_keep_their_fields(error: BaseException) -> None:
    copy = load_exception(dump_exception(error))
    assert type(copy) is type(error)
    assert repr(copy) == repr(error)
    assert str(copy) == str(error)
    for name in ("errno", "filename", "code", "value", "path", "lineno", "start"):
        assert getattr(copy, name, None) == getattr(error, name, None), name


def test_an_argument_that_cannot_cross_is_shown() -> None:
    copy = load_exception(dump_exception(ValueError("held", threading.Lock())))
    assert type(copy) is ValueError
    assert copy.args[0] == "held"
    assert "lock" in repr(copy.args[1])


def test_an_exception_that_cannot_cross_has_a_stand_in() -> None:
    class StubbornError(LookupError):
        def __reduce__(self) -> str:
            raise RuntimeError

        def __new__(cls, *args: object) -> Self:
            if getattr(cls, "made", False):
                raise RuntimeError
            cls.made = True
            return super().__new__(cls, *args)

    error = StubbornError("text")
    error.add_note("a note")
    copy = load_exception(dump_exception(error))
    assert type(copy).__name__ == "StubbornError"
    assert isinstance(copy, LookupError)
    assert str(copy) == "text"
    assert copy.__notes__ == ["a note"]
    again = load_exception(dump_exception(copy))
    assert (type(again).__name__, str(again)) == ("StubbornError", "text")


def test_a_chain_that_closes_on_itself_ends() -> None:
    first, second = ValueError(1), ValueError(2)
    first.__context__, second.__context__ = second, first
    copy = load_exception(dump_exception(first))
    assert copy.__context__ is not None
    assert copy.__context__.args == (2,)


def test_long_tracebacks_keep_both_ends() -> None:
    def down(n: int) -> int:
        return down(n - 1) if n else 1 // 0

    with pytest.raises(ZeroDivisionError) as caught:
        down(400)
    copy = load_exception(dump_exception(caught.value))
    frames = [frame.name for frame in traceback.extract_tb(copy.__traceback__)]
    assert len(frames) == 100
    assert frames[0] == "test_long_tracebacks_keep_both_ends"
    assert set(frames[1:]) == {"down"}


def test_tracebacks_begin_in_the_code_of_the_user() -> None:
    class Fails:
        def __getstate__(self) -> object:
            return 1 // 0

    with pytest.raises(SerializationError) as caught:
        dumps([Fails()])
    cause = caught.value.__cause__
    assert cause is not None
    copy = load_exception(dump_exception(cause))
    assert [f.name for f in traceback.extract_tb(copy.__traceback__)] == ["__getstate__"]

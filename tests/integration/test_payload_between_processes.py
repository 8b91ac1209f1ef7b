"""What a script defines, in another process and home again: two real processes, one round trip.

A script of its own defines functions and classes in its ``__main__`` and sends them; a process that
never saw the script evaluates each check on what arrived, and sends everything back; the script
looks whether its own classes and Enum members came home.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DEFINED = """
import abc, asyncio, collections, dataclasses, enum, functools, typing
import xml.dom.minidom

T = typing.TypeVar("T")
LIMIT = 3

class Meta(type):
    def __new__(meta, name, bases, space, **options):
        made = super().__new__(meta, name, bases, space)
        made.made = name
        return made
    def hello(cls): return cls.made

class Made(metaclass=Meta, flag=1): pass

class Slotted:
    __slots__ = ("__private", "public")
    def __init__(self): self.__private, self.public = 1, 2
    def private(self): return self.__private
    def other(self): return Mutual().value

class Mutual:
    value = 3
    def other(self): return Slotted()

class Registered(abc.ABC):
    names = []
    def __init_subclass__(cls, *, name, **options): cls.names.append(name)
    @abc.abstractmethod
    def answer(self): ...

class Answer(Registered, name="answer"):
    def answer(self): return 42

class Box(typing.Generic[T]):
    def __init__(self, value: T): self.value = value

class IntBox(Box[int]): pass

class Pair(typing.NamedTuple):
    left: int
    right: str = "r"

class Typed(typing.TypedDict):
    a: int

@functools.total_ordering
class Ordered:
    def __init__(self, value): self.value = value
    def __eq__(self, other): return self.value == other.value
    def __lt__(self, other): return self.value < other.value
    __hash__ = None

@dataclasses.dataclass
class Node:
    children: "list[Node]" = dataclasses.field(default_factory=list)
    parent: "Node | None" = None

@dataclasses.dataclass(slots=True, frozen=True)
class Point:
    x: int
    y: list = dataclasses.field(default_factory=list)
    def moved(self): return dataclasses.replace(self, x=self.x + LIMIT)

class Color(enum.Enum):
    RED = "r"
    GREEN = "g"
    ROUGE = "r"
    @property
    def other(self): return Color.GREEN if self is Color.RED else Color.RED
    @classmethod
    def first(cls): return cls.RED
    def __str__(self): return "Color:" + self.value

class Planet(float, enum.Enum):
    EARTH = (1.0, 2.0)
    def __new__(cls, mass, radius):
        made = float.__new__(cls, mass + radius)
        made._value_ = (mass, radius)
        made.radius = radius
        return made
    def __init__(self, mass, radius): self.mass = mass

class Flags(enum.IntFlag):
    A = 1
    B = 2

class Operation(enum.Enum):
    SQUARE = enum.member(lambda x: x * x) if hasattr(enum, "member") else None
    def __call__(self, x): return self.value(x)

class Named:
    def __set_name__(self, owner, name): self.name = name
    def __get__(self, instance, owner): return self.name

class Described:
    described = Named()
    @functools.cached_property
    def cached(self): return 9

class Mistake(ValueError):
    code = 7

def plus_one(function):
    @functools.wraps(function)
    def wrapper(*args, **options): return function(*args, **options) + 1
    return wrapper

@plus_one
def decorated(x, *, k=2): return x + k

def defaults(a, b=Mutual(), *, c=lambda: 5): return a + b.value + c()

async def coroutine(x): return x + 1
def generator(n): yield from range(n)

config = {"n": 1}
def increments(): config["n"] += 1; return config["n"]
def reads(): return config["n"]

def even(n): return True if n == 0 else odd(n - 1)
def odd(n): return False if n == 0 else even(n - 1)

def recursive():
    def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
    return fib

def counter():
    n = 0
    def add():
        nonlocal n
        n += 1
        return n
    def get(): return n
    return add, get

def local():
    class Local:
        def me(self): return Local
        def __init__(self): super().__init__()
    return Local

def submodule(): return xml.dom.minidom.parseString("<a/>").documentElement.tagName

def matches(value):
    match value:
        case Node(children=children): return len(children)
        case Color.RED: return "red"

def catches():
    try: raise Mistake("m")
    except Mistake as mistake: return mistake.code

@functools.lru_cache
def cached(n): return n + LIMIT

node = Node()
node.children.append(Node(parent=node))
OBJECTS = dict(
    Made=Made, slotted=Slotted(), mutual=Mutual().other, Mutual=Mutual, answer=Answer(), box=Box(3),
    intbox=IntBox(4), Box=Box, pair=Pair(1), Typed=Typed, ordered=Ordered(1), node=node,
    point=Point(1), colors=[Color.RED, Color.GREEN, Color.ROUGE], red=Color.RED, first=Color.first,
    earth=Planet.EARTH, flags=Flags.A | Flags.B, square=Operation.SQUARE, described=Described(),
    mistake=Mistake("m"), decorated=decorated, partial=functools.partial(defaults, 1),
    coroutine=coroutine, generator=generator, shared=(increments, reads), even=even,
    fib=recursive(), counter=counter(), local=local()(), submodule=submodule, matches=matches,
    catches=catches, cached=cached, Ordered=Ordered, unbound=Slotted.private, union=Node | None,
    by_red={Color.RED: 1}, default=collections.defaultdict(lambda: 7),
    nested=lambda: ([Color.RED for _ in range(2)], (lambda: Mutual)()),
)
"""

CHECKS = {
    "metaclass": "d['Made'].hello() == 'Made'",
    "slots": "(d['slotted'].private(), d['slotted'].public) == (1, 2)",
    "no dict": "not hasattr(d['slotted'], '__dict__')",
    "mutual": "d['slotted'].other() == 3 and type(d['mutual']()) is type(d['slotted'])",
    "init_subclass": "d['answer'].answer() == 42 and d['answer'].names == ['answer']",
    "abstract": "type(d['answer']).__bases__[-1].__abstractmethods__ == {'answer'}",
    "generic": "d['box'].value == 3 and isinstance(d['intbox'], d['Box'])",
    "parameters": "d['Box'][str] and len(d['Box'].__parameters__) == 1",
    "orig_bases": "type(d['intbox']).__orig_bases__[0] == d['Box'][int]",
    "namedtuple": "d['pair']._replace(left=2) == (2, 'r') and d['pair'].right == 'r'",
    "typeddict": "d['Typed'](a=1) == {'a': 1}",
    "ordering": "d['Ordered'](0) < d['ordered'] and d['ordered'] >= d['Ordered'](1)",
    "cycle": "d['node'].children[0].parent is d['node']",
    "hints": "typing.get_type_hints(type(d['node']))['parent'] == type(d['node']) | None",
    "dataclass": "d['point'].moved().x == 4 and dataclasses.astuple(d['point']) == (1, [])",
    "frozen": "raises(dataclasses.FrozenInstanceError, lambda: setattr(d['point'], 'x', 2))",
    "aliases": "d['colors'][0] is d['colors'][2] is type(d['red'])['ROUGE'] is type(d['red'])('r')",
    "members": "list(type(d['red'])) == d['colors'][:2] and str(d['red']) == 'Color:r'",
    "enum methods": "d['red'].other is d['colors'][1] and d['first']() is d['red']",
    "enum by new": "(d['earth'], d['earth'].mass, d['earth'].radius) == (3.0, 1.0, 2.0)",
    "flags": "d['flags'].value == 3 and type(d['flags'])(3) is d['flags']",
    "enum of functions": "d['square'](3) == 9",
    "descriptor": "d['described'].described == 'described' and d['described'].cached == 9",
    "exception": "d['mistake'].code == 7 and raises(ValueError, throw, d['mistake'])",
    "decorated": "d['decorated'](1) == 4 and d['decorated'].__wrapped__(1) == 3",
    "defaults": "d['partial']() == 9",
    "coroutine": "asyncio.run(d['coroutine'](1)) == 2",
    "generator": "list(d['generator'](3)) == [0, 1, 2]",
    "shared globals": "d['shared'][0]() == 2 and d['shared'][1]() == 2",
    "mutual recursion": "d['even'](10)",
    "recursion": "d['fib'](10) == 55",
    "shared cell": "d['counter'][0]() == 1 and d['counter'][1]() == 1",
    "local class": "d['local'].me() is type(d['local'])",
    "submodule": "d['submodule']() == 'a'",
    "match": "d['matches'](d['node']) == 1 and d['matches'](d['red']) == 'red'",
    "except": "d['catches']() == 7",
    "cache": "d['cached'](1) == 4 and d['cached'].cache_info().misses == 1",
    "unbound": "d['unbound'](d['slotted']) == 1",
    "dict key": "d['by_red'][d['red']] == 1 and d['default']['x'] == 7",
    "nested": "d['nested']() == ([d['red']] * 2, d['Mutual'])",
    "plain pickle": "pickle.loads(pickle.dumps(d['ordered'])).value == 1",
}

RECEIVER = """
import asyncio, dataclasses, json, pickle, sys, traceback, typing
from handoff_actors.cluster.main_types import settle_in_main
from handoff_actors.cluster.payload import Payload, dumps, loads
settle_in_main()

def throw(error): raise error
def raises(kind, call, *args):
    try: call(*args)
    except kind: return True

d = loads(Payload(sys.stdin.buffer.read()))
found = {}
for name, check in json.loads(sys.argv[1]).items():
    try: found[name] = "" if eval(check) else "is false: " + check
    except BaseException: found[name] = traceback.format_exc()
sys.stdout.buffer.write(dumps((found, d)).head)
"""

SENDER = """
if __name__ == "__main__":
    import json, subprocess, sys
    from handoff_actors.cluster.payload import Payload, dumps, loads
    command = [sys.executable, "-c", sys.argv[1], sys.argv[2]]
    there = subprocess.run(command, input=dumps(OBJECTS).head, stdout=subprocess.PIPE, check=True)
    found, back = loads(Payload(there.stdout))
    home = {}
    for name, mine in OBJECTS.items():
        if isinstance(mine, (type, enum.Enum)):
            home[name] = back[name] is mine
        else:
            home[name] = type(back[name]) is type(mine)
    home["union"] = back["union"] == (Node | None)
    home["isinstance"] = isinstance(back["answer"], Registered)
    try:
        raise back["mistake"]
    except Mistake:
        home["except"] = True
    print(json.dumps([found, home]))
"""


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, bool]]:
    """What each check said there, and whether each object came home as what it was."""
    script = tmp_path_factory.mktemp("script") / "script.py"
    script.write_text(DEFINED + SENDER)
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, str(script), RECEIVER, json.dumps(CHECKS)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": root},
    )
    found, home = json.loads(done.stdout)
    return found, home


@pytest.mark.parametrize("name", CHECKS)
def test_there(name: str, trip: tuple[dict[str, str], dict[str, bool]]) -> None:
    assert trip[0][name] == ""


def test_home(trip: tuple[dict[str, str], dict[str, bool]]) -> None:
    assert [name for name, same in trip[1].items() if not same] == []

"""What a script defines is one class everywhere: on nodes, in their workers, and at home."""

from __future__ import annotations

SCRIPT = """
import collections, dataclasses, enum, math
import handoff_actors as handoff
from beside import Beside, helper

class Colour(enum.Enum):
    RED = 1
    BLUE = 2

@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    colour: Colour = Colour.RED
    def length(self):
        return math.sqrt(self.x)

Pair = collections.namedtuple("Pair", "left right")

class OwnError(Exception):
    def __init__(self, point, code):
        super().__init__(f"{point} {code}")
        self.point, self.code = point, code

SCALE = 3

def scaled(x):
    return x * SCALE + helper(1)

def make(x):
    return Point(scaled(x), Colour.BLUE)

def check(point, pair):
    assert type(point) is Point and isinstance(point, Point), type(point)
    assert point.colour is Colour.BLUE
    assert isinstance(pair, Pair) and pair.right.value == 2
    assert isinstance(pair.left, Beside)
    return Pair(point, {point.colour: point.length()})

def fail(point):
    raise OwnError(point, 7)

with handoff.Runtime() as runtime:
    runtime.start_nodes(2, names=["n1", "n2"])
    for isolation in ("thread", "process"):
        dag = handoff.DAG(isolation)
        more = {"isolation": isolation}
        dag.add_function(handoff.Function("p", code=make, extra_args=[5], node="n1", **more))
        dag.add_function(handoff.Function("pair", code=lambda: Pair(Beside(), Colour.BLUE),
                                          node="n2", **more))
        dag.add_function(handoff.Function("c", ["p", "pair"], check, node="n2", **more))
        dag.add_function(handoff.Function("d", ["c", "pair"], lambda c, pair: check(c.left, pair),
                                          node="n1", **more))
        found = runtime.execute(dag).results
        assert found["p"] == Point(17, Colour.BLUE) and type(found["p"]) is Point
        assert type(found["c"]) is Pair and found["c"].right[Colour.BLUE] == math.sqrt(17)
        assert found["d"] == found["c"]
        assert type(found["pair"].left) is Beside and found["pair"].right is Colour.BLUE
        bad = handoff.DAG("bad")
        bad.add_function(handoff.Function("p", code=make, extra_args=[1], node="n1", **more))
        bad.add_function(handoff.Function("f", ["p"], fail, node="n2", max_retries=0, **more))
        try:
            runtime.execute(bad)
        except handoff.FunctionFailedError as error:
            assert type(error.__cause__) is OwnError, type(error.__cause__)
            assert (error.__cause__.point, error.__cause__.code) == (make(1), 7)
            assert error.node == "n2"
        else:
            raise AssertionError("it did not fail")
print("all the same")
"""

BESIDE = """
class Beside:
    pass

def helper(x):
    return x + 1
"""


def test_a_script_s_types_are_the_same_everywhere(script):
    path = script.write(SCRIPT)
    (path.parent / "beside.py").write_text(BESIDE)
    done = script(SCRIPT)
    assert "all the same" in done.stdout

"""Values by DAG and id over nodes: fetched, located, cleared, waited for, whoever has them."""

from __future__ import annotations

import time

import pytest

import handoff_actors as handoff
from handoff_actors import DAG, Function, NodeDownError, ResultTimeoutError, ValueNotFoundError
from tests.gates import Gate, until


@pytest.fixture
def three(nodes):
    return nodes(*"abc")


def test_a_value_is_fetched_from_where_it_is(three):
    a, b, _c = three
    b.store_value("d", "x", {"n": 1})
    assert a.get_value("d", "x", from_node="b") == {"n": 1}
    assert a.get_value("d", "x") == {"n": 1}
    with pytest.raises(ValueNotFoundError):
        a.get_local_value("d", "x")
    with pytest.raises(ValueNotFoundError):
        a.get_value("d", "x", from_node="c")
    with pytest.raises(NodeDownError):
        a.get_value("d", "x", from_node="nobody")
    a.register_data_location("d", "y", "nobody")
    with pytest.raises(NodeDownError):
        a.get_value("d", "y")


def test_large_values_too(three):
    a, b, _c = three
    b.store_value("d", "x", b"x" * 1_000_000)
    assert len(a.get_value("d", "x")) == 1_000_000
    assert len(a.synchronize("d", ["x"])["x"]) == 1_000_000


def test_what_a_run_made_elsewhere_is_found_by_every_node(three):
    a, b, c = three
    dag = DAG("d")
    dag.add_function(Function("x", code=lambda: b"x" * 100_000, node="b"))
    dag.add_function(Function("y", ["x"], len, node="a"))
    result = a.execute(dag)
    for node in (a, b, c):
        assert len(node.get_value("d", "x")) == 100_000
        assert node.get_value("d", "y") == 100_000
        assert node.get_result("d", "y") == 100_000
        assert node.lookup_data_location("d", "x") == "b"
        assert node.lookup_data_location("d", "y") == "a"
    assert set(c.synchronize("d", ["x", "y", "z"])) == {"x", "y"}
    del result


@pytest.mark.parametrize("size", [1, 300_000])
def test_what_a_run_made_is_local_where_it_was_made_and_nowhere_else(three, size):
    a, b, c = three
    gate = Gate()

    def local(_):
        return len(handoff.get_local_value("d", "x")), len(handoff.get_value("d", "x"))

    dag = DAG("d").add_function(Function("x", code=lambda: b"x" * size, node="b"))
    dag.add_function(Function("there", ["x"], local, node="b", max_retries=0))
    dag.add_function(Function("copy", ["x"], len, node="c"))
    dag.add_function(Function("gate", ["there", "copy"], gate, node="a"))
    run = a.submit(dag)
    gate.wait()
    for over in (False, True):
        assert len(b.get_local_value("d", "x")) == size
        for node in (a, b, c):
            assert len(node.get_value("d", "x", from_node="b")) == size
            if node is not b:
                with pytest.raises(ValueNotFoundError):
                    node.get_local_value("d", "x")
        gate.opened.set()
        if not over:
            result = run.result(20)
    assert result.results["there"] == (size, size)
    again = DAG("d").add_function(Function("x", code=lambda: b"new", node="c"))
    newer = a.execute(again)
    assert c.get_local_value("d", "x") == b"new"
    with pytest.raises(ValueNotFoundError):
        b.get_local_value("d", "x")  # what it has is an older run's
    newer.release()
    result.release()


def test_one_waits_for_a_value_that_another_node_makes(three, spawn):
    a, b, _c = three
    waiting = spawn(lambda: b.get_result("d", "x", timeout=20.0))
    time.sleep(0.05)
    a.execute(DAG("d").add_function(Function("x", code=lambda: 7)))
    assert waiting.result(20.0) == 7
    with pytest.raises(ResultTimeoutError):
        b.get_result("e", "x", timeout=0.15)


def test_clear_is_for_every_node(three):
    a, b, _c = three
    dag = DAG("d")
    dag.add_function(Function("x", code=lambda: b"x" * 100_000, node="b"))
    a.execute(dag)
    b.store_value("d", "z", 1)
    assert b._hub.guests
    a.clear("d")
    until(lambda: not b._hub.guests)
    for node in (a, b):
        for id_ in "xz":
            with pytest.raises(ValueNotFoundError):
                node.get_value("d", id_)


def test_a_released_run_holds_nothing_anywhere(three):
    a, b, _c = three
    dag = DAG("d").add_function(Function("x", code=lambda: b"x" * 100_000, node="b"))
    with a.execute(dag) as result:
        assert len(b._hub.guests) == 1
        assert len(result.results["x"]) == 100_000
    until(lambda: not b._hub.guests)
    assert not a._hub.runs


def test_functions_on_other_nodes_call_the_library_there(three):
    a, _b, _c = three

    def inner():
        dag = DAG("inner")
        dag.add_function(Function("p", code=lambda: handoff.node(), node="c"))
        dag.add_function(Function("q", ["p"], lambda p: (p, handoff.current().node)))
        return handoff.node(), handoff.execute(dag).results["q"]

    dag = DAG("outer").add_function(Function("x", code=inner, node="b", cost={"cpu": 2}))
    assert a.execute(dag).results["x"] == ("b", ("c", "c"))

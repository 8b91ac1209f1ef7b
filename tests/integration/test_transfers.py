"""What a run has on other nodes is told: values that move, workers, what is under way."""

from __future__ import annotations

import json

import handoff_actors as handoff
from handoff_actors import DAG, Argument, Function
from handoff_actors.events import ValuesMoved
from tests.gates import Gate, until, where

BIG = 1_000_000


def big():
    return b"x" * BIG


def fail_once():
    if handoff.current().attempt == 1:
        raise ValueError("not yet")
    return 1


def slices(result, tmp_path, category):
    result.to_chrome_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    nodes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    rows = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    return [
        (e["name"], nodes[e["pid"]], rows[e["pid"], e["tid"]], e)
        for e in events
        if e.get("cat") == category
    ]


def ways(result):
    return {
        (result._data.plan.ids[t.index], t.source, t.target) for t in result._data.trail.transfers
    }


def test_large_values_leave_a_trail_on_the_node_that_gets_them(nodes, tmp_path):
    a, _b, _c = nodes("a", "b", "c")
    dag = DAG("d")
    dag.add_function(Function("in", type="input"))
    dag.add_function(Function("big", ["in"], lambda x: x * 2, node="b"))
    dag.add_function(Function("there", ["big"], len, node="c"))
    dag.add_function(Function("here", ["big"], len, node="a"))
    result = a.execute(dag, inputs={"in": big()})
    assert result.results["there"] == 2 * BIG
    wanted = {("in", "a", "b"), ("big", "b", "c"), ("big", "b", "a")}
    assert ways(result) == wanted
    trail, submitted = result._data.trail, result._data.submitted
    for t in trail.transfers:
        assert submitted < t.start < t.end
        assert t.end - t.start < 20
        assert t.values == 1
        assert (1 if t.source == "a" else 2) * BIG <= t.nbytes < 2.1 * BIG
    found = slices(result, tmp_path, "transfer")
    assert {(name, node) for name, node, *_ in found} == {
        ("in from a", "node b"),
        ("big from b", "node c"),
        ("big from b", "node a"),
    }
    assert {row for _, _, row, _ in found} == {"transfers"}
    assert {e["args"]["bytes"] for *_, e in found} == {t.nbytes for t in trail.transfers}


def test_a_result_that_is_read_later_moves_then(nodes):
    a, _b = nodes("a", "b")
    result = a.execute(DAG("d").add_function(Function("big", code=big, node="b")))
    assert not ways(result)
    assert len(result.results["big"]) == BIG
    assert ways(result) == {("big", "b", "a")}
    assert len(result.results["big"]) == BIG
    assert len(result._data.trail.transfers) == 1


def test_small_values_that_travel_with_messages_count_once_for_each_message(nodes):
    a, _b = nodes("a", "b")
    dag = DAG("d")
    dag.add_function(Function("in", type="input"))
    for i in range(20):
        dag.add_function(Function(i, ["in"], lambda x: x["k"] * 3, node="b"))
    dag.add_function(Function("number", ["in"], lambda x: len(x["k"]), node="b"))
    result = a.execute(dag, inputs={"in": {"k": "y" * 1000}})
    assert result.results[3] == "y" * 3000
    there = [t for t in result._data.trail.transfers if t.target == "b"]
    back = [t for t in result._data.trail.transfers if t.target == "a"]
    assert sum(t.values for t in there) == 1
    assert 1000 <= sum(t.nbytes for t in there) < 1100
    assert sum(t.values for t in back) == 20
    assert sum(t.nbytes for t in back) == 60_000
    assert all(0 < t.start <= t.end for t in there + back)


def test_numbers_cost_nothing(nodes):
    a, _b = nodes("a", "b")
    dag = DAG("d").add_function(Function("x", code=lambda: 1, node="b"))
    dag.add_function(Function("y", ["x"], lambda x: x + 0.5, node="a"))
    dag.add_function(Function("z", ["y"], lambda y: None, node="b"))
    result = a.execute(dag)
    assert result.results["z"] is None
    assert not ways(result)


def test_what_a_serializer_makes_of_a_value_counts_as_it_travels(nodes):
    a, _b, _c = nodes("a", "b", "c")
    dag = DAG("d").add_function(Function("big", code=big, node="b"))
    half = Argument("big", serialization_fn=lambda data, *_: data[::2])
    dag.add_function(Function("len", [half], len, node="c"))
    result = a.execute(dag)
    assert result.results["len"] == BIG // 2
    (t,) = result._data.trail.transfers
    assert (t.source, t.target) == ("b", "c")
    assert BIG // 2 <= t.nbytes < BIG // 2 + 1000


def test_a_value_by_way_of_the_orchestrator_moves_twice(net, nodes):
    a, _b, _c = nodes("a", "b", "c")
    net.cut("b", "c")
    dag = DAG("d").add_function(Function("big", code=big, node="b"))
    dag.add_function(Function("len", ["big"], len, node="c"))
    result = a.execute(dag)
    assert result.results["len"] == BIG
    assert ways(result) == {("big", "b", "a"), ("big", "a", "c")}


def test_events_tell_of_each_move_and_are_not_remembered(nodes):
    a, _b = nodes("a", "b")
    seen = []
    with a.subscribe(seen.append, [ValuesMoved]):
        result = a.execute(DAG("d").add_function(Function("big", code=big, node="b")))
        assert len(result.results["big"]) == BIG
        until(lambda: seen)
    (event,) = seen
    assert (event.dag_id, event.source, event.target, event.values) == ("d", "b", "a", 1)
    assert BIG <= event.nbytes < BIG + 1000
    assert not any(isinstance(e, ValuesMoved) for e in a.events.recent)


def test_values_that_users_store_are_told_where_they_are_fetched(nodes):
    a, b = nodes("a", "b")
    seen = []
    b.store_value("mine", "x", big())
    b.store_value("mine", "y", "z" * 500)
    with a.subscribe(seen.append, [ValuesMoved]):
        assert len(a.synchronize("mine", ["x", "y"])["x"]) == BIG
        until(lambda: seen)
    (event,) = seen
    assert (event.dag_id, event.source, event.target, event.values) == ("mine", "b", "a", 2)
    assert BIG + 500 <= event.nbytes < BIG + 2000


def test_the_metric_of_bytes_moved(nodes, reader):

    a, _b = nodes("a", "b")
    result = a.execute(DAG("d").add_function(Function("big", code=big, node="b")))
    assert len(result.results["big"]) == BIG
    a.events.flush()
    points = [
        point
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "handoff.bytes.moved"
        for point in metric.data.data_points
    ]
    (point,) = points
    assert dict(point.attributes) == {"node": "a", "source": "b", "target": "a"}
    assert BIG <= point.value < BIG + 1000


def test_the_timeline_names_the_workers_of_other_nodes(nodes, tmp_path):
    a, _b = nodes("a", "b")
    dag = DAG("d").add_function(Function("here", code=where, node="a"))
    dag.add_function(Function("thread", ["here"], lambda _: where(), node="b"))
    dag.add_function(
        Function("process", ["here"], lambda _: where(), node="b", isolation="process")
    )
    dag.add_function(Function("retried", ["here"], lambda _: fail_once(), node="b"))
    result = a.execute(dag)
    found = {name: (node, row) for name, node, row, _ in slices(result, tmp_path, "function")}
    assert {name: node for name, (node, _) in found.items()} == {
        "here": "node a",
        "thread": "node b",
        "process": "node b",
        "retried": "node b",
    }
    assert found["thread"][1].startswith("thread ")
    assert found["process"][1].startswith("pid ")
    ((name, node, row, event),) = slices(result, tmp_path, "retry")
    assert (name, node) == ("retried (attempt 1)", "node b")
    assert row.startswith("thread ")
    assert event["ts"] > 0
    assert ">pid " in result._repr_html_()
    result.release()
    result.to_chrome_trace(tmp_path / "released.json")


def test_transfers_that_overlap_have_rows_of_their_own(nodes, tmp_path):
    from handoff_actors.execution.trail import Transfer

    (a,) = nodes("a")
    result = a.execute(DAG("d").add_function(Function("x", code=where)))
    zero = result._data.submitted
    for start, end in ((1, 3), (2, 4), (3, 5)):
        result._data.trail.moved(Transfer(0, "b", "a", zero + start, zero + end, 10))
    found = slices(result, tmp_path, "transfer")
    assert sorted((e["ts"], e["tid"]) for *_, e in found) == [
        (1e6, 20_000),
        (2e6, 20_001),
        (3e6, 20_000),
    ]


def test_progress_tells_what_other_nodes_have(nodes):
    from handoff_actors.progress.view import View

    a, _b, _c = nodes("a", "b", "c")
    gate = Gate()
    dag = DAG("d")
    for i, node in enumerate(("a", "b", "b", "c")):
        dag.add_function(Function(i, code=gate, node=node))
    dag.add_function(Function("last", [0, 1, 2, 3], lambda *x: len(x), node="a"))
    run = a.submit(dag)
    for _ in range(4):
        gate.wait()
    (entry,) = a.entries()
    shot = View(entry.data).shot()
    gate.opened.set()
    assert run.result(20).results["last"] == 4
    assert shot.counts() == "1 running, 0 ready, 1 waiting, 2 at b, 1 at c"
    assert not View(entry.data).shot().there

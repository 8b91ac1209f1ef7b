"""What can be seen of a run when it is over: the timeline, ``str()``, what a notebook shows."""

from __future__ import annotations

import json
import os
import pickle
import re
import threading
from xml.etree import ElementTree

import pytest

import handoff_actors as handoff


@pytest.fixture
def eventful():
    """A run with a chain, a crash, two retries, a timeout and a coroutine."""
    dag = handoff.new("<eventful>")

    @dag.function
    def numbers():
        return list(range(10))

    @dag.function(isolation="process")
    def total(numbers):
        if handoff.current().attempt == 1:
            os.abort()
        return sum(numbers)

    @dag.function
    def flaky(numbers):
        if handoff.current().attempt < 3:
            raise ValueError("not <yet>")
        return 1

    @dag.function(timeout=0.05)
    def late(numbers):
        context = handoff.current()
        while context.attempt == 1 and not context.cancelled():
            threading.Event().wait(0.001)

    @dag.function
    async def awaited(flaky):
        return flaky

    @dag.function
    def mean(total, numbers, awaited, late):
        return total / len(numbers)

    dag.add_function(handoff.Function("half", ["mean"], lambda m: m / 2, type="inline"))
    dag.add_function(handoff.Function("end", ["half"], lambda h: h))
    return dag


@pytest.fixture
def result(eventful, runtime):
    return runtime.execute(eventful)


def trace(result, tmp_path):
    result.to_chrome_trace(tmp_path / "trace.json")
    return json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_the_timeline_tells_functions_retries_and_rows(result, runtime, tmp_path):
    events = trace(result, tmp_path)
    slices = [e for e in events if e["ph"] == "X"]
    functions = {e["name"]: e for e in slices if e["cat"] == "function"}
    assert set(functions) == {"numbers", "total", "flaky", "late", "awaited", "mean", "end"}
    assert functions["flaky"]["args"]["attempt"] == 3
    retries = {e["name"]: e["args"]["error"] for e in slices if e["cat"] == "retry"}
    assert set(retries) == {
        "total (attempt 1)", "flaky (attempt 1)", "flaky (attempt 2)", "late (attempt 1)"
    }  # fmt: skip
    assert "SIGABRT" in retries["total (attempt 1)"]
    assert "not <yet>" in retries["flaky (attempt 1)"]
    assert "timeout" in retries["late (attempt 1)"]
    late = next(e for e in slices if e["name"] == "late (attempt 1)")
    assert late["dur"] >= 50_000
    rows = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in slices} == set(rows)
    of = {name: rows[e["pid"], e["tid"]] for name, e in functions.items()}
    assert re.fullmatch(r"pid \d+", of["total"])
    assert re.fullmatch(r"thread \d+", of["numbers"])
    assert of["awaited"] == "coroutines"
    nodes = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert nodes == [f"node {runtime.node()}"]
    counts = [e["args"]["functions"] for e in events if e["ph"] == "C"]
    assert min(counts) == 0
    assert counts[-1] == 0
    for e in slices:
        assert e["ts"] >= 0
        assert e["dur"] >= 0


def test_slices_of_a_row_do_not_overlap(runtime, tmp_path):
    dag = handoff.new()
    for i in range(30):
        dag.add_function(handoff.Function(i, (), lambda: threading.Event().wait(0.003)))
    events = trace(runtime.execute(dag), tmp_path)
    rows = {}
    for e in sorted((e for e in events if e["ph"] == "X"), key=lambda e: e["ts"]):
        before = rows.setdefault(e["tid"], [])
        assert not before or before[-1] <= e["ts"] + 0.002
        before.append(e["ts"] + e["dur"])
    assert len(rows) > 2


def test_the_timeline_is_what_the_format_says(make_runtime, tmp_path):
    """Trace Event Format: the fields of each phase; and slices of a row do not overlap at all."""
    import asyncio

    runtime = make_runtime(capabilities={"cpu": 2})
    dag = handoff.new("all kinds")

    async def pause(*_):
        await asyncio.sleep(0.002)

    def busy(*_):
        threading.Event().wait(0.001)

    for i in range(40):
        dag.add_function(handoff.Function(("c", i), (), pause))
        dag.add_function(handoff.Function(("t", i), [("c", i)], busy, cost={"cpu": 1}))
        dag.add_function(handoff.Function(("p", i), [("c", i)], pause, isolation="process"))
    dag.add_function(handoff.Function("again", (), _Twice(), max_retries=1))
    result = runtime.execute(dag)
    result.to_chrome_trace(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    named, ends = set(), {}
    for e in trace["traceEvents"]:
        assert isinstance(e["name"], str)
        assert type(e["pid"]) is type(e["tid"]) is int
        if e["ph"] == "M":
            wanted = {"process_name": str, "thread_name": str, "thread_sort_index": int}
            ((key, value),) = e["args"].items()
            assert type(value) is wanted[e["name"]]
            assert key == ("sort_index" if e["name"].endswith("index") else "name")
            named.add((e["pid"], e["tid"] if e["name"] == "thread_name" else 0))
            continue
        assert e["ts"] >= 0
        if e["ph"] == "C":
            assert all(type(v) is int for v in e["args"].values())
            continue
        assert e["ph"] == "X"
        assert e["dur"] >= 0
        assert {(e["pid"], e["tid"]), (e["pid"], 0)} <= named
        row = (e["pid"], e["tid"])
        assert ends.get(row, 0) <= round(e["ts"] * 1000)  # nanoseconds, as viewers count
        ends[row] = round((e["ts"] + e["dur"]) * 1000)
    functions = [e for e in trace["traceEvents"] if e.get("cat") == "function"]
    assert len(functions) == 121
    assert len({e["tid"] for e in functions if "'c'" in e["name"]}) > 1


class _Twice:
    def __init__(self):
        self.tries = 0

    def __call__(self):
        self.tries += 1
        if self.tries == 1:
            raise ValueError
        return self.tries


def test_waits_are_told_apart(make_runtime, tmp_path):
    runtime = make_runtime(capabilities={"cpu": 1})
    dag = handoff.new()
    for name in "abc":
        dag.add_function(
            handoff.Function(name, (), lambda: threading.Event().wait(0.02), cost={"cpu": 1})
        )
    events = trace(runtime.execute(dag), tmp_path)
    waits = sorted(e["dur"] for e in events if e.get("cat") == "wait")
    assert len(waits) >= 2
    assert waits[-1] >= 40_000
    names = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert "waiting" in names


def test_transfers_are_told_apart(result, tmp_path):
    from handoff_actors.execution.trail import Transfer

    data = result._data
    data.trail.transfers.append(
        Transfer(0, "there", "here", data.submitted + 1, data.submitted + 2, 10)
    )
    (transfer,) = [e for e in trace(result, tmp_path) if e.get("cat") == "transfer"]
    assert transfer["name"] == "numbers from there"
    assert (transfer["ts"], transfer["dur"], transfer["args"]) == (1e6, 1e6, {"bytes": 10})


def test_str_is_a_summary(result, runtime):
    lines = str(result).splitlines()
    assert re.fullmatch(
        rf"<eventful>: succeeded, 7 functions in .* \(7 on {runtime.node()}\)", lines[0]
    )
    assert lines[1].startswith("  slowest: ")
    assert re.match(r"  critical path, .*: numbers → .* → mean → end", lines[2])
    assert lines[3] == "  attempts that did not count: 4"
    assert repr(result) == "<ExecutionResult of '<eventful>': 7 values>"


def test_a_notebook_shows_the_graph_and_tables(result):
    html = result._repr_html_()
    ElementTree.fromstring(html)  # well-formed, whatever ids and errors have in them
    assert "<svg" in html
    assert "half" in html
    assert html.count('stroke-width="3"') >= 3
    assert "not &lt;yet&gt;" in html
    assert "<th style='text-align:left'>slowest</th>" in html


def test_released_and_copied_results_can_be_shown(result, tmp_path):
    copied = pickle.loads(pickle.dumps(result))
    assert str(copied).startswith("<eventful>: succeeded, 7 functions in ")
    ElementTree.fromstring(copied._repr_html_())
    with pytest.raises(handoff.ConfigurationError, match="in the process of the run"):
        copied.to_chrome_trace(tmp_path / "t.json")
    result.release()
    assert str(result).startswith("<eventful>: succeeded")
    ElementTree.fromstring(result._repr_html_())


def test_status_names_what_runs(runtime, eventually):
    go_on = threading.Event()
    dag = handoff.new("at work")
    dag.add_function(handoff.Function("a", (), lambda: go_on.wait(20)))
    dag.add_function(handoff.Function("b", (), _sleep, isolation="process"))

    @dag.function
    async def c():
        import asyncio

        while not go_on.is_set():
            await asyncio.sleep(0.001)

    run = runtime.submit(dag)
    try:
        eventually(lambda: {at.function_id for at in runtime.status().running} == {"a", "b", "c"})
        found = {at.function_id: at for at in runtime.status().running}
        assert found["a"].worker == "thread"
        assert re.fullmatch(r"pid \d+", found["b"].worker)
        assert found["c"].worker == "coroutine"
        assert {at.node for at in found.values()} == {runtime.node()}
        assert {at.attempt for at in found.values()} == {1}
        assert "'at work': 'b' on" in str(runtime.status())
        json.dumps(runtime.status().to_dict(), default=str)
    finally:
        go_on.set()
        run.cancel()
    eventually(lambda: not runtime.status().running)


def _sleep():
    threading.Event().wait(20)


def test_a_large_run_is_shown_by_levels(runtime):
    dag = handoff.new()
    for i in range(1200):
        dag.add_function(handoff.Function(i, [i - 600] if i >= 600 else (), lambda *_: None))
    html = runtime.execute(dag)._repr_html_()
    assert "600 functions" in html
    assert len(html) < 20_000

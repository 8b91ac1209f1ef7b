"""What operators and bug reports need: logs that know their function, telemetry, the dump."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time

import pytest

import handoff_actors as handoff
from handoff_actors import logs


class Kept(logging.Handler):
    """Keeps the records."""

    def __init__(self):
        super().__init__()
        self.records = []
        self.addFilter(logs.ContextFilter())

    def emit(self, record):
        self.records.append(record)

    def said(self):
        return {r.getMessage(): (r.dag_id, r.function_id, r.attempt, r.node) for r in self.records}


@pytest.fixture
def kept():
    handler, root = Kept(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


def say(*_):
    logging.getLogger("mine").info("from logging")
    handoff.current().log.info("from the context", number=1, thing={1})
    if handoff.current().attempt == 1:
        raise ValueError
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        logging.getLogger("mine").exception("with a traceback %s", 5)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_logs_of_functions_know_where_they_are_from(kept, make_runtime, eventually, isolation):
    runtime = make_runtime()
    dag = handoff.new("d")
    dag.add_function(handoff.Function("f", (), say, isolation=isolation))
    runtime.execute(dag)
    mine = ("d", "f", 2, runtime.node())
    eventually(lambda: any(r.levelno == logging.ERROR for r in kept.records))
    said = kept.said()
    assert said["from logging"] == mine
    error = next(r for r in kept.records if r.levelno == logging.ERROR)
    assert error.name == "mine"
    assert error.getMessage().startswith("with a traceback 5")
    assert error.function_id == "f"
    ours = [m for m in said if m.startswith("from the context")]
    assert any("function_id='f'" in m and "attempt=2" in m and "thing=" in m for m in ours)


def test_logs_of_coroutines_and_outside(kept, runtime):
    dag = handoff.new("d")

    @dag.function
    async def c():
        logging.getLogger("mine").info("in a coroutine")

    runtime.execute(dag)
    logging.getLogger("mine").info("outside")
    assert kept.said()["in a coroutine"] == ("d", "c", 1, runtime.node())
    assert kept.said()["outside"] == (None, None, None, None)
    assert logs.add_context(None, "info", {"event": "e"}) == {"event": "e"}


def test_structlog_of_worker_processes_comes_home():
    code = """
import structlog
import handoff_actors as handoff

structlog.configure(processors=[
    handoff.logs.add_context, structlog.processors.add_log_level,
    structlog.processors.JSONRenderer(sort_keys=True)])
dag = handoff.new("d")

def say(*_):
    import structlog
    structlog.get_logger().bind(bound=1).warning("hello", x=[1])
    structlog.get_logger().debug("not this")

dag.add_function(handoff.Function("t", (), say))
dag.add_function(handoff.Function("p", ["t"], say, isolation="process"))
with handoff.start(name="n"):
    handoff.execute(dag)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    hello = {line["function_id"]: line for line in said if line["event"] == "hello"}
    same = {
        "attempt": 1,
        "bound": 1,
        "dag_id": "d",
        "event": "hello",
        "level": "warning",
        "node": "n",
    }
    assert hello["t"] == {**same, "function_id": "t", "x": [1]}
    assert hello["p"] == {**same, "function_id": "p", "x": "[1]"}
    assert sum(line["event"] == "not this" for line in said) == 1


def test_a_function_that_logs_in_a_loop_does_not_drown_its_node(kept, runtime, eventually):
    def flood():
        for i in range(5000):
            logging.getLogger("flood").info("line %d", i)
        return True

    dag = handoff.new("d")
    dag.add_function(handoff.Function("f", (), flood, isolation="process"))
    assert runtime.execute(dag).results["f"] is True
    eventually(lambda: sum(r.name == "flood" for r in kept.records) >= 1000)
    assert sum(r.name == "flood" for r in kept.records) < 4000


def test_nothing_is_sent_below_the_level(kept, make_runtime):
    logging.getLogger().setLevel(logging.ERROR)
    runtime = make_runtime()
    dag = handoff.new("d")
    dag.add_function(
        handoff.Function("f", (), lambda: logging.getLogger().level, isolation="process")
    )
    assert runtime.execute(dag).results["f"] == logging.ERROR


# dump


def test_the_dump_tells_all_but_secrets(make_runtime, tmp_path, eventually):
    runtime = make_runtime(authkey="abcdef0123456789")
    gate = threading.Event()

    def wait(value):
        if handoff.current().attempt == 1:
            raise ValueError("my secret value")
        gate.wait(20)

    dag = handoff.new("dumped")
    dag.add_function(handoff.Function("in", type="input"))
    dag.add_function(handoff.Function("wait", ["in"], wait))
    run = runtime.submit(dag, inputs={"in": "my secret value"})
    eventually(lambda: runtime.events.recent)
    eventually(lambda: runtime.status().running)
    runtime.dump(tmp_path / "dump.json")
    gate.set()
    run.result(20)
    text = (tmp_path / "dump.json").read_text()
    for secret in ("my secret", "abcdef0123456789", "authkey"):
        assert secret not in text
    said = json.loads(text)
    assert said["versions"]["handoff_actors"] == handoff.__version__
    assert said["runtime"]["status"]["tree"]["state"] == "up"
    assert said["runtime"]["runs"][0]["dag_id"] == "'dumped'"
    (failed,) = [e for e in said["runtime"]["events"] if e["event"] == "AttemptFailed"]
    assert failed["function_id"] == "wait"
    assert failed["error"] == "ValueError"
    stacks = {thread["name"]: thread["stack"] for thread in said["threads"]}
    assert any("test_services.py" in line for line in stacks["MainThread"])


def test_the_dump_is_written_whatever_is_wrong(default, tmp_path, monkeypatch):
    default.dump(tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text())["runtime"] is None
    runtime = default.start()

    def broken():
        raise handoff.ActorTimeoutError("no answer", name="resource_tracker", timeout=5.0)

    monkeypatch.setattr(runtime, "status", broken)
    default.dump(tmp_path / "some.json")
    said = json.loads((tmp_path / "some.json").read_text())
    assert "ActorTimeoutError" in said["runtime"]["status"]["not available"]
    assert said["threads"]
    with pytest.raises(OSError, match="nowhere"):
        default.dump(tmp_path / "nowhere" / "dump.json")


def test_a_function_can_dump_its_node(runtime, tmp_path):
    dag = handoff.new("d")
    path = str(tmp_path / "dump.json")
    dag.add_function(handoff.Function("p", (), lambda: handoff.dump(path), isolation="process"))
    runtime.execute(dag)
    assert json.loads((tmp_path / "dump.json").read_text())["process"]["pid"] == os.getpid()


# OpenTelemetry


TELEMETRY = """
import json, os, sys, threading, time
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import handoff_actors as handoff

reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
metrics.set_meter_provider(MeterProvider([reader]))
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("mine")

def work(x=0):
    with tracer.start_as_current_span("inside"):
        if handoff.current().attempt == 1:
            raise ValueError
    return 1

def die():
    if handoff.current().attempt == 1:
        os.abort()

def read():
    return {
        metric.name: [
            [dict(p.attributes), getattr(p, "value", None) or getattr(p, "count", 0)]
            for p in metric.data.data_points]
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics}

dag = handoff.new("d")
dag.add_function(handoff.Function("a", (), work))
dag.add_function(handoff.Function("b", ["a"], lambda a: a, cost={"cpu": 1}))
dag.add_function(handoff.Function("c", (), die, isolation="process"))
bad = handoff.new("bad")
bad.add_function(handoff.Function("x", (), lambda: 1 / 0, max_retries=0))
with handoff.start(name="n", capabilities={"cpu": 2}) as runtime:
    lost = threading.Event()
    runtime.subscribe(lambda event: lost.set(), [handoff.events.WorkerLost])
    with tracer.start_as_current_span("request"):
        handoff.execute(dag)
    try:
        handoff.execute(bad)
    except handoff.FunctionFailedError:
        pass
    assert lost.wait(20)
    end = time.monotonic() + 20
    # A run's end is told right after its caller has the answer.
    while sum(v for _, v in read().get("handoff.runs", ())) < 2 and time.monotonic() < end:
        runtime.events.flush()
    runtime.events.flush()
    found = read()
spans = [[s.name, s.context.span_id, s.parent and s.parent.span_id, s.status.status_code.name,
          s.end_time - s.start_time] for s in exporter.get_finished_spans()]
print(json.dumps([found, spans]))
"""


def test_opentelemetry_gets_metrics_and_traces():
    pytest.importorskip("opentelemetry.sdk")
    done = subprocess.run(
        [sys.executable, "-c", TELEMETRY], capture_output=True, text=True, timeout=60, check=True
    )
    found, spans = json.loads(done.stdout)

    def total(name, **wanted):
        return sum(v for a, v in found[name] if all(a.get(k) == w for k, w in wanted.items()))

    assert total("handoff.runs", state="succeeded", node="n") == 1
    assert total("handoff.runs", state="failed") == 1
    assert total("handoff.functions") == 3
    assert total("handoff.run.duration") == 2
    assert total("handoff.function.duration", **{"function.node": "n"}) >= 3
    assert total("handoff.function.queue_time") >= 3
    assert total("handoff.attempts.failed", last=False) == 2
    assert total("handoff.attempts.failed", last=True) == 1
    assert total("handoff.workers.lost") >= 1
    assert {"handoff.claims", "handoff.runs.active", "handoff.functions.running"} <= set(found)
    ids = {name: id for name, id, *_ in spans if name in ("request",)}
    runs = [s for s in spans if s[0] == "handoff.run"]
    assert [s[3] for s in runs].count("ERROR") == 1
    ours = next(s for s in runs if s[2] == ids["request"])
    children = {s[0] for s in spans if s[2] == ours[1]}
    assert {"a", "b", "c", "inside"} <= children
    assert all(s[4] >= 0 for s in spans)


def test_without_opentelemetry_nothing_of_it_is_there(runtime):
    code = (
        "import handoff_actors, sys; handoff_actors.start(); print('opentelemetry' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n"


def test_a_runtime_can_be_instrumented_later(make_runtime):
    pytest.importorskip("opentelemetry")
    from handoff_actors import telemetry

    runtime = make_runtime()
    telemetry.instrument(runtime)
    telemetry.instrument(runtime)
    dag = handoff.new()
    dag.add_function(handoff.Function("a", (), lambda: 1))
    assert runtime.execute(dag).results["a"] == 1
    runtime.telemetry.close()


def test_of_very_many_short_functions_some_are_told_and_all_are_counted(make_runtime, reader):
    from handoff_actors import telemetry

    runtime = make_runtime()
    telemetry.instrument(runtime)
    dag = handoff.new()
    for i in range(20_000):
        dag.add_function(handoff.Function(i, (), int))
    began = time.perf_counter()
    runtime.execute(dag)
    took = time.perf_counter() - began
    runtime.events.flush(20)
    runtime.telemetry.close()
    found = {
        metric.name: metric.data.data_points
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert [p.value for p in found["handoff.functions"]] == [20_000]
    (durations,), (queued,) = (
        found["handoff.function.duration"],
        found["handoff.function.queue_time"],
    )
    # The end of a run is told a little after its answer is there: that is of its time for it.
    assert 20 <= durations.count <= min(telemetry.MOST_FUNCTIONS, 30 + 1000 * (took + 5))
    assert durations.count < 20_000
    assert queued.count == durations.count


def test_all_functions_of_a_run_that_is_not_many_are_told():
    pytest.importorskip("opentelemetry")
    from handoff_actors.telemetry import _every

    assert _every(30, 0.0) == 1
    assert _every(1000, 1.0) == 1
    assert _every(10_000, 0.01) == 250
    assert _every(100_000, 1e6) == 20


def test_what_telemetry_tells_itself_is_nobody_elses(runtime):
    pytest.importorskip("opentelemetry")
    from handoff_actors.telemetry import instrument

    instrument(runtime)
    seen = []
    with runtime.subscribe(lambda event: seen.append(type(event).__name__)):
        runtime.execute(handoff.new().add_function(handoff.Function("f", (), lambda: 1)))
        runtime.events.flush(5)
    assert seen == ["RunStarted", "FunctionsFinished", "RunFinished"]
    assert "_Ended" not in [type(event).__name__ for event in runtime.events.recent]

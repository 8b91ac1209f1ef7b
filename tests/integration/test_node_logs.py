"""Logs of other nodes and their worker processes arrive where they are asked for."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

import handoff_actors as handoff

HEAR = """
    import logging, sys, json
    import structlog
    import handoff_actors as handoff

    lines = []

    def keep(_logger, method, event):
        lines.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[keep])

    class Keep(logging.Handler):
        def emit(self, record):
            fields = {k: getattr(record, k, None) for k in ("node", "function_id", "attempt")}
            lines.append({"event": record.getMessage(), **fields})

    logging.getLogger().addHandler(Keep())
    logging.getLogger().setLevel(logging.INFO)

    def talk(x):
        import logging, structlog
        import handoff_actors as handoff
        logging.getLogger("mine").info("by logging %d", x)
        logging.getLogger("mine").debug("too low")
        structlog.get_logger().warning("by structlog", x=x)
        handoff.current().log.info("by current", x=x)
        for number in range(3000):
            logging.getLogger("mine").info("flood")
        return x

    def seen(event, isolation):
        found = [line for line in lines if line.get("event") == event]
        return [line for line in found if line.get("function_id") == isolation]

    if __name__ == "__main__":
        import time
        with handoff.start(name="home"):
            (name,) = handoff.start_nodes(1)
            handoff.collect_logs("info", rate=200)
            dag = handoff.new("talking")
            for isolation in ("thread", "process"):
                dag.add_function(handoff.Function(
                    isolation, (), talk, extra_args=[1], node=name, isolation=isolation))
            handoff.execute(dag)
            end = time.monotonic() + 15
            while time.monotonic() < end and not all(
                seen(e, i) for e in ("by logging 1", "by structlog", "by current")
                for i in ("thread", "process")
            ):
                time.sleep(0.01)
            for isolation in ("thread", "process"):
                for event in ("by logging 1", "by structlog", "by current"):
                    (line,) = seen(event, isolation)
                    assert (line["node"], line["attempt"]) == (name, 1), line
            assert not seen("too low", "thread")
            assert len([l for l in lines if l["event"] == "flood"]) < 3000
            handoff.collect_logs(None)
            print("heard")
"""


def test_lines_arrive_with_node_function_and_attempt(
    script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    pytest.importorskip("structlog")
    done = script(HEAR, timeout=60)
    assert done.stdout.splitlines()[-1] == "heard", done.stderr


def test_two_nodes_that_ask_each_other_hear_each_line_once(
    make_runtime: Callable[..., handoff.Runtime],
    caplog: Any,
    eventually: Callable[..., None],
) -> None:
    a, b = (make_runtime(name=name, authkey="ab", listen="127.0.0.1:0") for name in "ab")
    b.connect(a.address)
    level = logging.getLogger().level
    for runtime in (a, b):
        runtime.collect_logs("warning")
    eventually(lambda: a._logs._asked and b._logs._asked)
    logging.getLogger("mine").warning("once")
    # Both nodes are in this process: one line here, and one that each hears of the other.
    eventually(lambda: [r.getMessage() for r in caplog.records].count("once") >= 3)
    logging.getLogger("mine").warning("the end")
    eventually(lambda: [r.getMessage() for r in caplog.records].count("the end") >= 3)
    assert [r.getMessage() for r in caplog.records].count("once") == 3
    a.collect_logs(None)
    b.collect_logs(None)
    eventually(lambda: not a._logs._asked and not b._logs._asked)
    assert logging.getLogger().level == level
    for wrong in ({"level": "loud"}, {"rate": 0}, {"level": True}):
        with pytest.raises(handoff.ConfigurationError):
            a.collect_logs(**wrong)

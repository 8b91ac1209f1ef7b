"""Every call of the face, where no runtime runs: one error, everywhere, that says what to do."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors import Function

ONE = handoff.new().add_function(Function("f", (), lambda: 1))
LINE = handoff.new().add_function(Function("x", type="input"))
LINE.add_function(Function("y", ["x"], lambda x: x))

CALLS: dict[str, Callable[[Any], Any]] = {
    "execute": lambda face: face.execute(ONE),
    "execute_distributed": lambda face: face.execute_distributed(ONE),
    "execute_local": lambda face: face.execute_local(ONE),
    "submit": lambda face: face.submit(ONE),
    "stream": lambda face: face.stream(LINE),
    "register_node": lambda face: face.register_node("n", {"cpu": 1}),
    "register_local_node": lambda face: face.register_local_node({"cpu": 1}),
    "discover_nodes": lambda face: face.discover_nodes(),
    "resources_available": lambda face: face.resources_available("n", {"cpu": 1}),
    "store_result": lambda face: face.store_result("d", "f", 1),
    "get_result": lambda face: face.get_result("d", "f"),
    "store_value": lambda face: face.store_value("d", "f", 1),
    "get_local_value": lambda face: face.get_local_value("d", "f"),
    "get_value": lambda face: face.get_value("d", "f"),
    "synchronize": lambda face: face.synchronize("d", ["f"]),
    "register_data_location": lambda face: face.register_data_location("d", "f", "n"),
    "lookup_data_location": lambda face: face.lookup_data_location("d", "f"),
    "clear": lambda face: face.clear("d"),
    "node": lambda face: face.node(),
    "nodes": lambda face: face.nodes(),
    "connect": lambda face: face.connect("127.0.0.1:9"),
    "disconnect": lambda face: face.disconnect("n"),
    "start_nodes": lambda face: face.start_nodes(1),
    "node_info": lambda face: face.node_info(),
    "status": lambda face: face.status(),
    "subscribe": lambda face: face.subscribe(print),
}


async def awaited(call: Callable[[Any], Any]) -> Any:
    return await call(handoff.aio)


def test_before_start_and_after_stop(default: Any) -> None:
    stopped = handoff.Runtime()
    stopped.start()
    stopped.stop()
    for name, call in CALLS.items():
        for face in (handoff, handoff.Runtime(), stopped):
            with pytest.raises(handoff.NotStartedError, match=r"start\(\)"):
                call(face)
        with pytest.raises(handoff.NotStartedError):
            asyncio.run(awaited(call))
        assert inspect.iscoroutinefunction(getattr(handoff.aio, name))


def test_current_is_for_functions_wherever_it_is_asked(default: Any) -> None:
    runtime = default.start()
    for face in (handoff, handoff.Runtime, runtime):
        with pytest.raises(handoff.HandoffError, match="functions"):
            face.current()

    async def told() -> Any:
        return (await handoff.aio.current()).function_id

    dag = handoff.new().add_function(Function("a", (), told))
    dag.add_function(Function("b", (), lambda: handoff.Runtime.current().function_id))
    assert runtime.execute(dag).results == {"a": "a", "b": "b"}

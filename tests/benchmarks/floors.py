"""What ours is compared with: the least that does the same work."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from concurrent.futures import Executor, Future
from functools import partial
from graphlib import TopologicalSorter
from queue import Empty, SimpleQueue
from typing import Any

from handoff_actors.graph import DAG


def loop(dag: DAG) -> dict[Hashable, Any]:
    """Call one function after another in the order that ``graphlib`` finds."""
    functions: Mapping[Hashable, Any] = dag.functions
    values: dict[Hashable, Any] = {}
    for id_ in TopologicalSorter({i: f.args for i, f in functions.items()}).static_order():
        function = functions[id_]
        values[id_] = function.code(*[values[a] for a in function.args])
    return values


def pooled(pool: Executor, dag: DAG) -> dict[Hashable, Any]:
    """Submit each function to a pool when ``graphlib`` says that it is ready."""
    functions: Mapping[Hashable, Any] = dag.functions
    sorter = TopologicalSorter({i: f.args for i, f in functions.items()})
    sorter.prepare()
    values: dict[Hashable, Any] = {}
    ended: SimpleQueue[tuple[Hashable, Future[Any]]] = SimpleQueue()

    def end(id_: Hashable, future: Future[Any]) -> None:
        ended.put((id_, future))

    while sorter.is_active():
        for id_ in sorter.get_ready():
            function = functions[id_]
            future = pool.submit(function.code, *[values[a] for a in function.args])
            future.add_done_callback(partial(end, id_))
        id_, future = ended.get()
        while True:
            values[id_] = future.result()
            sorter.done(id_)
            try:
                id_, future = ended.get_nowait()
            except Empty:
                break
    return values

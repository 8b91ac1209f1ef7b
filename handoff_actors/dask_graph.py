"""``dask_get``: a scheduler for Dask's collections.

A graph of Dask's is run as one DAG: each task is a function, constants are inputs, and a task's
result is freed when its last dependent has it. Where Dask's own callbacks are in use, such as
``ProgressBar``, which look into the state of its own scheduler, that one is used on an
``Executor``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, cast

from handoff_actors import default
from handoff_actors.errors import FunctionFailedError
from handoff_actors.execution.context import place
from handoff_actors.execution.tasks import evaluate
from handoff_actors.graph.dag import DAG
from handoff_actors.graph.function import Function, Isolation
from handoff_actors.runtime import Runtime


def dask_get(
    dsk: Any,
    keys: Any,
    *,
    isolation: Isolation | None = None,
    num_workers: int | None = None,
    retries: int = 0,
    **options: Any,
) -> Any:
    """Compute keys of a Dask graph: ``dask.compute(x, scheduler=handoff.dask_get)``.

    Runs on the runtime that runs the caller, on the default one if it is started, or on one of
    its own for this call. Needs Dask 2024.12 or newer.

    Args:
        dsk: a graph, or what has ``__dask_graph__()``.
        keys: a key, or a list of keys and of such lists.
        isolation: ``"thread"`` or ``"process"``; None is the runtime's.
        num_workers: how many tasks may run at once; None is Dask's setting, else no limit.
        retries: how often a task that raises is run again.
        **options: what Dask hands to all schedulers; ignored.

    Returns:
        The values, nested as the keys are.

    Raises:
        Exception: what a task raised.
        FunctionCrashedError: the worker processes under a task died more than three times.
    """
    from dask import config

    del options
    num_workers = num_workers or config.get("num_workers", None)
    here = place.get()
    runtime: Any = default.running() if here is None else here.home()
    if runtime is None:
        with Runtime() as own:
            return _compute(own, dsk, keys, isolation, num_workers, retries)
    return _compute(runtime, dsk, keys, isolation, num_workers, retries)


def _compute(
    runtime: Any,
    dsk: Any,
    keys: Any,
    isolation: Isolation | None,
    num_workers: int | None,
    retries: int,
) -> Any:
    from dask._task_spec import DataNode, convert_legacy_graph, cull
    from dask.callbacks import Callback

    if Callback.active and isinstance(runtime, Runtime):
        return _by_dask(runtime, dsk, keys, isolation, num_workers)
    wanted = set(_flat(keys))
    whole = convert_legacy_graph(dsk if isinstance(dsk, Mapping) else dsk.__dask_graph__())
    graph: Any = cull(whole, cast("Any", wanted))
    dag = DAG()
    constants: dict[Hashable, Any] = {}
    for key, node in graph.items():
        if isinstance(node, DataNode):
            constants[key] = node.value
            dag.add_function(Function(key, type="input"))
        else:
            dag.add_function(_function(key, node, isolation))
    computed: Mapping[Hashable, Any] = {}
    if wanted - constants.keys():
        try:
            result = runtime.execute(
                dag,
                inputs=constants,
                keep=list(wanted - constants.keys()),
                max_concurrency=num_workers,
                max_retries=retries,
            )
        except FunctionFailedError as error:
            cause = error.__cause__
            if cause is None:
                raise
            cause.add_note(f"in the Dask task {error.function_id!r}, on node {error.node}")
            raise cause from None
        computed = dict(result.results)
        result.release()
    return _nested(keys, {**constants, **computed})


def _flat(keys: Any) -> Iterator[Hashable]:
    if isinstance(keys, list):
        for key in keys:
            yield from _flat(key)
    else:
        yield keys


def _function(key: Hashable, node: Any, isolation: Isolation | None) -> Function:
    needed = list(node.dependencies)
    return Function(
        key,
        needed,
        evaluate,
        extra_args=[node, needed],
        argument_inclusion="as_list",
        isolation=isolation,
    )


def _nested(keys: Any, values: Mapping[Hashable, Any]) -> Any:
    if isinstance(keys, list):
        return tuple([_nested(key, values) for key in keys])
    return values[keys]


def _by_dask(
    runtime: Runtime, dsk: Any, keys: Any, isolation: Isolation | None, num_workers: int | None
) -> Any:
    """Dask's own scheduler on our workers, for callbacks that look into its state."""
    from dask import local

    from handoff_actors.futures import Executor

    kind = isolation or runtime.options.isolation
    with Executor(num_workers, isolation=kind, runtime=runtime) as executor:
        scheduler: Any = local.get_async
        return scheduler(executor.submit, executor.max_workers, dsk, keys)

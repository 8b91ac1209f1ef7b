"""The functions of the face for asyncio: the same names and arguments, awaitable.

    await handoff.aio.start()
    result = await handoff.aio.execute(dag)

Nothing here blocks the loop. What has to wait does so on a thread of its own, never one of the
loop's executor, whose few threads nested calls could use up; waiting for a run takes no thread at
all. A task that is cancelled while it waits in ``execute`` cancels the run.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack

from handoff_actors import default
from handoff_actors.execution.context import Context, place
from handoff_actors.execution.context import current as attempt
from handoff_actors.execution.result import ExecutionResult
from handoff_actors.execution.run import Run
from handoff_actors.graph.dag import DAG
from handoff_actors.runtime import STREAM_DEFAULTS, SUBMIT_DEFAULTS, StreamOptions, SubmitOptions
from handoff_actors.signatures import shown

if TYPE_CHECKING:
    from handoff_actors.pipeline.handle import Pipeline

P = ParamSpec("P")
R = TypeVar("R")


async def _elsewhere(function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """Call ``function`` on a thread made for it, with the caller's context variables."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()
    context = contextvars.copy_context()

    def answer(error: BaseException | None, value: Any) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    def run() -> None:
        error: BaseException | None = None
        value: Any = None
        try:
            value = context.run(function, *args, **kwargs)
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(answer, error, value)
        except RuntimeError:
            return  # the loop was closed: nobody waits any more

    threading.Thread(target=run, name="handoff-aio", daemon=True).start()
    return await future


def _awaitable(function: Callable[P, R]) -> Callable[P, Awaitable[R]]:
    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return await _elsewhere(function, *args, **kwargs)

    return call


start = _awaitable(default.start)
stop = _awaitable(default.stop)
new = _awaitable(default.new)
register_node = _awaitable(default.register_node)
register_local_node = _awaitable(default.register_local_node)
discover_nodes = _awaitable(default.discover_nodes)
resources_available = _awaitable(default.resources_available)
store_result = _awaitable(default.store_result)
store_value = _awaitable(default.store_value)
get_local_value = _awaitable(default.get_local_value)
get_value = _awaitable(default.get_value)
synchronize = _awaitable(default.synchronize)
register_data_location = _awaitable(default.register_data_location)
lookup_data_location = _awaitable(default.lookup_data_location)
clear = _awaitable(default.clear)
node = _awaitable(default.node)
nodes = _awaitable(default.nodes)
connect = _awaitable(default.connect)
disconnect = _awaitable(default.disconnect)
start_nodes = _awaitable(default.start_nodes)
collect_logs = _awaitable(default.collect_logs)
node_info = _awaitable(default.node_info)
status = _awaitable(default.status)
subscribe = _awaitable(default.subscribe)
dump = _awaitable(default.dump)


@shown(SUBMIT_DEFAULTS)
async def submit(dag: DAG, **options: Unpack[SubmitOptions]) -> Run:
    """Begin to run a DAG; see ``Runtime.submit``. The run can be awaited."""
    return await _submitted(default.submit, dag, options)


@shown(SUBMIT_DEFAULTS)
async def execute(dag: DAG, **options: Unpack[SubmitOptions]) -> ExecutionResult:
    """Run a DAG and await its outcome; see ``Runtime.submit`` for the arguments."""
    return await _outcome(await submit(dag, **options))


@shown(SUBMIT_DEFAULTS)
async def execute_distributed(dag: DAG, **options: Unpack[SubmitOptions]) -> ExecutionResult:
    """The same as ``execute``."""
    return await _outcome(await submit(dag, **options))


@shown(SUBMIT_DEFAULTS)
async def execute_local(dag: DAG, **options: Unpack[SubmitOptions]) -> ExecutionResult:
    """As ``execute``, with everything on this node, costs and pins ignored."""
    return await _outcome(await _submitted(default.submit_local, dag, options))


@shown(STREAM_DEFAULTS)
async def stream(dag: DAG, **options: Unpack[StreamOptions]) -> Pipeline:
    """Make a pipeline of a DAG; see ``Runtime.stream``. It is iterated with ``async for``."""
    opened: list[Pipeline] = []
    wanted = [True]

    def begin() -> Pipeline:
        pipeline = default.stream(dag, **options)
        opened.append(pipeline)
        try:
            wanted.pop()
        except IndexError:
            pipeline.stop()
        return pipeline

    try:
        return await _elsewhere(begin)
    except asyncio.CancelledError:
        try:
            wanted.pop()
        except IndexError:
            opened[0].stop()
        raise


async def current() -> Context:
    """The attempt that awaits this; see ``handoff.current``, which need not be awaited."""
    return attempt()


async def get_result(dag_id: Hashable, id: Hashable, timeout: float | None = 5.0) -> Any:  # noqa: A002
    """A value, as soon as it is there; see ``Runtime.get_result``."""
    return await _while_lent(_elsewhere(default.get_result, dag_id, id, timeout))


async def _submitted(submit: Callable[..., Run], dag: DAG, options: SubmitOptions) -> Run:
    admitted: list[Run] = []
    wanted = [True]

    def begin() -> Run:
        run = submit(dag, **options)
        admitted.append(run)
        try:
            wanted.pop()
        except IndexError:
            run.cancel()
        return run

    try:
        return await _elsewhere(begin)
    except asyncio.CancelledError:
        # Nobody will hold the run: whoever comes second, this or ``begin``, cancels it.
        try:
            wanted.pop()
        except IndexError:
            admitted[0].cancel()
        raise


async def _outcome(run: Run) -> ExecutionResult:
    try:
        return await _while_lent(run)
    except asyncio.CancelledError:
        run.cancel()
        raise


async def _while_lent(wait: Awaitable[R]) -> R:
    """Wait; inside a function, what it holds is lent to others meanwhile."""
    here = place.get()
    loan = None if here is None else here.lend()
    try:
        return await wait
    finally:
        if here is not None and loan is not None:
            await _elsewhere(here.reclaim, loan)

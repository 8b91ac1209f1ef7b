"""From what went wrong in a run to the error its caller sees."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from handoff_actors.errors import (
    AllocationError,
    ExecutionError,
    FunctionCrashedError,
    FunctionFailedError,
    FunctionTimeoutError,
    RunCancelledError,
    SerializationError,
    text_of,
)
from handoff_actors.execution.run_state import Crashed, Failure, Lost, TimedOut

if TYPE_CHECKING:
    from handoff_actors.execution.queues import Queue
    from handoff_actors.execution.run_data import RunData
    from handoff_actors.resources.claims import Infeasible


def _times(count: int) -> str:
    return "its only attempt" if count == 1 else f"all {count} attempts"


def failure_error(data: RunData, failure: Failure) -> ExecutionError:
    """The error of a run in which a function used up what it was allowed."""
    id_ = data.plan.ids[failure.index]
    where = f"function {id_!r} of DAG {data.dag_id!r}"
    last = failure.last
    lines = "; ".join(f"attempt on node {c.node}, pid {c.pid}: {c.reason}" for c in failure.crashes)
    if isinstance(last, Lost):
        why = (
            "max_crashes=0 forbids to run it again"
            if not data.plan.functions[failure.index].max_crashes
            else "which is more than is put down to chance"
        )
        return FunctionCrashedError(
            f"{where} was lost with its node, or what it had made was, and {why}: {lines}. The "
            "other results stay readable",
            dag_id=data.dag_id,
            function_id=id_,
            attempts=failure.crashes,
        )
    if isinstance(last, Crashed):
        allowed = data.plan.functions[failure.index].max_crashes
        return FunctionCrashedError(
            f"{where} lost its worker {len(failure.crashes)} times, and max_crashes={allowed} "
            f"allows no more: {lines}. Run it alone to see why; the other results stay readable",
            dag_id=data.dag_id,
            function_id=id_,
            attempts=failure.crashes,
        )
    if isinstance(last, TimedOut):
        timeout = data.plan.functions[failure.index].timeout
        return FunctionTimeoutError(
            f"{where} took longer than its timeout of {timeout} s in {_times(failure.attempts)}",
            dag_id=data.dag_id,
            function_id=id_,
            timeout=timeout,
            attempts=failure.attempts,
        )
    if isinstance(last.error, SerializationError):
        last.error.dag_id = data.dag_id
        last.error.function_id = id_
        return last.error
    error = FunctionFailedError(
        f"{where} failed in {_times(failure.attempts)} on node {last.node}: "
        f"{type(last.error).__name__}: {text_of(last.error)}",
        dag_id=data.dag_id,
        function_id=id_,
        node=last.node,
        attempts=failure.attempts,
    )
    error.__cause__ = last.error
    return error


def infeasible_error(data: RunData, answer: Infeasible, queue: Queue) -> AllocationError:
    """The error of a run of which a function can never get what it costs."""
    try:
        id_ = data.plan.ids[queue.ready[0] % data.plan.n]
    except IndexError:
        id_ = None
    return AllocationError(
        f"function {id_!r} of DAG {data.dag_id!r} needs {answer.resource}={answer.asked:g}, and "
        f"the most node {answer.node} has now is {answer.most:g}: lower the cost or register "
        "more",
        function_id=id_,
        resource=answer.resource,
        asked=answer.asked,
        most=answer.most,
    )


def stopped_error(dag_id: Hashable) -> RunCancelledError:
    """The outcome of a run whose runtime ended under it."""
    return RunCancelledError(
        f"the run of DAG {dag_id!r} was cancelled, as its runtime stopped",
        dag_id=dag_id,
        function_id=None,
    )

"""From what went wrong in a pipeline to the error that its user sees."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from handoff_actors.errors import (
    CrashedAttempt,
    FunctionCrashedError,
    FunctionTimeoutError,
    HandoffError,
    ItemFailedError,
    PipelineError,
    PipelineStoppedError,
    RuntimeFailedError,
    describe,
    text_of,
)


def item_failed(
    pipeline: Hashable, function_id: Hashable, node: str, seq: int, cause: BaseException
) -> ItemFailedError:
    """The output of an item that failed in a function; ``cause`` says how."""
    error = ItemFailedError(
        f"item {seq} of pipeline {pipeline!r} failed in function {function_id!r} on node {node}: "
        f"{type(cause).__name__}: {text_of(cause)}",
        function_id=function_id,
        node=node,
    )
    error.__cause__ = cause
    return error


def crashed(
    pipeline: Hashable, function_id: Hashable, allowed: int, crashes: Sequence[CrashedAttempt]
) -> FunctionCrashedError:
    """The cause when an item has lost its worker more often than it may."""
    lines = "; ".join(f"on node {c.node}, pid {c.pid}: {c.reason}" for c in crashes)
    return FunctionCrashedError(
        f"it lost its worker {len(crashes)} times, and max_crashes={allowed} allows no more: "
        f"{lines}",
        dag_id=pipeline,
        function_id=function_id,
        attempts=tuple(crashes),
    )


def timed_out(pipeline: Hashable, function_id: Hashable, timeout: float) -> FunctionTimeoutError:
    """The cause when an item took longer than the function's ``timeout``."""
    return FunctionTimeoutError(
        f"it took longer than its timeout of {timeout} s",
        dag_id=pipeline,
        function_id=function_id,
        timeout=timeout,
        attempts=1,
    )


def evicted(
    pipeline: Hashable,
    function_id: Hashable,
    node: str,
    seq: int,
    join_timeout: float,
    missing: Sequence[Hashable],
) -> ItemFailedError:
    """The output of an item that waited too long for some of a function's arguments."""
    names = ", ".join(map(repr, missing))
    cause = TimeoutError(f"{names} did not come within join_timeout={join_timeout} s")
    error = ItemFailedError(
        f"item {seq} of pipeline {pipeline!r} was given up at function {function_id!r} on node "
        f"{node}: {cause}",
        function_id=function_id,
        node=node,
    )
    error.__cause__ = cause
    return error


def given_up(pipeline: Hashable, root: BaseException) -> HandoffError:
    """What consumers and pushers of a pipeline that had to end get; a new one for each of them."""
    if isinstance(root, RuntimeFailedError):
        return root
    if isinstance(root, PipelineError) and root.__cause__ is None:
        again = type(root)(str(root))
        again.__dict__.update(root.__dict__)
        return again
    error = PipelineStoppedError(
        f"pipeline {pipeline!r} gave up: {type(root).__name__}: {text_of(root)}"
        if not isinstance(root, PipelineError)
        else str(root)
    )
    error.__cause__ = root.__cause__ if isinstance(root, PipelineError) else root
    return error


def closed(pipeline: Hashable) -> PipelineStoppedError:
    """What a push into a pipeline gets whose input was ended."""
    return PipelineStoppedError(
        f"pipeline {describe(pipeline)} was closed and takes no more items; what is in it can "
        "still be taken out: open another with stream()"
    )


def stopped(pipeline: Hashable, how: str) -> PipelineStoppedError:
    """The root of the end of a pipeline whose user ended it; ``how``: "was stopped"."""
    return PipelineStoppedError(
        f"pipeline {describe(pipeline)} {how}: items that were not taken out of it are lost"
    )

"""Every exception a user can meet.

    HandoffError
    ├─ NotStartedError                 you called before start() or after stop()
    ├─ AlreadyStartedError             you asked for other options than the running runtime has
    ├─ RuntimeFailedError              the supervision tree gave up; .cause is the first crash
    ├─ ConfigurationError (ValueError) you gave start() something it cannot use
    ├─ InvalidDAGError (ValueError)    you built a DAG that cannot be run
    │  ├─ MissingFunctionError         an argument names no function
    │  ├─ CyclicDependencyError        .cycle: the ids, in order
    │  ├─ DuplicateFunctionError       a second function of the same id
    │  ├─ InvalidFunctionError         one field of one function is wrong
    │  └─ MissingInputError            an input has no value, or something else has one
    ├─ AllocationError                 no node could ever meet the cost; or the allocator is wrong
    ├─ AlreadyRunningError             a run of this dag_id is in progress
    ├─ ExecutionError                  the world: a run did not end well
    │  ├─ FunctionFailedError          the function raised; its exception is the __cause__
    │  ├─ FunctionCrashedError         the workers under it died; .attempts says how each
    │  ├─ FunctionTimeoutError (TimeoutError)
    │  ├─ SerializationError           a value or a function cannot cross to a process
    │  ├─ RunCancelledError (concurrent.futures.CancelledError)
    │  └─ ExecutionTimeoutError (TimeoutError)
    ├─ CheckpointError                 the file cannot be used: in use, damaged, foreign
    ├─ SpillError                      a value that was written to disk cannot be read back
    ├─ ValueNotFoundError (LookupError)
    ├─ ResultTimeoutError (TimeoutError)
    ├─ NodeError
    │  ├─ NodeDownError, NodeUnreachableError, AuthenticationError, IncompatibleNodeError
    │  └─ NameTakenError (ConfigurationError)
    ├─ ActorError
    │  ├─ ActorCrashedError            the actor died while it handled the message
    │  └─ ActorTimeoutError            no answer within the deadline
    └─ PipelineError
       ├─ ItemFailedError, PipelineFullError (TimeoutError), PipelineStoppedError

Every error pickles with its fields, so it is the same error on the other side of a process.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> Any:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


def _documented(cls: type[BaseException]) -> str:
    """The name under which ``docs/errors.md`` has this error: its own, or that of its base."""
    return next(base.__name__ for base in cls.__mro__ if base.__module__ == __name__)


class HandoffError(Exception):
    """The base of all errors of this library.

    Args:
        message: what happened, where, and what to do.
        fields: what the message is about; each becomes an attribute.
    """

    def __init__(self, message: str = "", /, **fields: Any) -> None:
        super().__init__(message)
        self.__dict__.update(fields)
        self.add_note(f"What to do: handoff explain {_documented(type(self))}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class NotStartedError(HandoffError):
    """No runtime is running here: call ``start()`` first (again in a forked child)."""


class AlreadyStartedError(HandoffError):
    """A runtime with other options is running: ``stop()`` it first."""

    options: Sequence[str]


class RuntimeFailedError(HandoffError):
    """The supervision tree gave up; ``cause`` is the first crash. ``stop()``, then ``start()``."""

    cause: BaseException | None


class ConfigurationError(HandoffError, ValueError):
    """An option has a value that cannot be used."""


class InvalidDAGError(HandoffError, ValueError):
    """The DAG cannot be run as it is built."""


class MissingFunctionError(InvalidDAGError):
    """``function_id`` takes ``missing``, which the DAG does not have."""

    function_id: Hashable
    missing: Hashable


class CyclicDependencyError(InvalidDAGError):
    """The functions of ``cycle``, in order, wait for each other."""

    cycle: list[Hashable]


class DuplicateFunctionError(InvalidDAGError):
    """The DAG has a function ``function_id`` already."""

    function_id: Hashable


class InvalidFunctionError(InvalidDAGError):
    """``field`` of the function ``function_id`` cannot be what it is."""

    function_id: Hashable
    field: str


class MissingInputError(InvalidDAGError):
    """``inputs`` lacks ``missing``, or has ``unknown``, which are no inputs of the DAG."""

    missing: Sequence[Hashable]
    unknown: Sequence[Hashable]


class AllocationError(HandoffError):
    """No node could ever run ``function_id``, or the allocator's answer cannot be used."""

    function_id: Hashable
    resource: str | None
    asked: float | None
    most: float | None


class AlreadyRunningError(HandoffError):
    """A run of ``dag_id`` is in progress: wait for it, cancel it, or give another ``dag_id``."""

    dag_id: Hashable


class ExecutionError(HandoffError):
    """A run did not end with all its results."""

    dag_id: Hashable
    function_id: Hashable


class FunctionFailedError(ExecutionError):
    """The function raised in every attempt; ``__cause__`` is what it raised last.

    Of a very long text of the cause only the beginning is in the error's own.
    """

    node: str
    attempts: int


@dataclass(frozen=True, slots=True)
class CrashedAttempt:
    """One attempt whose worker died under it.

    Attributes:
        node: the node of the worker.
        pid: its process id.
        exit_code: as ``subprocess`` gives it: negative is the number of a signal.
        reason: the exit in words, with what it hints at.
    """

    node: str
    pid: int
    exit_code: int | None
    reason: str


class FunctionCrashedError(ExecutionError):
    """More workers died under the function than its ``max_crashes``; ``attempts`` lists them."""

    attempts: Sequence[CrashedAttempt]


class FunctionTimeoutError(ExecutionError, TimeoutError):
    """The function took longer than its ``timeout`` (seconds) in every attempt."""

    timeout: float
    attempts: int


class SerializationError(ExecutionError):
    """``path`` of the function's code, arguments or result cannot cross to a process.

    What is there, ``object``, is given as text, as it cannot cross.
    """

    path: str
    object: str


class RunCancelledError(ExecutionError, concurrent.futures.CancelledError):
    """The run was cancelled; what had finished stays readable."""


class ExecutionTimeoutError(ExecutionError, TimeoutError):
    """The run did not end within its ``timeout`` (seconds); it was cancelled."""

    timeout: float


class CheckpointError(HandoffError):
    """The file at ``path`` is in use, damaged, or no checkpoint; nothing of it was used."""

    path: str


class SpillError(HandoffError):
    """A value that was written to disk under ``memory_limit`` cannot be read back from there."""


class ValueNotFoundError(HandoffError, LookupError):
    """No such value is known here."""

    dag_id: Hashable
    value_id: Hashable


class ResultTimeoutError(HandoffError, TimeoutError):
    """The value did not come within the deadline."""

    dag_id: Hashable
    value_id: Hashable


class NodeError(HandoffError):
    """The base of what goes wrong between nodes."""

    node: str


class NodeDownError(NodeError):
    """The node is gone, or unknown."""


class NodeUnreachableError(NodeError):
    """Nothing answers at the address."""


class AuthenticationError(NodeError):
    """The two sides do not have the same key."""


class IncompatibleNodeError(NodeError):
    """The two sides speak different versions."""


class NameTakenError(NodeError, ConfigurationError):
    """Another node of the cluster has this one's name."""


class ActorError(HandoffError):
    """The base of what goes wrong between actors; ``name`` is the actor asked."""

    name: str


class ActorCrashedError(ActorError):
    """The actor died while it handled the message, or is gone; ``reason`` says of what."""

    reason: Any


class ActorTimeoutError(ActorError, TimeoutError):
    """The actor did not answer within ``timeout`` (seconds)."""

    timeout: float


class PipelineError(HandoffError):
    """The base of what goes wrong in a pipeline."""


class ItemFailedError(PipelineError):
    """One item failed in ``function_id`` on ``node``; the ``__cause__`` says how."""

    function_id: Hashable
    node: str


class PipelineFullError(PipelineError, TimeoutError):
    """No room for another item within the timeout."""


class PipelineStoppedError(PipelineError):
    """The pipeline has ended."""


def describe(value: object, limit: int = 80) -> str:
    """``repr(value)`` cut to ``limit`` characters; never raises, whatever its own repr does."""
    try:
        text = repr(value)
    except BaseException as error:
        text = f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def text_of(error: BaseException, limit: int = 2000) -> str:
    """``str(error)``, cut after ``limit`` characters; never raises, whatever its own text does.

    What is cut is counted: the text of an error goes into others, into logs and over the wire, and
    one of megabytes must not do so at every step. The error itself has it all.
    """
    try:
        text = str(error)
        more = len(text) - limit
        return text if more <= 0 else f"{text[:limit]}… ({more:,} more characters)"
    except BaseException as raised:
        return f"(its text cannot be had: {type(raised).__name__})"


def unfit_id(value: object) -> str | None:
    """Why ``value`` cannot be an id, for which it needs a hash, ``==`` and a repr; or None.

    An id is checked where it is given: in an actor, one that raises would cost the actor its life.
    """
    try:
        hash(value)
    except Exception:
        return f"must be hashable, not {describe(value)}"
    try:
        bool(value == value)
    except Exception:
        return f"must be told apart by ==, which raises for {describe(value)}"
    try:
        repr(value)
    except Exception:
        return f"must have a repr that does not raise, not {describe(value)}"
    return None


def amounts_text(amounts: Mapping[str, float]) -> str:
    """``cpu=1, memory=200``: amounts of resources for people to read."""
    return ", ".join(f"{name}={amount:g}" for name, amount in amounts.items()) or "nothing"

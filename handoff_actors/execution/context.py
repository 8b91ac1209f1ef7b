"""What the code of a function can ask of the runtime that runs it: ``current()``.

The context variable holds the *place* of the attempt, an object that the worker reuses from attempt
to attempt; ``Context`` is made only when somebody asks. So an attempt costs a copy of a
``contextvars.Context`` and nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextvars import ContextVar
from typing import Any, Protocol

from handoff_actors.errors import HandoffError
from handoff_actors.events import Log


class Place(Protocol):
    """Where an attempt runs: a lane of this process, or the loop of a worker process."""

    def context(self) -> Context:
        """The attempt that runs here now."""

    def lend(self) -> Any:
        """The attempt is about to wait for other functions: give its worker and claim to them."""

    def reclaim(self, loan: Any) -> None:
        """The wait is over: get back what ``lend`` gave away; blocks until it is there."""

    def home(self) -> Any:
        """The runtime that runs the attempt, or a stand-in that forwards calls to it."""


class Context:
    """One attempt of one function, as its own code sees it.

    Attributes:
        dag_id: the run's.
        function_id: the function's.
        attempt: 1 for the first.
        node: the node it runs on.
    """

    __slots__ = ("_cancelled", "attempt", "dag_id", "function_id", "node")

    def __init__(
        self,
        dag_id: Hashable,
        function_id: Hashable,
        attempt: int,
        node: str,
        cancelled: Any = None,
    ) -> None:
        self.dag_id = dag_id
        self.function_id = function_id
        self.attempt = attempt
        self.node = node
        self._cancelled = cancelled

    def cancelled(self) -> bool:
        """Whether nobody wants the result any more: the code may return early."""
        return self._cancelled is not None and bool(self._cancelled())

    @property
    def log(self) -> Log:
        """A logger with dag_id, function_id, attempt and node bound; see ``handoff.logs``."""
        return Log(
            dag_id=self.dag_id, function_id=self.function_id, attempt=self.attempt, node=self.node
        )

    def __repr__(self) -> str:
        return (
            f"<Context {self.function_id!r} of {self.dag_id!r}, attempt {self.attempt}, "
            f"on {self.node}>"
        )


place: ContextVar[Place | None] = ContextVar("handoff_place", default=None)
"""Where the calling code runs; None outside functions."""


def log_fields() -> dict[str, Any]:
    """What log lines of the calling code say of it; nothing outside functions."""
    here = place.get()
    if here is None:
        return {}
    try:
        context = here.context()
    except HandoffError:
        return {}
    return {
        "dag_id": context.dag_id,
        "function_id": context.function_id,
        "attempt": context.attempt,
        "node": context.node,
    }


def current() -> Context:
    """The attempt that calls this.

    Raises:
        HandoffError: the caller is not code that a runtime runs.
    """
    here = place.get()
    if here is None:
        raise HandoffError("current() is for the code of functions while a runtime runs them")
    return here.context()

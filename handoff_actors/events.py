"""What happened: typed events for subscribers, and structured log lines.

Events are facts in the past tense, frozen and small: ids and places, never values of the user's.
``EventBus.publish`` costs one attribute read while nobody has subscribed. Subscribers run on a
thread of their own, so that none of them can slow or break an actor.

Log lines go to structlog when the user has configured it, else to the standard library's logger
``handoff_actors`` when that has a handler; otherwise nothing is formatted and structlog is not even
imported (it costs more than the rest of the library together).
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Self

from handoff_actors.errors import describe

_stdlib_logger = logging.getLogger("handoff_actors")
_stdlib_logger.addHandler(logging.NullHandler())


def _has_real_handler() -> bool:
    logger: logging.Logger | None = _stdlib_logger
    while logger is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


class Log:
    """A structured logger with bound fields; silent unless the user configured logging."""

    __slots__ = ("_fields",)

    def __init__(self, **fields: Any) -> None:
        self._fields = fields

    def bind(self, **fields: Any) -> Log:
        """A logger that adds ``fields`` to each of its lines."""
        return Log(**self._fields, **fields)

    def debug(self, event: str, **fields: Any) -> None:
        """For whoever follows the runtime step by step."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """What an operator expects to see."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """What was survived, and should be known."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """What somebody has to look at."""
        self._write(logging.ERROR, event, fields)

    def write(self, level: int, event: str, fields: Mapping[str, Any]) -> None:
        """A line of any level of ``logging``."""
        self._write(level, event, dict(fields))

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        structlog = configured_structlog()
        try:
            for tap in taps if structlog is None else ():
                tap("handoff_actors", level, event, {**self._fields, **fields})
            if relay is not None:
                relay("handoff_actors", level, event, {**self._fields, **fields})
            elif structlog is not None:
                logger = structlog.get_logger("handoff_actors").bind(**self._fields)
                getattr(logger, logging.getLevelName(level).lower())(event, **fields)
            elif _stdlib_logger.isEnabledFor(level) and _has_real_handler():
                _render(level, event, {**self._fields, **fields})
        except Exception:
            # A logging set-up that raises must not bring down the actor that logs.
            return


def configured_structlog() -> Any:
    """Structlog, if the program has imported and configured it; else None."""
    module = sys.modules.get("structlog")
    # Another thread may be importing it just now.
    configured = getattr(module, "is_configured", None)
    return module if configured is not None and configured() else None


def _render(level: int, event: str, fields: dict[str, Any]) -> None:
    exc_info = fields.pop("exc_info", None)
    pairs = " ".join(f"{name}={describe(value, 200)}" for name, value in fields.items())
    _stdlib_logger.log(level, "%s %s", event, pairs, exc_info=exc_info)


log = Log()

taps: tuple[Callable[[str, int, str, dict[str, Any]], None], ...] = ()
"""Who wants the library's log lines besides, unless they go to structlog, which can be tapped
itself: logger, level, event, fields."""

relay: Callable[[str, int, str, dict[str, Any]], None] | None = None
"""In a worker process: takes log lines to the process that started it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The base of all events.

    Attributes:
        at: when it happened, seconds since the epoch.
    """

    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A run was admitted; ``functions`` is how many it will run."""

    dag_id: Hashable
    functions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished(Event):
    """A run ended as ``state``: succeeded, failed or cancelled; ``error`` says why in one line."""

    dag_id: Hashable
    state: str
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionsFinished(Event):
    """These functions of a run finished since the last such event: a batch, as they come."""

    dag_id: Hashable
    function_ids: tuple[Hashable, ...]
    finished: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed(Event):
    """An attempt raised, timed out or lost its worker; ``retry_in`` is None if it was the last."""

    dag_id: Hashable
    function_id: Hashable
    attempt: int
    error: str
    retry_in: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuesMoved(Event):
    """Values went from node to node: how many, and how many bytes they are together.

    Numbers that travel within messages do not count. What a run moves is told at the node that
    submitted it; what somebody asks for by DAG and id, at the node that asks.
    """

    dag_id: Hashable
    source: str
    target: str
    values: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultNotKept(Event):
    """A result is not in the run's checkpoint, and its function will run again; ``reason`` why."""

    dag_id: Hashable
    function_id: Hashable
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStarted(Event):
    """A pipeline takes items; ``stages`` is how many it has."""

    pipeline: Hashable
    stages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineEnded(Event):
    """A pipeline ended as ``state``: drained, stopped or failed; ``error`` says why it failed."""

    pipeline: Hashable
    state: str
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRestarted(Event):
    """A worker of a stage began anew, ``init`` too, in place of one that was lost; ``reason``."""

    pipeline: Hashable
    function_id: Hashable
    node: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFailed(Event):
    """An item of a pipeline failed in a function; ``item`` is its number."""

    pipeline: Hashable
    function_id: Hashable
    node: str
    item: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(Event):
    """A worker process is ready."""

    node: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost(Event):
    """A worker process died; ``reason`` is its exit in words."""

    node: str
    pid: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadAbandoned(Event):
    """A thread overran its function's timeout and was replaced; it keeps its claim till it ends."""

    dag_id: Hashable
    function_id: Hashable


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillFailed(Event):
    """A value of so many ``bytes`` could not be written to disk, and stays in memory."""

    directory: str
    error: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorCrashed(Event):
    """An actor died of ``reason`` and, if ``restarted``, a new incarnation took over."""

    name: str
    reason: str
    restarted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeFailed(Event):
    """The supervision tree gave up."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeUp(Event):
    """Another node has joined, or returned; ``address`` is None when nobody can connect to it."""

    node: str
    address: str | None
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSuspect(Event):
    """Another node has been silent for long: it gets no new work."""

    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBack(Event):
    """A node that was suspect has been heard again."""

    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDown(Event):
    """Another node is gone; ``reason`` in words."""

    node: str
    reason: str


class Internal:
    """The base of what the library tells itself, in order with the events.

    Only who asks for its class gets it; it is not remembered.
    """

    __slots__ = ()


class Subscription:
    """One subscriber; ``cancel()`` ends it. A context manager too."""

    __slots__ = ("_bus", "callback", "kinds")

    def __init__(
        self,
        bus: EventBus,
        callback: Callable[[Any], object],
        kinds: tuple[type[Event | Internal], ...],
    ) -> None:
        self._bus = bus
        self.callback = callback
        self.kinds = kinds

    def cancel(self) -> None:
        """No further event reaches the callback once this returns, but for one under way."""
        self._bus.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


_REMEMBERED = 200
_UNCOUNTED = (FunctionsFinished, ItemFailed, ValuesMoved)


class EventBus:
    """Hands events to subscribers, in order, on a thread that exists only while there are any.

    Attributes:
        active: whether there are subscribers.
        following: whether any of them wants ``FunctionsFinished``, of which there are many.
        recent: the last events, but for those of functions that finished, items that failed and
            values that moved.
    """

    def __init__(self) -> None:
        self.active = False
        self.following = False
        self.recent: deque[Event] = deque(maxlen=_REMEMBERED)
        self._lock = threading.Lock()
        self._subscriptions: tuple[Subscription, ...] = ()
        self._queue: SimpleQueue[Event | Internal | threading.Event | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def subscribe(
        self,
        callback: Callable[[Any], object],
        kinds: Iterable[type[Event | Internal]] | None = None,
    ) -> Subscription:
        """Call ``callback(event)`` for each event of ``kinds`` (all, when None)."""
        wanted: tuple[type[Event | Internal], ...] = (Event,) if kinds is None else tuple(kinds)
        subscription = Subscription(self, callback, wanted)
        with self._lock:
            self._subscriptions += (subscription,)
            if self._thread is None:
                # A queue for each thread: the end of one must not be read by the next.
                self._queue = SimpleQueue()
                self._thread = threading.Thread(
                    target=self._deliver, args=(self._queue,), name="handoff-events", daemon=True
                )
                self._thread.start()
            self.active = True
            self._look()
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """Forget a subscription; the thread ends with the last one."""
        with self._lock:
            self._subscriptions = tuple(s for s in self._subscriptions if s is not subscription)
            self._look()
            thread = self._end() if not self._subscriptions else None
        self._join(thread, 1.0)

    def publish(self, event: Event | Internal) -> None:
        """Queue ``event`` for the subscribers; never blocks, never raises."""
        if event.__class__ not in _UNCOUNTED and isinstance(event, Event):
            self.recent.append(event)
        if self.active:
            self._queue.put(event)

    def flush(self, timeout: float = 1.0) -> None:
        """Return when all that was published before has been delivered, or after ``timeout``."""
        if self.active and threading.current_thread() is not self._thread:
            reached = threading.Event()
            self._queue.put(reached)
            reached.wait(timeout)

    def close(self, timeout: float = 1.0) -> None:
        """Deliver what is queued, then end the thread."""
        with self._lock:
            thread = self._end()
        self._join(thread, timeout)

    def _end(self) -> threading.Thread | None:
        """Let the thread end after what is queued; the lock is held."""
        thread, self._thread = self._thread, None
        self.active = self.following = False
        if thread is not None:
            self._queue.put(None)
        return thread

    def _look(self) -> None:
        """See what is wanted; the lock is held."""
        wanted = [kind for s in self._subscriptions for kind in s.kinds]
        self.following = any(issubclass(FunctionsFinished, kind) for kind in wanted)

    @staticmethod
    def _join(thread: threading.Thread | None, timeout: float) -> None:
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _deliver(self, queue: SimpleQueue[Event | Internal | threading.Event | None]) -> None:
        while (event := queue.get()) is not None:
            if isinstance(event, threading.Event):
                event.set()
                continue
            for subscription in self._subscriptions:
                if isinstance(event, subscription.kinds):
                    try:
                        subscription.callback(event)
                    except BaseException as error:  # SystemExit too: others wait for theirs
                        log.error("subscriber_raised", error=describe(error), exc_info=error)  # noqa: TRY400  ours has no exception()

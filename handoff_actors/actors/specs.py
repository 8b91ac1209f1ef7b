"""What a supervisor is told: specifications of children, its flags, requests, and its errors. Pure.

Every wrong value is refused when the object is made, so that a supervisor never meets one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from handoff_actors.errors import ActorError, ConfigurationError, describe

if TYPE_CHECKING:
    from handoff_actors.actors.calls import Ref
    from handoff_actors.actors.reasons import Reason
    from handoff_actors.actors.server import Actor

Restart: TypeAlias = Literal["permanent", "transient", "temporary"]
Strategy: TypeAlias = Literal["one_for_one", "one_for_all", "rest_for_one"]
ChildType: TypeAlias = Literal["worker", "supervisor"]
ChildState: TypeAlias = Literal["running", "restarting", "stopped"]

_BY_TYPE: Final = -1.0
_RESTARTS: Final = get_args(Restart)
_STRATEGIES: Final = get_args(Strategy)
_TYPES: Final = get_args(ChildType)


class StartFailedError(ActorError):
    """A child could not be started; the ``__cause__`` says why. ``child_id`` is which."""

    child_id: Hashable


class ChildAlreadyStartedError(ActorError):
    """A child of this id is running, or being restarted."""

    child_id: Hashable


class ChildAlreadyPresentError(ActorError):
    """A stopped child of this id is kept: restart it, or delete it first."""

    child_id: Hashable


class ChildNotFoundError(ActorError):
    """The supervisor has no such child."""

    child_id: Hashable


class ChildRunningError(ActorError):
    """The child is running: terminate it first."""

    child_id: Hashable


class ChildRestartingError(ActorError):
    """The child is being restarted: terminate it first, or wait."""

    child_id: Hashable


class MaxChildrenError(ActorError):
    """The supervisor has ``max_children`` already."""

    max_children: int


def _number(owner: str, field: str, value: Any, *, least: float, finite: bool = True) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or math.isnan(value) or value < least or (finite and math.isinf(value)):
        raise ConfigurationError(
            f"{owner}: {field} must be a number >= {least:g}, not {describe(value)}"
        )


def _count(owner: str, field: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(f"{owner}: {field} must be an int >= 0, not {describe(value)}")


def _choice(owner: str, field: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigurationError(
            f"{owner}: {field} must be one of {', '.join(choices)}, not {describe(value)}"
        )


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to start, restart and stop one child.

    Attributes:
        id: unique among its siblings.
        start: makes a fresh ``Actor`` for each incarnation.
        restart: ``permanent`` always, ``transient`` after an abnormal end, ``temporary`` never.
        shutdown: seconds an ordered stop may take before it is killed; None: without limit; 0:
            killed at once. By default 5.0 for workers, None for supervisors.
        type: ``worker`` or ``supervisor``.
        name: the registered name. The address and its mailbox outlive the incarnations.
        start_timeout: seconds ``init`` may take; None runs it on the supervisor's own thread.
        counted: False: its deaths never count against the supervisor's intensity.
        max_restarts: for a child that is not counted: how many restarts within the supervisor's
            ``max_seconds`` it may have, before it alone is given up; None: any number.

    Raises:
        ConfigurationError: a value cannot be used.
    """

    id: Hashable
    start: Callable[[], Actor]
    restart: Restart = "permanent"
    shutdown: float | None = _BY_TYPE
    type: ChildType = "worker"
    name: str | None = None
    start_timeout: float | None = None
    counted: bool = True
    max_restarts: int | None = None

    def __post_init__(self) -> None:
        try:
            hash(self.id)
        except TypeError:
            raise ConfigurationError(
                f"ChildSpec: id must be hashable, not {describe(self.id)}"
            ) from None
        if self.restart not in _RESTARTS:
            _choice(self._owner(), "restart", self.restart, _RESTARTS)
        if self.type not in _TYPES:
            _choice(self._owner(), "type", self.type, _TYPES)
        if self.shutdown == _BY_TYPE:
            object.__setattr__(self, "shutdown", 5.0 if self.type == "worker" else None)
        elif self.shutdown is not None:
            _number(self._owner(), "shutdown", self.shutdown, least=0)
        if not callable(self.start):
            raise ConfigurationError(
                f"{self._owner()}: start must be callable, not {describe(self.start)}"
            )
        if self.name is not None and (not isinstance(self.name, str) or not self.name):
            raise ConfigurationError(
                f"{self._owner()}: name must be a non-empty str, not {describe(self.name)}"
            )
        if self.start_timeout is not None:
            _number(self._owner(), "start_timeout", self.start_timeout, least=0)
        if self.max_restarts is not None:
            _count(self._owner(), "max_restarts", self.max_restarts)
            if self.counted:
                raise ConfigurationError(
                    f"{self._owner()}: max_restarts is the budget of a child that is not counted: "
                    "give counted=False too"
                )

    def _owner(self) -> str:
        return f"ChildSpec {describe(self.id)}"

    @property
    def label(self) -> str:
        """What logs and errors call the child."""
        return self.name or (self.id if isinstance(self.id, str) else describe(self.id))


@dataclass(frozen=True, slots=True)
class Backoff:
    """A delay between restarts: ``initial``, times ``factor`` each, up to ``maximum``, in seconds.

    A child that had lived for ``healthy_after`` seconds begins with ``initial`` again.

    Raises:
        ConfigurationError: a value cannot be used.
    """

    initial: float
    maximum: float
    factor: float = 2.0
    healthy_after: float = 5.0

    def __post_init__(self) -> None:
        _number("Backoff", "initial", self.initial, least=0)
        _number("Backoff", "maximum", self.maximum, least=0)
        _number("Backoff", "factor", self.factor, least=1)
        _number("Backoff", "healthy_after", self.healthy_after, least=0)
        if self.maximum < self.initial:
            raise ConfigurationError(
                f"Backoff: maximum ({self.maximum:g}) must not be less than initial "
                f"({self.initial:g})"
            )


@dataclass(frozen=True, slots=True)
class SupervisorFlags:
    """How a supervisor goes about it.

    Attributes:
        strategy: who else is restarted with a child that died.
        max_restarts: how many restarts within ``max_seconds`` it makes before it gives up.
        max_seconds: see there.
        backoff: an optional delay before each restart.

    Raises:
        ConfigurationError: a value cannot be used.
    """

    strategy: Strategy = "one_for_one"
    max_restarts: int = 3
    max_seconds: float = 5.0
    backoff: Backoff | None = None

    def __post_init__(self) -> None:
        _choice("SupervisorFlags", "strategy", self.strategy, _STRATEGIES)
        _count("SupervisorFlags", "max_restarts", self.max_restarts)
        _number("SupervisorFlags", "max_seconds", self.max_seconds, least=0)
        if self.backoff is not None and not isinstance(self.backoff, Backoff):
            raise ConfigurationError(
                f"SupervisorFlags: backoff must be a Backoff or None, not {describe(self.backoff)}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class StartChild:
    """Start another child; answers its ``Ref``, or None when its ``init`` had nothing to do.

    As a cast (see ``dynamic_supervisor.start_soon``) errors go to ``on_error``.

    Attributes:
        spec: the child.
        ref: its address, if it was made before (dynamic supervisors only).
        on_error: told why it did not start; called on the supervisor's thread, must not block.
        insist: a start that fails is a crash like any other: tried again within the child's own
            ``max_restarts``; ``on_error`` is not told of it.
    """

    spec: ChildSpec
    ref: Ref | None = None
    on_error: Callable[[BaseException], object] | None = None
    insist: bool = False

    def undelivered(self, reason: Reason) -> None:
        """The supervisor has gone: whoever waits at ``ref`` must learn it."""
        error = StartFailedError(
            f"{self.spec.label} was not started: its supervisor is gone",
            name=self.spec.label,
            child_id=self.spec.id,
            reason=reason,
        )
        if self.ref is not None:
            self.ref.close(error)
        if self.on_error is not None:
            self.on_error(error)


@dataclass(frozen=True, slots=True)
class TerminateChild:
    """Stop a child and keep its specification (a temporary child's is dropped)."""

    id: Hashable


@dataclass(frozen=True, slots=True)
class RestartChild:
    """Start a stopped child; answers its new ``Ref``."""

    id: Hashable


@dataclass(frozen=True, slots=True)
class DeleteChild:
    """Drop the specification of a stopped child."""

    id: Hashable


@dataclass(frozen=True, slots=True)
class WhichChildren:
    """Answers a ``list[ChildInfo]`` in start order."""


@dataclass(frozen=True, slots=True)
class CountChildren:
    """Answers ``ChildCounts``."""


@dataclass(frozen=True, slots=True)
class ChildInfo:
    """One child as it is now; ``ref`` is None when it is stopped."""

    id: Hashable
    ref: Ref | None
    state: ChildState
    type: ChildType
    restarts: int


@dataclass(frozen=True, slots=True)
class ChildCounts:
    """How many children there are, how many of them run, and of which type."""

    specs: int
    active: int
    supervisors: int
    workers: int

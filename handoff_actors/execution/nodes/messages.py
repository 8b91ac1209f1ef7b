"""What an orchestrator and the nodes that run functions for it say to each other.

All of it is posted in order, and holds only what pickles at once: numbers, strings, and
``Payload``s of what is the user's. What is said per function has services of its own, ``WORK`` and
``OUTCOMES``, so that it can be a plain tuple, which costs half of what one with a name does; the
rest comes under ``SERVICE``. A run is named by its orchestrator's key; who the orchestrator is, and
which life of it, is said by the connection. Values are named for everybody by a ``RunName`` and
their index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from handoff_actors.cluster.payload import Payload
from handoff_actors.results.elsewhere import Elsewhere

SERVICE = "runs"
WORK = "runs.work"
OUTCOMES = "runs.outcomes"
VALUES = "values"

RunName = tuple[str, str, int]
"""A run: the name and the incarnation of its orchestrator, and its key there."""


@dataclass(frozen=True, slots=True)
class Located(Elsewhere):
    """Stands for a value that is on another node.

    Attributes:
        node: its name.
        nbytes: about how large it is.
    """

    node: str
    nbytes: int
    is_here: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Carried(Elsewhere):
    """Stands for a small value that has come from another node, and was not yet read.

    Attributes:
        node: the name of the node that made it.
        payload: the value.
    """

    node: str
    payload: Payload


@dataclass(frozen=True, slots=True)
class Lesson:
    """Functions that a guest does not know yet, as columns.

    Attributes:
        indices: in the plan.
        ids: theirs; a ``Payload`` where the id is no plain value.
        classes: theirs.
        plain: the value indices of the arguments of each, or None.
        codes: the number of the code of each plain one, else -1.
        code: by number, the code of functions that is not known yet.
        calls: by index, the calls of those that are not plain.
        links: by index, the function to run right after it.
        limits: by index, ``(timeout, max_crashes)`` of those for which they differ from the usual.
        held: those whose values stay there, however small, as others take them through serializers.
    """

    indices: list[int] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    plain: list[tuple[int, ...] | None] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    code: dict[int, Payload] = field(default_factory=dict)
    calls: dict[int, Payload] = field(default_factory=dict)
    links: dict[int, int] = field(default_factory=dict)
    limits: dict[int, tuple[float | None, int]] = field(default_factory=dict)
    held: list[int] = field(default_factory=list)

    def __reduce__(self) -> tuple[Any, ...]:
        return Lesson, (
            self.indices,
            self.ids,
            self.classes,
            self.plain,
            self.codes,
            self.code,
            self.calls,
            self.links,
            self.limits,
            self.held,
        )


@dataclass(frozen=True, slots=True)
class Begin:
    """A run that will have functions run there.

    Attributes:
        key: of the run.
        dag_id: its ``dag_id``; a ``Payload`` when that is no plain value.
        orchestrator: its incarnation.
        n: functions in the plan.
        n_inputs: inputs in the plan.
        classes: of the plan, as columns of ``LaneClass``.
        isolation: of functions that do not say.
    """

    key: int
    dag_id: Any
    orchestrator: str
    n: int
    n_inputs: int
    classes: Sequence[tuple[Any, ...]]
    isolation: str


class Work(NamedTuple):
    """Attempts to run, and what is needed for it.

    Attributes:
        key: of the run.
        tokens: the attempts.
        lesson: what is new about functions.
        values: small values, by index, that the guest does not have.
        places: by index, the nodes of values that are to be fetched.
        sizes: by index, about how large those are.
        cut: functions after which the linked one is not to be run.
    """

    key: int
    tokens: Sequence[int]
    lesson: Lesson | None
    values: Mapping[int, Any]
    places: Mapping[int, str]
    sizes: Mapping[int, int]
    cut: Sequence[int]


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Give back those of these attempts that have not begun."""

    key: int
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Forget:
    """Nobody needs these values any more."""

    key: int
    indices: Sequence[int]


@dataclass(frozen=True, slots=True)
class End:
    """The run is over: cancel what runs, keep what was made."""

    key: int


@dataclass(frozen=True, slots=True)
class Release:
    """Nobody needs anything of the run any more."""

    key: int


class Outcomes(NamedTuple):
    """What has become of attempts.

    Attributes:
        key: of the run.
        tokens: those that returned.
        values: of each the plain value, a ``Payload``, or a ``Located``.
        starts: by the guest's ``time.perf_counter()``.
        ends: the same.
        reports: what else there is to say, as ``guest.pack_report`` makes it.
        moved: of what the guest has fetched since: index, source, start, end, bytes, values.
    """

    key: int
    tokens: Sequence[int]
    values: Sequence[Any]
    starts: Sequence[float]
    ends: Sequence[float]
    reports: Sequence[tuple[Any, ...]]
    moved: Sequence[tuple[int, str, float, float, int, int]] = ()


@dataclass(frozen=True, slots=True)
class GuestLost:
    """The guest is gone before its run has ended: what it ran and what it made is lost.

    Attributes:
        key: of the run.
        reason: in words.
    """

    key: int
    reason: str


@dataclass(frozen=True, slots=True)
class AskCrew:
    """Who ran what of a run there; answered with indices, numbers of workers, and their names."""

    key: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a node offers, and what is held there by others than whom this is sent to."""

    total: Mapping[str, int]
    others: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ValueKey:
    """One value of a run, as somebody wants it.

    Attributes:
        run: whose.
        index: which.
        target: the node that needs it.
        serialize: the pair of an ``Argument``, to be applied where the value is.
        relay: have it fetched from where it is, if it is not there.
    """

    run: RunName
    index: int
    target: str
    serialize: Payload | None = field(default=None, hash=False)
    relay: bool = False


@dataclass(frozen=True, slots=True)
class Many:
    """Values that are wanted at once; answered with a ``Payload``, a size, or an error of each."""

    keys: Sequence[ValueKey]

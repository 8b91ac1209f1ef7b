"""What a guest learns of a plan, function by function, as it is needed there.

Functions that are pinned to a node and have code that it knows are taught before they are needed,
some with each lesson: so most messages of a long chain to and fro have none.

The teacher is the orchestrator's side, one for each guest; the code of functions is pickled once a
run, whoever learns it. The pupil is a plan without functions, which lessons fill in.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from itertools import islice
from types import FunctionType
from typing import Any

from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.errors import SerializationError, describe
from handoff_actors.execution.nodes.messages import Lesson
from handoff_actors.graph.calls import (
    Call,
    Converted,
    InlineCall,
    LaneClass,
    Source,
    all_sources,
)
from handoff_actors.graph.plan import Plan

PLAIN = frozenset({int, float, str, bytes, bool, type(None)})
_USUAL = (None, 3)
_AHEAD = 256
"""Functions that are looked at with each lesson, whether they can be taught ahead."""


def packed(value: Any, what: str) -> Any:
    """A value for a message: itself if it is plain, else its payload, or its repr."""
    if type(value) in PLAIN:
        return value
    try:
        return dumps(value, what)
    except SerializationError:
        return describe(value)


def unpacked(value: Any) -> Any:
    """What ``packed`` was given."""
    return loads(value) if isinstance(value, Payload) else value


class CodeBook:
    """The pickled code of a run's functions, by number.

    Args:
        plan: of the run.
        dag_id: for errors.
    """

    __slots__ = ("_dag_id", "_numbers", "_payloads", "_plan")

    def __init__(self, plan: Plan, dag_id: Any) -> None:
        self._plan = plan
        self._dag_id = dag_id
        self._numbers: dict[Any, int] = {}
        self._payloads: list[Payload] = []

    def number(self, i: int) -> int:
        """Of the code of a plain function.

        Raises:
            SerializationError: it cannot leave this process; names the function.
        """
        code = self._plan.codes[i]
        mark = _mark(code)
        found = self._numbers.get(mark)
        if found is None:
            self._payloads.append(self._dumped(code, i))
            found = self._numbers[mark] = len(self._payloads) - 1
        return found

    def known(self, i: int) -> int | None:
        """The number of the code of a plain function, if it has one by now."""
        return self._numbers.get(_mark(self._plan.codes[i]))

    def payload(self, number: int) -> Payload:
        """The code of this number."""
        return self._payloads[number]

    def call(self, i: int) -> Payload:
        """The call of a function that is not plain; raises as ``number`` does."""
        return self._dumped(self._plan.calls[i], i)

    def _dumped(self, value: Any, i: int) -> Payload:
        id_ = self._plan.ids[i]
        try:
            return dumps(value, f"code of function {describe(id_)}")
        except SerializationError as error:
            error.function_id = id_
            error.dag_id = self._dag_id
            raise


def _mark(code: Any) -> Any:
    """What code is the same under: a lambda that a loop has made many times is one."""
    if (
        code.__class__ is FunctionType
        and code.__closure__ is None
        and code.__defaults__ is None
        and code.__kwdefaults__ is None
        and not code.__dict__
    ):
        return id(code.__code__), id(code.__globals__)
    return id(code)


class Teacher:
    """What one guest knows already.

    Args:
        plan: of the run.
        book: its code.
        links: see ``run_state.find_links``.
        held: values that others take through serializers.
        node: the guest's.
    """

    __slots__ = ("_book", "_codes", "_held", "_known", "_links", "_pinned", "_plan")

    def __init__(
        self,
        plan: Plan,
        book: CodeBook,
        links: Sequence[int] | None,
        held: Container[int],
        node: str,
    ) -> None:
        classes = plan.classes
        self._pinned = (i for i, number in enumerate(plan.class_of) if classes[number].pin == node)
        self._plan = plan
        self._held = held
        self._book = book
        self._links = links
        self._known = bytearray(plan.n)
        self._codes: set[int] = set()

    def knows(self, i: int) -> bool:
        """Whether it can run this function."""
        return bool(self._known[i])

    def lesson(self, indices: Iterable[int], lesson: Lesson) -> None:
        """Add what the guest must learn to run these functions.

        Raises:
            SerializationError: the code of one of them cannot leave this process; what had been
                added before it stays added.
        """
        known, links = self._known, self._links
        for first in indices:
            i = first
            while i >= 0 and not known[i]:
                self._add(i, lesson)
                known[i] = 1
                i = -1 if links is None else links[i]

    def ahead(self, lesson: Lesson) -> None:
        """Add some of what will have to run there, if that costs next to nothing."""
        plan, known = self._plan, self._known
        for i in islice(self._pinned, _AHEAD):
            if not known[i] and plan.plain[i] is not None and self._book.known(i) in self._codes:
                try:
                    self._add(i, lesson)
                except SerializationError:
                    continue  # whoever runs it is told
                known[i] = 1

    def forget(self, lesson: Lesson) -> None:
        """It did not reach the guest."""
        for i in lesson.indices:
            self._known[i] = 0
        self._codes.difference_update(lesson.code)

    def _add(self, i: int, lesson: Lesson) -> None:
        plan, book = self._plan, self._book
        plain = plan.plain[i]
        number = -1
        if plain is not None:
            number = book.number(i)
            if number not in self._codes:
                lesson.code[number] = book.payload(number)
                self._codes.add(number)
        else:
            lesson.calls[i] = book.call(i)
        id_ = packed(plan.ids[i], "id of a function")
        lesson.indices.append(i)
        lesson.ids.append(id_)
        lesson.classes.append(plan.class_of[i])
        lesson.plain.append(plain)
        lesson.codes.append(number)
        if i in self._held:
            lesson.held.append(i)
        if self._links is not None and self._links[i] >= 0:
            lesson.links[i] = self._links[i]
        function = plan.functions[i]
        limits = (function.timeout, function.max_crashes)
        if limits != _USUAL:
            lesson.limits[i] = limits


class _Known:
    """What a guest knows of a ``Function``."""

    __slots__ = ("args", "max_crashes", "timeout")

    def __init__(self, timeout: float | None, max_crashes: int) -> None:
        self.timeout = timeout
        self.max_crashes = max_crashes
        self.args: tuple[Any, ...] = ()


_ANY = _Known(*_USUAL)


def columns(classes: Iterable[LaneClass]) -> list[tuple[Any, ...]]:
    """Classes for a message."""
    return [(k.isolation, k.is_async, k.cost, k.pin, k.group, k.timed, k.stateful) for k in classes]


def empty_plan(n: int, n_inputs: int, classes: Iterable[tuple[Any, ...]]) -> Plan:
    """A plan of which no function is known yet."""
    plan = Plan()
    plan.n, plan.n_inputs = n, n_inputs
    plan.ids = [None] * (n + n_inputs)
    plan.index = {}
    plan.functions = [_ANY] * n  # type: ignore[list-item]  # what lanes look at is there
    plan.deps = [()] * n
    plan.dependents, plan.indegree, plan.consumers, plan.sinks = [], [], [], []
    plan.plain = [None] * n
    plan.codes = [_unknown] * n
    plan.calls = {}
    plan.class_of = [0] * n
    plan.classes = [LaneClass(*kind) for kind in classes]
    return plan


def _unknown(*_args: Any) -> None:
    raise AssertionError("a guest was not told the code of a function it is to run")


def learn(plan: Plan, codes: dict[int, Any], links: list[int], lesson: Lesson) -> list[int]:
    """Fill in what a lesson says.

    Args:
        plan: the guest's.
        codes: the code of functions by number, as far as the guest has read it.
        links: the guest's.
        lesson: what was said.

    Returns:
        The functions whose code cannot be read here; ``codes`` or ``calls`` has the error.
    """
    for number, payload in lesson.code.items():
        codes[number] = _read(payload)
    bad: list[int] = []
    for i, id_, number, plain, code in zip(
        lesson.indices, lesson.ids, lesson.classes, lesson.plain, lesson.codes, strict=True
    ):
        plan.ids[i] = id_ if type(id_) in PLAIN else unpacked(id_)
        plan.class_of[i] = number
        plan.plain[i] = plain
        if plain is not None:
            plan.codes[i] = found = codes[code]
            plan.deps[i] = plain
        else:
            found = _read(lesson.calls[i])
            if not isinstance(found, SerializationError):
                plan.calls[i] = found
                plan.deps[i] = tuple(raw_needs(found))
        if isinstance(found, SerializationError):
            bad.append(i)
            plan.codes[i] = found  # type: ignore[call-overload]  # it is what running it raises
    for i, limits in lesson.limits.items():
        plan.functions[i] = _Known(*limits)  # type: ignore[call-overload]
    for i, following in lesson.links.items():
        links[i] = following
    return bad


def _read(payload: Payload) -> Any:
    try:
        return loads(payload, "code of a function")
    except SerializationError as error:
        return error


# What a call needs.


def raw_needs(call: Call) -> dict[int, None]:
    """The values that a call takes as they are, inlines seen through."""
    found: dict[int, None] = {}
    for source in all_sources(call):
        if isinstance(source, int):
            found[source] = None
    return found


def converted_needs(call: Call) -> list[Converted]:
    """The values that a call takes through an ``Argument``, inlines seen through."""
    return [
        source
        for source in all_sources(call)
        if isinstance(source, Converted) and source.producer is not None and source.origin is None
    ]


def with_given(call: Call, given: dict[int, tuple[str, Any]]) -> Call:
    """``call`` with what came from other nodes in its place.

    Args:
        call: any.
        given: by ``id()`` of a ``Converted`` in it, the origin and what came.
    """
    inlines: dict[int, InlineCall] = {}

    def replaced(source: Source) -> Source:
        if isinstance(source, int):
            return source
        if isinstance(source, InlineCall):
            return inline(source)
        found = given.get(id(source))
        if found is not None:
            return Converted(
                source.source, source.producer, source.serialize, source.deserialize, *found
            )
        if isinstance(source.source, InlineCall):
            return Converted(
                inline(source.source), source.producer, source.serialize, source.deserialize
            )
        return source

    def inline(source: InlineCall) -> InlineCall:
        made = inlines.get(id(source))
        if made is None:
            made = inlines[id(source)] = InlineCall(source.key, source.call)
            made.call = copied(source.call)
        return made

    def copied(call: Call) -> Call:
        sources = tuple([replaced(source) for source in call.sources])
        return Call(
            call.id, call.code, sources, call.extra_args, call.extra_kwargs, call.as_list,
            call.is_async, call.init, call.batching,
        )  # fmt: skip

    return copied(call)

"""Attempts on their way to other nodes: what each guest knows already, and what it must be told.

    batches by node ─▶ owed ─▶ lesson, small values, places of large ones ─▶ Work ─▶ a guest

Guarantees: an attempt that was placed and not sent, as the runner died in between, is known as
such; what was not heard by a guest is said again; no attempt is sent without what it takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from handoff_actors.cluster.peers import Peer
from handoff_actors.errors import NodeDownError, SerializationError
from handoff_actors.execution.nodes.lessons import (
    CodeBook,
    Teacher,
    columns,
    converted_needs,
    packed,
    raw_needs,
)
from handoff_actors.execution.nodes.messages import (
    SERVICE,
    WORK,
    Begin,
    Carried,
    Forget,
    Lesson,
    Located,
    Work,
)
from handoff_actors.execution.nodes.sizes import carried_bytes, enclose
from handoff_actors.execution.nodes.spread import Spread
from handoff_actors.execution.run_data import MISSING, RunData
from handoff_actors.execution.run_state import Event, Raised, Withdrawn
from handoff_actors.execution.trail import Transfer
from handoff_actors.results.elsewhere import Elsewhere
from handoff_actors.results.sizes import size_of

if TYPE_CHECKING:
    from handoff_actors.execution.nodes.hub import Hub

_CHUNK = 512
"""Attempts in one message, so that a node begins before it has been told of all."""
_ABSENT = type(MISSING)


class _LostInputError(Exception):
    """A value that an attempt takes is not to be had any more, or not yet again."""


class Site:
    """What the orchestrator knows of one guest.

    Attributes:
        peer: the connection.
        teacher: what functions it knows.
        has: per value whether the guest has it, or knows where it is.
        cut: how many cut links it was told of.
    """

    __slots__ = ("cut", "has", "peer", "teacher")

    def __init__(self, peer: Peer, teacher: Teacher, values: int) -> None:
        self.peer = peer
        self.teacher = teacher
        self.has = bytearray(values)
        self.cut = 0

    def unsay(self, lesson: Lesson | None, values: Iterable[int]) -> None:
        """What was to be said was not: out of memory, say."""
        if lesson is not None:
            self.teacher.forget(lesson)
        for d in values:
            self.has[d] = 0

    def post(self, message: Any, service: str = SERVICE) -> bool:
        """Say something; False if nobody hears it."""
        try:
            self.peer.post(service, message)
        except NodeDownError:
            return False
        return True


class Sender:
    """See the module.

    Args:
        data: the run.
        hub: of this node.
        spread: where its attempts are.

    Attributes:
        sites: the guests, by node.
        cut: functions whose links were cut, in order.
        owed: attempts that were placed and not sent yet, by node.
    """

    def __init__(self, data: RunData, hub: Hub, spread: Spread) -> None:
        self.data = data
        self._hub = hub
        self._spread = spread
        self.sites: dict[str, Site] = {}
        self.cut: list[int] = []
        self.owed: dict[str, Sequence[int]] = {}
        self._book = CodeBook(data.plan, data.dag_id)
        self._held = {
            source.producer
            for call in data.plan.calls.values()
            for source in converted_needs(call)
            if source.producer is not None
        }

    # Attempts.

    def send(self, failed: list[Event]) -> list[int]:
        """Send what is owed.

        Args:
            failed: gets what is to be said of attempts that can be run nowhere, or not now.

        Returns:
            Those whose code cannot leave this process, and that can be run here.
        """
        again: list[int] = []
        for name, tokens in self.owed.items():
            for k in range(0, len(tokens), _CHUNK):
                self._post(name, tokens[k : k + _CHUNK], again, failed)
                self.owed[name] = tokens[k + _CHUNK :]
        self.owed.clear()
        return again

    def unsent(self) -> list[int]:
        """Attempts that a runner which has crashed had placed and not sent; on no node now."""
        where = self._spread.where
        found = [t for name, some in self.owed.items() for t in some if where.get(t) == name]
        self.owed.clear()
        for token in found:
            self._spread.ended(token)
        return found

    def _post(
        self, name: str, tokens: Sequence[int], again: list[int], failed: list[Event]
    ) -> None:
        site = self.sites.get(name) or self._open(name)
        if site is None:
            return  # it is gone: that comes as a message, and its attempts are lost
        data, n = self.data, self.data.plan.n
        lesson: Lesson | None = None
        values: dict[int, Any] = {}
        places: dict[int, str] = {}
        sizes: dict[int, int] = {}
        sent: list[int] = []
        for token in tokens:
            i = token % n
            try:
                if not site.teacher.knows(i):
                    lesson = lesson or Lesson()
                    site.teacher.lesson((i,), lesson)
                self._add_values(site, name, i, values, places, sizes)
            except _LostInputError:
                # It waited for its node, or for room, while what it takes was lost.
                self._spread.ended(token)
                failed.append(Withdrawn((token,)))
                continue
            except SerializationError as error:
                self._spread.ended(token)
                if data.plan.classes[data.plan.class_of[i]].pin is None:
                    self._spread.stay.add(i)
                    again.append(token)
                else:
                    failed.append(Raised(token, error, data.node, final=True))
                continue
            sent.append(token)
        new = lesson if lesson is not None and lesson.indices else None
        if new is not None:
            site.teacher.ahead(new)
        cut = self.cut[site.cut :]
        if not (sent or new is not None or values or places or cut):
            return
        start = perf_counter()
        try:
            work = Work(data.key, sent, new, values, places, sizes, cut)
            heard = site.post(tuple(work), WORK)
        except BaseException:
            site.unsay(lesson, (*values, *places))
            raise
        site.cut += len(cut)
        if heard and values:
            self._note_sent(name, values, start)

    def _note_sent(self, name: str, values: Mapping[int, Any], start: float) -> None:
        moved = {d: nbytes for d, value in values.items() if (nbytes := carried_bytes(value))}
        if moved:
            first, size = next(iter(moved)), sum(moved.values())
            data = self.data
            data.trail.moved(
                Transfer(first, data.node, name, start, perf_counter(), size, len(moved))
            )

    def _open(self, name: str) -> Site | None:
        peer = self._hub.peer(name)
        if peer is None:
            return None
        data, plan = self.data, self.data.plan
        teacher = Teacher(plan, self._book, data.links, self._held, name)
        site = Site(peer, teacher, len(data.values))
        begin = Begin(
            data.key,
            packed(data.dag_id, "dag_id"),
            self._hub.incarnation,
            plan.n,
            plan.n_inputs,
            columns(plan.classes),
            data.options.isolation,
        )
        if not site.post(begin):
            return None
        self.sites[name] = site
        return site

    def _add_values(
        self,
        site: Site,
        name: str,
        i: int,
        values: dict[int, Any],
        places: dict[int, str],
        sizes: dict[int, int],
    ) -> None:
        plan, has = self.data.plan, site.has
        plain = plan.plain[i]
        if plain is not None:
            for d in plain:
                if not has[d]:
                    self._add_value(d, values, places, sizes, name)
                    has[d] = 1
            return
        call = plan.calls[i]
        for source in converted_needs(call):
            assert source.producer is not None
            d = source.producer
            value = self.data.peek(d)
            home = value.node if isinstance(value, Located) else self.data.node
            if home != name:
                places[d] = home
                sizes[d] = value.nbytes if isinstance(value, Located) else size_of(value)
        for d in raw_needs(call):
            if not has[d]:
                self._add_value(d, values, places, sizes, name)
                has[d] = 1

    def _add_value(
        self,
        d: int,
        values: dict[int, Any],
        places: dict[int, str],
        sizes: dict[int, int],
        name: str,
    ) -> None:
        value = self.data.peek(d)
        kind = value.__class__
        if kind is Carried:
            values[d] = value.payload
            return
        if kind is _ABSENT:
            raise _LostInputError
        if issubclass(kind, Elsewhere) and kind.on_disk:
            value = Located(self.data.node, size_of(value))
        elif kind is not Located:
            value = enclose(value, self.data.node)
            if value.__class__ is not Located:
                values[d] = value
                return
        if value.node != name:
            places[d] = value.node
            sizes[d] = value.nbytes

    # Values.

    def unlearn(self, indices: Iterable[int]) -> None:
        """What guests were told of these values is not so any more."""
        for site in self.sites.values():
            for i in indices:
                site.has[i] = 0

    def forget(self, indices: Sequence[int]) -> None:
        """Nobody needs these values any more."""
        for site in self.sites.values():
            known = [i for i in indices if site.has[i]]
            if known:
                for i in known:
                    site.has[i] = 0
                site.post(Forget(self.data.key, known))

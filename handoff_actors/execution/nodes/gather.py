"""Sees that attempts have their inputs on this node before they are queued.

What an attempt takes may be on another node, or have come without having been read yet. Then it
waits here, the values are brought by a carrier thread, each once however many wait for it, and the
attempt is ready when the last of them is there. What an ``Argument``'s serializer returned on
another node takes its place in the call of just the function that asked for it.

Used by the strand of one run (or guest) only, but for ``arrived``, which other threads fill.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from handoff_actors.actors.carriers import Carriers
from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.errors import SerializationError, describe
from handoff_actors.execution.nodes.fetching import Fetcher, GoneError, Wish
from handoff_actors.execution.nodes.lessons import converted_needs, raw_needs, with_given
from handoff_actors.execution.nodes.messages import Carried, Located, RunName, ValueKey
from handoff_actors.execution.run_data import MISSING, RunData
from handoff_actors.execution.run_state import Raised
from handoff_actors.graph.calls import Call, Converted

_NOT_HERE = frozenset({Carried, Located, type(MISSING)})


class Gatherer:
    """See the module.

    Args:
        data: the run or guest.
        run: its name.
        fetcher: of this node.
        carriers: whose threads bring values.
        relay: the orchestrator, if that is another node.

    Attributes:
        places: of values that are elsewhere and have no ``Located``: node and size.
    """

    def __init__(
        self,
        data: RunData,
        run: RunName,
        fetcher: Fetcher,
        carriers: Carriers,
        relay: str | None = None,
    ) -> None:
        self.data = data
        self.places: dict[int, tuple[str, int]] = {}
        self._run = run
        self._fetcher = fetcher
        self._carriers = carriers
        self._relay = relay
        self._arrived: deque[tuple[Any, Any, bool]] = deque()
        self._wanted: dict[Any, list[int]] = {}
        self._missing: dict[int, set[Any]] = {}
        self._given: dict[int, dict[int, tuple[str, Any]]] = {}
        self._original: dict[int, Call] = {}
        self._converted: dict[int, list[Converted]] = {}

    def admit(self, tokens: Iterable[int]) -> list[int]:
        """Attempts are to run here: those that have all they need."""
        data = self.data
        plan, n, peek = data.plan, data.plan.n, data.peek
        ready: list[int] = []
        wishes: list[Wish] = []
        carried: list[tuple[int, Carried]] = []
        for token in tokens:
            i = token % n
            plain = plan.plain[i]
            missing: set[Any] | None = None
            if plain is None:
                missing = self._want_for_call(i, token, wishes, carried)
            else:
                for d in plain:
                    if peek(d).__class__ in _NOT_HERE:
                        self._want(d, token, wishes, carried)
                        missing = missing or set()
                        missing.add(d)
            if missing:
                self._missing[token] = missing
            else:
                ready.append(token)
        if wishes:
            self._bring(wishes)
        if carried:
            self._carriers.defer(functools.partial(self._read, carried), brief=True)
        return ready

    def _want(
        self, d: int, token: int, wishes: list[Wish], carried: list[tuple[int, Carried]]
    ) -> None:
        waiting = self._wanted.get(d)
        if waiting is not None:
            waiting.append(token)
            return
        self._wanted[d] = [token]
        value = self.data.peek(d)
        place = self._place(d)
        if isinstance(value, Carried):
            carried.append((d, value))
        elif place is None:
            self._arrived.append((d, GoneError("nobody knows where it is"), False))
        else:
            wishes.append(self._wish(d, d, place, None, token))

    def _place(self, d: int) -> tuple[str, int] | None:
        value = self.data.peek(d)
        if isinstance(value, Located):
            return value.node, value.nbytes
        return self.places.get(d)

    def _wish(
        self, mark: Any, d: int, place: tuple[str, int], serialize: Payload | None, token: int
    ) -> Wish:
        data = self.data
        return Wish(
            mark,
            ValueKey(self._run, d, data.node, serialize),
            place[0],
            place[1],
            self._called(d, token),
        )

    def _called(self, d: int, token: int) -> str:
        """What errors call a value; a guest does not know the ids of functions it has not run."""
        plan = self.data.plan
        if plan.ids[d] is not None:
            return f"result of function {describe(plan.ids[d])}"
        i = token % plan.n
        plain = plan.plain[i]
        which = "an argument" if plain is None else f"argument {plain.index(d) + 1}"
        return f"{which} of function {describe(plan.ids[i])}"

    def _want_for_call(
        self, i: int, token: int, wishes: list[Wish], carried: list[tuple[int, Carried]]
    ) -> set[Any]:
        plan, peek = self.data.plan, self.data.peek
        self.forget_given(i)
        call = plan.calls[i]
        converted = self._converted.get(i)
        if converted is None:
            converted = self._converted[i] = converted_needs(call)
        raw = list(raw_needs(call))
        missing: set[Any] = set()
        for k, source in enumerate(converted):
            p = source.producer
            assert p is not None
            if peek(p).__class__ not in _NOT_HERE:
                continue
            place = self._place(p)
            if isinstance(peek(p), Carried):
                raw.append(p)  # it is small and is here: the serializer runs here, as on one node
                continue
            mark = (i, k)
            missing.add(mark)
            self._wanted[mark] = [token]
            if place is None:
                self._arrived.append((mark, GoneError("nobody knows where it is"), False))
                continue
            try:
                pair = None if source.serialize is None else dumps(source.serialize)
            except SerializationError as error:
                self._arrived.append((mark, error, False))
            else:
                wishes.append(self._wish(mark, p, place, pair, token))
        for d in raw:
            if peek(d).__class__ in _NOT_HERE:
                missing.add(d)
                self._want(d, token, wishes, carried)
        return missing

    def _bring(self, wishes: list[Wish]) -> None:
        homes: dict[str, list[Wish]] = {}
        for wish in wishes:
            homes.setdefault(wish.node, []).append(wish)
        for some in homes.values():
            self._carriers.submit(functools.partial(self._fetch, some))

    def _fetch(self, wishes: list[Wish]) -> None:
        """On a thread that may wait."""
        left = {wish.mark for wish in wishes}
        try:
            for arrival in self._fetcher.bring(wishes, self._relay, self.data.trail):
                left.discard(arrival[0])
                self._arrived.append(arrival)
                self._tell()
        except BaseException as error:  # ours: nobody may be left to wait for ever
            self._arrived.extend((mark, error, False) for mark in left)
        self._tell()

    def _read(self, carried: list[tuple[int, Carried]]) -> None:
        """Values that have come are read on a thread where the user's code may run."""
        for d, value in carried:
            try:
                arrival = (d, loads(value.payload, "value"), True)
            except BaseException as error:  # the user's class may raise anything when it is made
                arrival = (d, error, False)
            self._arrived.append(arrival)
        self._tell()

    def _tell(self) -> None:
        if self.data.ref is not None:
            self.data.ref.signal()

    def settle(self) -> tuple[list[int], dict[int, int], list[Raised]]:
        """What has come.

        Returns:
            Attempts that are ready; those of which an input cannot be had now, each with the index
            of the value if its node says that it has it not, else -1; and those that failed.
        """
        ready: list[int] = []
        back: dict[int, int] = {}
        failed: list[Raised] = []
        while self._arrived:
            mark, value, there = self._arrived.popleft()
            tokens = self._wanted.pop(mark, ())
            if there:
                self._put(mark, value)
            for token in tokens:
                missing = self._missing.get(token)
                if missing is None or mark not in missing:
                    continue
                if there:
                    missing.discard(mark)
                    if not missing:
                        del self._missing[token]
                        self._complete(token)
                        ready.append(token)
                    continue
                del self._missing[token]
                if isinstance(value, GoneError):
                    back[token] = self._index(mark) if value.certain else -1
                else:
                    final = isinstance(value, (MemoryError, SerializationError))
                    failed.append(Raised(token, value, self.data.node, final))
        return ready, back, failed

    def _index(self, mark: Any) -> int:
        if isinstance(mark, int):
            return mark
        producer = self._converted[mark[0]][mark[1]].producer
        return -1 if producer is None else producer

    @property
    def has_news(self) -> bool:
        """Whether ``settle`` has something to say."""
        return bool(self._arrived)

    def _put(self, mark: Any, value: Any) -> None:
        data = self.data
        if isinstance(mark, int):
            if data.peek(mark).__class__ in _NOT_HERE:
                data.values[mark] = value
            return
        i, k = mark
        source = self._converted[i][k]
        assert source.producer is not None
        place = self._place(source.producer)
        origin = data.node if place is None else place[0]
        self._given.setdefault(i, {})[id(source)] = (origin, value)

    def _complete(self, token: int) -> None:
        i = token % self.data.plan.n
        given = self._given.pop(i, None)
        if given:
            calls = self.data.plan.calls
            self._original[i] = calls[i]
            calls[i] = with_given(calls[i], given)
            self.data.code_keys.pop(i, None)

    def forget_given(self, i: int) -> None:
        """A function's attempt is over: what came for it alone is let go."""
        original = self._original.pop(i, None)
        if original is not None:
            self.data.plan.calls[i] = original
            self.data.code_keys.pop(i, None)

    def tokens(self) -> list[int]:
        """The attempts that wait here."""
        return list(self._missing)

    def withdraw(self, tokens: Iterable[int]) -> list[int]:
        """Those among ``tokens`` that wait here; they do so no more."""
        return [token for token in tokens if self._missing.pop(token, None) is not None]

    def learn_places(self, places: Mapping[int, str], sizes: Mapping[int, int]) -> None:
        """Where values are that are not here."""
        for d, node in places.items():
            self.places[d] = (node, sizes.get(d, 0))

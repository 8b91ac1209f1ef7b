"""One node: what it offers, what is free, and who is next in line for it. Pure.

The order is the ledger's promise: owners take turns, an owner's oldest request first, and whoever
is first in line and does not fit may be overtaken ``OVERTAKES`` times before it reserves.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Mapping

from handoff_actors.resources.claims import Claim

OVERTAKES = 8
"""How often the first in line may be overtaken before it reserves."""

Key = tuple[tuple[str, int], ...]
"""A cost as sorted pairs without zeros: equal for whatever fits alike."""


class Wanted:
    """What one owner wants under one tag at one node."""

    __slots__ = (
        "amounts", "asked", "held", "key", "node", "overtaken", "owner", "segments", "tag", "turn",
        "waiting",
    )  # fmt: skip

    def __init__(self, owner: Hashable, tag: Hashable, node: str) -> None:
        self.owner = owner
        self.tag = tag
        self.node = node
        self.asked: Mapping[str, int] = {}  # as it came, to see that it is the same again
        self.amounts: Mapping[str, int] = {}
        self.key: Key = ()
        self.held = 0
        self.waiting = 0
        self.overtaken = 0
        self.turn = 0  # its place in line; smaller is earlier
        self.segments: deque[list[int]] = deque()  # [age, how many claims], oldest first

    def cost(self, asked: Mapping[str, int]) -> None:
        """What one claim takes from now on."""
        self.asked = asked
        self.amounts = {name: amount for name, amount in asked.items() if amount > 0}
        self.key = tuple(sorted(self.amounts.items()))

    def clear(self) -> None:
        """Nothing is wanted any more; out of line."""
        self.segments.clear()
        self.waiting = self.overtaken = 0


def _turn(want: Wanted) -> int:
    return want.turn


def _front_age(want: Wanted) -> int:
    return want.segments[0][0]


def covers(free: Mapping[str, int], key: Iterable[tuple[str, int]]) -> bool:
    """Whether ``free`` is enough for ``key``."""
    for name, amount in key:  # noqa: SIM110  a generator costs three times as much here
        if amount > free.get(name, 0):
            return False
    return True


def less(free: Mapping[str, int], key: Iterable[tuple[str, int]]) -> dict[str, int]:
    """``free`` without ``key``; may go below zero."""
    left = dict(free)
    for name, amount in key:
        left[name] = left.get(name, 0) - amount
    return left


class Node:
    """One node: what it offers, what is free, who waits."""

    __slots__ = ("claims", "free", "lines", "registered", "resuming", "total", "turns", "waiting")

    def __init__(self) -> None:
        self.registered = False
        self.claims = 0  # also those that are suspended or resuming
        self.total: dict[str, int] = {}
        self.free: dict[str, int] = {}
        self.turns = 0  # the last number given to a place in line or an age
        # One line for each shape of cost, in order of turns: whoever wants the same fits alike.
        self.lines: dict[Key, OrderedDict[Wanted, None]] = {}
        self.waiting: dict[Hashable, list[Wanted]] = {}
        self.resuming: dict[int, Claim] = {}

    def used(self) -> dict[str, int]:
        """What is held, without the resources of which nothing is."""
        total = self.total
        return {
            name: total.get(name, 0) - free
            for name, free in self.free.items()
            if total.get(name, 0) != free
        }

    def offer(self, total: Mapping[str, int], *, registered: bool) -> None:
        """Offer ``total`` from now on; what is held stays held."""
        used = self.used()
        self.registered = registered
        self.total = dict(total)
        self.free = less(total, used.items())

    def take(self, amounts: Iterable[tuple[str, int]]) -> None:
        """They are held now, whether they were free or not."""
        free = self.free
        for name, amount in amounts:
            free[name] = free.get(name, 0) - amount

    def give(self, amounts: Iterable[tuple[str, int]]) -> None:
        """They are held no more."""
        free = self.free
        for name, amount in amounts:
            free[name] += amount
            if name not in self.total and not free[name]:
                del free[name]

    def possible(self, key: Iterable[tuple[str, int]]) -> bool:
        """Whether the node could provide this if nobody held anything."""
        return self.registered and covers(self.total, key)

    def join(self, want: Wanted) -> None:
        """Go to the end of the line."""
        self.turns += 1
        want.turn = self.turns
        line = self.lines.get(want.key)
        if line is None:
            line = self.lines[want.key] = OrderedDict()
        line[want] = None
        self.waiting.setdefault(want.owner, []).append(want)

    def leave(self, want: Wanted) -> None:
        """Get out of line."""
        line = self.lines[want.key]
        del line[want]
        if not line:
            del self.lines[want.key]
        mine = self.waiting[want.owner]
        mine.remove(want)
        if not mine:
            del self.waiting[want.owner]

    def next(self, kept: Mapping[str, int]) -> Wanted | None:
        """Who is served next; whom it overtakes has that counted."""
        fronts = [next(iter(line)) for line in self.lines.values()]
        head = fronts[0] if len(fronts) == 1 else min(fronts, key=_turn)
        free = less(self.free, kept.items()) if kept else self.free
        if covers(free, head.key):
            return head
        if len(fronts) == 1:
            return None
        if head.overtaken >= OVERTAKES:
            free = less(free, head.key)
        best = min(
            (want for want in fronts if want is not head and covers(free, want.key)),
            key=_turn,
            default=None,
        )
        if best is not None:
            head.overtaken += 1
        return best

    def served(self, want: Wanted) -> None:
        """The oldest claim of ``want`` is granted: its owner has had its turn.

        This and the owner's younger requests go to the end, by age. An older one, passed over
        because it does not fit, keeps its place.
        """
        want.overtaken = 0
        want.waiting -= 1
        front = want.segments[0]
        front[1] -= 1
        if not front[1]:
            want.segments.popleft()
        mine = self.waiting[want.owner]
        if len(mine) == 1:
            if not want.waiting:
                self.leave(want)
            elif len(self.waiting) > 1:
                self.leave(want)
                self.join(want)
            return
        moved = [other for other in mine if other.turn >= want.turn]
        for other in moved:
            self.leave(other)
        for other in sorted((other for other in moved if other.waiting), key=_front_age):
            self.join(other)

    def ask(self, want: Wanted, more: int) -> None:
        """Want ``more`` claims, younger than all the owner asked for; joins no line yet."""
        want.waiting += more
        if want.segments and len(self.waiting[want.owner]) == 1:
            want.segments[-1][1] += more
        else:
            self.turns += 1
            want.segments.append([self.turns, more])

    def lower(self, want: Wanted, count: int) -> bool:
        """Take back the ``count`` youngest; True if ``want`` left the line by it."""
        segments = want.segments
        want.waiting -= count
        while count:
            taken = min(count, segments[-1][1])
            segments[-1][1] -= taken
            count -= taken
            if not segments[-1][1]:
                segments.pop()
        if segments:
            return False
        self.leave(want)
        want.overtaken = 0
        return True

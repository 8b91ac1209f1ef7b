"""On which node each attempt of a run goes. Pure: nodes, outcomes and deadlines come as calls.

    ready ─▶ incoming ─▶ pinned, collocated or without cost ─▶ a node
                     └─▶ backlog ─▶ the allocator, about what may fit now ─▶ a node
                                └─▶ a few more behind what runs, while functions prove short
    a node that is not up ─▶ parked till it returns, or till that is overdue

An attempt is in exactly one of these places, and on at most one node. What an allocator placed is
counted against what is free there; what was only sent ahead is not, takes the place of what ends
before it, and is asked back when another node has room for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

from handoff_actors.execution.placement import ask_allocator
from handoff_actors.graph.plan import Plan
from handoff_actors.resources.allocator import Request, place_free
from handoff_actors.resources.capabilities import MICRO, NodeCapacity

AHEAD_SECONDS = 4e-3
"""How much work may wait at a node behind each attempt that runs there."""
_MOST_AHEAD = 256
_QUESTION = 256
"""About how many attempts at most a built-in allocator is asked at a time."""


class Site:
    """One node that is up or suspect.

    Attributes:
        name: of the node.
        up: whether it may be given new work.
        total: what it offers, in micro-units.
        others: what is held there by others than this run.
        placed: per class, attempts there that count against what is free.
        ahead: per class, attempts that were sent ahead.
    """

    __slots__ = ("ahead", "name", "others", "placed", "total", "up")

    def __init__(self, name: str) -> None:
        self.name = name
        self.up = True
        self.total: Mapping[str, int] = {}
        self.others: Mapping[str, int] = {}
        self.placed: dict[int, int] = {}
        self.ahead: dict[int, int] = {}

    def could(self, cost: Mapping[str, int]) -> bool:
        """Whether it would fit if nobody held anything."""
        return all(amount <= self.total.get(name, 0) for name, amount in cost.items())


class Spread:
    """See the module.

    Args:
        plan: what is run.
        here: this node's name.
        allocator: the strategy.
        own: whether the strategy is the user's: then it is asked about all that is not pinned, and
            nothing is sent ahead.
        limit: how many attempts may be on nodes at once; None is no limit.
        input_bytes: per function, the bytes of its arguments by node.

    Attributes:
        sites: the nodes that are up or suspect, this one first.
        where: the node of each attempt that is on one, oldest first.
        parked: attempts that wait for a node that is not up, by its name.
        stay: functions that can run nowhere but here.
    """

    __slots__ = (
        "_allocator", "_asked", "_backlog", "_costs", "_groups", "_here", "_incoming",
        "_input_bytes", "_limit", "_means", "_number", "_own", "_plan", "_units", "parked",
        "sites", "stay", "where",
    )  # fmt: skip

    def __init__(
        self,
        plan: Plan,
        here: str,
        allocator: Any,
        *,
        own: bool = False,
        limit: int | None = None,
        input_bytes: Callable[[int], Mapping[str, int]] = lambda _i: {},
    ) -> None:
        self._plan = plan
        self._here = here
        self._allocator = allocator
        self._own = own
        self._limit = limit
        self._input_bytes = input_bytes
        self._costs: list[Mapping[str, int]] = [kind.cost or {} for kind in plan.classes]
        self._units = [
            {name: amount / MICRO for name, amount in cost.items()} for cost in self._costs
        ]
        self._incoming: deque[int] = deque()
        self._backlog: dict[int, deque[tuple[int, int]]] = {}
        self._number = 0
        self._groups: dict[int, str] = {}
        self._means: dict[int, float] = {}
        self._asked: set[int] = set()
        self.sites: dict[str, Site] = {here: Site(here)}
        self.where: dict[int, str] = {}
        self.parked: dict[str, list[int]] = {}
        self.stay: set[int] = set()

    # What nodes do.

    def capacity(self, name: str, total: Mapping[str, int], others: Mapping[str, int]) -> None:
        """What a node offers, and what of it is held by others; micro-units."""
        site = self.sites.get(name)
        if site is not None:
            site.total, site.others = total, others

    def node_up(self, name: str) -> None:
        """A node may be given work: it has joined, returned, or been heard again."""
        site = self.sites.get(name)
        if site is None:
            site = self.sites[name] = Site(name)
        site.up = True
        self._incoming.extendleft(reversed(self.parked.pop(name, ())))

    def node_suspect(self, name: str) -> None:
        """A node is silent: no new work; nothing else is said."""
        site = self.sites.get(name)
        if site is not None:
            site.up = False

    def node_down(self, name: str) -> list[int]:
        """A node is gone: the attempts that were on it, which are on no node now."""
        self.sites.pop(name, None)
        lost = [token for token, where in self.where.items() if where == name]
        for token in lost:
            del self.where[token]
        self._asked.difference_update(lost)
        freed = [group for group, node in self._groups.items() if node == name]
        for group in freed:
            del self._groups[group]
        if freed and name in self.parked:
            plan, n = self._plan, self._plan.n
            parked = self.parked.pop(name)
            pinned = [t for t in parked if plan.classes[plan.class_of[t % n]].group is None]
            self._incoming.extend(t for t in parked if t not in set(pinned))
            if pinned:
                self.parked[name] = pinned
        return lost

    def overdue(self, name: str) -> list[int]:
        """It is too late for the return of a node: the attempts that wait for it still."""
        return [] if name in self.sites else list(self.parked.get(name, ()))

    def hopeless(self) -> list[int]:
        """Attempts that no node there is could ever run: the first of each class."""
        return [
            waiting[0][1]
            for number, waiting in self._backlog.items()
            if waiting and not any(site.could(self._costs[number]) for site in self.sites.values())
        ]

    # What attempts do.

    def ready(self, tokens: Iterable[int]) -> None:
        """They are to be placed."""
        self._incoming.extend(tokens)

    def ended(self, token: int, following: int = -1) -> None:
        """An attempt is on its node no more; ``following`` is there instead."""
        name = self.where.pop(token, None)
        if name is None:
            return
        self._asked.discard(token)
        if following >= 0:
            self.where[following] = name
            return
        site = self.sites.get(name)
        if site is not None:
            number = self._plan.class_of[token % self._plan.n]
            if site.ahead.get(number):
                site.ahead[number] -= 1
            else:
                site.placed[number] -= 1

    def took(self, token: int, seconds: float) -> None:
        """How long an attempt ran."""
        number = self._plan.class_of[token % self._plan.n]
        mean = self._means.get(number)
        self._means[number] = seconds if mean is None else mean + 0.2 * (seconds - mean)

    def drop(self, token: int) -> None:
        """An attempt is wanted no more, wherever it waits."""
        self.ended(token)
        for name, tokens in list(self.parked.items()):
            if token in tokens:
                tokens.remove(token)
                if not tokens:
                    del self.parked[name]

    @property
    def waits(self) -> bool:
        """Whether something waits for room."""
        return bool(self._incoming) or any(self._backlog.values())

    @property
    def is_ahead(self) -> bool:
        """Whether something was sent ahead."""
        return any(count for site in self.sites.values() for count in site.ahead.values())

    def charges(self, name: str) -> dict[str, int]:
        """What the attempts placed on a node claim together, in micro-units."""
        site = self.sites.get(name)
        sums: dict[str, int] = {}
        if site is not None:
            for number, count in site.placed.items():
                for resource, amount in self._costs[number].items():
                    sums[resource] = sums.get(resource, 0) + amount * count
        return sums

    # Placing.

    def place(self) -> dict[str, list[int]]:
        """What goes where now.

        Raises:
            AllocationError: the user's allocator raised, or its answer cannot be used.
        """
        out: dict[str, list[int]] = {}
        incoming, where, sites = self._incoming, self.where, self.sites
        plan, n, limit = self._plan, self._plan.n, self._limit
        while incoming:
            if limit is not None and len(where) >= limit:
                return out
            token = incoming.popleft()
            i = token % n
            number = plan.class_of[i]
            kind = plan.classes[number]
            target = kind.pin
            if self.stay and i in self.stay:
                target = self._here
            elif target is None:
                if kind.group is not None:
                    target = self._groups.get(kind.group)
                if target is None and (kind.cost or self._own):
                    self._number += 1
                    self._backlog.setdefault(number, deque()).append((self._number, token))
                    continue
                if target is None:
                    target = self._by_bytes(i, kind.group)
            site = sites.get(target)
            if site is None or not site.up:
                self.parked.setdefault(target, []).append(token)
                continue
            self._put(token, site, number, out)
        if any(self._backlog.values()):
            self._allocate(out)
        return out

    def _put(
        self, token: int, site: Site, number: int, out: dict[str, list[int]], ahead: bool = False
    ) -> None:
        self.where[token] = site.name
        counts = site.ahead if ahead else site.placed
        counts[number] = counts.get(number, 0) + 1
        batch = out.get(site.name)
        if batch is None:
            out[site.name] = [token]
        else:
            batch.append(token)

    def _by_bytes(self, i: int, group: int | None) -> str:
        """The place of a function without cost."""
        sizes = self._input_bytes(i)
        names: Collection[str] = [s.name for s in self.sites.values() if s.up]
        if group is not None:
            names = self._fit_for(group, names)
            if not names:
                return self._here
        elif len(sizes) == 1 and self._here in sizes:
            return self._here
        name = place_free([Request(i, {}, sizes)], names)[i] if names else self._here
        if group is not None:
            self._groups[group] = name
        return name

    def _fit_for(self, group: int, names: Iterable[str]) -> list[str]:
        """The nodes on which every function of a group could run."""
        costs = {self._plan.class_of[i]: None for i in self._plan.groups[group]}
        return [
            name for name in names if all(self.sites[name].could(self._costs[c]) for c in costs)
        ]

    def _free(self, site: Site) -> dict[str, int]:
        free = {name: total - site.others.get(name, 0) for name, total in site.total.items()}
        for number, count in site.placed.items():
            if count:
                for name, amount in self._costs[number].items():
                    free[name] = free.get(name, 0) - amount * count
        return free

    def _allocate(self, out: dict[str, list[int]]) -> None:
        classes = self._plan.classes
        for number, waiting in self._backlog.items():
            if waiting and classes[number].group is not None:
                self._place_group(number, out)
        room = None if self._limit is None else max(0, self._limit - len(self.where))
        free = self._free_of_all()
        asked: list[tuple[int, int, int]] = []
        for number, waiting in self._backlog.items():
            if not waiting or classes[number].group is not None:
                continue
            count = len(waiting)
            if not self._own:
                slots = sum(_slots(amounts, self._costs[number]) for amounts in free.values())
                count = min(slots, count, _QUESTION)
            asked.extend((*waiting[k], number) for k in range(count))
        asked.sort()
        asked = asked[:room]
        if asked:
            self._ask(asked, free, out)
        if not self._own and self._limit is None:
            self._send_ahead(out)

    def _free_of_all(self) -> dict[str, dict[str, int]]:
        return {site.name: self._free(site) for site in self.sites.values() if site.up}

    def _ask(
        self,
        asked: Sequence[tuple[int, int, int]],
        free: Mapping[str, Mapping[str, int]],
        out: dict[str, list[int]],
    ) -> None:
        plan, n = self._plan, self._plan.n
        requests = [
            Request(plan.ids[token % n], self._units[number], self._input_bytes(token % n))
            for _, token, number in asked
        ]
        answer = ask_allocator(self._allocator, requests, self._capacities(free), check=self._own)
        gone: set[int] = set()
        for _, token, number in asked:
            name = answer.get(plan.ids[token % n])
            if name is not None:
                self._put(token, self.sites[name], number, out)
                gone.add(token)
        for number in {number for _, token, number in asked if token in gone}:
            self._backlog[number] = deque(e for e in self._backlog[number] if e[1] not in gone)

    def _capacities(self, free: Mapping[str, Mapping[str, int]]) -> dict[str, NodeCapacity]:
        return {
            name: NodeCapacity(
                {r: amount / MICRO for r, amount in amounts.items()},
                {r: amount / MICRO for r, amount in self.sites[name].total.items()},
            )
            for name, amounts in free.items()
        }

    def _place_group(self, number: int, out: dict[str, list[int]]) -> None:
        """Decide the place of a group by the first of it that is ready; the others follow it."""
        group = self._plan.classes[number].group
        assert group is not None
        waiting = self._backlog[number]
        if group not in self._groups:
            free = self._free_of_all()
            names = self._fit_for(group, free)
            i = waiting[0][1] % self._plan.n
            request = Request(self._plan.ids[i], self._units[number], self._input_bytes(i))
            nodes = self._capacities({name: free[name] for name in names})
            answer = ask_allocator(self._allocator, [request], nodes, check=self._own)
            name = answer.get(request.id)
            if name is None:
                return
            self._groups[group] = name
        site = self.sites[self._groups[group]]
        if not site.up:
            self.parked.setdefault(site.name, []).extend(token for _, token in waiting)
            waiting.clear()
        while waiting and (self._limit is None or len(self.where) < self._limit):
            self._put(waiting.popleft()[1], site, number, out)

    # Work that is sent ahead.

    def _send_ahead(self, out: dict[str, list[int]]) -> None:
        """Let some wait at the nodes themselves, if nothing else waits that they could delay."""
        waiting = [(number, queue) for number, queue in self._backlog.items() if queue]
        if len(waiting) != 1:
            return
        number, queue = waiting[0]
        mean = self._means.get(number)
        if mean is None or self._plan.classes[number].group is not None:
            return
        depth = min(_MOST_AHEAD, int(AHEAD_SECONDS / max(mean, 1e-9)))
        for site in self.sites.values():
            if not site.up:
                continue
            count = depth * site.placed.get(number, 0) - site.ahead.get(number, 0)
            while count > 0 and queue:
                self._put(queue.popleft()[1], site, number, out, ahead=True)
                count -= 1

    def ask_back(self) -> dict[str, list[int]]:
        """What should come back from the nodes where it waits, as another has room for it."""
        asked: dict[str, list[int]] = {}
        for number in range(len(self._costs)):
            victims = [s for s in self.sites.values() if s.ahead.get(number)]
            if not victims or self._backlog.get(number):
                continue
            cost = self._costs[number]
            room = {s.name: _slots(self._free(s), cost) for s in self.sites.values() if s.up}
            for victim in victims:
                count = min(
                    victim.ahead[number],
                    sum(slots for name, slots in room.items() if name != victim.name),
                )
                if count > 0:
                    asked[victim.name] = self._youngest(victim.name, number, count)
        return {name: tokens for name, tokens in asked.items() if tokens}

    def _youngest(self, name: str, number: int, count: int) -> list[int]:
        n, class_of = self._plan.n, self._plan.class_of
        found: list[int] = []
        for token in reversed(self.where):
            if len(found) == count:
                break
            if self.where[token] == name and class_of[token % n] == number:
                if token not in self._asked:
                    self._asked.add(token)
                    found.append(token)
                else:
                    count -= 1
        return found

    def members(self) -> list[int]:
        """Every attempt that is known here, wherever it is; for tests."""
        found = [*self._incoming, *self.where]
        found += [token for queue in self._backlog.values() for _, token in queue]
        found += [token for tokens in self.parked.values() for token in tokens]
        return found

    def group_place(self, group: int) -> Hashable:
        """Where a group is, if that is decided."""
        return self._groups.get(group)


def _slots(free: Mapping[str, int], cost: Mapping[str, int]) -> int:
    """How many of this cost fit."""
    return max(0, min((free.get(name, 0) // amount for name, amount in cost.items()), default=0))

"""On which node each attempt of a run goes. Pure: nodes, outcomes and deadlines come as calls.

    ready ─▶ incoming ─▶ pinned, collocated or without cost ─▶ a node
                     └─▶ backlog ─▶ the index of nodes, or the user's allocator ─▶ a node
                                └─▶ a few more behind what runs, while functions prove short
    a node that is not up ─▶ parked till it returns, or till that is overdue

A placement by a built-in strategy takes O(log nodes): no outcome has all nodes, or all that waits,
looked at. An allocator of the user's is told all of both, as its contract says.

An attempt is in exactly one of these places, and on at most one node. What an allocator placed is
counted against what is free there; what was only sent ahead is not, takes the place of what ends
before it, and is asked back when another node has room for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from typing import Any

from handoff_actors.execution.placement import ask_allocator
from handoff_actors.graph.plan import Plan
from handoff_actors.resources.allocator import LoadBalanced, Request
from handoff_actors.resources.capabilities import MICRO, NodeCapacity
from handoff_actors.resources.node_index import NodeIndex, cost_key

AHEAD_SECONDS = 4e-3
"""How much work may wait at a node behind each attempt that runs there."""
_MOST_AHEAD = 256


class Site:
    """One node that is up or suspect.

    Attributes:
        name: of the node.
        up: whether it may be given new work.
        total: what it offers, in micro-units.
        others: what is held there by others than this run.
        placed: per class, attempts there that count against what is free.
        ahead: per class, attempts that were sent ahead.
        order: larger than those of the nodes that came before.
    """

    __slots__ = ("ahead", "name", "order", "others", "placed", "total", "up")

    def __init__(self, name: str, order: int) -> None:
        self.name = name
        self.order = order
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
        moved: nodes on which this run holds more or less than when it was last cleared.
    """

    __slots__ = (
        "_ahead", "_allocator", "_asked", "_backlog", "_balanced", "_costs", "_depths", "_feasible",
        "_groups", "_here", "_incoming", "_index", "_input_bytes", "_keys", "_limit", "_means",
        "_number", "_own", "_plan", "_short", "_units", "moved", "parked", "sites", "stay", "where",
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
        self._keys = [cost_key(cost) for cost in self._costs]
        self._balanced = isinstance(allocator, LoadBalanced)
        self._index = NodeIndex()
        self._feasible: dict[int, bool] = {}
        self._ahead = 0
        self._short: dict[int, dict[str, None]] = {}
        self._depths: dict[int, int] = {}
        self._incoming: deque[int] = deque()
        self._backlog: dict[int, deque[tuple[int, int]]] = {}
        self._number = 0
        self._groups: dict[int, str] = {}
        self._means: dict[int, float] = {}
        self._asked: set[int] = set()
        self.sites: dict[str, Site] = {}
        self.where: dict[int, str] = {}
        self.parked: dict[str, list[int]] = {}
        self.stay: set[int] = set()
        self.moved: set[str] = set()
        self.node_up(here)

    # What nodes do.

    def capacity(self, name: str, total: Mapping[str, int], others: Mapping[str, int]) -> None:
        """What a node offers, and what of it is held by others; micro-units."""
        site = self.sites.get(name)
        if site is None or (site.total == total and site.others == others):
            return
        if site.total != total:
            self._feasible.clear()
        site.total, site.others = total, others
        if site.up:
            self._offer(site)

    def node_up(self, name: str) -> None:
        """A node may be given work: it has joined, returned, or been heard again."""
        site = self.sites.get(name)
        if site is None:
            order = next(reversed(self.sites.values())).order + 1 if self.sites else 0
            site = self.sites[name] = Site(name, order)
            self._feasible.clear()
        site.up = True
        self._offer(site)
        for number in site.placed:
            self._short.setdefault(number, {})[name] = None
        self._incoming.extendleft(reversed(self.parked.pop(name, ())))

    def _offer(self, site: Site) -> None:
        free = {name: total - site.others.get(name, 0) for name, total in site.total.items()}
        for name, amount in self.charges(site.name).items():
            free[name] = free.get(name, 0) - amount
        self._index.offer(site.name, site.total, free)

    def node_suspect(self, name: str) -> None:
        """A node is silent: no new work; nothing else is said."""
        site = self.sites.get(name)
        if site is not None:
            site.up = False
            self._index.offer(name, site.total, {})

    def node_down(self, name: str) -> list[int]:
        """A node is gone: the attempts that were on it, which are on no node now."""
        site = self.sites.pop(name, None)
        if site is not None:
            self._ahead -= sum(site.ahead.values())
            self._index.remove(name)
            self._feasible.clear()
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
            if waiting and not self._is_feasible(number)
        ]

    def _is_feasible(self, number: int) -> bool:
        """Whether some node could run this class; looked at anew when nodes change."""
        found = self._feasible.get(number)
        if found is None:
            cost = self._costs[number]
            found = any(site.could(cost) for site in self.sites.values())
            self._feasible[number] = found
        return found

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
                self._ahead -= 1
                self._short.setdefault(number, {})[name] = None
            else:
                site.placed[number] -= 1
                cost = self._keys[number]
                if cost:
                    self.moved.add(name)
                    if site.up:
                        self._index.give(name, cost)

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
        return bool(self._incoming or (self._backlog and any(self._backlog.values())))

    @property
    def is_ahead(self) -> bool:
        """Whether something was sent ahead."""
        return self._ahead > 0

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
        if self._backlog and any(self._backlog.values()):
            self._allocate(out)
        return out

    def _put(
        self, token: int, site: Site, number: int, out: dict[str, list[int]], ahead: bool = False
    ) -> None:
        self.where[token] = site.name
        if ahead:
            self._ahead += 1
            site.ahead[number] = site.ahead.get(number, 0) + 1
        else:
            site.placed[number] = site.placed.get(number, 0) + 1
            cost = self._keys[number]
            if cost:
                self.moved.add(site.name)
                self._index.take(site.name, cost)
                self._short.setdefault(number, {})[site.name] = None
        batch = out.get(site.name)
        if batch is None:
            out[site.name] = [token]
        else:
            batch.append(token)

    def _by_bytes(self, i: int, group: int | None) -> str:
        """The place of a function without cost: most input bytes, on a tie the first node."""
        sizes = self._input_bytes(i)
        if group is None and len(sizes) == 1 and self._here in sizes:
            return self._here
        best = self.sites[self._here]
        if group is not None:
            fit = self._first_fit(group)
            if fit is None:
                return self._here
            best = fit
        rank = (sizes.get(best.name, 0), -best.order)
        for name, size in sizes.items():
            site = self.sites.get(name)
            if (
                site is not None
                and site.up
                and (size, -site.order) > rank
                and (group is None or self._fits(group, site))
            ):
                best, rank = site, (size, -site.order)
        if group is not None:
            self._groups[group] = best.name
        return best.name

    def _fits(self, group: int, site: Site) -> bool:
        """Whether every function of a group could run on a node."""
        numbers = {self._plan.class_of[i]: None for i in self._plan.groups[group]}
        return all(site.could(self._costs[number]) for number in numbers)

    def _first_fit(self, group: int) -> Site | None:
        sites = (site for site in self.sites.values() if site.up)
        return next((site for site in sites if self._fits(group, site)), None)

    def _allocate(self, out: dict[str, list[int]]) -> None:
        classes = self._plan.classes
        for number, waiting in self._backlog.items():
            if waiting and classes[number].group is not None:
                self._place_group(number, out)
        room = None if self._limit is None else max(0, self._limit - len(self.where))
        queues = {
            number: waiting
            for number, waiting in self._backlog.items()
            if waiting and classes[number].group is None
        }
        if not queues or room == 0:
            return
        if self._own:
            asked = sorted((*entry, number) for number in queues for entry in queues[number])
            self._ask(asked[:room], out)
        else:
            self._place_oldest(queues, room, out)
            if self._limit is None:
                self._send_ahead(out)

    def _place_oldest(
        self,
        queues: Mapping[int, deque[tuple[int, int]]],
        room: int | None,
        out: dict[str, list[int]],
    ) -> None:
        """Place by a built-in strategy, oldest first, until nothing more fits."""
        heads = [(*queue[0], number) for number, queue in queues.items()]
        heapify(heads)
        while heads and room != 0:
            _, token, number = heads[0]
            name = self._choose(number, token)
            if name is None:  # nothing of this cost fits now: the younger ones need not be tried
                heappop(heads)
                continue
            queue = queues[number]
            queue.popleft()
            self._put(token, self.sites[name], number, out)
            room = None if room is None else room - 1
            if queue:
                heapreplace(heads, (*queue[0], number))
            else:
                heappop(heads)

    def _choose(self, number: int, token: int) -> str | None:
        key = self._keys[number]
        if self._balanced:
            return self._index.load_balanced(key, self._input_bytes(token % self._plan.n))
        return self._index.first_available(key)

    def _free_of_all(self) -> dict[str, dict[str, int]]:
        return {site.name: self._index.free(site.name) for site in self.sites.values() if site.up}

    def _ask(
        self,
        asked: Sequence[tuple[int, int, int]],
        out: dict[str, list[int]],
    ) -> None:
        """Have the user's allocator place what waits."""
        plan, n = self._plan, self._plan.n
        requests = [
            Request(plan.ids[token % n], self._units[number], self._input_bytes(token % n))
            for _, token, number in asked
        ]
        answer = ask_allocator(self._allocator, requests, self._capacities(self._free_of_all()))
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
            name = None if self._own else self._choose(number, waiting[0][1])
            if self._own or (name is not None and not self._fits(group, self.sites[name])):
                name = self._ask_for_group(group, number, waiting[0][1] % self._plan.n)
            if name is None:
                return
            self._groups[group] = name
        site = self.sites[self._groups[group]]
        if not site.up:
            self.parked.setdefault(site.name, []).extend(token for _, token in waiting)
            waiting.clear()
        while waiting and (self._limit is None or len(self.where) < self._limit):
            self._put(waiting.popleft()[1], site, number, out)

    def _ask_for_group(self, group: int, number: int, i: int) -> str | None:
        """Where the group goes if its function ``i`` is asked about, and all of it is to fit."""
        request = Request(self._plan.ids[i], self._units[number], self._input_bytes(i))
        free = {
            name: amounts
            for name, amounts in self._free_of_all().items()
            if self._fits(group, self.sites[name])
        }
        nodes = self._capacities(free)
        return ask_allocator(self._allocator, [request], nodes, check=self._own).get(request.id)

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
        if not depth:
            return
        short = self._short.setdefault(number, {})
        before = self._depths.get(number, 0)
        if depth >= 2 * before or depth < before // 2:
            # Only a depth that is really another one has all nodes looked at.
            self._depths[number] = depth
            short.update(dict.fromkeys(self.sites))
        while short and queue:
            name = next(iter(short))
            site = self.sites.get(name)
            if site is not None and site.up:
                count = depth * site.placed.get(number, 0) - site.ahead.get(number, 0)
                while count > 0 and queue:
                    self._put(queue.popleft()[1], site, number, out, ahead=True)
                    count -= 1
                if count > 0:
                    return
            del short[name]

    def ask_back(self) -> dict[str, list[int]]:
        """What should come back from the nodes where it waits, as another has room for it."""
        asked: dict[str, list[int]] = {}
        for number in range(len(self._costs) if self._ahead else 0):
            victims = [s for s in self.sites.values() if s.ahead.get(number)]
            if not victims or self._backlog.get(number):
                continue
            cost = self._costs[number]
            room = {name: _slots(free, cost) for name, free in self._free_of_all().items()}
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

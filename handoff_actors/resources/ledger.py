"""Who holds what and who waits for it, on every node: a pure state machine.

``ledger.handle(event) -> effects``, or the method of the event's name directly.

Guarantees, per node:

* never more is held than the node offers (unless ``Register`` lowered that under use, or a claim is
  resumed that the node can no longer ever hold: it runs on, nothing waits for ever);
* owners take turns, and an owner's oldest request goes first. A request that does not fit may be
  overtaken ``OVERTAKES`` times once it is first in line; then it reserves: nothing is granted that
  takes what it lacks, or makes it lack more. So what can be met is met;
* nothing waits that fits and that no reservation holds back;
* an event costs O(distinct cost shapes that wait) for each claim it grants, however many wait or
  hold.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from handoff_actors.resources.capabilities import MICRO
from handoff_actors.resources.claims import (
    Claim,
    Effect,
    Event,
    Granted,
    Infeasible,
    OwnerGone,
    Register,
    Release,
    ReleaseMany,
    Resume,
    Resumed,
    Suspend,
    Unregister,
    Want,
)

__all__ = [
    "OVERTAKES", "Claim", "Effect", "Event", "Granted", "Infeasible", "Ledger", "OwnerGone",
    "Register", "Release", "ReleaseMany", "Resume", "Resumed", "Suspend", "Unregister", "Want",
]  # fmt: skip

OVERTAKES = 8
"""How often the first in line may be overtaken before it reserves."""

Key = tuple[tuple[str, int], ...]


class _Want:
    """What one owner wants under one tag at one node."""

    __slots__ = (
        "amounts", "held", "key", "node", "overtaken", "owner", "segments", "tag", "turn", "waiting",
    )  # fmt: skip

    def __init__(self, owner: Hashable, tag: Hashable, node: str) -> None:
        self.owner = owner
        self.tag = tag
        self.node = node
        self.amounts: Mapping[str, int] = {}
        self.key: Key = ()
        self.held = 0
        self.waiting = 0
        self.overtaken = 0
        self.turn = 0  # its place in line; smaller is earlier
        self.segments: deque[list[int]] = deque()  # [age, how many claims], oldest first

    def clear(self) -> None:
        self.segments.clear()
        self.waiting = 0


class _Node:
    """One node: what it offers, what is free, who waits."""

    __slots__ = ("claims", "free", "lines", "registered", "resuming", "total", "waiting")

    def __init__(self) -> None:
        self.registered = False
        self.claims = 0  # also those that are suspended or resuming
        self.total: dict[str, int] = {}
        self.free: dict[str, int] = {}
        # One line for each shape of cost, each in order of turns: whoever wants the same fits alike.
        self.lines: dict[Key, OrderedDict[_Want, None]] = {}
        self.waiting: dict[Hashable, list[_Want]] = {}
        self.resuming: dict[int, Claim] = {}

    def take(self, amounts: Iterable[tuple[str, int]]) -> None:
        free = self.free
        for name, amount in amounts:
            free[name] = free.get(name, 0) - amount

    def give(self, amounts: Iterable[tuple[str, int]]) -> None:
        free = self.free
        for name, amount in amounts:
            free[name] += amount
            if name not in self.total and not free[name]:
                del free[name]

    def lacking(self, key: Iterable[tuple[str, int]]) -> tuple[str, int] | None:
        """The first (resource, amount) the node could never provide."""
        for name, amount in key:
            if amount > self.total.get(name, 0):
                return name, amount
        return None


class _Owner:
    __slots__ = ("claims", "wants")

    def __init__(self) -> None:
        self.claims: dict[int, Claim] = {}
        self.wants: dict[tuple[str, Hashable], _Want] = {}


def _turn(want: _Want) -> int:
    return want.turn


def _front_age(want: _Want) -> int:
    return want.segments[0][0]


def _covers(free: Mapping[str, int], key: Iterable[tuple[str, int]]) -> bool:
    for name, amount in key:
        if amount > free.get(name, 0):
            return False
    return True


def _used(at: _Node) -> dict[str, int]:
    total = at.total
    return {n: total.get(n, 0) - free for n, free in at.free.items() if total.get(n, 0) != free}


def _less(free: Mapping[str, int], key: Iterable[tuple[str, int]]) -> dict[str, int]:
    left = dict(free)
    for name, amount in key:
        left[name] = left.get(name, 0) - amount
    return left


class Ledger:
    """The claims of all nodes it is told of. Not thread-safe: it has one owner."""

    __slots__ = ("_age", "_claims", "_next_id", "_nodes", "_owners", "_suspended", "_turn")

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        self._owners: dict[Hashable, _Owner] = {}
        self._claims: dict[int, Claim] = {}
        self._suspended: set[int] = set()
        self._next_id = 1
        self._turn = 0
        self._age = 0

    def handle(self, event: Event) -> list[Effect]:
        """Apply one event; its effects in the order they are to be carried out.

        Raises:
            TypeError: the event is none of ``Event``.
        """
        match event:
            case Want(owner, tag, node, amounts, count):
                return self.want(owner, tag, node, amounts, count)
            case Release(claim_id):
                return self.release(claim_id)
            case ReleaseMany(claim_ids):
                return self.release_many(claim_ids)
            case OwnerGone(owner):
                return self.owner_gone(owner)
            case Suspend(claim_id):
                return self.suspend(claim_id)
            case Resume(claim_id):
                return self.resume(claim_id)
            case Register(node, amounts):
                return self.register(node, amounts)
            case Unregister(node):
                return self.unregister(node)
        raise TypeError(f"{event!r} is no event of the ledger")

    # Nodes

    def register(self, node: str, amounts: Mapping[str, int]) -> list[Effect]:
        """See ``Register``: what is in use stays in use, so ``free`` may go below zero."""
        at = self._nodes.get(node)
        if at is None:
            at = self._nodes[node] = _Node()
        return self._offer(node, at, dict(amounts), registered=True)

    def unregister(self, node: str) -> list[Effect]:
        """See ``Unregister``; an unknown node is ignored."""
        at = self._nodes.get(node)
        if at is None:
            return []
        effects = self._offer(node, at, {}, registered=False)
        self._forget_node(node, at)
        return effects

    def _offer(
        self, node: str, at: _Node, total: dict[str, int], *, registered: bool
    ) -> list[Effect]:
        used = _used(at)
        at.registered = registered
        at.total = total
        at.free = _less(total, used.items())
        effects: list[Effect] = []
        for key in list(at.lines):
            if not registered or at.lacking(key) is not None:
                for want in list(at.lines[key]):
                    self._leave_line(at, want)
                    effects.append(self._infeasible(at, want))
                    self._forget_want(want)
        for claim in list(at.resuming.values()):
            if not registered or at.lacking(claim.amounts.items()) is not None:
                effects.append(self._take_back(at, claim))
        self._hand_out(at, effects)
        return effects

    # Requests

    def want(
        self, owner: Hashable, tag: Hashable, node: str, amounts: Mapping[str, int], count: int
    ) -> list[Effect]:
        """See ``Want``. What fits fairly is granted at once, the rest as others release."""
        who = self._owners.get(owner)
        want = None if who is None else who.wants.get((node, tag))
        if want is None:
            if count <= 0:
                return []
            if who is None:
                who = self._owners[owner] = _Owner()
            want = who.wants[node, tag] = _Want(owner, tag, node)
        at = self._nodes.get(node)
        if at is None:
            at = self._nodes[node] = _Node()
        effects: list[Effect] = []
        waiting = want.waiting
        freed = False
        if amounts is not want.amounts and amounts != want.amounts:
            if waiting:
                self._leave_line(at, want)
                want.clear()
                waiting, freed = 0, True
            want.amounts = {name: amount for name, amount in amounts.items() if amount > 0}
            want.key = tuple(sorted(want.amounts.items()))
        more = max(0, count - want.held) - waiting
        if more > 0:
            self._ask(at, want, more)
            if not at.registered or at.lacking(want.key) is not None:
                effects.append(self._infeasible(at, want))
            elif not waiting:
                self._join_line(at, want)
                freed = True
        elif more < 0:
            freed = self._lower(at, want, -more)
        if freed:
            self._hand_out(at, effects)
        self._forget_want(want)
        self._forget_node(node, at)
        return effects

    def _ask(self, at: _Node, want: _Want, more: int) -> None:
        """Ask for ``more`` claims, younger than all the owner asked for."""
        want.waiting += more
        if want.segments and len(at.waiting[want.owner]) == 1:
            want.segments[-1][1] += more
        else:
            self._age += 1
            want.segments.append([self._age, more])

    def _lower(self, at: _Node, want: _Want, less: int) -> bool:
        """Take back the ``less`` youngest; True if the want left the line by it."""
        segments = want.segments
        want.waiting -= less
        while less:
            taken = min(less, segments[-1][1])
            segments[-1][1] -= taken
            less -= taken
            if not segments[-1][1]:
                segments.pop()
        if segments:
            return False
        self._leave_line(at, want)
        return True

    def _infeasible(self, at: _Node, want: _Want) -> Infeasible:
        want.clear()
        name, amount = at.lacking(want.key) or (None, 0)
        most = at.total.get(name, 0) if name is not None else 0
        return Infeasible(want.owner, want.tag, want.node, name, amount / MICRO, most / MICRO)

    # Claims

    def release(self, claim_id: int) -> list[Effect]:
        """See ``Release``."""
        effects: list[Effect] = []
        claim = self._claims.get(claim_id)
        if claim is not None:
            at = self._end(claim)
            if at.lines or at.resuming:
                self._hand_out(at, effects)
            self._forget_node(claim.node, at)
        return effects

    def release_many(self, claim_ids: Iterable[int]) -> list[Effect]:
        """See ``ReleaseMany``."""
        touched: dict[str, _Node] = {}
        for claim_id in claim_ids:
            claim = self._claims.get(claim_id)
            if claim is not None:
                touched[claim.node] = self._end(claim)
        return self._hand_out_all(touched)

    def owner_gone(self, owner: Hashable) -> list[Effect]:
        """See ``OwnerGone``."""
        who = self._owners.get(owner)
        if who is None:
            return []
        touched: dict[str, _Node] = {}
        for want in list(who.wants.values()):
            if want.segments:
                at = touched[want.node] = self._nodes[want.node]
                self._leave_line(at, want)
                want.clear()
            self._forget_want(want)
        for claim in list(who.claims.values()):
            touched[claim.node] = self._end(claim)
        return self._hand_out_all(touched)

    def suspend(self, claim_id: int) -> list[Effect]:
        """See ``Suspend``. An unknown claim, or one that is suspended, is ignored."""
        effects: list[Effect] = []
        claim = self._claims.get(claim_id)
        if claim is None or claim_id in self._suspended:
            return effects
        at = self._nodes[claim.node]
        if at.resuming.pop(claim_id, None) is None:
            at.give(claim.amounts.items())
        self._suspended.add(claim_id)
        self._hand_out(at, effects)
        return effects

    def resume(self, claim_id: int) -> list[Effect]:
        """See ``Resume``. One that is held is answered at once; an unknown one is ignored."""
        claim = self._claims.get(claim_id)
        if claim is None:
            return []
        at = self._nodes[claim.node]
        if claim_id not in self._suspended:
            return [] if claim_id in at.resuming else [Resumed(claim.owner, claim_id)]
        self._suspended.discard(claim_id)
        effects: list[Effect] = []
        if not at.registered or at.lacking(claim.amounts.items()) is not None:
            effects.append(self._take_back(at, claim))
        else:
            at.resuming[claim_id] = claim
            self._hand_out(at, effects)
        return effects

    def _take_back(self, at: _Node, claim: Claim) -> Resumed:
        at.resuming.pop(claim.id, None)
        at.take(claim.amounts.items())
        return Resumed(claim.owner, claim.id)

    def _end(self, claim: Claim) -> _Node:
        """Forget a claim; what it held is free, and not handed on yet."""
        del self._claims[claim.id]
        at = self._nodes[claim.node]
        at.claims -= 1
        if claim.id in self._suspended:
            self._suspended.discard(claim.id)
        elif at.resuming.pop(claim.id, None) is None:
            at.give(claim.amounts.items())
        who = self._owners[claim.owner]
        del who.claims[claim.id]
        want = who.wants[claim.node, claim.tag]
        want.held -= 1
        self._forget_want(want)
        return at

    # Who is next

    def _hand_out_all(self, touched: Mapping[str, _Node]) -> list[Effect]:
        effects: list[Effect] = []
        for node, at in touched.items():
            self._hand_out(at, effects)
            self._forget_node(node, at)
        return effects

    def _hand_out(self, at: _Node, effects: list[Effect]) -> None:
        """Grant all that fits and may be granted: first what resumes, then by turns."""
        kept: dict[str, int] = {}  # what resuming claims wait for is out of everybody's reach
        for claim in list(at.resuming.values()):
            needs = claim.amounts.items()
            if _covers(_less(at.free, kept.items()) if kept else at.free, needs):
                effects.append(self._take_back(at, claim))
            else:
                for name, amount in needs:
                    kept[name] = kept.get(name, 0) + amount
        while at.lines:
            want = self._next(at, kept)
            if want is None:
                return
            effects.append(self._grant(at, want))

    def _next(self, at: _Node, kept: Mapping[str, int]) -> _Want | None:
        """Who is served next; whom it overtakes has that counted."""
        fronts = [next(iter(line)) for line in at.lines.values()]
        head = fronts[0] if len(fronts) == 1 else min(fronts, key=_turn)
        free = _less(at.free, kept.items()) if kept else at.free
        if _covers(free, head.key):
            return head
        if len(fronts) == 1:
            return None
        if head.overtaken >= OVERTAKES:
            free = _less(free, head.key)
        best = min(
            (want for want in fronts if want is not head and _covers(free, want.key)),
            key=_turn,
            default=None,
        )
        if best is not None:
            head.overtaken += 1
        return best

    def _grant(self, at: _Node, want: _Want) -> Granted:
        owner = want.owner
        claim = Claim(self._next_id, want.node, owner, want.tag, want.amounts)
        self._next_id += 1
        at.take(want.key)
        self._claims[claim.id] = claim
        self._owners[owner].claims[claim.id] = claim
        at.claims += 1
        want.held += 1
        want.waiting -= 1
        want.overtaken = 0
        front = want.segments[0]
        front[1] -= 1
        if not front[1]:
            want.segments.popleft()
        # The owner had its turn: this and its younger requests go to the end, by age. An older one
        # that was passed over because it does not fit keeps its place.
        mine = at.waiting[owner]
        moved = [w for w in mine if w.turn >= want.turn] if len(mine) > 1 else [want]
        for w in moved:
            self._leave_line(at, w)
        for w in sorted((w for w in moved if w.segments), key=_front_age):
            self._join_line(at, w)
        return Granted(owner, want.tag, claim)

    def _join_line(self, at: _Node, want: _Want) -> None:
        self._turn += 1
        want.turn = self._turn
        line = at.lines.get(want.key)
        if line is None:
            line = at.lines[want.key] = OrderedDict()
        line[want] = None
        at.waiting.setdefault(want.owner, []).append(want)

    def _leave_line(self, at: _Node, want: _Want) -> None:
        line = at.lines[want.key]
        del line[want]
        if not line:
            del at.lines[want.key]
        mine = at.waiting[want.owner]
        mine.remove(want)
        if not mine:
            del at.waiting[want.owner]

    def _forget_want(self, want: _Want) -> None:
        if not want.held and not want.waiting:
            who = self._owners[want.owner]
            who.wants.pop((want.node, want.tag), None)
            if not who.wants:
                del self._owners[want.owner]

    def _forget_node(self, node: str, at: _Node) -> None:
        if not at.registered and not at.claims:
            self._nodes.pop(node, None)

    # Questions

    def contended(self, node: str) -> bool:
        """Whether anybody waits at the node."""
        at = self._nodes.get(node)
        return at is not None and bool(at.waiting or at.resuming)

    def waits_besides(self, node: str, owner: Hashable) -> bool:
        """Whether any owner other than this one waits at the node for a claim of its own."""
        at = self._nodes.get(node)
        return at is not None and len(at.waiting) > (owner in at.waiting)

    def nodes(self) -> list[str]:
        """The nodes that are registered, in the order they came."""
        return [node for node, at in self._nodes.items() if at.registered]

    def total(self, node: str) -> dict[str, int]:
        """What the node offers, in micro-units; nothing if it is unknown."""
        at = self._nodes.get(node)
        return {} if at is None else dict(at.total)

    def free(self, node: str) -> dict[str, int]:
        """What nobody holds, in micro-units; below zero where it was lowered under use."""
        at = self._nodes.get(node)
        return {} if at is None else {name: at.free[name] for name in at.total}

    def in_use(self, node: str) -> dict[str, int]:
        """What is held, in micro-units, without the resources of which nothing is."""
        at = self._nodes.get(node)
        return {} if at is None else _used(at)

    def claims(self, owner: Hashable) -> list[Claim]:
        """What the owner holds, suspended claims included, oldest first."""
        who = self._owners.get(owner)
        return [] if who is None else list(who.claims.values())

    def owners(self) -> list[Hashable]:
        """Who holds or waits for anything."""
        return list(self._owners)

    # Its life beyond its owner

    def snapshot(self) -> dict[str, Any]:
        """All of it as plain data that pickles if owners and tags do."""
        wants = (want for who in self._owners.values() for want in who.wants.values())
        return {
            "nodes": {node: (at.registered, dict(at.total)) for node, at in self._nodes.items()},
            "claims": list(self._claims.values()),
            "suspended": sorted(self._suspended),
            "resuming": [claim_id for at in self._nodes.values() for claim_id in at.resuming],
            "wants": [
                (w.owner, w.tag, w.node, dict(w.amounts), w.overtaken, w.turn,
                 [tuple(segment) for segment in w.segments])
                for w in sorted(wants, key=_turn)
            ],
            "counters": (self._next_id, self._turn, self._age),
        }  # fmt: skip

    @classmethod
    def restore(cls, snapshot: Mapping[str, Any]) -> Ledger:
        """The ledger a ``snapshot()`` was taken of: it goes on exactly as that one would."""
        self = cls()
        self._next_id, self._turn, self._age = snapshot["counters"]
        for node, (registered, total) in snapshot["nodes"].items():
            at = self._nodes[node] = _Node()
            at.registered, at.total, at.free = registered, dict(total), dict(total)
        for owner, tag, node, amounts, overtaken, turn, segments in snapshot["wants"]:
            who = self._owners.setdefault(owner, _Owner())
            want = who.wants[node, tag] = _Want(owner, tag, node)
            want.amounts, want.key = amounts, tuple(sorted(amounts.items()))
            want.overtaken = overtaken
            want.segments.extend(list(segment) for segment in segments)
            want.waiting = sum(n for _, n in want.segments)
            if want.waiting:
                at = self._nodes[node]
                at.lines.setdefault(want.key, OrderedDict())[want] = None
                at.waiting.setdefault(owner, []).append(want)
            want.turn = turn
        self._suspended.update(snapshot["suspended"])
        resuming = set(snapshot["resuming"])
        for claim in snapshot["claims"]:
            at, who = self._nodes[claim.node], self._owners[claim.owner]
            self._claims[claim.id] = who.claims[claim.id] = claim
            who.wants[claim.node, claim.tag].held += 1
            at.claims += 1
            if claim.id not in self._suspended and claim.id not in resuming:
                at.take(claim.amounts.items())
        for claim_id in snapshot["resuming"]:
            claim = self._claims[claim_id]
            self._nodes[claim.node].resuming[claim_id] = claim
        return self

    def check(self) -> None:
        """Assert every invariant, at the cost of a full scan: for tests.

        Raises:
            AssertionError: one is broken.
        """
        for node, at in self._nodes.items():
            here = [claim for claim in self._claims.values() if claim.node == node]
            used: dict[str, int] = {}
            for claim in here:
                if claim.id not in self._suspended and claim.id not in at.resuming:
                    for name, amount in claim.amounts.items():
                        used[name] = used.get(name, 0) + amount
            assert at.claims == len(here), (node, at.claims, here)
            assert at.registered or at.claims, f"{node} is kept for nothing"
            assert _used(at) == used, (node, _used(at), used)
            assert all(used.get(n, 0) <= t or at.free[n] < 0 for n, t in at.total.items())
            in_line = [want for line in at.lines.values() for want in line]
            assert sorted(map(id, in_line)) == sorted(
                id(want) for wants in at.waiting.values() for want in wants
            )
            for key, line in at.lines.items():
                assert line, (node, key)
                assert [w.turn for w in line] == sorted(w.turn for w in line)
                assert at.registered, f"{node} is gone and {key} waits there"
                assert at.lacking(key) is None, f"{key} can never be had at {node}"
            self._check_nothing_idles(node, at)
        for owner, who in self._owners.items():
            assert who.wants, f"{owner} is kept for nothing"
            for want in who.wants.values():
                assert want.waiting == sum(n for _, n in want.segments) >= 0
                assert want.waiting or want.held, want
                assert [age for age, _ in want.segments] == sorted(a for a, _ in want.segments)
                assert (want in self._nodes[want.node].lines.get(want.key, ())) == (
                    want.waiting > 0
                )
            held = sum(want.held for want in who.wants.values())
            assert held == len(who.claims) == sum(c.owner == owner for c in self._claims.values())
        assert self._suspended <= self._claims.keys()

    def _check_nothing_idles(self, node: str, at: _Node) -> None:
        kept: dict[str, int] = {}
        for claim in at.resuming.values():
            needs = claim.amounts.items()
            assert not _covers(_less(at.free, kept.items()), needs), f"{claim} could resume"
            for name, amount in needs:
                kept[name] = kept.get(name, 0) + amount
        free = _less(at.free, kept.items())
        waiting = [want for line in at.lines.values() for want in line]
        head = min(waiting, key=_turn, default=None)
        if head is not None:
            assert not _covers(free, head.key), f"the first in line at {node} could be served"
            if head.overtaken >= OVERTAKES:
                free = _less(free, head.key)
            for want in waiting:
                assert want is head or not _covers(free, want.key), f"{want.key} idles at {node}"

"""The books of the ledger: its state, questions about it, its snapshot and its audit. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from operator import attrgetter
from typing import Any, Self

from handoff_actors.resources.claims import Claim
from handoff_actors.resources.lines import OVERTAKES, Node, Wanted, covers, less

_turn = attrgetter("turn")


class Owner:
    """What one owner holds, by id, and wants, by node and tag."""

    __slots__ = ("claims", "wants")

    def __init__(self) -> None:
        self.claims: dict[int, Claim] = {}
        self.wants: dict[tuple[str, Hashable], Wanted] = {}


class Books:
    """What the ledger knows. Nothing here changes it, and any thread may ask the O(1) questions."""

    __slots__ = ("_claims", "_next_id", "_nodes", "_owners", "_suspended")

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._owners: dict[Hashable, Owner] = {}
        self._claims: dict[int, Claim] = {}
        self._suspended: set[int] = set()
        self._next_id = 1

    # Questions

    def contended(self, node: str) -> bool:
        """Whether anybody waits at the node. O(1)."""
        at = self._nodes.get(node)
        return at is not None and bool(at.waiting or at.resuming)

    def waits_besides(self, node: str, owner: Hashable) -> bool:
        """Whether anybody waits at the node who comes before more claims of this owner.

        That is another owner, or a claim that resumes, whoever has it. O(1).
        """
        at = self._nodes.get(node)
        return at is not None and (len(at.waiting) > (owner in at.waiting) or bool(at.resuming))

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
        return {} if at is None else at.used()

    def claims(self, owner: Hashable) -> list[Claim]:
        """What the owner holds, suspended claims included, oldest first."""
        who = self._owners.get(owner)
        return [] if who is None else list(who.claims.values())

    def claim(self, claim_id: int) -> Claim | None:
        """The claim, if it is not over; suspended ones too."""
        return self._claims.get(claim_id)

    def held(self) -> list[Claim]:
        """All claims that have their resources now."""
        return [
            claim
            for claim in self._claims.values()
            if claim.id not in self._suspended and claim.id not in self._nodes[claim.node].resuming
        ]

    def size(self) -> int:
        """How much a snapshot has: claims, and what each owner wants."""
        return len(self._claims) + sum(len(who.wants) for who in self._owners.values())

    def owners(self) -> list[Hashable]:
        """Who holds or waits for anything."""
        return list(self._owners)

    # Its life beyond its owner

    def snapshot(self) -> dict[str, Any]:
        """All of it as plain data that pickles if owners and tags do."""
        wants = (want for who in self._owners.values() for want in who.wants.values())
        return {
            "nodes": {
                node: (at.registered, dict(at.total), at.turns) for node, at in self._nodes.items()
            },
            "claims": list(self._claims.values()),
            "suspended": sorted(self._suspended),
            "resuming": [claim_id for at in self._nodes.values() for claim_id in at.resuming],
            "wants": [
                (w.owner, w.tag, w.node, dict(w.asked), w.overtaken, w.turn,
                 [tuple(segment) for segment in w.segments])
                for w in sorted(wants, key=_turn)
            ],
            "next_id": self._next_id,
        }  # fmt: skip

    @classmethod
    def restore(cls, snapshot: Mapping[str, Any]) -> Self:
        """The ledger a ``snapshot()`` was taken of: it goes on exactly as that one would."""
        self = cls()
        self._next_id = snapshot["next_id"]
        for node, (registered, total, turns) in snapshot["nodes"].items():
            at = self._nodes[node] = Node()
            at.offer(total, registered=registered)
            at.turns = turns
        for owner, tag, node, amounts, overtaken, turn, segments in snapshot["wants"]:
            who = self._owners.setdefault(owner, Owner())
            want = who.wants[node, tag] = Wanted(owner, tag, node)
            want.cost(amounts)
            want.overtaken, want.turn = overtaken, turn
            want.segments.extend(list(segment) for segment in segments)
            want.waiting = sum(n for _, n in want.segments)
            if want.waiting:
                at = self._nodes[node]
                at.lines.setdefault(want.key, OrderedDict())[want] = None
                at.waiting.setdefault(owner, []).append(want)
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
            held: dict[str, int] = {}
            for claim in here:
                if claim.id not in self._suspended and claim.id not in at.resuming:
                    for name, amount in claim.amounts.items():
                        held[name] = held.get(name, 0) + amount
            assert at.claims == len(here), (node, at.claims, here)
            assert at.registered or at.claims, f"{node} is kept for nothing"
            assert at.used() == held, (node, at.used(), held)
            assert at.free.keys() == at.total.keys() | held.keys(), (node, at.total, at.free)
            in_line = [want for line in at.lines.values() for want in line]
            assert sorted(map(id, in_line)) == sorted(
                id(want) for wants in at.waiting.values() for want in wants
            )
            for key, line in at.lines.items():
                assert line, (node, key)
                assert [w.turn for w in line] == sorted(w.turn for w in line)
                assert at.possible(key), f"{key} can never be had at {node}"
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
            in_wants = sum(want.held for want in who.wants.values())
            assert (
                in_wants == len(who.claims) == sum(c.owner == owner for c in self._claims.values())
            )
        assert self._suspended <= self._claims.keys()

    def _check_nothing_idles(self, node: str, at: Node) -> None:
        kept: dict[str, int] = {}
        for claim in at.resuming.values():
            needs = claim.amounts.items()
            assert not covers(less(at.free, kept.items()), needs), f"{claim} could resume"
            for name, amount in needs:
                kept[name] = kept.get(name, 0) + amount
        free = less(at.free, kept.items())
        waiting = [want for line in at.lines.values() for want in line]
        head = min(waiting, key=_turn, default=None)
        if head is not None:
            assert not covers(free, head.key), f"the first in line at {node} could be served"
            if head.overtaken >= OVERTAKES:
                free = less(free, head.key)
            for want in waiting:
                assert want is head or not covers(free, want.key), f"{want.key} idles at {node}"

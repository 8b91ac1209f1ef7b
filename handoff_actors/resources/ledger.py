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

from collections.abc import Hashable, Iterable, Mapping

from handoff_actors.resources.books import Books, Owner
from handoff_actors.resources.capabilities import MICRO
from handoff_actors.resources.claims import (
    Claim,
    Effect,
    Event,
    Granted,
    Infeasible,
    OwnerGone,
    OwnerLeft,
    Register,
    Release,
    ReleaseMany,
    Resume,
    Resumed,
    Suspend,
    Unregister,
    Want,
)
from handoff_actors.resources.lines import OVERTAKES, Node, Wanted, covers, less

__all__ = [
    "OVERTAKES", "Claim", "Effect", "Event", "Granted", "Infeasible", "Ledger", "OwnerGone",
    "OwnerLeft", "Register", "Release", "ReleaseMany", "Resume", "Resumed", "Suspend",
    "Unregister", "Want",
]  # fmt: skip


class Ledger(Books):
    """The claims of all nodes it is told of. Not thread-safe: it has one owner."""

    __slots__ = ()

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
            case OwnerLeft(owner):
                return self.owner_left(owner)
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
            at = self._nodes[node] = Node()
        return self._offer(at, amounts, registered=True)

    def unregister(self, node: str) -> list[Effect]:
        """See ``Unregister``; an unknown node is ignored."""
        at = self._nodes.get(node)
        if at is None:
            return []
        effects = self._offer(at, {}, registered=False)
        self._forget_node(node, at)
        return effects

    def _offer(self, at: Node, total: Mapping[str, int], *, registered: bool) -> list[Effect]:
        at.offer(total, registered=registered)
        effects: list[Effect] = []
        hopeless = [want for key, line in at.lines.items() if not at.possible(key) for want in line]
        for want in hopeless:
            at.leave(want)
            effects.append(self._infeasible(at, want))
            self._forget_want(want)
        effects.extend(
            self._take_back(at, claim)
            for claim in list(at.resuming.values())
            if not at.possible(claim.amounts.items())
        )
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
                who = self._owners[owner] = Owner()
            want = who.wants[node, tag] = Wanted(owner, tag, node)
        at = self._nodes.get(node)
        if at is None:
            at = self._nodes[node] = Node()
        effects: list[Effect] = []
        waiting = want.waiting
        freed = False
        if amounts is not want.asked and amounts != want.asked:
            if waiting:
                at.leave(want)
                want.clear()
                waiting, freed = 0, True
            want.cost(amounts)
        more = max(0, count - want.held) - waiting
        if more > 0:
            at.ask(want, more)
            if not at.possible(want.key):
                effects.append(self._infeasible(at, want))
            elif not waiting:
                at.join(want)
                freed = True
        elif more < 0:
            freed = at.lower(want, -more)
        if freed:
            self._hand_out(at, effects)
        self._forget_want(want)
        self._forget_node(node, at)
        return effects

    def _infeasible(self, at: Node, want: Wanted) -> Infeasible:
        """It is out of line and wants nothing any more; says why."""
        want.clear()
        for name, amount in want.key:
            most = at.total.get(name, 0)
            if amount > most:
                return Infeasible(
                    want.owner, want.tag, want.node, name, amount / MICRO, most / MICRO
                )
        return Infeasible(want.owner, want.tag, want.node, None, 0.0, 0.0)

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
        touched: dict[str, Node] = {}
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
        touched = self._withdraw(who)
        for claim in list(who.claims.values()):
            touched[claim.node] = self._end(claim)
        return self._hand_out_all(touched)

    def owner_left(self, owner: Hashable) -> list[Effect]:
        """See ``OwnerLeft``."""
        who = self._owners.get(owner)
        return [] if who is None else self._hand_out_all(self._withdraw(who))

    def _withdraw(self, who: Owner) -> dict[str, Node]:
        """Take back all the owner waits for; the nodes where it did."""
        touched: dict[str, Node] = {}
        for want in list(who.wants.values()):
            if want.waiting:
                at = touched[want.node] = self._nodes[want.node]
                at.leave(want)
                want.clear()
            self._forget_want(want)
        return touched

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
        if not at.possible(claim.amounts.items()):
            effects.append(self._take_back(at, claim))
        else:
            at.resuming[claim_id] = claim
            self._hand_out(at, effects)
        return effects

    def part(self, claim_id: int, amounts: Mapping[str, int]) -> Claim | None:
        """The claim that ``split`` would make, or the claim itself; see ``Split``."""
        claim = self._claims.get(claim_id)
        if (
            claim is None
            or claim_id in self._suspended
            or claim_id in self._nodes[claim.node].resuming
            or not covers(claim.amounts, amounts.items())
        ):
            return None
        taken = {name: amount for name, amount in amounts.items() if amount}
        if taken == claim.amounts:
            return claim
        return Claim(self._next_id, claim.node, claim.owner, claim.tag, taken)

    def split(self, claim_id: int, part: Claim) -> list[Effect]:
        """A claim loses to a ``part`` of it what that has."""
        claim = self._claims[claim_id]
        left = less(claim.amounts, part.amounts.items())
        left = {name: amount for name, amount in left.items() if amount}
        who = self._owners[claim.owner]
        rest = Claim(claim.id, claim.node, claim.owner, claim.tag, left)
        for each in (rest, part):
            self._claims[each.id] = who.claims[each.id] = each
        self._next_id = part.id + 1
        self._nodes[claim.node].claims += 1
        who.wants[claim.node, claim.tag].held += 1
        return []

    def _take_back(self, at: Node, claim: Claim) -> Resumed:
        at.resuming.pop(claim.id, None)
        at.take(claim.amounts.items())
        return Resumed(claim.owner, claim.id)

    def _end(self, claim: Claim) -> Node:
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

    def _hand_out_all(self, touched: Mapping[str, Node]) -> list[Effect]:
        effects: list[Effect] = []
        for node, at in touched.items():
            self._hand_out(at, effects)
            self._forget_node(node, at)
        return effects

    def _hand_out(self, at: Node, effects: list[Effect]) -> None:
        """Grant all that fits and may be granted: first what resumes, then by turns."""
        kept: dict[str, int] = {}  # what resuming claims wait for is out of everybody's reach
        for claim in list(at.resuming.values()):
            needs = claim.amounts.items()
            if covers(less(at.free, kept.items()) if kept else at.free, needs):
                effects.append(self._take_back(at, claim))
            else:
                for name, amount in needs:
                    kept[name] = kept.get(name, 0) + amount
        while at.lines:
            want = at.next(kept)
            if want is None:
                return
            effects.append(self._grant(at, want))

    def _grant(self, at: Node, want: Wanted) -> Granted:
        owner = want.owner
        claim = Claim(self._next_id, want.node, owner, want.tag, want.amounts)
        self._next_id += 1
        at.take(want.key)
        self._claims[claim.id] = claim
        self._owners[owner].claims[claim.id] = claim
        at.claims += 1
        want.held += 1
        at.served(want)
        return Granted(owner, want.tag, claim)

    def _forget_want(self, want: Wanted) -> None:
        if not want.held and not want.waiting:
            who = self._owners[want.owner]
            who.wants.pop((want.node, want.tag), None)
            if not who.wants:
                del self._owners[want.owner]

    def _forget_node(self, node: str, at: Node) -> None:
        if not at.registered and not at.claims:
            self._nodes.pop(node, None)

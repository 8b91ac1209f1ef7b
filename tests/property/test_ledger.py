"""The ledger as a stateful machine, beside a second one that lives from snapshot to snapshot."""

from __future__ import annotations

import pickle
from collections import Counter, deque

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from handoff_actors.resources.ledger import (
    OVERTAKES,
    Granted,
    Infeasible,
    Ledger,
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

NODES = st.sampled_from(["a", "b"])
OWNERS = st.integers(0, 4)
TAGS = st.integers(0, 2)
AMOUNTS = st.dictionaries(st.sampled_from(["cpu", "memory"]), st.integers(0, 4))


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.ledger = Ledger()
        self.twin = Ledger()
        self.claims = {}  # what was granted and not released, by id
        self.lent = set()
        self.resuming = set()
        self.wanted = Counter()  # as the owners see it
        self.totals = {}
        self.ids = set()

    def tell(self, event):
        effects = self.ledger.handle(event)
        assert self.twin.handle(event) == effects
        for effect in effects:
            if isinstance(effect, Granted):
                claim = effect.claim
                key = (claim.owner, claim.tag, claim.node)
                assert claim.id not in self.ids, "an id was used twice"
                assert (effect.owner, effect.tag) == (claim.owner, claim.tag)
                self.ids.add(claim.id)
                self.claims[claim.id] = claim
                assert self.held(key) <= self.wanted[key], "granted more than wanted"
                free = self.ledger.free(claim.node)
                assert all(free[name] >= 0 for name in claim.amounts), "over-committed"
            elif isinstance(effect, Resumed):
                assert self.claims[effect.claim_id].owner == effect.owner
                self.resuming.discard(effect.claim_id)
                assert effect.claim_id not in self.lent
            else:
                assert isinstance(effect, Infeasible)
                assert effect.asked > effect.most or effect.resource is None
                key = (effect.owner, effect.tag, effect.node)
                assert self.held(key) < self.wanted[key], "refused what it has"
                self.wanted[key] = self.held(key)
        return effects

    def held(self, key):
        return sum((c.owner, c.tag, c.node) == key for c in self.claims.values())

    def ended(self, claim_id):
        claim = self.claims.pop(claim_id)
        self.lent.discard(claim_id)
        self.resuming.discard(claim_id)
        key = (claim.owner, claim.tag, claim.node)
        # A want may have been lowered below what is held: then the release changes nothing.
        if self.wanted[key] > self.held(key):
            self.wanted[key] -= 1

    @rule(node=NODES, amounts=AMOUNTS)
    def register(self, node, amounts):
        self.totals[node] = amounts
        self.tell(Register(node, amounts))

    @rule(node=NODES)
    def unregister(self, node):
        self.totals.pop(node, None)
        self.tell(Unregister(node))

    @rule(owner=OWNERS, tag=TAGS, node=NODES, amounts=AMOUNTS, count=st.integers(-1, 5))
    def want(self, owner, tag, node, amounts, count):
        self.wanted[owner, tag, node] = max(0, count)
        self.tell(Want(owner, tag, node, amounts, count))

    def a_claim(self, data):
        return data.draw(st.sampled_from([*sorted(self.claims), 10**6]))

    @rule(data=st.data())
    def release(self, data):
        claim_id = self.a_claim(data)
        if claim_id in self.claims:
            self.ended(claim_id)
            assert claim_id not in self.claims
        self.tell(Release(claim_id))

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release_many(self, data):
        some = data.draw(st.lists(st.sampled_from(sorted(self.claims))))
        for claim_id in set(some):
            self.ended(claim_id)
        self.tell(ReleaseMany(some))

    @rule(owner=OWNERS)
    def owner_gone(self, owner):
        for claim in list(self.claims.values()):
            if claim.owner == owner:
                self.ended(claim.id)
        for key in self.wanted:
            if key[0] == owner:
                self.wanted[key] = 0
        self.tell(OwnerGone(owner))
        assert self.ledger.claims(owner) == []

    @rule(owner=OWNERS)
    def owner_left(self, owner):
        for key in self.wanted:
            if key[0] == owner:
                self.wanted[key] = min(self.wanted[key], self.held(key))
        self.tell(OwnerLeft(owner))

    @rule(data=st.data())
    def suspend(self, data):
        claim_id = self.a_claim(data)
        if claim_id in self.claims:
            self.resuming.discard(claim_id)
            self.lent.add(claim_id)
        self.tell(Suspend(claim_id))

    @rule(data=st.data())
    def resume(self, data):
        claim_id = self.a_claim(data)
        if claim_id in self.lent:
            self.lent.discard(claim_id)
            self.resuming.add(claim_id)
        self.tell(Resume(claim_id))

    @rule(data=st.data(), amounts=AMOUNTS)
    def split(self, data, amounts):
        claim_id = self.a_claim(data)
        part = self.ledger.part(claim_id, amounts)
        assert self.twin.part(claim_id, amounts) == part
        whole = self.claims.get(claim_id)
        enough = whole is not None and all(a <= whole.amounts.get(r, 0) for r, a in amounts.items())
        assert (part is not None) == (enough and claim_id not in self.lent | self.resuming)
        if part is None or part is whole:
            return
        for ledger in (self.ledger, self.twin):
            assert ledger.split(claim_id, part) == []
        assert part.id not in self.ids
        self.ids.add(part.id)
        self.claims[part.id] = part
        self.claims[claim_id] = rest = self.ledger.claim(claim_id)
        assert Counter(rest.amounts) + Counter(part.amounts) == Counter(whole.amounts)
        key = (whole.owner, whole.tag, whole.node)
        self.wanted[key] = max(self.wanted[key], self.held(key))

    @rule()
    def crash(self):
        self.twin = Ledger.restore(pickle.loads(pickle.dumps(self.twin.snapshot())))

    @rule()
    def everybody_releases(self):
        """What is feasible is granted in the end: nobody starves once all claims come back."""
        for _ in range(200):
            held = sorted(self.claims.keys())
            if not held:
                break
            for claim_id in held:
                if claim_id in self.claims:
                    self.ended(claim_id)
                    self.tell(Release(claim_id))
        assert not self.claims
        assert not self.ledger.contended("a")
        assert not self.ledger.contended("b")
        assert self.ledger.owners() == []

    @invariant()
    def holds(self):
        self.ledger.check()
        self.twin.check()
        assert self.twin.snapshot() == self.ledger.snapshot()
        assert set(self.ledger.nodes()) == set(self.totals)
        held = [c for c in self.claims.values() if c.id not in self.lent | self.resuming]
        assert sorted(c.id for c in self.ledger.held()) == sorted(c.id for c in held)
        for node in ("a", "b"):
            used = Counter()
            for claim in held:
                if claim.node == node:
                    used.update(claim.amounts)
            assert Counter(self.ledger.in_use(node)) == used
            assert self.ledger.total(node) == self.totals.get(node, {})
            waiting = {
                key[0]
                for key, count in self.wanted.items()
                if key[2] == node and count > self.held(key)
            }
            resuming = any(self.claims[i].node == node for i in self.resuming)
            assert self.ledger.contended(node) == bool(waiting or resuming)
            for owner in range(5):
                others = bool(waiting - {owner}) or resuming
                assert self.ledger.waits_besides(node, owner) == others


LedgerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_ledger = LedgerMachine.TestCase


@given(
    total=st.fixed_dictionaries({"cpu": st.integers(1, 4), "memory": st.integers(1, 4)}),
    rivals=st.lists(
        st.fixed_dictionaries({"cpu": st.integers(0, 3), "memory": st.integers(0, 3)}),
        min_size=1,
        max_size=5,
    ),
    need=st.fixed_dictionaries({"cpu": st.integers(1, 4), "memory": st.integers(0, 4)}),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=300, deadline=None)
def test_nobody_starves(total, rivals, need, order):
    """Rivals want again at once whatever they release; releases come in any order."""
    ledger = Ledger()
    ledger.register("n", total)
    fits = lambda cost: all(cost[name] <= total[name] for name in total)  # noqa: E731
    rivals = [cost for cost in rivals if fits(cost) and any(cost.values())]
    if not fits(need) or not rivals:
        return
    held = []
    effects = []
    for owner, cost in enumerate(rivals):
        effects += ledger.want(owner, 0, "n", cost, 3)
    effects += ledger.want("victim", 0, "n", need, 1)
    # Each of those before it in line has a turn, is overtaken so often, then drains the node.
    most = sum(total.values())
    bound = (len(rivals) + 1) * (OVERTAKES + 2 * most + 2)
    releases = 0
    while True:
        held += [effect.claim for effect in effects]
        if any(claim.owner == "victim" for claim in held):
            break
        claim = held.pop(order.randrange(len(held)))
        effects = ledger.release(claim.id)
        effects += ledger.want(claim.owner, 0, "n", rivals[claim.owner], 3)
        releases += 1
        assert releases <= bound, "it starves"
    ledger.check()


@given(
    owners=st.integers(2, 6),
    cpus=st.integers(1, 3),
    tags=st.integers(1, 3),
    rounds=st.integers(3, 9),
)
@settings(deadline=None)
def test_owners_alike_get_equal_turns_however_many_tags_they_use(owners, cpus, tags, rounds):
    ledger = Ledger()
    ledger.register("n", {"cpu": cpus})
    held = deque(ledger.want("first", 0, "n", {"cpu": 1}, cpus))
    for owner in range(owners):
        for tag in range(1 + owner % tags):
            assert ledger.want(owner, tag, "n", {"cpu": 1}, 1000) == []
    turns = Counter()
    for _ in range(rounds * owners):
        granted = ledger.release(held.popleft().claim.id)
        held.extend(granted)
        turns.update(effect.owner for effect in granted)
        assert max(turns.values()) - min(turns[owner] for owner in range(owners)) <= 1
    assert set(turns.values()) == {rounds}

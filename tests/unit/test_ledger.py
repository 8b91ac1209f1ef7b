from __future__ import annotations

import pickle

import pytest

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

CPU = 1_000_000
ONE = {"cpu": CPU}


def ledger(**cpus: float) -> Ledger:
    self = Ledger()
    for node, cpu in cpus.items():
        self.register(node, {"cpu": round(cpu * CPU), "memory": 100})
    return self


def owners(effects) -> list[object]:
    assert all(isinstance(effect, Granted) for effect in effects), effects
    return [effect.owner for effect in effects]


def ids(effects) -> list[int]:
    return [effect.claim.id for effect in effects if isinstance(effect, Granted)]


def test_what_fits_is_granted_at_once_and_the_rest_as_others_release():
    books = ledger(a=2)
    first = books.want("run", "tag", "a", ONE, 3)
    assert owners(first) == ["run", "run"]
    claim = first[0].claim
    assert (claim.node, claim.owner, claim.tag, claim.amounts) == ("a", "run", "tag", ONE)
    assert books.in_use("a") == {"cpu": 2 * CPU}
    assert books.contended("a")
    second = books.release(claim.id)
    assert owners(second) == ["run"]
    assert not books.contended("a")
    assert len({*ids(first), *ids(second)}) == 3


def test_every_event_goes_through_handle():
    books = Ledger()
    assert books.handle(Register("a", ONE)) == []
    [granted] = books.handle(Want("r", 1, "a", ONE, 1))
    claim = granted.claim.id
    assert books.handle(Suspend(claim)) == []
    assert books.in_use("a") == {}
    assert books.handle(Resume(claim)) == [Resumed("r", claim)]
    assert books.handle(Release(claim)) == []
    assert ids(books.handle(Want("r", 1, "a", ONE, 1))) == [2]
    assert books.handle(ReleaseMany([2, 2, 99])) == []
    assert books.handle(OwnerGone("r")) == []
    assert books.handle(Unregister("a")) == []
    assert books.nodes() == []
    with pytest.raises(TypeError, match="no event"):
        books.handle("release")


def test_count_is_absolute_and_includes_what_is_held():
    books = ledger(a=4)
    assert len(books.want("r", 1, "a", ONE, 2)) == 2
    assert books.want("r", 1, "a", ONE, 2) == [], "sent twice"
    assert len(books.want("r", 1, "a", ONE, 3)) == 1
    books.release(1)  # takes one off
    assert books.want("r", 1, "a", ONE, 2) == []
    assert len(books.want("r", 1, "a", ONE, 3)) == 1


def test_lowering_takes_back_what_waits_and_keeps_what_is_held():
    books = ledger(a=1)
    [held] = books.want("r", 1, "a", ONE, 5)
    assert books.want("r", 1, "a", ONE, 0) == []
    assert not books.contended("a")
    assert books.in_use("a") == ONE
    assert books.release(held.claim.id) == []
    assert books.owners() == []


def test_a_release_goes_straight_to_whoever_waits_and_happens_once():
    books = ledger(a=1)
    [first] = books.want("r", 1, "a", ONE, 1)
    books.want("s", 1, "a", ONE, 1)
    assert owners(books.release(first.claim.id)) == ["s"]
    assert books.release(first.claim.id) == []
    assert books.release(12345) == []
    assert books.in_use("a") == ONE


def test_two_owners_get_equal_turns_for_one_cpu():
    books = ledger(a=1)
    [granted] = books.want("r", 1, "a", ONE, 100)
    books.want("s", 1, "a", ONE, 100)
    turns = []
    for _ in range(20):
        [granted] = books.release(granted.claim.id)
        turns.append(granted.owner)
    assert turns == ["r", "s"] * 10, "r was in line first"


def test_an_owner_with_many_tags_gets_one_turn_a_round():
    books = ledger(a=1)
    [held] = books.want("x", 1, "a", ONE, 1)
    for tag in range(3):
        books.want("r", tag, "a", ONE, 9)
    books.want("s", 1, "a", ONE, 9)
    turns = []
    for _ in range(8):
        [held] = books.release(held.claim.id)
        turns.append(held.owner)
    assert turns == ["r", "s"] * 4


def test_an_owners_oldest_request_goes_first():
    books = ledger(a=1)
    [held] = books.want("r", "old", "a", ONE, 2)
    books.want("r", "young", "a", ONE, 1)
    books.want("r", "old", "a", ONE, 3)  # one more: younger than "young"
    tags = []
    for _ in range(3):
        [held] = books.release(held.claim.id)
        tags.append(held.tag)
    assert tags == ["old", "young", "old"]


def test_the_first_in_line_is_overtaken_a_fixed_number_of_times_then_reserves():
    books = ledger(a=2)
    small = ids(books.want("small", 1, "a", ONE, 2))
    books.want("big", 1, "a", {"cpu": 2 * CPU}, 1)
    overtaken = 0
    while True:  # one cpu goes in and out while the other is held: the big one never fits
        books.release(small.pop())
        more = books.want("small", 1, "a", ONE, 2)
        if not more:
            break
        overtaken += 1
        small += ids(more)
        assert overtaken <= OVERTAKES
    assert overtaken == OVERTAKES
    [granted] = books.release(small.pop())
    assert granted.owner == "big"


def overtake(books: Ledger, times: int) -> None:
    """Two of one cpu each take turns, so that two cpus are never free together."""
    for claim in list(books.claims("small"))[:1] * (times > 0):
        books.release(claim.id)
        for _ in range(times):
            [claim] = ids(books.want("small", 1, "a", ONE, 2))
            books.release(claim)


def test_each_of_its_claims_is_overtaken_anew():
    books = ledger(a=2)
    small = ids(books.want("small", 1, "a", ONE, 2))
    books.want("big", 1, "a", {"cpu": 2 * CPU}, 2)
    overtake(books, OVERTAKES)
    assert books.want("small", 1, "a", ONE, 2) == []
    big = books.release_many(small)
    assert owners(big) == ["big"]
    assert owners(books.release(big[0].claim.id)) == ["small"], "it has its turn"
    assert owners(books.want("small", 1, "a", ONE, 2)) == ["small"], "overtakes the second: once"
    overtake(books, OVERTAKES - 1)
    assert books.want("small", 1, "a", ONE, 2) == [], "and no more than that"
    books.check()


def test_what_is_passed_over_keeps_its_place_when_its_owner_has_a_turn():
    books = ledger(a=2)
    x, y = ids(books.want("x", 1, "a", ONE, 2))
    books.want("r", "big", "a", {"cpu": 2 * CPU}, 1)
    books.want("r", "small", "a", ONE, 1)
    books.want("s", "big", "a", {"cpu": 2 * CPU}, 1)
    [small] = books.release(x)
    assert (small.owner, small.tag) == ("r", "small")
    [big] = books.release_many([y, small.claim.id])
    assert (big.owner, big.tag) == ("r", "big"), "it was there before s"


def test_a_reservation_leaves_alone_who_wants_nothing_the_first_lacks():
    books = ledger(a=2)
    small = ids(books.want("small", 1, "a", ONE, 2))
    books.want("big", 1, "a", {"cpu": 2 * CPU}, 1)
    while small:
        books.release(small.pop())
        small += ids(books.want("small", 1, "a", ONE, 2))
        if len(small) < 2:
            break
    assert owners(books.want("other", 1, "a", {"memory": 60}, 1)) == ["other"]
    assert books.want("more", 1, "a", {"memory": 1, "cpu": 1}, 1) == []
    books.check()


def test_a_reservation_keeps_also_what_the_first_does_not_lack_yet():
    books = Ledger()
    books.register("a", {"cpu": 1, "memory": 1})
    turn = ids(books.want("c", 1, "a", {"cpu": 1}, 1))
    books.want("both", 1, "a", {"cpu": 1, "memory": 1}, 1)
    for _ in range(OVERTAKES):
        [memory] = ids(books.want("m", 1, "a", {"memory": 1}, 1))
        books.release(memory)
    assert books.want("m", 1, "a", {"memory": 1}, 1) == []
    assert owners(books.release(turn[0])) == ["both"]


def test_what_can_never_fit_is_refused_with_the_most_there_is():
    books = ledger(a=2)
    assert books.want("r", "t", "a", {"cpu": 3 * CPU}, 1) == [
        Infeasible("r", "t", "a", "cpu", 3.0, 2.0)
    ]
    assert books.want("r", "t", "a", {"gpu": CPU}, 1) == [
        Infeasible("r", "t", "a", "gpu", 1.0, 0.0)
    ]
    assert books.want("r", "t", "?", ONE, 1) == [Infeasible("r", "t", "?", "cpu", 1.0, 0.0)]
    assert books.want("r", "t", "?", {}, 1) == [Infeasible("r", "t", "?", None, 0.0, 0.0)]
    assert books.owners() == []
    books.check()


def test_registering_again_keeps_what_is_in_use():
    books = ledger(a=2)
    held = ids(books.want("r", 1, "a", ONE, 3))
    assert books.register("a", ONE) == []
    assert books.free("a") == {"cpu": -CPU}
    assert books.release(held[0]) == []
    assert books.free("a") == {"cpu": 0}
    assert owners(books.register("a", {"cpu": 2 * CPU})) == ["r"]
    books.check()


def test_registering_less_refuses_what_can_never_fit_now():
    books = ledger(a=2)
    [held] = ids(books.want("r", 1, "a", {"cpu": 2 * CPU}, 2))
    books.want("s", 1, "a", ONE, 1)
    assert books.register("a", ONE) == [Infeasible("r", 1, "a", "cpu", 2.0, 1.0)]
    assert owners(books.release(held)) == ["s"]
    books.check()


def test_an_unregistered_node_refuses_its_waiters_and_takes_releases():
    books = ledger(a=1)
    [held] = ids(books.want("r", 1, "a", ONE, 2))
    assert books.unregister("a") == [Infeasible("r", 1, "a", "cpu", 1.0, 0.0)]
    assert books.unregister("never heard of") == []
    assert books.nodes() == []
    assert books.in_use("a") == ONE
    books.register("a", ONE)  # it returns while the claim is held
    assert books.free("a") == {"cpu": 0}
    books.unregister("a")
    books.release(held)
    assert books.snapshot() == Ledger().snapshot() | {"next_id": 2}
    books.check()


def test_owner_gone_frees_what_it_holds_and_wants_everywhere():
    books = ledger(a=1, b=1)
    books.want("r", 1, "a", ONE, 2)
    books.want("r", 2, "b", ONE, 1)
    books.want("s", 1, "a", ONE, 1)
    books.want("s", 1, "b", ONE, 1)
    assert owners(books.owner_gone("r")) == ["s", "s"]
    assert books.owner_gone("r") == []
    assert books.claims("r") == []
    assert books.owners() == ["s"]


def test_a_suspended_claim_lends_its_resources_and_gets_them_back_first():
    books = ledger(a=1)
    [outer] = ids(books.want("outer", 1, "a", ONE, 1))
    books.want("nested", 1, "a", ONE, 2)
    [inner] = ids(books.suspend(outer))
    assert books.suspend(outer) == []
    assert books.resume(outer) == []
    assert books.resume(outer) == [], "it is in line already"
    assert books.waits_besides("a", "outer"), "lanes of its own run give way too"
    assert books.release(inner) == [Resumed("outer", outer)]
    assert books.resume(outer) == [Resumed("outer", outer)], "asked twice, answered twice"
    assert owners(books.release(outer)) == ["nested"]
    assert books.resume(outer) == []
    books.check()


def test_a_suspended_claim_may_be_released():
    books = ledger(a=1)
    [claim] = ids(books.want("r", 1, "a", ONE, 1))
    books.suspend(claim)
    books.release(claim)
    assert books.free("a")["cpu"] == CPU
    [claim] = ids(books.want("r", 1, "a", ONE, 1))
    books.suspend(claim)
    [other] = ids(books.want("s", 1, "a", ONE, 1))
    books.resume(claim)
    books.want("t", 1, "a", {"memory": 1, "cpu": 1}, 1)
    assert books.release(claim) == []
    assert owners(books.release(other)) == ["t"]
    books.check()


def test_who_waits_takes_nothing_that_a_resuming_claim_wants():
    books = ledger(a=2)
    [big] = ids(books.want("r", 1, "a", {"cpu": 2 * CPU}, 1))
    books.suspend(big)
    one, two = ids(books.want("s", 1, "a", ONE, 2))
    books.resume(big)
    books.release(one)
    assert books.want("s", 1, "a", ONE, 2) == [], "one cpu is free, and kept"
    assert owners(books.want("s", 2, "a", {"memory": 1}, 1)) == ["s"]
    assert books.release(two) == [Resumed("r", big)]
    books.check()


def test_what_resumes_later_takes_nothing_that_the_first_wants():
    books = ledger(a=2)
    [big] = ids(books.want("big", 1, "a", {"cpu": 2 * CPU}, 1))
    books.suspend(big)
    [little] = ids(books.want("little", 1, "a", ONE, 1))
    books.suspend(little)
    one, two = ids(books.want("s", 1, "a", ONE, 2))
    books.resume(big)
    books.resume(little)
    assert books.release(one) == [], "one cpu is free, and kept for the big one"
    assert books.release(two) == [Resumed("big", big)]
    assert books.release(big) == [Resumed("little", little)]
    books.check()


def test_a_claim_whose_node_shrank_or_went_resumes_all_the_same():
    books = ledger(a=2)
    one, two = ids(books.want("r", 1, "a", ONE, 2))
    books.suspend(one)
    books.suspend(two)
    [other] = ids(books.want("s", 1, "a", {"cpu": 2 * CPU}, 1))
    assert books.resume(one) == []
    assert books.unregister("a") == [Resumed("r", one)]
    assert books.resume(two) == [Resumed("r", two)]
    assert books.in_use("a") == {"cpu": 4 * CPU}
    books.release_many([one, two, other])
    assert books.in_use("a") == {}
    books.check()


def test_another_cost_under_the_same_tag_asks_anew():
    books = ledger(a=1)
    [held] = ids(books.want("r", 1, "a", ONE, 2))
    books.want("s", 1, "a", ONE, 1)
    assert books.want("r", 1, "a", {"cpu": CPU, "memory": 0}, 2) == []
    assert owners(books.release(held)) == ["s"]
    assert books.want("r", 1, "a", {"memory": 5}, 1)[0].claim.amounts == {"memory": 5}
    books.check()


def test_contention_is_seen_by_others_only():
    books = ledger(a=1)
    books.want("r", 1, "a", ONE, 2)
    assert books.contended("a")
    assert not books.waits_besides("a", "r")
    assert books.waits_besides("a", "s")
    books.want("s", 1, "a", ONE, 1)
    assert books.waits_besides("a", "r")
    assert not books.contended("nowhere")
    assert not books.waits_besides("nowhere", "r")


def test_an_empty_cost_is_always_granted_where_there_is_a_node():
    books = ledger(a=0)
    [granted] = books.want("r", 1, "a", {"cpu": 0}, 1)
    assert granted.claim.amounts == {}
    books.check()


def test_a_snapshot_pickles_and_goes_on_as_the_ledger_would():
    books = ledger(a=2, b=1)
    held = ids(books.want("r", 1, "a", ONE, 5))
    books.want("s", "x", "a", {"cpu": 2 * CPU}, 1)
    books.suspend(held[0])
    again = Ledger.restore(pickle.loads(pickle.dumps(books.snapshot())))
    again.check()
    assert again.snapshot() == books.snapshot()
    for event in (Resume(held[0]), Release(held[1]), OwnerGone("r"), Want("t", 1, "b", ONE, 2)):
        assert again.handle(event) == books.handle(event)
    assert again.snapshot() == books.snapshot()


def test_a_snapshot_remembers_how_often_the_first_was_overtaken():
    books = ledger(a=2)
    books.want("small", 1, "a", ONE, 2)
    books.want("big", 1, "a", {"cpu": 2 * CPU}, 1)
    overtake(books, OVERTAKES)
    again = Ledger.restore(books.snapshot())
    assert again.want("small", 1, "a", ONE, 2) == []


def test_an_owner_that_leaves_keeps_what_it_holds():
    books = ledger(a=1)
    [held] = ids(books.want("r", 1, "a", ONE, 5))
    books.want("s", 1, "a", ONE, 1)
    assert books.handle(OwnerLeft("r")) == []
    assert books.handle(OwnerLeft("nobody")) == []
    assert books.in_use("a") == ONE
    assert owners(books.release(held)) == ["s"]
    assert books.owners() == ["s"]


def test_the_audit_finds_what_is_wrong():
    books = ledger(a=1)
    books.want("r", 1, "a", ONE, 2)
    books.check()
    books._nodes["a"].free["cpu"] += CPU
    with pytest.raises(AssertionError):
        books.check()

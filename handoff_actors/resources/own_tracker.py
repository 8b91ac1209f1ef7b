"""A tracker of the user's own in the ledger's place: who asked it for what, and what it gave.

It has the ledger's methods and answers with the ledger's effects, so the actor treats both alike.
The user's object decides; it is asked for each claim as it is wanted, at every release, and when it
is polled. Owners are asked for in turns. Nothing it raises gets past here: the owner is refused
with it, or, where nobody asked, it is logged.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

from handoff_actors.errors import AllocationError, ConfigurationError, describe
from handoff_actors.events import log
from handoff_actors.resources.allocator import Request
from handoff_actors.resources.capabilities import MICRO, Capabilities, from_micro, to_micro
from handoff_actors.resources.claims import Claim, Effect, Granted, Infeasible, Refused, Resumed

T = TypeVar("T")

_Key = tuple[Hashable, Hashable, str]


class _Wish:
    __slots__ = ("amounts", "checked", "held", "waiting")

    def __init__(self) -> None:
        self.amounts: Mapping[str, int] = {}
        self.held = 0
        self.waiting = 0
        self.checked = False  # whether it was looked at if the node could ever have so much


class OwnLedger:
    """See the module.

    Args:
        tracker: the user's object.
    """

    def __init__(self, tracker: Any) -> None:
        self._tracker = tracker
        self._wishes: dict[_Key, _Wish] = {}  # in the order in which they are asked for
        self._claims: dict[int, Claim] = {}
        self._theirs: dict[int, Any] = {}  # what the user's tracker gave for it
        self._suspended: set[int] = set()
        self._resuming: dict[int, None] = {}
        self._next_id = 1

    # What the ledger has too.

    def check_register(self, node: str, capabilities: Capabilities) -> None:
        """Tell the user's tracker what a node offers.

        Raises:
            ConfigurationError: it raised.
        """
        self._ask("register", lambda: self._tracker.register(node, dict(capabilities)))

    def register(self, _node: str, _amounts: Mapping[str, int]) -> list[Effect | Refused]:
        """The capabilities have changed (``check_register`` said so): ask again."""
        for wish in self._wishes.values():
            wish.checked = False
        return self.poll()

    def unregister(self, node: str) -> list[Effect | Refused]:
        """The node is gone: those who wait there wait in vain."""
        effects: list[Effect | Refused] = []
        for key, wish in list(self._wishes.items()):
            if key[2] == node and wish.waiting:
                effects.append(self._infeasible(key, wish, {}))
                self._forget(key)
        return effects

    def want(
        self, owner: Hashable, tag: Hashable, node: str, amounts: Mapping[str, int], count: int
    ) -> list[Effect | Refused]:
        """See ``claims.Want``."""
        key = (owner, tag, node)
        wish = self._wishes.setdefault(key, _Wish())
        if amounts != wish.amounts:
            wish.amounts, wish.checked = amounts, False
        wish.waiting = max(0, count - wish.held)
        self._forget(key)
        return self.poll() if wish.waiting else []

    def release(self, claim_id: int) -> list[Effect | Refused]:
        """See ``claims.Release``."""
        return self.release_many([claim_id])

    def release_many(self, claim_ids: Iterable[int]) -> list[Effect | Refused]:
        """See ``claims.ReleaseMany``."""
        ended = [self._end(claim_id) for claim_id in claim_ids]
        return self.poll() if any(ended) else []

    def owner_gone(self, owner: Hashable) -> list[Effect | Refused]:
        """See ``claims.OwnerGone``."""
        self._withdraw(owner)
        return self.release_many([c.id for c in self._claims.values() if c.owner == owner])

    def owner_left(self, owner: Hashable) -> list[Effect | Refused]:
        """See ``claims.OwnerLeft``."""
        self._withdraw(owner)
        return []

    def suspend(self, claim_id: int) -> list[Effect | Refused]:
        """See ``claims.Suspend``."""
        if claim_id not in self._claims or claim_id in self._suspended:
            return []
        self._resuming.pop(claim_id, None)
        self._suspended.add(claim_id)
        self._give_back(claim_id)
        return self.poll()

    def resume(self, claim_id: int) -> list[Effect | Refused]:
        """See ``claims.Resume``."""
        claim = self._claims.get(claim_id)
        if claim is None or claim_id in self._resuming:
            return []
        if claim_id not in self._suspended:
            return [Resumed(claim.owner, claim_id)]
        self._suspended.discard(claim_id)
        self._resuming[claim_id] = None
        return self.poll()

    def part(self, claim_id: int, amounts: Mapping[str, int]) -> Claim | None:
        """The claim itself, if it is no more: only its maker could take it apart."""
        claim = self._claims.get(claim_id)
        same = claim is not None and claim_id in self._theirs and claim.amounts == amounts
        return claim if same else None

    def claim(self, claim_id: int) -> Claim | None:
        """The claim, if it is not over."""
        return self._claims.get(claim_id)

    def held(self) -> list[Claim]:
        """The claims that have their resources now."""
        return [claim for claim in self._claims.values() if claim.id in self._theirs]

    def waits_besides(self, node: str, owner: Hashable) -> bool:
        """As the ledger's; any thread may ask."""
        return bool(self._resuming) or any(
            wish.waiting and at == node and who != owner
            for (who, _, at), wish in list(self._wishes.items())
        )

    def nodes(self) -> list[str]:
        """The nodes the user's tracker knows."""
        return list(self._capabilities())

    def total(self, node: str) -> dict[str, int]:
        """What it says the node offers."""
        return to_micro(
            self._capabilities().get(node, {}), "what your tracker's capabilities() has"
        )

    def free(self, node: str) -> dict[str, int]:
        """What it says is free there."""
        if node not in self._capabilities():
            return {}
        found = self._mapping("available", lambda: self._tracker.available(node))
        try:
            return {name: round(amount * MICRO) for name, amount in found.items()}
        except (TypeError, ValueError, OverflowError):
            raise self._odd("available", found) from None

    # Asking.

    @property
    def waits(self) -> bool:
        """Whether it is to be polled."""
        return bool(self._resuming) or any(wish.waiting for wish in self._wishes.values())

    def poll(self) -> list[Effect | Refused]:
        """Ask for all that is waited for; first for what resumes."""
        effects: list[Effect | Refused] = []
        for claim_id in list(self._resuming):
            claim = self._claims[claim_id]
            try:
                theirs = self._request(claim.owner, claim.tag, claim.node, claim.amounts)
            except BaseException as error:
                # Its function runs already and must not wait for ever: it goes on without.
                log.error("tracker_raised", tracker=describe(self._tracker), exc_info=error)
            else:
                if theirs is None:
                    continue
                self._theirs[claim_id] = theirs
            del self._resuming[claim_id]
            effects.append(Resumed(claim.owner, claim_id))
        asking = [key for key, wish in self._wishes.items() if wish.waiting]
        while asking:  # a round gives each owner's request at most one claim
            asking = [key for key in asking if self._ask_for(key, effects)]
        return effects

    def _ask_for(self, key: _Key, effects: list[Effect | Refused]) -> bool:
        """Ask for one claim; whether there is more to ask for now."""
        wish = self._wishes[key]
        owner, tag, node = key
        try:
            theirs = self._request(owner, tag, node, wish.amounts)
            if theirs is None:
                most = None if wish.checked else self._too_much(node, wish.amounts)
                wish.checked = True
                if most is not None:
                    effects.append(self._infeasible(key, wish, most))
                    self._forget(key)
                return False
        except BaseException as error:
            wish.waiting = 0
            self._forget(key)
            effects.append(Refused(owner, tag, self._refusal(error)))
            return False
        claim = Claim(self._next_id, node, owner, tag, wish.amounts)
        self._next_id += 1
        self._claims[claim.id] = claim
        self._theirs[claim.id] = theirs
        wish.held += 1
        wish.waiting -= 1
        self._wishes[key] = self._wishes.pop(key)  # to the end: owners take turns
        effects.append(Granted(owner, tag, claim))
        return wish.waiting > 0

    def _request(
        self, owner: Hashable, tag: Hashable, node: str, amounts: Mapping[str, int]
    ) -> Any | None:
        return self._tracker.request(node, Request(tag, from_micro(amounts)), owner)

    def _too_much(self, node: str, amounts: Mapping[str, int]) -> dict[str, int] | None:
        """What the node offers, if that can never be enough."""
        total = self.total(node)
        known = node in self._capabilities()
        enough = all(amount <= total.get(name, 0) for name, amount in amounts.items())
        return None if known and enough else total

    def _infeasible(self, key: _Key, wish: _Wish, total: Mapping[str, int]) -> Infeasible:
        wish.waiting = 0
        for name, amount in wish.amounts.items():
            most = total.get(name, 0)
            if amount > most:
                return Infeasible(*key, name, amount / MICRO, most / MICRO)
        return Infeasible(*key, None, 0.0, 0.0)

    def _end(self, claim_id: int) -> bool:
        claim = self._claims.pop(claim_id, None)
        if claim is None:
            return False
        self._suspended.discard(claim_id)
        self._resuming.pop(claim_id, None)
        key = (claim.owner, claim.tag, claim.node)
        self._wishes[key].held -= 1
        self._forget(key)
        self._give_back(claim_id)
        return True

    def _give_back(self, claim_id: int) -> None:
        if claim_id not in self._theirs:
            return
        theirs = self._theirs.pop(claim_id)
        try:
            self._tracker.release(theirs)
        except BaseException as error:
            log.error("tracker_raised", tracker=describe(self._tracker), exc_info=error)

    def close(self) -> None:
        """Nobody will release what is held."""
        for claim_id in list(self._theirs):
            self._give_back(claim_id)

    def _withdraw(self, owner: Hashable) -> None:
        for key, wish in list(self._wishes.items()):
            if key[0] == owner:
                wish.waiting = 0
                self._forget(key)

    def _forget(self, key: _Key) -> None:
        wish = self._wishes[key]
        if not wish.held and not wish.waiting:
            del self._wishes[key]

    def _capabilities(self) -> Mapping[str, Capabilities]:
        return self._mapping("capabilities", self._tracker.capabilities)

    def _mapping(self, method: str, ask: Callable[[], Any]) -> Mapping[str, Any]:
        """What a method answers that is to answer a mapping."""
        found = self._ask(method, ask)
        if not isinstance(found, Mapping):
            raise self._odd(method, found)
        return found

    def _odd(self, method: str, found: Any) -> ConfigurationError:
        due = "of resource name to amount" if method == "available" else "of node to capabilities"
        return ConfigurationError(
            f"the resource tracker {describe(self._tracker)} answered {describe(found)} to "
            f"{method}(); a mapping {due} is due"
        )

    def _ask(self, method: str, ask: Callable[[], T]) -> T:
        """Ask outside of a request, where the caller gets what it raises as a typed error."""
        try:
            return ask()
        except BaseException as error:
            raise ConfigurationError(
                f"the resource tracker {describe(self._tracker)} raised {type(error).__name__} in "
                f"{method}(): {error}"
            ) from error

    def _refusal(self, error: BaseException) -> AllocationError:
        refusal = AllocationError(
            f"the resource tracker {describe(self._tracker)} raised {type(error).__name__} when it "
            f"was asked for a claim: {error}",
            function_id=None,
            resource=None,
            asked=None,
            most=None,
        )
        refusal.__cause__ = error
        return refusal

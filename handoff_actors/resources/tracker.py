"""ResourceTracker: the actor that owns the claims on this node's resources.

The ledger decides; its facts are in a table: nodes, claims, who waits. Each message commits what it
changed before anybody is told, and a new incarnation makes its ledger from the facts, so a crash
loses no claim and grants none twice. An owner is a run (by key); it is told by a cast to the ``Ref``
that came with what it wants.

A tracker of the user's own replaces the ledger: it is asked for each claim, again at each release,
and every ``POLL`` seconds while somebody waits. What it raises is what the owner is told.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from handoff_actors.actors.calls import Ref, Reply
from handoff_actors.actors.server import DEFERRED, Actor
from handoff_actors.actors.table import Table
from handoff_actors.errors import AllocationError, describe
from handoff_actors.events import log
from handoff_actors.resources.allocator import Request
from handoff_actors.resources.capabilities import MICRO, from_micro, to_micro
from handoff_actors.resources.claims import (
    Claim,
    Effect,
    Granted,
    Infeasible,
    Release,
    Resume,
    Resumed,
    Suspend,
)
from handoff_actors.resources.ledger import Ledger

POLL = 0.02


class Tracker(Protocol):
    """What ``start(resource_tracker=...)`` takes. Its methods must not block."""

    def register(self, node: str, capabilities: Mapping[str, float]) -> None:
        """The node offers these from now on."""

    def capabilities(self) -> Mapping[str, Mapping[str, float]]:
        """What each node offers."""

    def available(self, node: str) -> Mapping[str, float]:
        """What is free there."""

    def request(self, node: str, req: Request, owner: Hashable) -> Any | None:
        """A claim of any kind, or None while it cannot be had."""

    def release(self, claim: Any) -> None:
        """A claim that was given is over."""


class Contention:
    """What lanes look at between two functions: does another run wait for resources?"""

    __slots__ = ("ledger", "waiting")

    def __init__(self) -> None:
        self.ledger: Ledger | None = None
        self.waiting: Mapping[Hashable, Any] = {}

    def waits_besides(self, node: str, owner: Hashable) -> bool:
        """Whether somebody waits at ``node`` who comes before more claims of this owner."""
        if self.ledger is not None:
            return self.ledger.waits_besides(node, owner)
        return any(waits[0] != owner for waits in list(self.waiting))


@dataclass(frozen=True, slots=True)
class Want:
    """The owner wants ``count`` claims at a time, those it holds included (see ``claims.Want``)."""

    owner: Hashable
    tag: Hashable
    node: str
    amounts: Mapping[str, int]
    count: int
    ref: Ref


@dataclass(frozen=True, slots=True)
class RegisterNode:
    """The node offers these amounts, in units."""

    node: str
    capabilities: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Discover:
    """What each node offers, in units."""


@dataclass(frozen=True, slots=True)
class Available:
    """What is free on the node, in units; nothing for an unknown one."""

    node: str


@dataclass(frozen=True, slots=True)
class Fits:
    """Whether the node has so much free now."""

    node: str
    requirements: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims that are held, suspended ones left out."""


@dataclass(frozen=True, slots=True)
class Poll:
    """Ask the user's tracker again."""


class ResourceTracker(Actor):
    """See the module.

    Args:
        table: keeps ``("node", name)``, ``("claim", id)``, ``("suspended", id)``, ``("resume", id)``
            and ``("want", owner, tag, node)``.
        contention: what it publishes.
        tracker: the user's own; None is the built-in ledger.
    """

    def __init__(
        self,
        table: Table[tuple[Any, ...], Any],
        contention: Contention,
        tracker: Tracker | None = None,
    ) -> None:
        self._state = table
        self.contention = contention
        self.tracker = tracker

    def init(self) -> None:
        """Make the ledger from the facts."""
        self.view: Mapping[tuple[Any, ...], Any] = self.take(self._state)
        if self.tracker is not None:
            self.backend: _Built | _Own = _Own(self, self.tracker)
        else:
            self.backend = _Built(self)
        self.backend.recover()

    def handle(self, message: Any) -> Any:
        """See the messages."""
        backend = self.backend
        if isinstance(message, Want):
            return backend.want(message)
        if isinstance(message, Release):
            return backend.release(message.claim_id)
        if isinstance(message, Suspend):
            return backend.suspend(message.claim_id)
        if isinstance(message, Resume):
            return backend.resume(message.claim_id, self.asker())
        if isinstance(message, RegisterNode):
            return backend.register(message.node, message.capabilities)
        if isinstance(message, Discover):
            return backend.discover()
        if isinstance(message, Available):
            return backend.available(message.node)
        if isinstance(message, Fits):
            return backend.fits(message.node, message.requirements)
        if isinstance(message, Claims):
            return [
                claim
                for key, claim in self.view.items()
                if key[0] == "claim" and ("suspended", key[1]) not in self.view
            ]
        if isinstance(message, Poll):
            return backend.poll()
        return super().handle(message)


class _Built:
    """The ledger behind the tracker."""

    def __init__(self, actor: ResourceTracker) -> None:
        self.actor = actor
        self.view = actor.view
        self.ledger = Ledger()

    def recover(self) -> None:
        claims = {key[1]: entry for key, entry in self.view.items() if key[0] == "claim"}
        wants = {key[1:]: entry for key, entry in self.view.items() if key[0] == "want"}
        nodes = {key[1]: entry for key, entry in self.view.items() if key[0] == "node"}
        owners = dict.fromkeys(
            [*wants, *((c.owner, c.tag, c.node) for c in claims.values())]
        )
        amounts = {(c.owner, c.tag, c.node): dict(c.amounts) for c in claims.values()}
        suspended = [i for i in claims if ("suspended", i) in self.view]
        resuming = [i for i in claims if ("resume", i) in self.view]
        self.ledger = Ledger.restore(
            {
                "nodes": {node: (True, dict(total), 0) for node, total in nodes.items()},
                "claims": list(claims.values()),
                "suspended": [i for i in suspended if i not in resuming],
                "resuming": resuming,
                "wants": [
                    (*key, amounts[key] if key in amounts else dict(wants[key].amounts), 0, 0, [])
                    for key in owners
                ],
                "next_id": self.view.get(("next",), 1),
            }
        )
        self.actor.contention.ledger = self.ledger
        for want in list(wants.values()):
            self._apply(
                self.ledger.want(want.owner, want.tag, want.node, want.amounts, want.count), {}, []
            )

    def want(self, message: Want) -> None:
        effects = self.ledger.want(
            message.owner, message.tag, message.node, message.amounts, message.count
        )
        key = ("want", message.owner, message.tag, message.node)
        if message.count:
            self._apply(effects, {key: message}, [])
        else:
            self._apply(effects, {}, [key])

    def release(self, claim_id: int) -> None:
        claim = self.view.get(("claim", claim_id))
        if claim is None:
            return
        changes: dict[Any, Any] = {}
        key = ("want", claim.owner, claim.tag, claim.node)
        want = self.view.get(key)
        deletions = [("claim", claim_id), ("suspended", claim_id), ("resume", claim_id)]
        if want is not None:
            if want.count > 1:
                changes[key] = Want(
                    want.owner, want.tag, want.node, want.amounts, want.count - 1, want.ref
                )
            else:
                deletions.append(key)
        self._apply(self.ledger.release(claim_id), changes, deletions)

    def suspend(self, claim_id: int) -> None:
        if ("claim", claim_id) in self.view:
            self._apply(self.ledger.suspend(claim_id), {("suspended", claim_id): True}, [])

    def resume(self, claim_id: int, reply: Reply | None) -> Any:
        if ("suspended", claim_id) not in self.view or reply is None:
            return None
        effects = self.ledger.resume(claim_id)
        self._apply(effects, {("resume", claim_id): reply}, [], reply=DEFERRED)
        return DEFERRED

    def register(self, node: str, capabilities: Mapping[str, float]) -> None:
        total = to_micro(capabilities, f"the capabilities of node {node!r}")
        self._apply(self.ledger.register(node, total), {("node", node): total}, [])

    def discover(self) -> dict[str, dict[str, float]]:
        return {node: from_micro(self.ledger.total(node)) for node in self.ledger.nodes()}

    def available(self, node: str) -> dict[str, float]:
        return from_micro(self.ledger.free(node))

    def fits(self, node: str, requirements: Mapping[str, float]) -> bool:
        free = self.ledger.free(node)
        need = to_micro(requirements, "the requirements")
        return node in self.ledger.nodes() and all(
            amount <= free.get(name, 0) for name, amount in need.items()
        )

    def poll(self) -> None:
        """The ledger needs no polling."""

    def _apply(
        self,
        effects: list[Effect],
        changes: dict[Any, Any],
        deletions: list[Any],
        reply: Any = None,
    ) -> None:
        """Commit, then tell the owners."""
        told: list[tuple[Ref, Effect]] = []
        replies: list[Reply] = []
        for effect in effects:
            if isinstance(effect, Granted):
                claim = effect.claim
                changes["claim", claim.id] = claim
                changes["next",] = claim.id + 1
                key = ("want", claim.owner, claim.tag, claim.node)
            elif isinstance(effect, Resumed):
                key = ("resume", effect.claim_id)
                waiting = changes.pop(key, None) or self.view.get(key)
                deletions += [key, ("suspended", effect.claim_id)]
                if waiting is not None:
                    replies.append(waiting)
                continue
            else:
                key = ("want", effect.owner, effect.tag, effect.node)
                deletions.append(key)
            want = changes.get(key) or self.view.get(key)
            if want is not None:
                told.append((want.ref, effect))
        self.actor.commit(changes, [key for key in deletions if key not in changes], reply)
        for waiter in replies:
            waiter.set(None)
        for ref, effect in told:
            if ref.gone and isinstance(effect, Granted):
                self.release(effect.claim.id)
            else:
                ref.cast(effect, follow=True)


class _Own:
    """A tracker of the user's own: its claims are kept beside ours, by id."""

    def __init__(self, actor: ResourceTracker, tracker: Tracker) -> None:
        self.actor = actor
        self.view = actor.view
        self.tracker = tracker
        self.polling = False
        self.number = int(self.view.get(("next",), 1))

    def recover(self) -> None:
        self._publish()
        self._ask_again()

    def _publish(self) -> None:
        self.actor.contention.waiting = {
            key[1:]: None
            for key, want in self.view.items()
            if key[0] == "want" and want.count > self._held(want)
        }

    def _held(self, want: Want) -> int:
        return sum(
            1
            for key, entry in self.view.items()
            if key[0] == "claim" and (entry.owner, entry.tag) == (want.owner, want.tag)
        )

    def want(self, message: Want) -> None:
        key = ("want", message.owner, message.tag, message.node)
        if message.count:
            self.actor.commit({key: message})
        else:
            self.actor.commit(deletions=[key])
        self._ask_again()

    def _ask_again(self) -> None:
        waiting = False
        for key, want in list(self.view.items()):
            if key[0] != "want":
                continue
            held = self._held(want)
            while held < want.count:
                try:
                    cost = from_micro(want.amounts)
                    theirs = self.tracker.request(
                        want.node, Request(want.tag, cost, {}), want.owner
                    )
                except BaseException as error:
                    self.actor.commit(deletions=[key])
                    want.ref.cast(_refused(self.tracker, want, error))
                    break
                if theirs is None:
                    waiting = True
                    break
                claim = Claim(self.number, want.node, want.owner, want.tag, want.amounts)
                self.number += 1
                self.actor.commit(
                    {
                        ("claim", claim.id): claim,
                        ("theirs", claim.id): theirs,
                        ("next",): self.number,
                    }
                )
                held += 1
                want.ref.cast(Granted(want.owner, want.tag, claim), follow=True)
        self._publish()
        if waiting and not self.polling:
            self.polling = True
            self.actor.system.timers.send_after(POLL, self.actor.ref, Poll())

    def poll(self) -> None:
        self.polling = False
        self._ask_again()

    def release(self, claim_id: int) -> None:
        claim = self.view.get(("claim", claim_id))
        if claim is None:
            return
        self._give_back(claim_id)
        key = ("want", claim.owner, claim.tag, claim.node)
        want = self.view.get(key)
        changes: dict[Any, Any] = {}
        deletions = [("claim", claim_id), ("theirs", claim_id), ("suspended", claim_id)]
        if want is not None:
            if want.count > 1:
                changes[key] = Want(
                    want.owner, want.tag, want.node, want.amounts, want.count - 1, want.ref
                )
            else:
                deletions.append(key)
        self.actor.commit(changes, deletions)
        self._ask_again()

    def _give_back(self, claim_id: int) -> None:
        theirs = self.view.get(("theirs", claim_id))
        if theirs is not None and ("suspended", claim_id) not in self.view:
            try:
                self.tracker.release(theirs)
            except BaseException as error:
                log.error("tracker_raised", tracker=describe(self.tracker), exc_info=error)

    def suspend(self, claim_id: int) -> None:
        if ("claim", claim_id) in self.view:
            self._give_back(claim_id)
            self.actor.commit({("suspended", claim_id): True})
            self._ask_again()

    def resume(self, claim_id: int, reply: Reply | None) -> Any:
        claim = self.view.get(("claim", claim_id))
        if claim is None or ("suspended", claim_id) not in self.view or reply is None:
            return None
        try:
            request = Request(claim.tag, from_micro(claim.amounts), {})
            theirs = self.tracker.request(claim.node, request, claim.owner)
        except BaseException as error:
            log.error("tracker_raised", tracker=describe(self.tracker), exc_info=error)
            theirs = None
        if theirs is None:
            timers, ref = self.actor.system.timers, self.actor.ref
            timers.call_later(POLL, lambda: _ask(ref, Resume(claim_id), reply))
            return DEFERRED
        self.actor.commit({("theirs", claim_id): theirs}, [("suspended", claim_id)])
        return None

    def register(self, node: str, capabilities: Mapping[str, float]) -> None:
        try:
            self.tracker.register(node, capabilities)
        except Exception as error:
            raise AllocationError(
                f"the tracker {describe(self.tracker)} raised at register({node!r}): {error}",
                function_id=None,
                resource=None,
                asked=None,
                most=None,
            ) from error
        self._ask_again()

    def discover(self) -> dict[str, dict[str, float]]:
        return {node: dict(offers) for node, offers in self.tracker.capabilities().items()}

    def available(self, node: str) -> dict[str, float]:
        return dict(self.tracker.available(node))

    def fits(self, node: str, requirements: Mapping[str, float]) -> bool:
        if node not in self.tracker.capabilities():
            return False
        free = self.tracker.available(node)
        return all(
            round(amount * MICRO) <= round(free.get(name, 0) * MICRO)
            for name, amount in requirements.items()
        )


def _ask(ref: Ref, request: Any, reply: Reply) -> None:
    from handoff_actors.actors.calls import Call

    ref.cast(Call(request, reply))


@dataclass(frozen=True, slots=True)
class Refused:
    """The user's tracker raised when it was asked for this owner."""

    owner: Hashable
    tag: Hashable
    error: AllocationError


def _refused(tracker: Tracker, want: Want, error: BaseException) -> Refused:
    refusal = AllocationError(
        f"the tracker {describe(tracker)} raised {type(error).__name__}: {error}",
        function_id=None,
        resource=None,
        asked=None,
        most=None,
    )
    refusal.__cause__ = error
    return Refused(want.owner, want.tag, refusal)


__all__ = [
    "Available",
    "Claims",
    "Contention",
    "Discover",
    "Fits",
    "Infeasible",
    "Poll",
    "Refused",
    "RegisterNode",
    "ResourceTracker",
    "Tracker",
    "Want",
]

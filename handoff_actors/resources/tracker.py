"""ResourceTracker: the actor that owns the claims on this node's resources.

The ledger decides; what it was told is in a table: a snapshot and what came after it. Each message
is committed before anybody hears of its effects, and a new incarnation makes the same ledger again
from the table: a crash loses no claim, grants none twice and costs nobody its place in line.

An owner is a run (by key); it is told by casts to the ``Ref`` that came with what it wants. When
that ref is gone for good its waiting ends. What it held is released by the workers that have it, or
here if it crashed; a claim that was granted but not delivered is released here too.

A tracker of the user's own takes the ledger's place: see ``own_tracker``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

from handoff_actors.actors.calls import Ref, Reply, gone
from handoff_actors.actors.reasons import Exit, Reason, is_abnormal
from handoff_actors.actors.server import DEFERRED, Actor
from handoff_actors.actors.table import Table
from handoff_actors.resources.allocator import Request
from handoff_actors.resources.capabilities import Capabilities, from_micro, to_micro
from handoff_actors.resources.claims import (
    Claim,
    Effect,
    Granted,
    Infeasible,
    OwnerGone,
    Refused,
    Release,
    ReleaseMany,
    Resume,
    Resumed,
    Split,
    Suspend,
    Unregister,
    Want,
)
from handoff_actors.resources.ledger import Ledger
from handoff_actors.resources.own_tracker import OwnLedger

__all__ = [
    "Available", "Claims", "Contention", "Discover", "Fits", "Granted", "Infeasible", "OwnerGone",
    "Refused", "RegisterNode", "Release", "ReleaseMany", "ResourceTracker", "Resume", "Resumed",
    "Split", "Suspend", "Tracker", "Unregister", "Want",
]  # fmt: skip

POLL: Final = 0.02
"""Seconds between two questions to a tracker of the user's own while somebody waits."""

LOGGED: Final = 128
"""Messages kept beside a snapshot, at least; a restart handles them again."""


class Tracker(Protocol):
    """What ``start(resource_tracker=...)`` takes. Its methods must not block."""

    def register(self, node: str, capabilities: Capabilities) -> None:
        """The node offers these, in units, from now on."""

    def capabilities(self) -> Mapping[str, Capabilities]:
        """What each node offers."""

    def available(self, node: str) -> Capabilities:
        """What is free there."""

    def request(self, node: str, req: Request, owner: Hashable) -> Claim | None:
        """A claim (any object but None will do), or None while it cannot be had."""

    def release(self, claim: Any) -> None:
        """A claim that ``request`` gave is over. Called once for each."""


class Contention:
    """What lanes look at between two functions. Any thread may ask, at the cost of two look-ups.

    Attributes:
        waits_besides: ``(node, owner)``: does anybody wait there who comes before more claims of
            this owner?
        changed: called by the tracker whenever claims or capabilities have changed.
    """

    __slots__ = ("changed", "waits_besides")

    def __init__(self) -> None:
        self.waits_besides: Callable[[str, Hashable], bool] = lambda _node, _owner: False
        self.changed: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class RegisterNode:
    """The node offers these amounts, in units, instead of what it offered."""

    node: str
    capabilities: Capabilities


@dataclass(frozen=True, slots=True)
class Discover:
    """What each node offers, in units."""


@dataclass(frozen=True, slots=True)
class Available:
    """What is free on the node, in units; nothing for an unknown one."""

    node: str


@dataclass(frozen=True, slots=True)
class Fits:
    """Whether the node has so much free now, in units; False for an unknown one."""

    node: str
    requirements: Capabilities


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims that have their resources now."""


@dataclass(frozen=True, slots=True)
class Poll:
    """Ask the user's tracker again."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """The ref of an owner is gone for good."""

    owner: Hashable
    ref: Ref
    crashed: bool


@dataclass(frozen=True, slots=True)
class _Delivery(Granted):
    """A grant on its way; if the owner ends before it reads it, the claim goes back."""

    tracker: Ref

    def undelivered(self, _reason: Reason) -> None:
        """The owner's mailbox was closed with this in it."""
        self.tracker.cast(Release(self.claim.id))


class ResourceTracker(Actor):
    """See the module. Understands the messages above and those of ``claims``.

    ``Want``, ``Release``, ``ReleaseMany``, ``Suspend``, ``OwnerGone`` are casts. ``Resume`` is a
    call that is answered once the resources are there (or the claim is over), or a cast that is
    answered with ``Resumed`` to the owner. ``Split`` is a call, answered with the new claim.

    Args:
        table: keeps ``"snapshot"``, ``("log", number)``, ``("ref", owner)``, ``("reply", claim)``,
            ``"own"`` and ``"untold"``, the outbox: what the last commit decided and who has not
            heard it yet.
        contention: what it publishes.
        tracker: the user's own; None is the built-in ledger.
    """

    def __init__(
        self, table: Table[Any, Any], contention: Contention, tracker: Tracker | None = None
    ) -> None:
        self._state = table
        self._contention = contention
        self._tracker = tracker

    def init(self) -> None:
        """Go on where the one before ended."""
        view = self.view = self.take(self._state)
        handle = self._table
        assert handle is not None
        first = "snapshot" not in view
        if first:
            own = None if self._tracker is None else OwnLedger(self._tracker)
            handle.commit({"snapshot": (0, Ledger().snapshot()), "own": own})
            self.ref.when_gone(self._fail_replies)
        self._logged, snapshot = view["snapshot"]
        self._number = self._logged
        self._own: OwnLedger | None = view["own"]
        self.ledger: Ledger | OwnLedger = self._own or Ledger.restore(snapshot)
        while (entry := view.get(("log", self._number))) is not None:
            getattr(self.ledger, entry[0])(*entry[1:])
            self._number += 1
        self._replies = {key[1]: reply for key, reply in view.items() if key[0] == "reply"}
        self._polling = False
        self._contention.waits_besides = self.ledger.waits_besides
        if not first:
            self._tell_all(view.get("untold", deque()))
            self.ref.cast(Poll())

    def terminate(self, reason: Reason) -> None:
        """The runtime stops: what a tracker of the user's own gave goes back to it."""
        if reason is Exit.SHUTDOWN and self._own is not None:
            self._own.close()

    def handle(self, message: Any) -> Any:
        """See the messages."""
        handler = self._handlers.get(type(message))
        return super().handle(message) if handler is None else handler(self, message)

    # Transitions.

    def _want(self, message: Want) -> None:
        owner, ref = message.owner, message.ref
        if message.count <= 0 and ("ref", owner) not in self.view:
            return
        known = ref is None or self.view.get(("ref", owner)) is ref
        if not known:
            self._watch(owner, ref)  # before the commit: then it is never forgotten
        self._apply(
            ("want", owner, message.tag, message.node, message.amounts, message.count),
            {} if known else {("ref", owner): ref},
        )

    def _release(self, message: Release) -> None:
        self._apply(("release", message.claim_id))

    def _release_many(self, message: ReleaseMany) -> None:
        self._apply(("release_many", tuple(message.claim_ids)))

    def _suspend(self, message: Suspend) -> None:
        self._apply(("suspend", message.claim_id))

    def _resume(self, message: Resume) -> Any:
        claim_id, reply = message.claim_id, self.asker()
        if self.ledger.claim(claim_id) is None:
            return None
        if reply is None:
            self._apply(("resume", claim_id))
            return None
        earlier = self._replies.get(claim_id)
        self._replies[claim_id] = reply
        self._apply(("resume", claim_id), {("reply", claim_id): reply}, answer=DEFERRED)
        if earlier is not None and earlier is not reply:
            earlier.set(None)
        return DEFERRED

    def _split(self, message: Split) -> Claim | None:
        part = self.ledger.part(message.claim_id, message.amounts)
        if part is not None and part.id != message.claim_id:
            self._apply(("split", message.claim_id, part), answer=part)
        return part

    def _register(self, message: RegisterNode) -> None:
        node = message.node
        amounts = to_micro(message.capabilities, f"the capabilities of node {node!r}")
        if self._own is not None:
            self._own.check_register(node, message.capabilities)
        self._apply(("register", node, amounts))

    def _unregister(self, message: Unregister) -> None:
        self._apply(("unregister", message.node))

    def _owner_gone(self, message: OwnerGone) -> None:
        self._apply(("owner_gone", message.owner), deletions=[("ref", message.owner)])

    def _ended(self, message: _Ended) -> None:
        key = ("ref", message.owner)
        if self.view.get(key) is message.ref:
            how = "owner_gone" if message.crashed else "owner_left"
            self._apply((how, message.owner), deletions=[key])

    def _poll(self, _message: Poll) -> None:
        self._polling = False
        if self._own is not None:
            self._apply(("poll",))

    def _apply(
        self,
        entry: tuple[Any, ...],
        changes: dict[Any, Any] | None = None,
        deletions: list[Any] | None = None,
        answer: Any = None,
    ) -> None:
        """Tell the ledger, commit, and only then let others know."""
        effects: list[Effect | Refused] = getattr(self.ledger, entry[0])(*entry[1:])
        changes = {} if changes is None else changes
        deletions = [] if deletions is None else deletions
        answered = self._answered(effects) if self._replies else {}
        for claim_id in answered:
            changes.pop(("reply", claim_id), None)
            deletions.append(("reply", claim_id))
        if self._own is None:
            self._record(self.ledger, entry, changes, deletions)
        untold: deque[tuple[Ref | Reply | None, Effect | Refused | None]] | None = None
        if effects or answered:
            untold = changes["untold"] = deque((reply, None) for reply in answered.values())
            for effect in effects:
                if type(effect) is not Resumed or effect.claim_id not in answered:
                    key = ("ref", effect.owner)
                    untold.append((changes.get(key) or self.view.get(key), effect))
        self.commit(changes, deletions, answer)
        if untold:
            self._tell_all(untold)
        if self._contention.changed is not None:
            self._contention.changed()
        if self._own is not None and self._own.waits and not self._polling:
            self._polling = True
            self.system.timers.send_after(POLL, self.ref, Poll())

    def _record(
        self, ledger: Any, entry: tuple[Any, ...], changes: dict[Any, Any], deletions: list[Any]
    ) -> None:
        """Keep the entry, or all the ledger knows once the entries cost more than that."""
        count = self._number - self._logged
        if count < LOGGED or count < ledger.size():
            changes["log", self._number] = entry
            self._number += 1
            return
        deletions += [("log", number) for number in range(self._logged, self._number)]
        changes["snapshot"] = (self._number, ledger.snapshot())
        self._logged = self._number

    def _answered(self, effects: list[Effect | Refused]) -> dict[int, Reply]:
        """The calls to ``Resume`` that have their answer: it resumed, or it is over."""
        over = [i for i in self._replies if self.ledger.claim(i) is None]
        over += [e.claim_id for e in effects if type(e) is Resumed and e.claim_id in self._replies]
        return {claim_id: self._replies.pop(claim_id) for claim_id in over}

    def _tell_all(self, untold: deque[tuple[Ref | Reply | None, Effect | Refused | None]]) -> None:
        """Each leaves the outbox once it is told: the next incarnation goes on with the rest."""
        while untold:
            to, effect = untold[0]
            if effect is not None:
                assert not isinstance(to, Reply)
                self._tell(to, effect)
            elif isinstance(to, Reply):
                to.set(None)
            untold.popleft()

    def _tell(self, ref: Ref | None, effect: Effect | Refused) -> None:
        if type(effect) is Granted:
            delivery = _Delivery(effect.owner, effect.tag, effect.claim, self.ref)
            if ref is not None:
                ref.cast(delivery, follow=True)
            if ref is None or ref.gone:
                delivery.undelivered(Exit.NOPROC)
        elif ref is not None:
            ref.cast(effect, follow=True)

    def _watch(self, owner: Hashable, ref: Ref) -> None:
        tracker = self.ref

        def ended(reason: Reason) -> None:
            crashed = is_abnormal(reason) and reason is not Exit.NOPROC
            tracker.cast(_Ended(owner, ref, crashed))

        ref.when_gone(ended)

    def _fail_replies(self, reason: Reason) -> None:
        """No tracker will ever answer: on whatever thread closes the mailbox."""
        for key, reply in list(self._state.view.items()):
            if key[0] == "reply":
                reply.fail(gone(self.ref, reason))

    # Questions.

    def _discover(self, _message: Discover) -> dict[str, dict[str, float]]:
        ledger = self.ledger
        return {node: from_micro(ledger.total(node)) for node in ledger.nodes()}

    def _available(self, message: Available) -> dict[str, float]:
        return from_micro(self.ledger.free(message.node))

    def _fits(self, message: Fits) -> bool:
        need = to_micro(message.requirements, "the requirements")
        if message.node not in self.ledger.nodes():
            return False
        free = self.ledger.free(message.node)
        return all(amount <= free.get(name, 0) for name, amount in need.items() if amount)

    def _claims(self, _message: Claims) -> list[Claim]:
        return self.ledger.held()

    _handlers: ClassVar[dict[type, Callable[[Any, Any], Any]]] = {
        Want: _want,
        Release: _release,
        ReleaseMany: _release_many,
        Suspend: _suspend,
        Split: _split,
        Resume: _resume,
        RegisterNode: _register,
        Unregister: _unregister,
        OwnerGone: _owner_gone,
        Discover: _discover,
        Available: _available,
        Fits: _fits,
        Claims: _claims,
        Poll: _poll,
        _Ended: _ended,
    }

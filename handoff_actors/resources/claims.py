"""The words of the ledger: claims, the events it is told and the effects it answers with. Pure.

All amounts are integer micro-units (``capabilities.to_micro``) but those of ``Infeasible``, which
are for people.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handoff_actors.errors import AllocationError


@dataclass(frozen=True, slots=True)
class Claim:
    """Resources of one node that one owner holds.

    Attributes:
        id: unique in its ledger, never used again.
        node: where the resources are.
        owner: the run (or pipeline) that holds them.
        tag: what the owner asked for them under.
        amounts: micro-units by resource; shared, never to be changed.
    """

    id: int
    node: str
    owner: Hashable
    tag: Hashable
    amounts: Mapping[str, int] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Register:
    """The node offers these amounts from now on, instead of what it offered."""

    node: str
    amounts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Unregister:
    """The node is gone: its waiters become infeasible, what is held there may still be released."""

    node: str


@dataclass(frozen=True, slots=True)
class Want:
    """The owner wants ``count`` claims at a time under this tag at this node.

    ``count`` is absolute and **includes the claims it holds there** under the tag; a release takes
    one off. So a ``Want`` that crosses a ``Granted`` on its way, or is sent twice, never gives too
    many. 0 takes back what waits; what is held stays.
    """

    owner: Hashable
    tag: Hashable
    node: str
    amounts: Mapping[str, int]
    count: int
    ref: Any = None
    """Whom the tracker casts the effects to (a ``Ref``); the ledger does not look at it."""


@dataclass(frozen=True, slots=True)
class Release:
    """The claim is over. An unknown or released one is ignored."""

    claim_id: int


@dataclass(frozen=True, slots=True)
class ReleaseMany:
    """As ``Release`` for each; the resources are handed on when all are back."""

    claim_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class OwnerGone:
    """The owner is gone for good: everything it holds and wants is freed."""

    owner: Hashable


@dataclass(frozen=True, slots=True)
class OwnerLeft:
    """The owner has ended: what it waits for is taken back. Its workers release what they hold."""

    owner: Hashable


@dataclass(frozen=True, slots=True)
class Suspend:
    """The claim's function waits for a nested run: its resources are lent out till ``Resume``."""

    claim_id: int


@dataclass(frozen=True, slots=True)
class Resume:
    """The suspended claim wants its resources back, ahead of everybody who waits."""

    claim_id: int


@dataclass(frozen=True, slots=True)
class Split:
    """So much of a claim becomes a claim of its own, of the same owner under the same tag.

    What is held stays the same in all. Refused (by None in place of the ``Claim``) when the claim
    is unknown, lent, or has not so much; one that has no more than that stays as it is.
    """

    claim_id: int
    amounts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Granted:
    """The owner holds ``claim`` now."""

    owner: Hashable
    tag: Hashable
    claim: Claim


@dataclass(frozen=True, slots=True)
class Infeasible:
    """What the owner waits for under ``tag`` can never be had at ``node``; it waits no more.

    Attributes:
        resource: the first resource the node has too little of; None if the node is unknown and
            nothing was asked of it.
        asked: units asked.
        most: units the node offers in all.
    """

    owner: Hashable
    tag: Hashable
    node: str
    resource: str | None
    asked: float
    most: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """The claim has its resources again."""

    owner: Hashable
    claim_id: int


Event = (
    Register | Unregister | Want | Release | ReleaseMany | OwnerGone | OwnerLeft | Suspend | Resume
)
Effect = Granted | Infeasible | Resumed


@dataclass(frozen=True, slots=True)
class Refused:
    """A tracker of the user's own raised; the owner waits no more under ``tag``."""

    owner: Hashable
    tag: Hashable
    error: AllocationError

"""One node of a ``SimulatedCluster``: the library's own ledger, and what runs and lies there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from handoff_actors.cluster.membership import Card
from handoff_actors.resources.claims import Effect, Granted, Register, Release, Want
from handoff_actors.resources.ledger import Ledger

Attempt = tuple[int, int]
"""A run's number and a token of it."""


class Dispatch(NamedTuple):
    """What a node is told to run.

    Attributes:
        attempt: which.
        cost: in micro-units.
        seconds: how long it will take.
        inputs: per value: its index, the node that has it, that node's life, and its bytes.
    """

    attempt: Attempt
    cost: Mapping[str, int]
    seconds: float
    inputs: Sequence[tuple[int, str, int, int]]


class SimulatedNode:
    """See the module.

    Args:
        name: of the node.
        total: what it offers, in micro-units.

    Attributes:
        life: which incarnation this is; grows with each restart.
        up: whether its process lives.
        frozen: until when it does nothing; 0.0 when it does.
        session: of its link to the orchestrator; 0 when there is none.
        values: by run and index.
        running: claim ids by attempt.
    """

    __slots__ = (
        "_waiting", "frozen", "ledger", "life", "name", "running", "session", "total", "up",
        "values",
    )  # fmt: skip

    def __init__(self, name: str, total: Mapping[str, int]) -> None:
        self.name = name
        self.total = dict(total)
        self.life = 0
        self.up = False
        self.frozen = 0.0
        self.session = 0
        self.begin()

    def begin(self) -> None:
        """Another life, that knows nothing of the one before."""
        self.life += 1
        self.up = True
        self.frozen = 0.0
        self.session = 0
        self.ledger = Ledger()
        self.ledger.handle(Register(self.name, self.total))
        self.values: dict[tuple[int, int], int] = {}
        self.running: dict[Attempt, int] = {}
        self._waiting: dict[Attempt, Dispatch] = {}

    def card(self) -> Card:
        """What it says of itself."""
        return Card(
            self.name, str(self.life), f"{self.name}:1", None, self.name, 0, 5.0, "simulated", ""
        )

    def admit(self, dispatch: Dispatch) -> list[Dispatch]:
        """Ask the ledger for what an attempt needs; those that may run now."""
        self._waiting[dispatch.attempt] = dispatch
        wanted = Want(dispatch.attempt[0], dispatch.attempt, self.name, dispatch.cost, 1)
        return self._begun(self.ledger.handle(wanted))

    def finish(self, attempt: Attempt) -> list[Dispatch]:
        """An attempt has ended: its claim goes back; those that may run now."""
        claim = self.running.pop(attempt)
        return self._begun(self.ledger.handle(Release(claim)))

    def _begun(self, effects: Sequence[Effect]) -> list[Dispatch]:
        begun: list[Dispatch] = []
        for effect in effects:
            assert isinstance(effect, Granted), effect
            assert isinstance(effect.tag, tuple)
            dispatch = self._waiting.pop(effect.tag, None)
            if dispatch is None:  # it was taken back meanwhile
                begun += self._begun(self.ledger.handle(Release(effect.claim.id)))
                continue
            self.running[dispatch.attempt] = effect.claim.id
            begun.append(dispatch)
        return begun

    def abandon(self) -> None:
        """The orchestrator is gone: nothing that waits begins, its values are dropped.

        What runs is code in threads: it keeps its claim until it returns.
        """
        self.session = 0
        self.values.clear()
        waiting, self._waiting = self._waiting, {}
        for attempt, dispatch in waiting.items():
            self._begun(self.ledger.handle(Want(attempt[0], attempt, self.name, dispatch.cost, 0)))

    def check(self) -> None:
        """Assert that no more is held than there is, and the ledger's own invariants."""
        free = self.ledger.free(self.name)
        assert all(amount >= 0 for amount in free.values()), (self.name, free)
        assert len(self.running) == len(self.ledger.held())
        self.ledger.check()

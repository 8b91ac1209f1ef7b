"""How a runtime is doing: its status, its events, its actors by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from handoff_actors.actors.calls import Ref
from handoff_actors.arguments import items_of
from handoff_actors.errors import ConfigurationError, describe
from handoff_actors.events import Event, Subscription
from handoff_actors.execution.executor import Entry
from handoff_actors.execution.running import running
from handoff_actors.execution.workers.supervisor import Describe
from handoff_actors.resources.capabilities import MICRO
from handoff_actors.resources.tracker import Claims
from handoff_actors.runtime_nodes import Nodes
from handoff_actors.status import (
    ActorStatus,
    ClaimStatus,
    GuestStatus,
    MemoryStatus,
    NodeInfo,
    RunStatus,
    RuntimeStatus,
)


class Status(Nodes):
    """Part of ``Runtime``: how it is doing."""

    def status(self) -> RuntimeStatus:
        """A snapshot of the tree, restarts, nodes, claims, runs and workers."""
        tracker = self._ref("resource_tracker")
        self._desk.settle()
        entries = dict(self._runs.view)
        runs = [
            RunStatus(e.data.dag_id, _state(e), e.data.finished, e.data.plan.n)
            for e in entries.values()
        ]
        hub = self._hub
        guests = [] if hub is None else list(hub.guests.values())
        owners = {guest.key: guest.dag_id for guest in guests}
        owners.update({key: entry.data.dag_id for key, entry in entries.items()})
        claims = [
            ClaimStatus(
                claim.node,
                owners.get(claim.owner, claim.owner),
                {name: amount / MICRO for name, amount in claim.amounts.items()},
            )
            for claim in tracker.call(Claims())
        ]
        workers = self._ref("worker_supervisor").call(Describe())
        return RuntimeStatus(
            self._tree(),
            dict(self._restarts),
            self._node_infos(),
            claims,
            runs,
            workers,
            [
                found
                for data in [*(entry.data for entry in entries.values()), *guests]
                for found in running(data)
            ],
            [
                GuestStatus(guest.dag_id, guest.run_name[0], guest.state, guest.count())
                for guest in guests
            ],
            None if self._budget is None else MemoryStatus(*self._budget.status()),
        )

    def entries(self) -> list[Entry]:
        """The runs it knows of, as the table has them."""
        return list(self._runs.view.values())

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Write one JSON file for a bug report: versions, status, last events, stacks.

        No values, no messages of exceptions, no key. Written also when actors do not answer.

        Args:
            path: where to; what is there is replaced.

        Raises:
            OSError: the file cannot be written.
        """
        from handoff_actors.bug_report import write

        write(path, self)

    def _node_infos(self) -> list[NodeInfo]:
        others = [] if self._mesh is None else sorted(self._mesh.known())
        return [self.node_info(), *(self.node_info(name) for name in others)]

    def _tree(self) -> ActorStatus:
        assert self._system is not None
        below: dict[str, list[ActorStatus]] = {
            "execution_supervisor": [],
            "pipeline_supervisor": [],
        }
        for name, ref in self._system.names.all().items():
            if name.startswith("run:"):
                below["execution_supervisor"].append(_actor(name, ref))
            elif name.startswith("pipeline:"):
                below["pipeline_supervisor"].append(_actor(name, ref))
        children = [_actor(name, ref, below.get(name, ())) for name, ref in self._refs.items()]
        return _actor("supervisor", self._root, children)

    def subscribe(
        self, callback: Callable[[Event], object], kinds: Iterable[type[Event]] | None = None
    ) -> Subscription:
        """Call ``callback(event)`` as things happen, on a thread of its own.

        Args:
            callback: what it raises is logged.
            kinds: the classes of events it wants; None is all.
        """
        self._ref("resource_tracker")
        if not callable(callback):
            raise ConfigurationError(f"a subscriber is callable, not {describe(callback)}")
        wanted = None if kinds is None else items_of("kinds", kinds, "classes of events")
        for kind in wanted or ():
            if not (isinstance(kind, type) and issubclass(kind, Event)):
                raise ConfigurationError(f"kinds are classes of events, not {describe(kind)}")
        return self.events.subscribe(callback, wanted)

    def whereis(self, name: str) -> Ref | None:
        """The actor of that name, for fault injection."""
        self._ref("resource_tracker")
        assert self._system is not None
        return self._system.names.whereis(name)


def _state(entry: Entry) -> str:
    """A run that was cancelled is, though its runner may not have come to it yet."""
    cancelled = entry.run is not None and entry.run.cancelled()
    return "cancelled" if cancelled else entry.data.state


def _actor(name: str, ref: Ref, children: Sequence[ActorStatus] = ()) -> ActorStatus:
    return ActorStatus(name, "up" if ref.alive else "down", len(ref.mailbox), tuple(children))

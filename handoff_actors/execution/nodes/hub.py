"""What a runtime has of runs over several nodes: its own that go abroad, and its guests.

A plain object that outlives all actors: it hands what comes from other nodes to the run or guest it
is for, tells them who comes and goes, gives out values, and tells the others what is free here.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from time import perf_counter
from typing import Any

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.dynamic_supervisor import start_soon
from handoff_actors.actors.reasons import Reason
from handoff_actors.actors.specs import ChildSpec
from handoff_actors.cluster.payload import Payload, loads
from handoff_actors.cluster.peers import (
    Cluster,
    Peer,
    PeerDown,
    PeerEvent,
    PeerFacts,
    PeerUp,
)
from handoff_actors.errors import (
    HandoffError,
    NodeDownError,
    NodeError,
    ValueNotFoundError,
    describe,
)
from handoff_actors.execution.nodes.abroad import Abroad
from handoff_actors.execution.nodes.fetching import Fetcher, GoneError, Shelf, Wish
from handoff_actors.execution.nodes.guest import Abandon, GuestData, GuestRunner
from handoff_actors.execution.nodes.messages import (
    OUTCOMES,
    SERVICE,
    VALUES,
    WORK,
    AskCrew,
    Begin,
    Capacity,
    Carried,
    GuestLost,
    Located,
    Many,
    Outcomes,
    RunName,
    ValueKey,
    Work,
)
from handoff_actors.execution.nodes.reports import LostGuest, Report
from handoff_actors.execution.run_data import MISSING, RunData
from handoff_actors.execution.workers.roster import Workers
from handoff_actors.resources.capabilities import from_micro, to_micro
from handoff_actors.resources.tracker import Claims

_GOSSIP = 0.02
"""Seconds between two things said about what is free here, at least."""
_CALL = 5.0
_CLOCK = "clock"

Amounts = Mapping[str, int]


class Hub:
    """See the module.

    Args:
        cluster: this node among the others.
        workers: of this node.
        supervisor: of the strands of guests.
        tracker: of this node.
        offered: what each node was registered with, in units.
        keys: gives unique keys.
        max_restarts: of a guest's strand.
        node_return_timeout: seconds that pinned work waits for its node.
    """

    def __init__(
        self,
        cluster: Cluster,
        workers: Workers,
        supervisor: Ref,
        tracker: Ref,
        offered: Callable[[], Mapping[str, Mapping[str, float]]],
        keys: Callable[[], int],
        max_restarts: int,
        node_return_timeout: float,
    ) -> None:
        self.node_return_timeout = node_return_timeout
        self.cluster = cluster
        self.workers = workers
        self.node = cluster.node
        self.incarnation = cluster.incarnation
        self.fetcher = Fetcher(cluster)
        self._versions = itertools.count(1)
        self.version = 0
        self.running: dict[int, Abroad] = {}
        self.runs: dict[int, RunData] = {}
        self.guests: dict[tuple[str, int], GuestData] = {}
        self._by_name: dict[RunName, GuestData] = {}
        self.supervisor = supervisor
        self._tracker = tracker
        self._offered = offered
        self._keys = keys
        self.max_restarts = max_restarts
        self._lock = threading.Lock()
        self._capacities: dict[str, tuple[Amounts, Amounts]] = {}
        self._totals: dict[str, Amounts] = {}
        self._held: dict[Any, dict[str, int]] = {}
        self._said: dict[str, tuple[Amounts, Amounts]] = {}
        self._saying = False
        self._offsets: dict[str, float] = {}
        self._closed = False
        self._shelf = Shelf(self.node, self._holder, self._relay, workers.runtime)

    def open(self) -> None:
        """Answer from now on."""
        self.cluster.serve(WORK, on_post=self._on_work)
        self.cluster.serve(OUTCOMES, on_post=self._on_outcomes)
        self.cluster.serve(SERVICE, on_post=self._on_post, on_call=self._on_call)
        self.cluster.serve(VALUES, on_call=self._on_call, on_fetch=self._shelf.on_fetch)
        self.cluster.watch(self._on_peer)

    def close(self) -> None:
        """Heed nobody any more."""
        self._closed = True
        self.cluster.unwatch(self._on_peer)

    # Runs of this node.

    def send_abroad(self, data: RunData) -> None:
        """A run of this node may use other nodes."""
        data.away = Abroad(data, self)
        self.runs[data.key] = data
        self.running[data.key] = data.away

    def new_key(self) -> int:
        """A key for a run that no desk has admitted."""
        return self._keys()

    def forget(self, key: int) -> None:
        """A run of this node is released."""
        self.runs.pop(key, None)
        self.over(key)

    def over(self, key: int) -> None:
        """A run of this node has ended: what it had placed is free for the others."""
        if self.running.pop(key, None) is not None:
            self.news()

    def news(self) -> None:
        """What is free somewhere has changed: runs look at all nodes before they place again."""
        # Any thread; a number is never used twice, so no reader takes a change for none.
        self.version = next(self._versions)

    def run_name(self, key: int) -> RunName:
        """What a run of this node is called everywhere."""
        return (self.node, self.incarnation, key)

    def is_used(self) -> bool:
        """Whether there are, or were, other nodes."""
        return bool(self.cluster.known())

    def up(self) -> list[Peer]:
        """The peers that may be given work."""
        return [peer for peer in self.cluster.peers().values() if peer.takes_work]

    def peer(self, name: str) -> Peer | None:
        """The peer of that name, if it is there."""
        return self.cluster.peers().get(name)

    def capacity(self, name: str, abroad: Abroad) -> tuple[Amounts, Amounts] | None:
        """What a node offers and what others than a run hold there; None if it has not said."""
        key = abroad.data.key
        if name == self.node:
            total: Amounts = self._offered_here()
            sums = self._sum(owner for owner in self._held if owner not in self.running)
        else:
            peer = self.peer(name)
            if peer is None:
                return None
            said = self._capacities.get(peer.session)
            if said is None:
                # What it offers is known as soon as it is up, what of it is free a little later.
                said = (to_micro(peer.facts.get("capabilities", {}), "capabilities"), {})
            total, sums = said[0], dict(said[1])
        # What others have said is a little old; what runs of this node have placed is not.
        for other_key, other in list(self.running.items()):
            if other_key != key and not other.data.over:
                for resource, amount in other.spread.charges(name).items():
                    sums[resource] = sums.get(resource, 0) + amount
        return total, sums

    def _offered_here(self) -> dict[str, int]:
        return to_micro(self._offered().get(self.node, {}), "capabilities")

    def _sum(self, owners: Iterable[Any]) -> dict[str, int]:
        held = self._held
        sums: dict[str, int] = {}
        for owner in owners:
            for resource, amount in held.get(owner, {}).items():
                sums[resource] = sums.get(resource, 0) + amount
        return sums

    def offered(self) -> dict[str, Mapping[str, float] | None]:
        """What each node that was ever seen offers, or did last, in units; None if unknown."""
        found: dict[str, Mapping[str, float] | None] = {}
        for name, record in self.cluster.known().items():
            total = self._totals.get(name)
            said = record.facts.get("capabilities")
            found[name] = said if total is None else from_micro(total)
        return found

    def clock_offset(self, peer: Peer) -> float:
        """What is to be added to a peer's ``perf_counter()``."""
        return 0.0 if peer.same_machine else self._offsets.get(peer.session, 0.0)

    # Values.

    def _holder(self, run: RunName) -> RunData | None:
        if run[0] == self.node and run[1] == self.incarnation:
            return self.runs.get(run[2])
        return self._by_name.get(run)

    def _relay(self, key: ValueKey, node: str) -> Payload:
        """A value of a run of this node for somebody who cannot reach its node."""
        data = self.runs[key.run[2]]
        try:
            return self.fetcher.relay(key, node, data.trail)
        except ValueNotFoundError as error:
            if data.ref is not None and not isinstance(error.__cause__, NodeError):
                data.reports.append(Report(node, ("absent", key.index)))
                data.ref.signal()
            raise

    def bring(self, data: RunData, indices: Iterable[int]) -> dict[int, BaseException]:
        """Have values of a run of this node here; blocks.

        Returns:
            Those that cannot be had, with why.
        """
        wishes: list[Wish] = []
        failed: dict[int, BaseException] = {}
        for i in indices:
            value = data.peek(i)
            what = f"result of function {describe(data.plan.ids[i])}"
            if isinstance(value, Carried):
                try:
                    data.values[i] = loads(value.payload, what)
                except BaseException as error:  # the user's class may raise anything
                    failed[i] = error
            elif isinstance(value, Located):
                key = ValueKey(self.run_name(data.key), i, self.node)
                wishes.append(Wish(i, key, value.node, value.nbytes, what))
        for i, found, there in self.fetcher.bring(wishes, None, data.trail):
            if not there:
                failed[i] = found
            elif isinstance(data.peek(i), Located):
                data.values[i] = found
        return failed

    # What comes from other nodes.

    def _on_work(self, peer: Peer, message: Any) -> None:
        guest = self.guests.get((peer.session, message[0]))
        if guest is not None and not self._closed:
            guest.say(Work._make(message))

    def _on_outcomes(self, peer: Peer, message: Any) -> None:
        run = self.runs.get(message[0])
        if run is not None and run.away is not None and not self._closed:
            run.away.outcomes(peer, Outcomes._make(message))

    def _on_post(self, peer: Peer, message: Any) -> None:
        if self._closed:
            return
        if isinstance(message, Capacity):
            self._capacities[peer.session] = (message.total, message.others)
            self._totals[peer.name] = message.total
            self.news()
            for data in list(self.runs.values()):
                if data.ref is not None and not data.over and data.away is not None:
                    data.ref.mailbox.signal_elsewhere()
        elif isinstance(message, Begin):
            self._begin(peer, message)
        elif isinstance(message, GuestLost):
            run = self.runs.get(message.key)
            if run is not None and run.ref is not None and not run.over:
                run.ref.cast(LostGuest(peer, message.reason))
        else:
            guest = self.guests.get((peer.session, message.key))
            if guest is not None:
                guest.say(message)

    def _begin(self, peer: Peer, begin: Begin) -> None:
        guest = GuestData(self._keys(), begin, peer, self.workers, self.fetcher)
        guest.limit(self.workers.budget)
        mark = (peer.session, begin.key)
        self.guests[mark] = guest
        self._by_name[guest.run_name] = guest
        spec = ChildSpec(
            guest.name,
            lambda: GuestRunner(guest, self.workers),
            restart="transient",
            name=guest.name,
            counted=False,
            max_restarts=self.max_restarts,
        )
        ref = start_soon(
            self.workers.system,
            self.supervisor,
            spec,
            on_error=lambda error: self.workers.log.error("guest_failed", error=str(error)),
        )
        guest.ref = ref
        self.workers.system.names.register(ref)
        ref.when_gone(lambda reason: self._guest_gone(mark, guest, reason))

    def made_here(self, dag_id: Hashable, id_: Hashable) -> tuple[Any, bool]:
        """What a function of another node's run has returned here, and whether that run goes on.

        Of several runs of that name it is one that goes on, else the last. ``MISSING`` is no value.
        """
        found: tuple[Any, bool] = (MISSING, False)
        for guest in list(self.guests.values()):
            if guest.dag_id == dag_id and not (found[1] and guest.stopping):
                value = guest.made(id_)
                if value is not MISSING:
                    found = value, not guest.stopping
        return found

    def _guest_gone(self, mark: tuple[str, int], guest: GuestData, reason: Reason) -> None:
        if self.guests.get(mark) is guest:
            del self.guests[mark]
        if self._by_name.get(guest.run_name) is guest:
            del self._by_name[guest.run_name]
        ended, guest.stopping = guest.stopping, True
        for queue in guest.queues:
            queue.stop()
        if not ended:
            # Its strand crashed too often, or could not begin.
            with contextlib.suppress(NodeDownError):
                guest.peer.post(SERVICE, GuestLost(mark[1], describe(reason)))

    def _on_call(self, peer: Peer, request: Any) -> Any:
        if isinstance(request, Many):
            return self._shelf.many(peer, request)
        if isinstance(request, AskCrew):
            guest = self.guests.get((peer.session, request.key))
            return ((), (), ()) if guest is None else guest.crew()
        if request == _CLOCK:
            return perf_counter()
        raise HandoffError(f"node {self.node} cannot answer {describe(request)}")

    def _on_peer(self, event: PeerEvent) -> None:
        peer = event.peer
        if isinstance(event, PeerUp):
            self.changed()
            if not peer.same_machine:
                self.workers.carriers.submit(functools.partial(self._measure_clock, peer))
        elif isinstance(event, PeerDown):
            for (session, _), guest in list(self.guests.items()):
                if session == peer.session and guest.ref is not None:
                    guest.ref.cast(Abandon())
            self._capacities.pop(peer.session, None)
            self._said.pop(peer.session, None)
            self._offsets.pop(peer.session, None)
        self.news()
        if not isinstance(event, PeerFacts) or not peer.takes_work:
            for data in list(self.runs.values()):
                if data.ref is not None and not data.over:
                    data.ref.cast(event)

    def _measure_clock(self, peer: Peer) -> None:
        best: tuple[float, float] | None = None
        for _ in range(5):
            began = perf_counter()
            try:
                theirs = float(peer.call(SERVICE, _CLOCK, _CALL))
            except NodeError:
                break
            ended = perf_counter()
            offset = (began + ended) / 2 - theirs
            best = min(best or (ended - began, offset), (ended - began, offset))
        if best is not None:
            self._offsets[peer.session] = best[1]

    # What is free here.

    def changed(self) -> None:
        """Claims or capabilities of this node have changed: say so soon. Any thread."""
        self.news()
        with self._lock:
            if self._saying or self._closed:
                return
            self._saying = True
        self.workers.timers.call_later(_GOSSIP, self._say_soon)

    def _say_soon(self) -> None:
        self.workers.carriers.submit(self._say)

    def _say(self) -> None:
        with self._lock:
            self._saying = False
        peers = list(self.cluster.peers().values())
        if self._closed or not peers:
            return
        held: dict[Any, dict[str, int]] = {}
        try:
            claims = self._tracker.call(Claims())
        except HandoffError:
            return
        for claim in claims:
            sums = held.setdefault(claim.owner, {})
            for resource, amount in claim.amounts.items():
                sums[resource] = sums.get(resource, 0) + amount
        self._held = held
        self.news()
        total = self._offered_here()
        for peer in peers:
            theirs = {
                g.key for (session, _), g in list(self.guests.items()) if session == peer.session
            }
            said = (total, self._sum(owner for owner in held if owner not in theirs))
            if self._said.get(peer.session) != said:
                self._said[peer.session] = said
                try:
                    peer.post(SERVICE, Capacity(*said))
                except NodeDownError:
                    self._said.pop(peer.session, None)


__all__ = ["GoneError", "Hub"]

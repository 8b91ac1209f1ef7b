"""A run over several nodes, as its orchestrator has it: beside the runner, and outliving it.

    Runner ── ready ──▶ Abroad ── Spread says where ──▶ here: gather inputs, queues
                           │                        └─▶ a guest: lesson, small values, places
    reader thread ── Outcomes ──▶ done, reports of the run ── signal ──▶ Runner commits them

All but ``outcomes`` is called in the runner's step. What is posted to a node that has just died is
posted in vain; that it died comes as a message, and then its attempts and values are lost.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from handoff_actors.cluster.payload import Payload
from handoff_actors.cluster.peers import Peer
from handoff_actors.errors import (
    CrashedAttempt,
    HandoffError,
)
from handoff_actors.events import ValuesMoved
from handoff_actors.execution.lossy_state import LossyState
from handoff_actors.execution.nodes.fetching import GoneError
from handoff_actors.execution.nodes.gather import Gatherer
from handoff_actors.execution.nodes.messages import (
    SERVICE,
    AskCrew,
    Carried,
    End,
    Located,
    Outcomes,
    Release,
    Withdraw,
)
from handoff_actors.execution.nodes.reports import Report
from handoff_actors.execution.nodes.sending import Sender
from handoff_actors.execution.nodes.sizes import TEXTS, carried_bytes, is_plain
from handoff_actors.execution.nodes.spread import Spread
from handoff_actors.execution.run_data import FREED, MISSING, RunData
from handoff_actors.execution.run_state import (
    Crashed,
    Event,
    Lost,
    Raised,
    TimedOut,
    Withdrawn,
)
from handoff_actors.execution.trail import Transfer
from handoff_actors.resources.allocator import by_name
from handoff_actors.results.sizes import size_of

if TYPE_CHECKING:
    from handoff_actors.execution.nodes.hub import Hub

_LOOK = 0.005
"""Seconds between looks at a value that is being made again."""
_PATIENCE = 1.0
"""Seconds for an answer that only makes a picture better."""


class Abroad:
    """See the module.

    Args:
        data: the run.
        hub: of this node.

    Attributes:
        spread: where its attempts are.
        made: the nodes that made values, by index; the others were made here.
        preset: functions that need not run, when only some are to.
        stale: nodes on which other runs hold more or less than when this one last looked.
    """

    def __init__(self, data: RunData, hub: Hub) -> None:
        plan = data.plan
        if plan.calls:
            # What came for one attempt takes a place in its call: calls are not shared then.
            plan = data.plan = copy.copy(plan)
            plan.calls = dict(plan.calls)
        options = data.options
        strategy = options.allocator
        self.data = data
        self.hub = hub
        self.spread = Spread(
            plan,
            data.node,
            by_name(strategy),
            own=strategy is not None and not isinstance(strategy, str),
            limit=options.max_concurrency,
            input_bytes=self._input_bytes,
        )
        self.made: dict[int, str] = {}
        data.trail.on_move = self._tell_of
        self.preset: bytearray | None = None
        self._remaking = threading.Lock()
        self.sender = Sender(data, hub, self.spread)
        self.gatherer = Gatherer(
            data, hub.run_name(data.key), hub.fetcher, hub.workers.carriers, None
        )
        self._version = -1
        self.stale: set[str] = set()
        self._plain = all(is_plain(v) for v in data.values[plan.n :])
        for peer in hub.up():
            self.spread.node_up(peer.name)

    def state(self, kept: bytearray | None, fresh: bool) -> LossyState:
        """The run state, made from what is committed."""
        data = self.data
        n = data.plan.n
        if fresh:
            return LossyState(data.plan, data.options.max_retries, kept, None, self.preset)
        done = data.succeeded()
        if self.preset is not None:
            done = bytearray(a | b for a, b in zip(done, self.preset, strict=True))
        out = {token % n for token in [*self.spread.members(), *data.retrying]}
        state = LossyState(
            data.plan, data.options.max_retries, kept, data.links, done, data.histories, out
        )
        needed = state.needed
        state.absent = {
            i
            for i in range(n)
            if data.peek(i) is FREED
            and (kept is None or kept[i] or (needed is not None and needed[i]))
        }
        state.cut = self.sender.cut
        return state

    def follow(self, state: LossyState) -> None:
        """Heed the links that this state cuts."""
        self.sender.cut = state.cut

    def begin(self) -> None:
        """The run has its queues, and nothing has begun."""
        links, preset = self.data.links, self.preset
        if links is not None and preset is not None:
            for i, following in enumerate(links):
                if following >= 0 and preset[following]:
                    links[i] = -1

    # Placing.

    def place(self) -> tuple[list[int], list[Event]]:
        """Send out what can be sent.

        Returns:
            The attempts that may be queued here, and what is to be said of those that can be run
            nowhere, or not now.

        Raises:
            AllocationError: the allocator raised, or its answer cannot be used.
        """
        spread, here = self.spread, self.data.node
        self._look_at_capacities()
        local: list[int] = []
        failed: list[Event] = []
        sender = self.sender
        if sender.owed:
            spread.ready(sender.unsent())
        while batches := spread.place():
            mine = batches.pop(here, None)
            sender.owed.update(batches)
            if mine is not None:
                local.extend(self.gatherer.admit(mine))
            again = sender.send(failed)
            if not again:
                break
            spread.ready(again)
        self._tell_others()
        return local, failed

    def look_again(self) -> None:
        """Whatever was heard: look at what is free on all nodes before the next placement."""
        self._version = -1

    def _tell_others(self) -> None:
        """What this run holds on some nodes has changed: the other runs of this node look there."""
        moved = self.spread.moved
        if moved:
            running = self.hub.running
            if len(running) > 1:
                for other in list(running.values()):
                    if other is not self:
                        other.stale.update(moved)
            moved.clear()

    def _look_at_capacities(self) -> None:
        """Heed what has changed on nodes: where it is known which, on those alone."""
        names: Iterable[str] = ()
        if self._version != self.hub.version:
            self._version = self.hub.version
            self.stale.clear()
            names = self.spread.sites
        elif self.stale:
            names = [name for name in self._taken_stale() if name in self.spread.sites]
        for name in names:
            found = self.hub.capacity(name, self)
            if found is not None:
                self.spread.capacity(name, *found)

    def _taken_stale(self) -> Iterator[str]:
        while self.stale:
            yield self.stale.pop()  # other threads add to it meanwhile

    def _input_bytes(self, i: int) -> Mapping[str, int]:
        data = self.data
        sizes: dict[str, int] = {}
        for d in data.plan.deps[i]:
            value = data.peek(d)
            kind = value.__class__
            if kind is Located:
                name, size = value.node, value.nbytes
            elif kind is Carried:
                name, size = value.node, value.payload.nbytes
            else:
                name, size = self.made.get(d, data.node), size_of(value)
            sizes[name] = sizes.get(name, 0) + size
        return sizes or {data.node: 0}

    def _tell_of(self, transfer: Transfer) -> None:
        events = self.hub.workers.events
        if events.active:
            events.publish(
                ValuesMoved(
                    dag_id=self.data.dag_id,
                    source=transfer.source,
                    target=transfer.target,
                    values=transfer.values,
                    nbytes=transfer.nbytes,
                )
            )

    # Outcomes.

    def outcomes(self, peer: Peer, message: Outcomes) -> None:
        """A guest has said what has become of attempts; on the thread that reads from it."""
        data = self.data
        site = self.sender.sites.get(peer.name)
        if site is None or site.peer.session != peer.session or data.stopping:
            return
        n, node = data.plan.n, peer.name
        offset = self.hub.clock_offset(peer)
        plain = self._plain
        first, carried, nbytes = -1, 0, 0
        for token, value, start, end in zip(
            message.tokens, message.values, message.starts, message.ends, strict=True
        ):
            i = token % n
            kind = value.__class__
            if kind is Payload or kind in TEXTS:
                first = i if first < 0 else first
                carried += 1
                nbytes += carried_bytes(value)
                if kind is Payload:
                    value = Carried(node, value)
                    plain = False
            elif kind is Located:
                plain = False
            if token != self._present(i):
                continue
            site.has[i] = 1
            self.made[i] = node
            data.starts[i], data.ends[i] = start + offset, end + offset
            data.done.append((token, value))
        if carried:
            sent = message.ends[-1] + offset
            data.trail.moved(
                Transfer(first, node, data.node, sent, perf_counter(), nbytes, carried)
            )
        for index, source, start, end, size, count in message.moved:
            data.trail.moved(
                Transfer(index, source, node, start + offset, end + offset, size, count)
            )
        if message.reports:
            data.reports.extend([Report(node, report) for report in message.reports])
        self._plain = plain
        if data.ref is None:
            return
        if plain and not message.reports and data.finished + len(message.tokens) < n:
            # Nothing of the user's can run in this step: this thread may carry it.
            data.ref.signal()
        else:
            data.ref.mailbox.signal_elsewhere(follow=True)

    def _present(self, i: int) -> int:
        history = self.data.histories.get(i)
        return i if history is None else (history.attempts - 1) * self.data.plan.n + i

    def ended(self, tokens: Iterable[int]) -> None:
        """Attempts have returned."""
        data, spread, n = self.data, self.spread, self.data.plan.n
        links = data.links
        starts, ends = data.starts, data.ends
        last = -1
        for token in tokens:
            i = token % n
            spread.ended(token, -1 if links is None else links[i])
            last = token
            if not data.plan.plain[i]:
                self.gatherer.forget_given(i)
        if last >= 0:
            i = last % n
            spread.took(last, ends[i] - starts[i])
        self._tell_others()

    def left(self, event: Any) -> None:
        """An attempt has ended in another way."""
        if isinstance(event, Withdrawn):
            for token in event.tokens:
                self.spread.ended(token)
        elif isinstance(event, (Raised, TimedOut, Crashed)):
            self.spread.ended(event.token)
        self._tell_others()

    def freed(self, indices: Sequence[int]) -> None:
        """Nobody needs these values any more."""
        self.sender.forget(indices)

    # Nodes.

    def node_up(self, peer: Peer) -> None:
        """A node has joined or returned, or is heard again."""
        self.spread.node_up(peer.name)
        self.look_again()

    def node_suspect(self, peer: Peer) -> None:
        """A node is silent."""
        self.spread.node_suspect(peer.name)

    def guest_lost(self, peer: Peer, reason: str) -> Lost | None:
        """A guest is gone, its node is not; None if that is no news."""
        site = self.sender.sites.get(peer.name)
        if site is None or site.peer.session != peer.session:
            return None
        lost = self._left(peer, f"what ran of this run there could not be kept alive: {reason}")
        if peer.takes_work:
            self.node_up(peer)
        return lost

    def node_down(self, peer: Peer, reason: str) -> Lost:
        """A node is gone: what was there is lost."""
        return self._left(peer, f"its node was lost: {reason}")

    def _left(self, peer: Peer, reason: str) -> Lost:
        data, name = self.data, peer.name
        self.sender.sites.pop(name, None)
        tokens = self.spread.node_down(name)
        values = []
        for i in range(data.plan.n):
            value = data.peek(i)  # other threads may bring it here meanwhile
            if value.__class__ is Located and value.node == name:
                values.append(i)
        self.sender.unlearn(values)
        crash = CrashedAttempt(name, peer.pid, None, reason)
        return Lost(tokens, values, crash)

    def note(self, event: Any, when: tuple[float, float, str]) -> None:
        """Of an attempt elsewhere that did not count: when and by which worker it was run."""
        data, (start, end, worker) = self.data, when
        peer = self.hub.peer(event.crash.node if isinstance(event, Crashed) else event.node)
        offset = 0.0 if peer is None else self.hub.clock_offset(peer)
        i = event.token % data.plan.n
        data.starts[i], data.ends[i] = start and start + offset, end and end + offset
        data.trail.by[i] = data.trail.worker(worker)

    def absent(self, index: int) -> Lost | None:
        """A value is not where it should be; None if that is no news."""
        value = self.data.peek(index)
        if not isinstance(value, Located):
            return None
        self.sender.unlearn((index,))
        crash = CrashedAttempt(value.node, 0, None, "its node did not have the value any more")
        return Lost((), (index,), crash)

    def again(self, indices: Sequence[int]) -> None:
        """These values are to be made again."""
        for i in indices:
            self.made.pop(i, None)
        self.sender.unlearn(indices)

    def ask_back(self) -> list[int]:
        """Have what waits in vain at one node come back for another; those that were here."""
        mine: list[int] = []
        for name, tokens in self.spread.ask_back().items():
            if name == self.data.node:
                mine = tokens
            elif name in self.sender.sites:
                self.sender.sites[name].post(Withdraw(self.data.key, tokens))
        return mine

    def bring(self, indices: Sequence[int]) -> None:
        """Have values here; blocks. What is lost is made again.

        Raises:
            Exception: why the first of those that cannot be had cannot.
        """
        data = self.data
        lost = self._bring(indices)
        while lost and not data.over:
            # It was freed meanwhile, or is being made again: the run sees to it.
            time.sleep(_LOOK)
            lost = self._bring(i for i in lost if data.peek(i) is not FREED)
        if not lost:
            return
        from handoff_actors.execution.nodes.remake import remake

        with self._remaking:
            lost = [i for i in lost if isinstance(data.peek(i), Located)]
            if lost:
                remake(self.hub, data, lost)

    def _bring(self, indices: Iterable[int]) -> list[int]:
        """Those that cannot be had now; raises why others cannot."""
        lost = []
        wanted = list(indices)
        for i, error in self.hub.bring(self.data, wanted).items():
            if not isinstance(error, GoneError):
                raise error
            lost.append(i)
            value = self.data.peek(i)
            if error.certain and isinstance(value, Located) and self.data.ref is not None:
                self.data.reports.append(Report(value.node, ("absent", i)))
                self.data.ref.signal()
        return lost + [i for i in wanted if self.data.peek(i) is MISSING]

    def learn_crew(self) -> None:
        """Ask the nodes that are up which of their workers ran what, for people; blocks shortly."""
        trail = self.data.trail
        peers = [site.peer for site in list(self.sender.sites.values()) if site.peer.state == "up"]
        request = AskCrew(self.data.key)
        asked = [(peer.name, peer.ask(SERVICE, request, _PATIENCE)) for peer in peers]
        for name, future in asked:
            try:
                indices, numbers, crew = future.result(_PATIENCE)
            except (HandoffError, TimeoutError):
                continue  # its rows have numbers for names
            for i, number in zip(indices, numbers, strict=True):
                if self.made.get(i) == name:
                    trail.by[i] = trail.worker(crew[number])

    # Its end.

    def end(self) -> None:
        """The run is over: guests cancel what they run and keep what they made."""
        self.hub.over(self.data.key)
        for site in list(self.sender.sites.values()):
            site.post(End(self.data.key))

    def release(self) -> None:
        """Nobody needs the values any more."""
        sites, self.sender.sites = self.sender.sites, {}
        for site in sites.values():
            site.post(Release(self.data.key))
        self.hub.forget(self.data.key)

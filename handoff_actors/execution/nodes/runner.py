"""What a runner does beside its own work when its run may use other nodes.

It hears who comes and goes, has the spread place what is ready, and keeps the deadlines: how long
pinned work waits for its node, and how soon a wait that is hopeless is given up.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from handoff_actors.cluster.peers import PeerBack, PeerDown, PeerFacts, PeerSuspect, PeerUp
from handoff_actors.cluster.remote_errors import load_exception
from handoff_actors.errors import AllocationError, NodeDownError, amounts_text
from handoff_actors.execution.failures import infeasible_error
from handoff_actors.execution.lossy_state import LossyState
from handoff_actors.execution.nodes.abroad import Abroad
from handoff_actors.execution.nodes.reports import LostGuest, Report
from handoff_actors.execution.run_data import MISSING
from handoff_actors.execution.run_state import (
    Crashed,
    Raised,
    Step,
    TimedOut,
    Withdrawn,
)
from handoff_actors.resources.capabilities import MICRO
from handoff_actors.resources.claims import Infeasible

if TYPE_CHECKING:
    from handoff_actors.execution.runner import Runner

_LOOK = 0.005
"""Seconds between looks at what waits at a node in vain."""
_ASK_AGAIN = 0.02
"""Seconds until an allocator is asked again about what it left out."""


@dataclass(frozen=True, slots=True)
class Overdue:
    """A node that attempts wait for should have returned by now.

    Attributes:
        node: its name.
        absence: which of its absences it is about.
    """

    node: str
    absence: int


@dataclass(frozen=True, slots=True)
class StillHopeless:
    """Attempts that fit no node should have found one by now."""


@dataclass(frozen=True, slots=True)
class Look:
    """See whether something waits at a node in vain, or may be placed by now."""


class RunnerAbroad:
    """See the module.

    Args:
        runner: whose part this is.
        away: what outlives both.
    """

    def __init__(self, runner: Runner, away: Abroad) -> None:
        self.runner = runner
        self.away = away
        self._lossy: LossyState | None = None
        self._awaited: dict[str, int] = {}
        self._absences = itertools.count(1)
        self._looking = False
        self._seen: set[int] = set()
        self._hopeless = False

    def state(self, kept: bytearray | None, fresh: bool) -> LossyState:
        """The run state."""
        state = self._lossy = self.away.state(kept, fresh)
        self.away.follow(state)
        return state

    # Messages.

    def handle(self, message: Any) -> bool:
        """Heed a message of the kinds that only runs over nodes get; whether it was one."""
        away, runner = self.away, self.runner
        running = runner.data.state == "running"
        if isinstance(message, (PeerUp, PeerBack)):
            self._awaited.pop(message.peer.name, None)
            if message.peer.takes_work:
                away.node_up(message.peer)  # else it is silent by now: that comes as a message
        elif isinstance(message, (PeerSuspect, PeerFacts)):
            away.node_suspect(message.peer)
        elif isinstance(message, PeerDown):
            lost = away.node_down(message.peer, message.reason)
            if running:
                runner.feed(lost)
        elif isinstance(message, LostGuest):
            gone = away.guest_lost(message.peer, message.reason)
            if running and gone is not None:
                runner.feed(gone)
        elif isinstance(message, Overdue):
            if self._awaited.get(message.node) == message.absence:
                del self._awaited[message.node]
                if running and away.spread.overdue(message.node):
                    self._give_up_on(message.node)
        elif isinstance(message, StillHopeless):
            self._hopeless = False
            if running and away.spread.hopeless():
                self._give_up_hope()
        elif isinstance(message, Look):
            self._looking = False
            away.look_again()
            self._look()
        elif isinstance(message, Infeasible):
            self._infeasible(message)
        else:
            return False
        if runner.data.state == "running":
            self.place()
        return True

    def read(self, event: Any) -> Any:
        """The event of a report; None if there is nothing for the run state in it."""
        if isinstance(event, Report):
            said = event.said
            if said[0] == "infeasible":
                self._hindered(event.node, *said[1:])
                return None
            if said[0] == "refused":
                self.runner.fail(load_exception(said[1]))
                return None
            if said[0] == "absent":
                self._absent(said[1])
                return None
            event = event.read()
            if isinstance(event, (Raised, TimedOut, Crashed)):
                self.away.note(event, said[2])
        self.away.left(event)
        return event

    def owed(self, held: Collection[int]) -> list[int]:
        """What a runner that has crashed owed: attempts that are with nobody.

        Args:
            held: those that are with queues and lanes of this node.
        """
        spread, data, state = self.away.spread, self.runner.data, self.runner.state
        n = data.plan.n
        self.away.sender.unsent()
        known = set(held) | data.retrying | set(self.away.gatherer.tokens())
        for token, name in list(spread.where.items()):
            if name != data.node:
                known.add(token)
            elif token not in known and data.dispatched[token % n] != token // n + 1:
                spread.ended(token)
        known.update(spread.members())
        owed = [token for token in state.outstanding() if token not in known]
        if self._lossy is not None:
            self._lossy.out.update(token % n for token in owed)
        return owed

    def carry_out(self, step: Step) -> None:
        """Values are freed, or to be made again."""
        data, state = self.runner.data, self.runner.state
        if step.again:
            data.histories = dict(state.histories)
            for i in step.again:
                data.values[i] = MISSING
            data.finished = data.plan.n - state.remaining
            self.away.again(step.again)
        if step.freed:
            self.away.freed(step.freed)

    # Placing.

    def dispatch(self, ready: list[int]) -> None:
        """Attempts are to run somewhere."""
        self.away.spread.ready(ready)
        self.place()

    def step(self) -> None:
        """Values have come, or room."""
        gatherer = self.away.gatherer
        while gatherer.has_news:
            ready, back, failed = gatherer.settle()
            if ready:
                self.runner.queue(ready)
            for event in failed:
                self.away.left(event)
                self.runner.feed(event)
            if back:
                self._missed(back)
        if self.runner.data.state == "running" and self.away.spread.waits:
            self.place()

    def _missed(self, tokens: dict[int, int]) -> None:
        """Inputs of attempts could not be had; some nodes say that they have lost them."""
        event = Withdrawn(list(tokens))
        self.away.left(event)
        for d in set(tokens.values()):
            self._absent(d)
        self.runner.feed(event)

    def _absent(self, index: int) -> None:
        lost = self.away.absent(index) if index >= 0 else None
        if lost is not None:
            self.runner.feed(lost)

    def place(self) -> None:
        """Send out, and queue here, what can be."""
        try:
            local, failed = self.away.place()
        except AllocationError as error:
            self.runner.fail(error)
            return
        if local:
            self.runner.queue(local)
        for event in failed:
            self.runner.feed(event)
        self._watch()

    # Deadlines.

    def _watch(self) -> None:
        """Set the timers that what waits calls for."""
        away, runner = self.away, self.runner
        spread, timers = away.spread, runner.workers.timers
        limit = away.hub.node_return_timeout
        for name in spread.parked:
            if name not in spread.sites and name not in self._awaited:
                absence = self._awaited[name] = next(self._absences)
                timers.send_after(limit, runner.ref, Overdue(name, absence))
        if not spread.waits and not spread.is_ahead:
            return
        if not self._looking:
            self._looking = True
            timers.send_after(_ASK_AGAIN if spread.waits else _LOOK, runner.ref, Look())
        if not self._hopeless and spread.hopeless():
            self._hopeless = True
            may_return = any(r.state == "down" for r in away.hub.cluster.known().values())
            timers.send_after(limit if may_return else _ASK_AGAIN, runner.ref, StillHopeless())

    def _look(self) -> None:
        away, data = self.away, self.runner.data
        # What has not moved between two looks waits in vain; else it is on its way.
        seen, self._seen = self._seen, set(away.spread.where)
        if not away.spread.is_ahead or not seen & self._seen:
            return
        mine = away.ask_back()
        back: list[int] = []
        for token in mine:
            number = data.plan.class_of[token % data.plan.n]
            try:
                self.runner.queues[number].ready.remove(token)
            except ValueError:
                continue
            back.append(token)
        if back:
            event = Withdrawn(back)
            away.left(event)
            self.runner.feed(event)

    def _give_up_on(self, node: str) -> None:
        data = self.runner.data
        token = self.away.spread.overdue(node)[0]
        id_ = data.plan.ids[token % data.plan.n]
        self.runner.fail(
            NodeDownError(
                f"function {id_!r} of DAG {data.dag_id!r} can only run on node {node!r}, which is "
                f"gone and has not returned within node_return_timeout="
                f"{self.away.hub.node_return_timeout:g} s",
                node=node,
            )
        )

    def _give_up_hope(self) -> None:
        data, spread = self.runner.data, self.away.spread
        token = spread.hopeless()[0]
        i = token % data.plan.n
        cost = data.plan.classes[data.plan.class_of[i]].cost or {}
        most: dict[str, int] = {
            name: max((site.total.get(name, 0) for site in spread.sites.values()), default=0)
            for name in cost
        }
        name = next((n for n, amount in cost.items() if amount > most[n]), next(iter(cost), None))
        offers = "; ".join(
            f"{site.name} offers {amounts_text({n: a / MICRO for n, a in site.total.items()})}"
            for site in spread.sites.values()
        )
        wants = amounts_text({n: amount / MICRO for n, amount in cost.items()})
        self.runner.fail(
            AllocationError(
                f"function {data.plan.ids[i]!r} of DAG {data.dag_id!r} needs {wants}, which no "
                f"node that is up has now ({offers}): lower its cost, or add a larger node",
                function_id=data.plan.ids[i],
                resource=name,
                asked=None if name is None else cost[name] / MICRO,
                most=None if name is None else most[name] / MICRO,
            )
        )

    def _infeasible(self, message: Infeasible) -> None:
        """This node offers less than it did: what waited here goes elsewhere, if it may."""
        runner = self.runner
        assert isinstance(message.tag, int)
        queue = runner.queues[message.tag]
        if queue.kind.pin is not None:
            runner.fail(infeasible_error(runner.data, message, queue))
            return
        back: list[int] = []
        while queue.ready:
            back.append(queue.ready.popleft())
        event = Withdrawn(back)
        self.away.left(event)
        self.away.hub.changed()
        runner.feed(event)

    def _hindered(
        self, node: str, number: int, resource: str | None, asked: float, most: float
    ) -> None:
        """Another node offers less than it did; what is pinned there can never run."""
        queue = self.runner.queues[number]
        if queue.kind.pin is None:
            return
        data = self.runner.data
        i = data.plan.class_of.index(number)
        answer = Infeasible(data.key, number, node, resource, asked, most)
        queue.ready.append(i)
        self.runner.fail(infeasible_error(data, answer, queue))

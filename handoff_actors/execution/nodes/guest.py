"""A guest: the part of another node's run that is run here.

    reader thread ── Work, Withdraw, ... ──▶ inbox ── signal ──▶ GuestRunner
                                                                    │ learn, gather inputs
    orchestrator ◀── Outcomes ── values that stay, or are small ── queues, lanes, claims

``GuestData`` is a run's data without a run: the same queues, lanes, permits and claims serve it, at
this node's own tracker. Instead of a scheduler it has a strand that reads what the orchestrator
says and sends back what has become of attempts, in batches that are whatever gathered meanwhile.
When the connection to the orchestrator ends, what runs for it is cancelled, its claims are freed as
its attempts end, and its values are dropped.
"""

from __future__ import annotations

import functools
import threading
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from handoff_actors.actors.reasons import Exit, Reason
from handoff_actors.actors.server import Actor
from handoff_actors.actors.table import StaleIncarnationError
from handoff_actors.cluster.payload import Payload
from handoff_actors.cluster.peers import Peer
from handoff_actors.cluster.remote_errors import dump_exception
from handoff_actors.errors import NodeDownError, SerializationError
from handoff_actors.execution.nodes.gather import Gatherer
from handoff_actors.execution.nodes.lessons import empty_plan, learn, unpacked
from handoff_actors.execution.nodes.messages import (
    OUTCOMES,
    Begin,
    Carried,
    End,
    Forget,
    Located,
    Outcomes,
    Release,
    RunName,
    Withdraw,
    Work,
)
from handoff_actors.execution.nodes.sizes import enclose, is_plain
from handoff_actors.execution.run import Run
from handoff_actors.execution.run_data import FREED, MISSING, RunData, RunOptions
from handoff_actors.execution.run_state import Raised, TimedOut, Withdrawn
from handoff_actors.execution.workers.roster import Workers
from handoff_actors.resources.claims import Granted, Infeasible
from handoff_actors.resources.tracker import Refused
from handoff_actors.results.sizes import size_of

if TYPE_CHECKING:
    from handoff_actors.execution.nodes.fetching import Fetcher


@dataclass(frozen=True, slots=True)
class Abandon:
    """The orchestrator is gone."""


class GuestData(RunData):
    """See the module.

    Args:
        key: unique in this runtime.
        begin: what the orchestrator said.
        peer: the connection to it.
        workers: of this node.
        fetcher: of this node.

    Attributes:
        peer: the connection that this guest lives and dies with.
        run_name: the run's, for everybody.
        inbox: what the orchestrator has said, not yet looked at.
        outbox: what has become of attempts, not yet sent.
        enclosed: what stands in messages for values, by attempt, if it was made already.
    """

    __slots__ = (
        "codes",
        "enclosed",
        "gatherer",
        "held",
        "inbox",
        "keeper",
        "outbox",
        "outbox_lock",
        "peer",
        "run_name",
        "sending",
        "told",
    )  # fmt: skip

    def __init__(
        self, key: int, begin: Begin, peer: Peer, workers: Workers, fetcher: Fetcher
    ) -> None:
        plan = empty_plan(begin.n, begin.n_inputs, begin.classes)
        dag_id: Hashable = unpacked(begin.dag_id)
        self.keeper = Run(dag_id)
        inputs: dict[Hashable, Any] = defaultdict(lambda: MISSING)
        options = RunOptions(isolation=begin.isolation)
        super().__init__(key, dag_id, plan, inputs, options, workers.node, self.keeper)
        self.name = f"guest:{dag_id}#{key}"
        self.links = [-1] * begin.n
        self.peer = peer
        self.run_name: RunName = (peer.name, begin.orchestrator, begin.key)
        self.inbox: deque[Any] = deque()
        self.outbox: deque[tuple[list[tuple[int, Any]], list[Any]]] = deque()
        self.outbox_lock = threading.Lock()
        self.sending = False
        self.enclosed: dict[int, Any] = {}
        self.codes: dict[int, Any] = {}
        self.held: set[int] = set()
        self.told: set[int] = set()
        self.gatherer = Gatherer(self, self.run_name, fetcher, workers.carriers, peer.name)

    def count(self) -> int:
        """How many values are here."""
        return sum(value is not MISSING and value is not FREED for value in self.values)

    def made(self, id_: Hashable) -> Any:
        """What a function of the run has returned here; ``MISSING`` if it has not, or no more."""
        n, ids = self.plan.n, self.plan.ids
        for i in range(n):
            if self.ends[i] and ids[i] == id_:
                break
        else:
            return MISSING
        value = self.peek(i)
        if value is MISSING:
            for token, done in list(self.done):  # the strand has not come to it yet
                if token % n == i:
                    return done
        if isinstance(value, Carried | Located):
            return MISSING
        value = self.values[i]
        return MISSING if value is FREED else value

    def crew(self) -> tuple[array[int], array[int], list[str]]:
        """Who ran what here: functions, the numbers of their workers, the names of these."""
        self.trail.settle(self.starts, self.ends)
        by = self.trail.by
        indices = array("I", [i for i, number in enumerate(by) if number])
        return indices, array("H", [by[i] for i in indices]), list(self.trail.crew)

    def deliverer(self) -> Callable[[tuple[int, Any]], object]:
        """As of any run, with what is to be sent made ready where the user's code may run."""
        return self.limited(self._deliver)

    def _deliver(self, row: tuple[int, Any]) -> None:
        token, value = row
        if not is_plain(value) and token % self.plan.n not in self.held:
            self.enclosed[token] = _enclosed(value, self.node)
        self.done.append(row)

    def say(self, message: Any) -> None:
        """The orchestrator said something; on the thread that reads from it."""
        self.inbox.append(message)
        if self.ref is None:
            return
        lesson = message.lesson if isinstance(message, Work) else None
        if lesson is not None and (lesson.code or lesson.calls or lesson.held):
            # Code is read there, which may import anything.
            self.ref.mailbox.signal_elsewhere(follow=True)
        else:
            self.ref.signal()


class GuestRunner(Actor):
    """The strand of a guest.

    Args:
        data: the guest.
        workers: of this node.
    """

    def __init__(self, data: GuestData, workers: Workers) -> None:
        self.data = data
        self.workers = workers

    def init(self) -> None:
        """Begin, or go on: all there is to know is in the data."""
        data = self.data
        data.incarnation += 1
        self.incarnation = data.incarnation
        data.ref = self.ref
        if not data.queues:
            links = data.links
            data.queues = self.workers.queues(data)
            data.links = links
        self.queues = data.queues
        self.signalled()

    def handle(self, message: Any) -> Any:
        """What this node's own actors say."""
        if isinstance(message, Abandon):
            self._end()
            self._release()
            return None
        self.signalled()
        if isinstance(message, Granted):
            assert isinstance(message.tag, int)
            self.queues[message.tag].granted(message.claim)
        elif isinstance(message, Infeasible):
            assert isinstance(message.tag, int)
            said = ("infeasible", message.tag, message.resource, message.asked, message.most)
            self._give_back(message.tag, said)
        elif isinstance(message, Refused):
            assert isinstance(message.tag, int)
            self._give_back(message.tag, ("refused", dump_exception(message.error)))
        else:
            return super().handle(message)
        return None

    def signalled(self) -> None:
        """Look at what has come, from the orchestrator and from lanes."""
        data = self.data
        if data.incarnation != self.incarnation:
            raise StaleIncarnationError(f"{data.name} has a newer strand")
        inbox, gatherer = data.inbox, data.gatherer
        while inbox:
            self._heed(inbox[0])
            inbox.popleft()
        while gatherer.has_news:
            ready, back, failed = gatherer.settle()
            data.reports.extend(failed)
            if back:
                data.reports.append(Withdrawn(list(back)))
                data.told.update(back)
            self._queue(ready)
        self._collect()
        for queue in self.queues:
            if queue.wanted:
                queue.settle()

    # What the orchestrator says.

    def _heed(self, message: Any) -> None:
        data = self.data
        if isinstance(message, Work):
            if not data.stopping:
                self._work(message)
        elif isinstance(message, Withdraw):
            self._withdraw(message.tokens)
        elif isinstance(message, Forget):
            for i in message.indices:
                data.values[i] = FREED
        elif isinstance(message, End):
            self._end()
        elif isinstance(message, Release):
            self._end()
            self._release()

    def _work(self, message: Work) -> None:
        data, n = self.data, self.data.plan.n
        assert data.links is not None
        bad: list[int] = []
        if message.lesson is not None:
            data.held.update(message.lesson.held)
            bad = learn(data.plan, data.codes, data.links, message.lesson)
        for i in message.cut:
            data.links[i] = -1
        values, orchestrator = data.values, data.peer.name
        for i, value in message.values.items():
            if data.peek(i) is MISSING or data.peek(i) is FREED:
                values[i] = Carried(orchestrator, value) if value.__class__ is Payload else value
        for i in message.places:
            if data.peek(i) is FREED:
                values[i] = MISSING
        data.gatherer.learn_places(message.places, message.sizes)
        tokens = message.tokens
        if bad:
            for token in tokens:
                if token % n in bad:
                    error: Any = data.plan.codes[token % n]
                    data.reports.append(Raised(token, error, data.node, final=True))
            tokens = [token for token in tokens if token % n not in bad]
        self._queue(data.gatherer.admit(tokens))

    def _queue(self, tokens: list[int]) -> None:
        if not tokens:
            return
        queues, class_of, n = self.queues, self.data.plan.class_of, self.data.plan.n
        if len(queues) == 1:
            queues[0].ready.extend(tokens)
            queues[0].adjust()
            return
        touched = set()
        for token in tokens:
            number = class_of[token % n]
            queues[number].ready.append(token)
            touched.add(number)
        for number in touched:
            queues[number].adjust()

    def _withdraw(self, tokens: Any) -> None:
        data, n = self.data, self.data.plan.n
        back = data.gatherer.withdraw(tokens)
        waiting = set(back)
        for token in tokens:
            if token not in waiting:
                try:
                    self.queues[data.plan.class_of[token % n]].ready.remove(token)
                except ValueError:
                    continue  # it has begun
                back.append(token)
        if back:
            data.told.update(back)
            data.reports.append(Withdrawn(back))

    def _give_back(self, number: int, why: tuple[Any, ...]) -> None:
        """What waits for a claim that can never be had here goes back, and why."""
        data = self.data
        back: list[int] = []
        ready = self.queues[number].ready
        while ready:
            try:
                back.append(ready.popleft())
            except IndexError:
                break
        data.told.update(back)
        data.reports.append(why)
        data.reports.append(Withdrawn(back))
        self._collect()

    # What has become of attempts.

    def _collect(self) -> None:
        data = self.data
        if not data.done and not data.reports:
            return
        n = data.plan.n
        rows = list(data.done)
        for token, value in rows:
            if not data.stopping:
                data.values[token % n] = value
            data.done.popleft()
        reports: list[Any] = []
        again: list[int] = []
        while data.reports:
            report = data.reports[0]
            if isinstance(report, Withdrawn) and not data.told.issuperset(report.tokens):
                # Taken back from a worker here: another worker may have it.
                again.extend(t for t in report.tokens if t not in data.told)
                report = Withdrawn([t for t in report.tokens if t in data.told])
            if not isinstance(report, Withdrawn) or report.tokens:
                reports.append(report)
            data.reports.popleft()
        for report in reports:
            if isinstance(report, Withdrawn):
                data.told.difference_update(report.tokens)
        if data.stopping:
            return
        if data.plan.calls:
            for token, _ in rows:
                data.gatherer.forget_given(token % n)
        if rows or reports:
            self._send(rows, reports)
        self._queue(again)

    def _send(self, rows: list[tuple[int, Any]], reports: list[Any]) -> None:
        data = self.data
        held, n, enclosed = data.held, data.plan.n, data.enclosed
        ready = True
        for token, value in rows:
            if token not in enclosed and not (is_plain(value) and token % n not in held):
                ready = False
                break
        for report in reports:
            if not isinstance(report, (Withdrawn, TimedOut, tuple)):
                ready = False
        with data.outbox_lock:
            busy = data.sending
            if busy or not ready:
                data.outbox.append((rows, reports))
                ready = False
                data.sending = True
        if ready:
            values = (
                [enclosed.pop(token, value) for token, value in rows]
                if enclosed
                else [value for _, value in rows]
            )
            post_outcomes(data, rows, values, reports)
        elif not busy:
            # What is pickled runs the user's code: not on this strand.
            self.workers.carriers.submit(functools.partial(_send_all, data))

    # Its end.

    def _end(self) -> None:
        data = self.data
        if data.stopping:
            return
        data.stopping = True
        data.state = "over"
        for queue in self.queues:
            queue.stop()
        for queue in self.queues:
            queue.release_idle()

    def _release(self) -> None:
        self.data.values = [FREED] * len(self.data.values)
        self.system.names.unregister(self.ref)
        self.stop(Exit.NORMAL)

    def terminate(self, reason: Reason) -> None:
        """The runtime stops."""
        if reason is Exit.SHUTDOWN:
            self._end()


def _send_all(data: GuestData) -> None:
    """Send what is in the outbox, in order, until it is empty."""
    n, node = data.plan.n, data.node
    while True:
        with data.outbox_lock:
            if not data.outbox:
                data.sending = False
                return
            rows, reports = data.outbox.popleft()
        values = [
            Located(node, size_of(value))
            if token % n in data.held
            else data.enclosed.pop(token, None) or _enclosed(value, node)
            for token, value in rows
        ]
        post_outcomes(data, rows, values, [pack_report(report, data) for report in reports])


def _enclosed(value: Any, node: str) -> Any:
    try:
        return enclose(value, node)
    except BaseException:  # the user's class may raise anything: whoever fetches it is told
        return Located(node, size_of(value))


def post_outcomes(
    data: GuestData, rows: list[tuple[int, Any]], values: list[Any], reports: list[Any]
) -> None:
    """Tell the orchestrator; if it is gone, nobody wants to know."""
    n, starts, ends = data.plan.n, data.starts, data.ends
    tokens = [token for token, _ in rows]
    indices = [token % n for token in tokens]
    message = Outcomes(
        data.run_name[2],
        tokens,
        values,
        list(map(starts.__getitem__, indices)),
        list(map(ends.__getitem__, indices)),
        [pack_report(report, data) for report in reports] if reports else (),
        _taken(data) if data.trail.transfers else (),
    )
    try:
        data.peer.post(OUTCOMES, tuple(message))
    except (NodeDownError, SerializationError):
        return


def _taken(data: GuestData) -> list[tuple[int, str, float, float, int, int]]:
    """What was fetched, and is told now; other threads add to it meanwhile."""
    transfers = data.trail.transfers
    taken = list(transfers)
    del transfers[: len(taken)]
    return [(t.index, t.source, t.start, t.end, t.nbytes, t.values) for t in taken]


def pack_report(report: Any, data: GuestData) -> tuple[Any, ...]:
    """A report for a message; of an attempt also when it began and ended, and who ran it."""
    if isinstance(report, tuple):
        return report
    if isinstance(report, Withdrawn):
        return "withdrawn", list(report.tokens)
    i = report.token % data.plan.n
    when = (data.starts[i], data.ends[i], data.trail.crew[data.trail.by[i]])
    if isinstance(report, Raised):
        return "raised", report.token, when, dump_exception(report.error), report.final
    if isinstance(report, TimedOut):
        return "timed_out", report.token, when
    return "crashed", report.token, when, report.crash

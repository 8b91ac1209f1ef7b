"""A worker of a stage that is on another node: it stands for all workers the stage has there.

It sends items in lists, as many as gather, and leaves what comes back where a thread would. When
the node is gone, what it had is to be run again: the stage is opened on another node (or, if it is
pinned, on its node when that has returned), ``init`` runs there, and the items go there. An item
that has lost its node ``LOSSES`` times, or whose function must never run twice, fails.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Mapping
from time import monotonic
from time import perf_counter as clock
from typing import Any, Protocol

from handoff_actors.cluster.remote_errors import load_exception
from handoff_actors.errors import (
    HandoffError,
    NodeDownError,
    NodeError,
    PipelineError,
    SerializationError,
)
from handoff_actors.pipeline.border import Border
from handoff_actors.pipeline.crew import Crew, Failures, WorkerFailed
from handoff_actors.pipeline.joins import Entry
from handoff_actors.pipeline.nodes import (
    SERVICE,
    WINDOW,
    Close,
    Correspondent,
    Ended,
    Items,
    Key,
    Nodes,
    Open,
    Results,
)
from handoff_actors.pipeline.thread import own_error

LOSSES = 8
"""Times an item may lose its node."""
_OPEN = 3600.0
"""Seconds that opening a stage may take when nothing else bounds it."""
_LOOK = 0.05
"""Seconds between looks for a node that may have returned."""


class Placed(Protocol):
    """Where a stage may be.

    Attributes:
        timeout: seconds to wait for that at the start.
        moves: it may go to another node; else only to the same again.
        node_return_timeout: seconds to wait for a node.
    """

    timeout: float | None
    moves: bool
    node_return_timeout: float

    @property
    def claim(self) -> Mapping[str, int]:
        """What to claim with the next opening, in micro-units; it is asked once for each."""

    def lost(self) -> None:
        """The node has gone, with all that was claimed there."""

    def find_node(self, crew: Crew) -> str | None:
        """A node that could have it now."""


class RemoteWorker:
    """See the module.

    Args:
        crew: the stage's.
        number: 0; there is one.
        nodes: the runtime's.
        away: where it may be.
    """

    def __init__(self, crew: Crew, number: int, nodes: Nodes, away: Placed) -> None:
        self.crew = crew
        self.number = number
        self.ready = False
        self.working_since = 0.0
        self.peer: Correspondent | None = None
        self._nodes = nodes
        self._away = away
        self._key: Key | None = None
        self._border: Border | None = None
        self._woken = threading.Event()
        self._heard: deque[Results | Ended] = deque()
        self._gone = False
        self._flying: dict[int, Any] = {}
        self._losses: dict[int, int] = {}

    # What comes from the node.

    def heard(self, message: Results | Ended) -> None:
        """On the thread that reads from the node."""
        self._heard.append(message)
        self._woken.set()

    def host_gone(self) -> None:
        """The node is gone."""
        self._gone = True
        self._woken.set()

    # As a worker.

    def work(self) -> tuple[Hashable, tuple[Hashable, ...]]:
        """The pipeline, and the function if items are there."""
        return self.crew.line.id, (self.crew.id,) if self._flying else ()

    def look(self) -> bool:
        """What is done there comes by itself."""
        return False

    def stop(self) -> None:
        """The pipeline ends."""
        self._woken.set()

    def run(self) -> None:
        """Work until the pipeline ends."""
        self.crew.carry(self, self._to_the_end, self._return_all)

    def _to_the_end(self) -> None:
        line = self.crew.line
        while not line.over:
            self._live()

    def _return_all(self) -> None:
        self._leave()
        if self._flying:
            self.crew.give_back(list(self._flying.items()))
            self._flying.clear()

    def _leave(self) -> None:
        key, self._key = self._key, None
        if key is None:
            return
        self._nodes.dismiss(key)
        if self.peer is not None and not self._gone:
            try:
                self.peer.post(SERVICE, Close(key))
            except HandoffError:
                return  # it is gone: there is nothing to close

    def _live(self) -> None:
        """As long as one node has the stage."""
        crew, line = self.crew, self.crew.line
        try:
            if not self._open():
                return
            crew.began(self)
            self._serve()
            if not line.over:
                self._lost()
        except NodeError as error:
            self._lost()
            line.workers.log.warning("stage_lost_node", pipeline=line.name, error=str(error))
        finally:
            self.ready = False
            self._leave()

    def _open(self) -> bool:
        """Have the node host the stage; False if it went meanwhile."""
        crew, line, nodes = self.crew, self.crew.line, self._nodes
        first = line.phase in ("claiming", "starting")
        self._gone = False
        self._heard.clear()
        try:
            peer = self.peer = nodes.correspondent(crew.node)
            deps = line.plan.deps[crew.index]
            border = self._border = Border(crew.call, deps, crew.function, line.node, crew.node)
            key = self._key = nodes.enrol(self)
            timeout = self._away.timeout if first else None
            request = Open(key, f"{line.id}", border.shape, self._away.claim, timeout)
            peer.call(SERVICE, request, _OPEN if timeout is None else timeout + 60.0)
        except NodeError:
            self._lost()
            return False
        except HandoffError as error:
            cause = error.__cause__ if isinstance(error, PipelineError) else None
            raise WorkerFailed from (cause or error)
        return True

    def _serve(self) -> None:
        crew, woken = self.crew, self._woken
        done: list[Entry] = []
        failed: Failures = []
        while not self._gone:
            woken.clear()
            self._collect(done, failed)
            room = WINDOW - len(self._flying)
            taken = crew.exchange(done, failed, room, woken.set)
            if taken is None:
                return
            if taken:
                if not self.working_since:
                    self.working_since = clock()
                self._send(taken, failed)
                if failed:
                    continue
            elif not self._heard:
                woken.wait()

    def _collect(self, done: list[Entry], failed: Failures) -> None:
        flying, crew = self._flying, self.crew
        while self._heard:
            message = self._heard.popleft()
            if isinstance(message, Ended):
                raise WorkerFailed from load_exception(message.error)
            done += [e for e in message.done if flying.pop(e[0], self) is not self]
            for seq, error in message.failed:
                if flying.pop(seq, self) is not self:
                    failed.append(crew.failure_of(seq, load_exception(error)))
        if not flying and self.working_since:
            crew.busy += clock() - self.working_since
            self.working_since = 0.0
        if done or failed:
            for seq in [seq for seq, _ in (*done, *failed)] if self._losses else ():
                self._losses.pop(seq, None)

    def _send(self, taken: list[Entry], failed: Failures) -> None:
        border, peer, key = self._border, self.peer, self._key
        assert border is not None
        assert peer is not None
        assert key is not None
        rows: list[tuple[int, Any]] = []
        for seq, payload in taken:
            try:
                rows.append((seq, border.cross(payload)))
            except BaseException as error:  # of the user's serialiser
                failed.append(self.crew.failure_of(seq, own_error(error)))
            else:
                self._flying[seq] = payload
        flush = self.crew.function.batch_size is not None
        try:
            peer.post(SERVICE, Items(key, rows, flush))
        except SerializationError:
            for row in rows:
                try:
                    peer.post(SERVICE, Items(key, [row], flush))
                except SerializationError as error:
                    del self._flying[row[0]]
                    failed.append(self.crew.failure_of(row[0], error))

    # The loss of a node.

    def _lost(self) -> None:
        """The node is gone: its items are to be run again, elsewhere or when it has returned."""
        crew, line = self.crew, self.crew.line
        self.working_since = 0.0
        crew.losses[self.number] = f"node {crew.node} is gone"
        flying, self._flying = self._flying, {}
        self._away.lost()
        again: list[Entry] = []
        failed: Failures = []
        error = NodeDownError(f"node {crew.node!r} is gone", node=crew.node)
        for seq, payload in flying.items():
            self._losses[seq] = losses = self._losses.get(seq, 0) + 1
            if losses > LOSSES or not crew.function.max_crashes:
                failed.append(crew.failure_of(seq, error))
            else:
                again.append((seq, payload))
        if again and not line.over:
            crew.give_back(again)
        if failed:
            crew.exchange([], failed, 0)
        self._move()

    def _move(self) -> None:
        """Find the stage a node: its own again, if it is pinned, else any that could have it."""
        crew, line = self.crew, self.crew.line
        end = monotonic() + self._away.node_return_timeout
        while not line.over:
            found = self._away.find_node(crew) if self._away.moves else self._returned()
            if found is not None:
                crew.node = found
                return
            if monotonic() > end:
                raise WorkerFailed from NodeDownError(
                    f"node {crew.node!r}, which function {crew.id!r} needs, did not return within "
                    f"{self._away.node_return_timeout:g} s",
                    node=crew.node,
                )
            self._woken.clear()
            self._woken.wait(_LOOK)

    def _returned(self) -> str | None:
        try:
            self._nodes.correspondent(self.crew.node)
        except NodeDownError:
            return None
        return self.crew.node

"""Stages over nodes: what a runtime hosts for others' pipelines, and hears of its own abroad.

    origin ── Open (a call: claim, init) ──▶ host: a pipeline of one function
           ── Items (posts) ──────────────▶
           ◀────────────── Results (posts) ──
           ── Close ──────────────────────▶

Items are posted in lists, and so are results. A host whose origin is gone ends what it hosts for
it; an origin whose host is gone has the items it had there run again.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from handoff_actors.cluster.payload import Payload, dumps
from handoff_actors.cluster.peers import Cluster, PeerDown, PeerEvent
from handoff_actors.cluster.remote_errors import dump_exception
from handoff_actors.errors import HandoffError, ItemFailedError, SerializationError, describe
from handoff_actors.events import log
from handoff_actors.pipeline.border import Shape, hosted_dag
from handoff_actors.pipeline.handle import Pipeline

SERVICE = "streams"
WINDOW = 4000
"""Items that may be at one stage abroad."""
_CHUNK = 1000
"""Results in one message at most."""

Key = tuple[str, str, int]
"""A hosted stage: its origin's name and incarnation, and a number."""


@dataclass(frozen=True, slots=True)
class AskCapacity:
    """What the node has free, and offers in all, in units."""


@dataclass(frozen=True, slots=True)
class Open:
    """Host a stage: answered when it has claimed and begun."""

    key: Key
    name: str
    shape: Shape
    claim: Mapping[str, int]
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Items:
    """Payloads for a hosted stage."""

    key: Key
    rows: Sequence[tuple[int, Any]]
    flush: bool


@dataclass(frozen=True, slots=True)
class Results:
    """What came of items: results, and pickled errors."""

    key: Key
    done: Sequence[tuple[int, Any]]
    failed: Sequence[tuple[int, Payload]]


@dataclass(frozen=True, slots=True)
class Ended:
    """A hosted stage has ended without being asked to; why."""

    key: Key
    error: Payload


@dataclass(frozen=True, slots=True)
class Close:
    """A hosted stage is not needed any more."""

    key: Key


class Correspondent(Protocol):
    """Another node, or this one as if it were another."""

    name: str

    def post(self, service: str, message: object) -> None:
        """Send one way."""

    def call(self, service: str, request: object, timeout: float) -> Any:
        """Ask."""


class Resident(Protocol):
    """Who waits for what comes from a stage abroad."""

    def heard(self, message: Results | Ended) -> None:
        """Something came."""

    def host_gone(self) -> None:
        """Its node is gone."""

    peer: Any


Opener = Callable[..., Pipeline]


class Nodes:
    """See the module; one a runtime, and it outlives all actors.

    Args:
        node: this node's name.
        open_here: opens a pipeline here: DAG, ``claim``, ``timeout``, ``max_pending``.
        capacity: what this node has free, and offers.
        submit: runs a job on a thread of its own.
    """

    def __init__(
        self,
        node: str,
        open_here: Opener,
        capacity: Callable[[], Any],
        submit: Callable[[Callable[[], None]], None],
    ) -> None:
        self.node = node
        self.incarnation = ""
        self.cluster: Cluster | None = None
        self._open_here = open_here
        self._capacity = capacity
        self._submit = submit
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._hosted: dict[Key, _HostedStage] = {}
        self._residents: dict[Key, Resident] = {}
        self.here = _Here(self)

    def serve(self, cluster: Cluster) -> None:
        """Answer other nodes from now on."""
        self.cluster = cluster
        self.incarnation = cluster.incarnation
        cluster.serve(SERVICE, on_post=self.on_post, on_call=self.on_call)
        cluster.watch(self._on_peer)

    # For pipelines of this node.

    def correspondent(self, node: str) -> Correspondent:
        """The node of that name.

        Raises:
            NodeDownError: it is not up.
        """
        if node == self.node or self.cluster is None:
            return self.here
        return self.cluster.peer(node)

    def capacity_of(self, node: str) -> Any:
        """What a node has free and offers: ``(free, total)``, in units."""
        return self.correspondent(node).call(SERVICE, AskCapacity(), 5.0)

    def enrol(self, resident: Resident) -> Key:
        """Have somebody hear what comes for a key of his own."""
        key = (self.node, self.incarnation, next(self._numbers))
        self._residents[key] = resident
        return key

    def dismiss(self, key: Key) -> None:
        """Nobody waits for what comes for the key."""
        self._residents.pop(key, None)

    # What comes from other nodes.

    def on_call(self, peer: Any, request: Any) -> Any:
        """On a pool's thread."""
        if isinstance(request, AskCapacity):
            return self._capacity()
        if isinstance(request, Open):
            return self._open(peer, request)
        raise HandoffError(f"node {self.node} does not answer {describe(request)}")

    def _open(self, peer: Any, request: Open) -> None:
        pipeline = self._open_here(
            hosted_dag(request.name, request.shape, self.node),
            claim=request.claim,
            timeout=request.timeout,
            max_pending=WINDOW,
        )
        stage = _HostedStage(peer, request, pipeline)
        with self._lock:
            if not request.claim:
                pipeline.share_claim(s.pipeline for s in self._hosted.values() if s.beside(stage))
            self._hosted[request.key] = stage
        self._submit(lambda: self._serve(stage))

    def _serve(self, stage: _HostedStage) -> None:
        """Send results until there are none any more."""
        try:
            stage.send_results()
        except HandoffError as error:
            # The origin is gone, or the stage gave up: then the origin must know.
            stage.tell(error)
        finally:
            with self._lock:
                self._hosted.pop(stage.key, None)
            stage.pipeline.stop()

    def on_post(self, peer: Any, message: Any) -> None:
        """On the thread that reads from the peer."""
        if isinstance(message, Items):
            stage = self._hosted.get(message.key)
            if stage is not None:
                stage.push(message)
        elif isinstance(message, (Results, Ended)):
            resident = self._residents.get(message.key)
            if resident is not None and resident.peer is peer:
                resident.heard(message)
        elif isinstance(message, Close):
            stage = self._hosted.get(message.key)
            if stage is not None:
                self._submit(stage.pipeline.stop)

    def _on_peer(self, event: PeerEvent) -> None:
        if not isinstance(event, PeerDown):
            return
        for resident in list(self._residents.values()):
            if resident.peer is event.peer:
                resident.host_gone()
        for stage in list(self._hosted.values()):
            if stage.peer is event.peer:
                self._submit(stage.pipeline.stop)


class _HostedStage:
    """One stage that is here for another node."""

    def __init__(self, peer: Any, opened: Open, pipeline: Pipeline) -> None:
        self.peer = peer
        self.key = opened.key
        self.name = opened.name
        self.pipeline = pipeline
        self._numbers: deque[int] = deque()  # of the items, in the order of their pushes

    def beside(self, other: _HostedStage) -> bool:
        """Whether both are of one pipeline."""
        return self.key[:2] == other.key[:2] and self.name == other.name

    def push(self, message: Items) -> None:
        """Items have come; the origin sees to it that there is room."""
        self._numbers.extend([seq for seq, _ in message.rows])
        try:
            self.pipeline.push_many([payload for _, payload in message.rows], flush=message.flush)
        except HandoffError as error:  # it has ended, and says so itself
            log.info("stage_for_others_ended", pipeline=self.pipeline.name, error=str(error))

    def send_results(self) -> None:
        """Send what comes out, in lists, until the end."""
        for results in self.pipeline.lists(_CHUNK):
            done: list[tuple[int, Any]] = []
            failed: list[tuple[int, Payload]] = []
            for result in results:
                seq = self._numbers.popleft()
                if result.__class__ is ItemFailedError:
                    failed.append((seq, dump_exception(result.__cause__ or result)))
                else:
                    done.append((seq, result))
            try:
                self.peer.post(SERVICE, Results(self.key, done, failed))
            except SerializationError:
                self._send_singly(done, failed)

    def _send_singly(self, done: list[tuple[int, Any]], failed: list[tuple[int, Payload]]) -> None:
        good: list[tuple[int, Any]] = []
        for seq, value in done:
            try:
                dumps(value, "result of a stage")
            except SerializationError as error:
                failed.append((seq, dump_exception(error)))
            else:
                good.append((seq, value))
        self.peer.post(SERVICE, Results(self.key, good, failed))

    def tell(self, error: BaseException) -> None:
        """The stage has ended."""
        try:
            self.peer.post(SERVICE, Ended(self.key, dump_exception(error)))
        except HandoffError:
            return  # nobody is there to be told


class _Here:
    """This node, as if it were another: for a stage that has come home."""

    def __init__(self, nodes: Nodes) -> None:
        self.name = nodes.node
        self._nodes = nodes

    def post(self, service: str, message: object) -> None:
        """Handle it here; ``service`` is this one."""
        assert service == SERVICE
        self._nodes.on_post(self, message)

    def call(self, service: str, request: object, timeout: float) -> Any:
        """Answer it here; it has its own time limits."""
        assert service == SERVICE
        assert timeout
        return self._nodes.on_call(self, request)

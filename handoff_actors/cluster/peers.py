"""What the nodes of a cluster are to each other: peers to post to, to call, and to fetch from.

    cluster.serve("runs", on_post=..., on_call=..., on_fetch=...)   here, before anybody asks
    peer.post("runs", message)            one way, gathered into batches
    peer.call("runs", request, 5.0)       an answer within 5 s, or an error that says what happened
    peer.fetch("runs", key, 60.0)         a value as it was pickled there; its large buffers by the
                                          fastest way there is, beside all that is posted and called
    cluster.watch(callback)               PeerUp, PeerSuspect, PeerBack, PeerDown

This module is the interface and what all implementations share; ``mesh`` is the one over sockets.
Guarantees, in all of them:

* A ``Peer`` is one connection to one life of a node. It goes down once and for good; a node that
  returns, restarted or behind a network that healed, is another ``Peer``. ``incarnation`` names the
  node's life (all others see the same), ``session`` the connection (only the two sides do): a node
  that was given up and comes back alive has its old incarnation and a new session.
* What is posted to one peer is handled in order, each message at most once; what was posted before
  a peer went down may or may not have been handled. Messages are pickled as ``payload`` does,
  before ``post`` returns (what cannot be is refused there), and never shared with the other side.
* ``on_post(peer, message)`` runs on the one thread that reads from that peer: it must be short and
  must not wait for the peer. ``on_call(peer, request)`` and ``on_fetch(peer, key)`` run on a pool
  and may wait; ``on_call`` may return a ``concurrent.futures.Future`` of the answer.
* A watcher hears ``PeerUp`` before the first message of that peer is handled, and ``PeerDown``
  after the last, and before ``PeerUp`` of the next peer of that name. All callbacks run one after
  another on one thread that is none of the caller's; a watcher that comes late hears ``PeerUp`` of
  those that are up. They must not block.
* No call waits beyond its ``timeout`` (seconds), and none outlives its peer.
"""

from __future__ import annotations

import abc
import concurrent.futures
import contextlib
import queue
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from handoff_actors.cluster.payload import Payload
from handoff_actors.errors import (
    HandoffError,
    NodeDownError,
    NodeUnreachableError,
    ValueNotFoundError,
    describe,
)
from handoff_actors.events import log

State = Literal["up", "suspect", "down"]

OnPost = Callable[["Peer", Any], None]
OnCall = Callable[["Peer", Any], Any]
OnFetch = Callable[["Peer", Any], Payload]


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """What is known of a node, also after it is gone.

    Attributes:
        name: unique among the nodes that are up.
        incarnation: of its last life.
        address: ``host:port`` as it can be reached from here; None when it cannot.
        pid: of its last process.
        state: ``"up"``, ``"suspect"`` or ``"down"``.
        python: its version, say ``"3.11.7"``.
        version: of this library there.
        facts: what it said of itself with ``Cluster.publish``.
        left: it took its leave, or was left, rather than died.
    """

    name: str
    incarnation: str
    address: str | None
    pid: int
    state: State
    python: str
    version: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    left: bool = False


@dataclass(frozen=True, slots=True)
class PeerEvent:
    """The base of what watchers hear; ``peer`` is who it is about."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class PeerUp(PeerEvent):
    """A node has joined, or returned."""


@dataclass(frozen=True, slots=True)
class PeerSuspect(PeerEvent):
    """It has been silent for too long to be given new work; nothing else is said."""


@dataclass(frozen=True, slots=True)
class PeerBack(PeerEvent):
    """It was suspect and has been heard again."""


@dataclass(frozen=True, slots=True)
class PeerDown(PeerEvent):
    """It is gone; ``reason`` in words. Its process may live on behind a cut network."""

    reason: str


@dataclass(frozen=True, slots=True)
class PeerFacts(PeerEvent):
    """It has said something new of itself: see ``peer.facts``."""


class Peer(abc.ABC):
    """Another node; see the module.

    Attributes:
        name: of the node.
        incarnation: of its life.
        session: of this connection to it.
        address: ``host:port``, or None when nobody can connect to it.
        pid: of its process.
        same_machine: whether its memory and files are this machine's.
        state: what it is now.
        facts: what it has published.
    """

    name: str
    incarnation: str
    session: str
    address: str | None
    pid: int
    same_machine: bool
    state: State
    facts: Mapping[str, Any]

    @abc.abstractmethod
    def post(self, service: str, message: object) -> None:
        """Send one way, in order; never waits for the network.

        Raises:
            NodeDownError: the peer is gone.
            SerializationError: the message cannot be pickled.
        """

    @abc.abstractmethod
    def ask(self, service: str, request: object, timeout: float) -> concurrent.futures.Future[Any]:
        """As ``call``, without a thread that waits: the answer, or the error, is in the future."""

    @abc.abstractmethod
    def fetch(self, service: str, key: Hashable, timeout: float) -> Payload:
        """The payload that ``on_fetch`` of that service gives there for ``key``.

        Its buffers are this process's own; nothing has to be given back.

        Raises:
            NodeDownError: the peer is gone.
            NodeUnreachableError: not all of it came within ``timeout`` seconds.
            ValueNotFoundError: it has no such key (or whatever ``on_fetch`` raised).
            MemoryError: it does not fit into what memory is left here.
        """

    def call(self, service: str, request: object, timeout: float) -> Any:
        """Ask and wait for the answer of ``on_call`` there.

        Raises:
            NodeDownError: the peer is gone, before or meanwhile.
            NodeUnreachableError: no answer within ``timeout`` seconds; the request may still be
                handled.
            Exception: what the handler raised, of its own class, with the remote traceback.
        """
        future = self.ask(service, request, timeout)
        try:
            # The deadline is kept by whoever answers; this is for the case that it is dead.
            return future.result(timeout + 1.0)
        except concurrent.futures.TimeoutError:
            if future.done():
                raise  # it is the handler's own
            future.cancel()
            raise unreachable(self.name, timeout) from None

    @property
    def takes_work(self) -> bool:
        """Whether it may be given new work: it is up, and not about to go."""
        return self.state == "up" and not self.facts.get("draining")

    def down_error(self) -> NodeDownError:
        """What is raised when something is asked of a peer that is gone."""
        return NodeDownError(f"node {self.name!r} is gone", node=self.name)

    def __repr__(self) -> str:
        return f"<Peer {self.name} {self.incarnation} {self.state}>"


def unreachable(name: str, timeout: float) -> NodeUnreachableError:
    """The error of a call whose deadline has passed."""
    return NodeUnreachableError(
        f"node {name!r} did not answer within {timeout:g} s; it may be frozen, overloaded, or cut "
        "off by the network",
        node=name,
    )


@dataclass(frozen=True, slots=True)
class Service:
    """What answers under one name."""

    on_post: OnPost | None
    on_call: OnCall | None
    on_fetch: OnFetch | None


class Cluster(abc.ABC):
    """This node among the others. A plain object that outlives every actor.

    Args:
        node: this node's name.
        incarnation: of this life of it.
    """

    def __init__(self, node: str, incarnation: str) -> None:
        self.node = node
        self.incarnation = incarnation
        self._services: Mapping[str, Service] = {}
        self._serving = threading.Lock()
        self.notifier = Notifier(f"handoff-{node}-peers", self._up)

    def serve(
        self,
        service: str,
        on_post: OnPost | None = None,
        on_call: OnCall | None = None,
        on_fetch: OnFetch | None = None,
    ) -> None:
        """Answer for ``service`` from now on; see the module for the threads."""
        with self._serving:
            self._services = {**self._services, service: Service(on_post, on_call, on_fetch)}

    def watch(self, callback: Callable[[PeerEvent], object]) -> None:
        """Have ``callback(event)`` called for what happens to peers; see the module."""
        self.notifier.add(callback)

    def unwatch(self, callback: Callable[[PeerEvent], object]) -> None:
        """Forget a callback."""
        self.notifier.remove(callback)

    @abc.abstractmethod
    def peers(self) -> Mapping[str, Peer]:
        """Those that are up or suspect, by name; a copy."""

    @abc.abstractmethod
    def known(self) -> Mapping[str, NodeRecord]:
        """Every other node that was ever seen, by name; a copy."""

    @abc.abstractmethod
    def publish(self, **facts: Any) -> None:
        """Tell all peers, and those to come, something of this node: small picklable things.

        Replaces what was said under the same names before. To be called when something has
        changed, not more often than somebody needs to know.
        """

    def peer(self, name: str) -> Peer:
        """The peer of that name.

        Raises:
            NodeDownError: none is up; says which are.
        """
        found = self.peers()
        peer = found.get(name)
        if peer is None:
            record = self.known().get(name)
            was = "is not known to" if record is None else "is not connected to"
            others = ", ".join(sorted(found)) or "no other"
            raise NodeDownError(
                f"node {name!r} {was} {self.node!r}; up besides it: {others}", node=name
            )
        return peer

    def _up(self) -> list[Peer]:
        return list(self.peers().values())

    # What implementations call when something has come.

    def handle_post(self, peer: Peer, service: str, message: Any) -> None:
        """Hand over a message; what the handler raises is logged and goes no further."""
        found = self._services.get(service)
        if found is None or found.on_post is None:
            log.warning("no_such_service", node=self.node, peer=peer.name, service=service)
            return
        try:
            found.on_post(peer, message)
        except Exception as error:
            log.error(
                "post_raised", node=self.node, peer=peer.name, service=service, exc_info=error
            )

    def handle_call(self, peer: Peer, service: str, request: Any) -> Any:
        """The answer, or a future of it; raises what the handler raises."""
        found = self._services.get(service)
        if found is None or found.on_call is None:
            raise HandoffError(f"node {self.node!r} does not answer {service!r}")
        return found.on_call(peer, request)

    def handle_fetch(self, peer: Peer, service: str, key: Hashable) -> Payload:
        """The payload; raises what the handler raises."""
        found = self._services.get(service)
        if found is None or found.on_fetch is None:
            raise ValueNotFoundError(
                f"node {self.node!r} gives out no {service!r}", dag_id=None, value_id=key
            )
        return found.on_fetch(peer, key)


class Notifier:
    """Calls watchers one after another on a thread that exists only while there are any.

    Args:
        name: of the thread.
        up: the peers that a new watcher must hear of.
    """

    def __init__(self, name: str, up: Callable[[], list[Peer]]) -> None:
        self._name = name
        self._up = up
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._watchers: dict[Callable[[PeerEvent], object], set[str]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, callback: Callable[[PeerEvent], object]) -> None:
        """A watcher more; it hears ``PeerUp`` of those that are up, and then what happens."""
        self._put(("add", callback))

    def remove(self, callback: Callable[[PeerEvent], object]) -> None:
        """A watcher less."""
        self._put(("remove", callback))

    def tell(self, event: PeerEvent, told: threading.Event | None = None) -> None:
        """Queue an event; ``told`` is set when all watchers have heard it."""
        self._put(("tell", event, told))

    def flush(self, timeout: float = 1.0) -> None:
        """Return when all that was queued before has been told, or after ``timeout`` seconds."""
        if threading.current_thread() is not self._thread:
            told = threading.Event()
            self._put(("flush", told))
            told.wait(timeout)

    def close(self, timeout: float = 1.0) -> None:
        """Tell what is queued, then end the thread."""
        with self._lock:
            self._closed = True
            thread = self._thread
            self._queue.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _put(self, item: tuple[Any, ...]) -> None:
        with self._lock:
            if self._closed:
                if isinstance(item[-1], threading.Event):
                    item[-1].set()
                return
            self._queue.put(item)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            kind, what = item[0], item[1]
            if kind == "add":
                self._watchers[what] = set()
                for peer in self._up():
                    self._tell(what, PeerUp(peer))
            elif kind == "remove":
                self._watchers.pop(what, None)
            elif kind == "flush":
                what.set()
            else:
                for watcher in list(self._watchers):
                    self._tell(watcher, what)
                if item[2] is not None:
                    item[2].set()
        with contextlib.suppress(queue.Empty):
            while True:
                left = self._queue.get_nowait()
                if left is not None and isinstance(left[-1], threading.Event):
                    left[-1].set()

    def _tell(self, watcher: Callable[[PeerEvent], object], event: PeerEvent) -> None:
        heard = self._watchers.get(watcher)
        if heard is None:
            return
        session = event.peer.session
        if isinstance(event, PeerUp):
            if session in heard:
                return  # it was up already when the watcher came
            heard.add(session)
        elif session not in heard:
            return  # it was gone already when the watcher came
        if isinstance(event, PeerDown):
            heard.discard(session)
        try:
            watcher(event)
        except Exception as error:
            log.error("watcher_raised", watched=describe(event), exc_info=error)

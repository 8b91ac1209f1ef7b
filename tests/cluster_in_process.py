"""Clusters in one process, for tests: the rules of ``cluster.peers`` without sockets.

    net = Net()
    a, b = net.node("a"), net.node("b")     every node is linked with every other one
    net.suspect("b"); net.back("b")         everybody finds b silent, hears it again
    net.kill("b")                           b's life ends: everybody sees it down
    b2 = net.node("b")                      another life under the name
    net.cut("a", "b"); net.heal("a", "b")   both see each other down; then up, in a new session
    net.hold("a", "b"); net.release("a", "b")   what a posts to b, and its calls, wait; then go on
    net.close()

Messages are pickled before ``post`` returns and unpickled on the thread that serves that direction,
so order, copies and errors are those of real links. Calls and fetches are answered on threads.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import queue
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.cluster.peers import (
    Cluster,
    NodeRecord,
    Peer,
    PeerBack,
    PeerDown,
    PeerEvent,
    PeerFacts,
    PeerSuspect,
    PeerUp,
    unreachable,
)
from handoff_actors.cluster.remote_errors import dump_exception, load_exception

_numbers = itertools.count(1)


class MemoryPeer(Peer):
    """The node ``far`` as ``near`` sees it."""

    def __init__(self, near: MemoryCluster, far: MemoryCluster, session: str) -> None:
        self.near, self.far = near, far
        self.name, self.incarnation, self.session = far.node, far.incarnation, session
        self.address, self.pid, self.same_machine = f"memory:{far.node}", os.getpid(), True
        self.state = "up"
        self.facts = dict(far.facts)
        self.back: MemoryPeer | None = None  # how far sees near
        self.open = threading.Event()
        self.open.set()
        self._lock = threading.Lock()
        self._waiting: dict[int, concurrent.futures.Future[Any]] = {}
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._carry, name=f"memory-{near.node}-{far.node}", daemon=True
        )
        self._thread.start()

    def post(self, service: str, message: object) -> None:
        """See ``Peer``."""
        payload = _copied(dumps(message, "message"))
        with self._lock:
            if self.state == "down":
                raise self.down_error()
            self._queue.put(("post", service, payload))

    def ask(self, service: str, request: object, timeout: float) -> concurrent.futures.Future[Any]:
        """See ``Peer``."""
        return self._ask("call", service, _copied(dumps(request, "request")), timeout)

    def fetch(self, service: str, key: Hashable, timeout: float) -> Payload:
        """See ``Peer``."""
        future = self._ask("fetch", service, _copied(dumps(key, "key")), timeout)
        found: Payload = future.result(timeout + 1.0)
        return found

    def _ask(self, kind: str, service: str, payload: Payload, timeout: float) -> Any:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        number = next(_numbers)
        with self._lock:
            if self.state == "down":
                future.set_exception(self.down_error())
                return future
            self._waiting[number] = future
            self._queue.put((kind, service, payload, number))
        timer = threading.Timer(
            timeout, self.answer, (number, None, unreachable(self.name, timeout))
        )
        timer.daemon = True
        future.add_done_callback(lambda _: timer.cancel())
        timer.start()
        return future

    def answer(self, number: int, value: Any, error: BaseException | None) -> None:
        """The call ``number`` has its answer, unless it had one."""
        with self._lock:
            future = self._waiting.pop(number, None)
        if future is None or not future.set_running_or_notify_cancel():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def end(self, reason: str) -> None:
        """The peer is gone."""
        with self._lock:
            if self.state == "down":
                return
            self.state = "down"
            waiting, self._waiting = self._waiting, {}
            self._queue.put(("end", reason))
        self.open.set()
        for future in waiting.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(self.down_error())

    def _carry(self) -> None:
        """Handle at ``far`` what ``near`` sends, in order."""
        while True:
            item = self._queue.get()
            self.open.wait()
            back = self.back
            assert back is not None
            if item[0] == "end":
                # The other direction's reader tells of this peer's end.
                back.told_up.wait(5.0)
                self.far.ended(back)
                return
            back.told_up.wait(5.0)
            if back.state == "down":
                continue
            kind, service, payload = item[:3]
            if kind == "post":
                self.far.handle_post(back, service, loads(payload, "message"))
            else:
                threading.Thread(
                    target=self._serve, args=(kind, service, payload, item[3]), daemon=True
                ).start()

    def _serve(self, kind: str, service: str, payload: Payload, number: int) -> None:
        back = self.back
        assert back is not None
        try:
            request = loads(payload, "request")
            if kind == "fetch":
                self.answer(number, _copied(self.far.handle_fetch(back, service, request)), None)
                return
            found = self.far.handle_call(back, service, request)
            if isinstance(found, concurrent.futures.Future):
                found = found.result()
            self.answer(number, loads(_copied(dumps(found, "answer"))), None)
        except BaseException as error:
            self.answer(number, None, load_exception(dump_exception(error)))

    @property
    def told_up(self) -> threading.Event:
        """Set once the watchers of ``near`` know of it."""
        return self.near.told.setdefault(self.session, threading.Event())


class MemoryCluster(Cluster):
    """One node of a ``Net``."""

    def __init__(self, net: Net, node: str) -> None:
        super().__init__(node, f"{node}-{next(_numbers)}")
        self.net = net
        self.facts: dict[str, Any] = {}
        self.linked: dict[str, MemoryPeer] = {}
        self.seen: dict[str, MemoryPeer] = {}
        self.told: dict[str, threading.Event] = {}

    def peers(self) -> Mapping[str, Peer]:
        """See ``Cluster``."""
        return dict(self.linked)

    def known(self) -> Mapping[str, NodeRecord]:
        """See ``Cluster``."""
        return {
            name: NodeRecord(
                name, p.incarnation, p.address, p.pid, p.state, "3", "0", dict(p.facts)
            )
            for name, p in list(self.seen.items())
        }

    def publish(self, **facts: Any) -> None:
        """See ``Cluster``."""
        with self.net.lock:
            self.facts.update(loads(_copied(dumps(facts))))
            for peer in self.linked.values():
                assert peer.back is not None
                peer.back.facts = dict(self.facts)
                peer.far.tell(PeerFacts(peer.back))

    def tell(self, event: PeerEvent) -> None:
        """Tell the watchers."""
        told = self.told.get(event.peer.session) if isinstance(event, PeerUp) else None
        self.notifier.tell(event, told)

    def ended(self, peer: MemoryPeer) -> None:
        """All that ``peer`` had sent is handled, and it is gone."""
        self.tell(PeerDown(peer, "its connection closed"))


class Net:
    """Nodes that all see each other, and what may happen to them."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.nodes: dict[str, MemoryCluster] = {}
        self._all: list[MemoryCluster] = []

    def node(
        self, name: str, setup: Callable[[MemoryCluster], None] | None = None
    ) -> MemoryCluster:
        """A new node, linked with all others once ``setup`` has been called with it."""
        with self.lock:
            assert name not in self.nodes, f"{name} is up"
            made = MemoryCluster(self, name)
            if setup is not None:
                setup(made)
            for other in self.nodes.values():
                self._link(made, other)
            self.nodes[name] = made
            self._all.append(made)
        made.notifier.flush()
        return made

    def _link(self, a: MemoryCluster, b: MemoryCluster) -> None:
        for near, far in ((a, b), (b, a)):
            old = near.seen.get(far.node)
            if old is not None and old.back is not None:
                old.back._thread.join(5.0)  # it tells of the old peer's end
        session = f"s{next(_numbers)}"
        there, back = MemoryPeer(a, b, session), MemoryPeer(b, a, session)
        there.back, back.back = back, there
        for peer in (there, back):
            told = peer.told_up
            peer.near.linked[peer.name] = peer.near.seen[peer.name] = peer
            peer.near.notifier.tell(PeerUp(peer), told)

    def kill(self, name: str) -> None:
        """End a node's life; its peers see it down, and it sees nothing any more."""
        with self.lock:
            dead = self.nodes.pop(name)
            for peer in list(dead.linked.values()):
                self._unlink(peer, "its process died")

    def suspect(self, name: str) -> None:
        """The others find it silent."""
        self._state(name, "suspect", PeerSuspect)

    def back(self, name: str) -> None:
        """The others hear it again."""
        self._state(name, "up", PeerBack)

    def _state(self, name: str, state: Any, event: Callable[[Peer], PeerEvent]) -> None:
        with self.lock:
            for other in self.nodes.values():
                peer = other.linked.get(name)
                if peer is not None and peer.state != state:
                    peer.state = state
                    other.tell(event(peer))

    def cut(self, a: str, b: str) -> None:
        """The network between two nodes is gone: each sees the other down; both live."""
        with self.lock:
            self._unlink(self.nodes[a].linked[b], "silent for too long")

    def heal(self, a: str, b: str) -> None:
        """They see each other again."""
        with self.lock:
            self._link(self.nodes[a], self.nodes[b])
        self.nodes[a].notifier.flush()
        self.nodes[b].notifier.flush()

    def hold(self, a: str, b: str) -> None:
        """What ``a`` sends to ``b`` waits from now on."""
        self.nodes[a].linked[b].open.clear()

    def release(self, a: str, b: str) -> None:
        """It goes on."""
        self.nodes[a].linked[b].open.set()

    def _unlink(self, peer: MemoryPeer, reason: str) -> None:
        back = peer.back
        assert back is not None
        for side in (peer, back):
            side.near.linked.pop(side.name, None)
            side.end(reason)

    def close(self) -> None:
        """End all nodes and their threads."""
        for name in list(self.nodes):
            self.kill(name)
        for node in self._all:
            for peer in node.seen.values():
                peer._thread.join(5.0)
            node.notifier.close()


def _copied(payload: Payload) -> Payload:
    return Payload(payload.head, [bytearray(memoryview(b).cast("B")) for b in payload.buffers])

"""A link: one connection to one life of a peer, that carries posts, calls and their answers.

    post, ask, answers ──► outgoing ──► one frame for all that waits ──► stream
    stream ──► reader ──► on_post, in order, on this thread
                     └──► on_call, on_fetch, on the carriers ──► answers

Whoever sends takes all that waits along, so that a frame carries one message when there is little
to say and many when there is much. Nobody waits for the network: what the socket does not take is
left to a thread that exists while there is such a rest.

Guarantees: posts arrive in order; each call is answered once: by its answer, its deadline, or the
end of the link; whatever the socket raises is the end of the link and becomes ``NodeDownError``;
nothing is sent or handled under a session that is not this link's.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

from handoff_actors.actors.duty import Duty
from handoff_actors.cluster import bulk
from handoff_actors.cluster.framing import FrameReader, Slots, frame, payload_of, push
from handoff_actors.cluster.membership import Card
from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.cluster.peers import Peer, State, unreachable
from handoff_actors.cluster.remote_errors import dump_exception, load_exception
from handoff_actors.cluster.stream import Stream
from handoff_actors.events import log

if TYPE_CHECKING:
    from handoff_actors.cluster.mesh import Mesh

_POST, _CALL, _ANSWER, _ERROR, _FETCH, _FREE, _FACTS, _BEAT, _PING, _BYE = range(10)

_LIMIT = 1 << 34  # bytes of one frame
_BATCH = 1 << 20  # bytes after which a frame is closed
_NOTHING = Payload(b"N.")  # pickled None
_PLENTY = 512  # messages of a frame

Future = concurrent.futures.Future[Any]


class Link(Peer):
    """See the module, and ``Peer``.

    Args:
        mesh: whose link it is.
        card: who is on the other side.
        session: of the link.
        stream: the connection; nothing else may read or write it.
    """

    def __init__(self, mesh: Mesh, card: Card, session: str, stream: Stream) -> None:
        self.mesh = mesh
        self.card = card
        self.name = card.name
        self.incarnation = card.incarnation
        self.session = session
        self.address = card.address
        self.pid = card.pid
        self.same_machine = card.machine == mesh.card.machine
        self.state: State = "up"
        self.facts: Mapping[str, Any] = card.facts
        self.stream = stream
        self.left = False
        self.reason = "its connection closed"
        self.told_up = threading.Event()
        self.told_down = threading.Event()
        self.bulk = bulk.Bulk(self)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[Future, Any]] = {}
        self._outgoing: deque[tuple[int, int, str, Payload]] = deque()
        self._sending = threading.Lock()
        self._sending.acquire()  # until ``run``: the connection may be in other hands before
        self._writable = False
        self._slots = Slots()
        self._rest: list[Any] = []
        self._sent = time.monotonic()
        self._reading = Duty(mesh.carriers, mesh.timers, self._read)
        self._reader: FrameReader | None = None

    # Sending.

    def post(self, service: str, message: object) -> None:
        """See ``Peer``."""
        payload = _kept(dumps(message, "message"))
        if self.state == "down":
            raise self.down_error()
        self._send(_POST, 0, service, payload)

    def ask(self, service: str, request: object, timeout: float) -> Future:
        """See ``Peer``."""
        return self.request(_CALL, service, _kept(dumps(request, "request")), timeout)

    def fetch(self, service: str, key: Hashable, timeout: float) -> Payload:
        """See ``Peer``."""
        deadline = time.monotonic() + timeout
        found = _result(self, self.request(_FETCH, service, dumps(key, "key"), timeout), timeout)
        return self.bulk.take(found, deadline)

    def request(self, kind: int, service: str, payload: Payload, timeout: float) -> Future:
        """Send something that wants an answer within ``timeout`` seconds."""
        self.mesh.carriers.release_deferred()  # code that waits may be what this thread reads for
        future: Future = concurrent.futures.Future()
        number = next(self._numbers)
        timer = self.mesh.timers.call_later(
            timeout, lambda: self._settle(number, None, unreachable(self.name, timeout))
        )
        with self._lock:
            if self.state == "down":
                timer.cancel()
                future.set_exception(self.down_error())
                return future
            self._waiting[number] = (future, timer)
        self._send(kind, number, service, payload)
        return future

    def beat(self, within: float) -> None:
        """Give a sign of life, unless something was sent within so many seconds."""
        if time.monotonic() - self._sent >= within:
            self._send(_BEAT, 0, "", _NOTHING)

    def ping(self, timeout: float) -> bool:
        """Whether the other side gives a sign of life within ``timeout`` seconds."""
        try:
            _result(self, self.request(_PING, "", _NOTHING, timeout), timeout)
        except Exception:
            return False
        return True

    def tell_facts(self, facts: Payload) -> None:
        """Tell what this node has published."""
        self._send(_FACTS, 0, "", facts)

    def free(self, token: int) -> None:
        """Tell that a large value has been taken."""
        self._send(_FREE, token, "", _NOTHING)

    def farewell(self) -> None:
        """Take leave: the other side knows that this is no accident."""
        self._send(_BYE, 0, "", _NOTHING)

    def _send(self, kind: int, number: int, service: str, payload: Payload) -> None:
        self._outgoing.append((kind, number, service, payload))
        if self._sending.acquire(blocking=False):
            self._drain()

    def _drain(self) -> None:
        """Send what waits; the sending lock is held, and given up or passed on."""
        outgoing = self._outgoing
        try:
            while True:
                while outgoing:
                    self._rest = self._frame()
                    if not push(self.stream, self._rest) or not self._flushed():
                        threading.Thread(
                            target=self._send_rest, name="handoff-link-rest", daemon=True
                        ).start()
                        return
                self._sending.release()
                if not outgoing or not self._sending.acquire(blocking=False):
                    return
        except (OSError, ValueError, RuntimeError) as error:
            self._broken(error)

    def _broken(self, error: BaseException) -> None:
        """Writing failed; the reader finds the end. The sending lock stays taken."""
        self._writable = False
        self.close(f"its connection broke: {error}")
        self._outgoing.clear()
        self._rest = []

    def _flushed(self) -> bool:
        try:
            self.stream.flush()
        except BlockingIOError:
            return False
        return True

    def _send_rest(self) -> None:
        try:
            while not push(self.stream, self._rest) or not self._flushed():
                self.stream.wait_writable()
        except (OSError, ValueError) as error:
            self._broken(error)
            return
        self._drain()

    def _frame(self) -> list[Any]:
        slots, outgoing = self._slots, self._outgoing
        slots.clear()
        entries: list[Any] = []
        size = 0
        while outgoing and size < _BATCH and len(entries) < _PLENTY:
            kind, number, service, payload = outgoing.popleft()
            size += payload.nbytes
            entries.append((kind, number, service, slots.add(payload)))
        self._sent = time.monotonic()
        parts = frame((self.session, entries, slots.slots), slots.buffers)
        slots.clear()
        return parts

    # Receiving.

    def run(self) -> None:
        """Read until the end, on carriers; called once."""
        self._reading.begin()

    def _open(self) -> FrameReader:
        self.told_up.wait(5.0)
        self._writable = True
        self._sending.release()
        if self._outgoing and self._sending.acquire(blocking=False):
            self._drain()
        return FrameReader(self.stream, _LIMIT)

    def _read(self) -> bool:
        """Read until the end, or until another thread does: then False."""
        try:
            if self._reader is None:
                self._reader = self._open()
            read, do_jobs = self._reader.read, self._reading.do_jobs
            while True:
                (session, entries, slots), buffers = read()  # type: ignore[misc]
                if session != self.session:
                    log.warning("strange_session", node=self.mesh.node, peer=self.name)
                    continue
                for kind, number, service, slot in entries:
                    self._receive(kind, number, service, payload_of(slots[slot], buffers))
                if not do_jobs():
                    return False
        except (EOFError, OSError) as error:
            if not isinstance(error, EOFError) and self.state != "down":
                self.reason = f"its connection broke: {error}"
        except BaseException as error:
            self.reason = f"it sent what cannot be read: {error}"
            log.error("link_failed", node=self.mesh.node, peer=self.name, exc_info=error)
        self.end()
        return True

    def _receive(self, kind: int, number: int, service: str, payload: Payload) -> None:
        mesh = self.mesh
        if kind == _POST:
            try:
                message = loads(payload, "message")
            except Exception as error:
                log.error(
                    "message_lost", node=mesh.node, peer=self.name, service=service, exc_info=error
                )
                return
            mesh.handle_post(self, service, message)
        elif kind in (_ANSWER, _ERROR):
            self._answered(kind, number, payload)
        elif kind in (_CALL, _FETCH):
            serve = self._serve if kind == _CALL else self._give
            mesh.carriers.submit(lambda: serve(number, service, payload))
        elif kind == _PING:
            self._send(_ANSWER, number, "", _NOTHING)
        elif kind == _FREE:
            self.bulk.free(number)
        elif kind == _FACTS:
            self.facts = loads(payload, "facts")
            mesh.facts_changed(self)
        elif kind == _BYE:
            self.left = True
            self.reason = "it has left"

    def _answered(self, kind: int, number: int, payload: Payload) -> None:
        try:
            if kind == _ANSWER:
                self._settle(number, loads(payload, "answer"), None)
            else:
                self._settle(number, None, load_exception(payload))
        except Exception as error:
            self._settle(number, None, error)

    def _settle(self, number: int, value: Any, error: BaseException | None) -> None:
        with self._lock:
            found = self._waiting.pop(number, None)
        if found is None:
            return  # too late
        future, timer = found
        timer.cancel()
        if not future.set_running_or_notify_cancel():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def _serve(self, number: int, service: str, payload: Payload) -> None:
        """Answer a call; on a carrier."""
        try:
            found = self.mesh.handle_call(self, service, loads(payload, "request"))
        except BaseException as error:
            self._refuse(number, error)
            return
        if not isinstance(found, concurrent.futures.Future):
            self._answer(number, lambda: dumps(found, "answer"))
            return

        def done(future: Future) -> None:
            try:
                error = future.exception()
            except concurrent.futures.CancelledError as cancelled:
                error = cancelled
            if error is not None:
                self._refuse(number, error)
            else:
                self._answer(number, lambda: dumps(future.result(), "answer"))

        found.add_done_callback(done)

    def _give(self, number: int, service: str, payload: Payload) -> None:
        """Answer a fetch; on a carrier."""

        def give() -> Payload:
            found = self.mesh.handle_fetch(self, service, loads(payload, "key"))
            return dumps(self.bulk.give(found))

        self._answer(number, give)

    def _answer(self, number: int, make: Callable[[], Payload]) -> None:
        try:
            payload = _kept(make())
        except BaseException as error:
            self._refuse(number, error)
        else:
            self._send(_ANSWER, number, "", payload)

    def _refuse(self, number: int, error: BaseException) -> None:
        self._send(_ERROR, number, "", dump_exception(error))

    # The end.

    def silent(self) -> float:
        """Seconds since something came; 0 if something waits to be read."""
        seconds = time.monotonic() - self.stream.heard
        return 0.0 if seconds > 0.05 and self.stream.readable() else seconds

    def close(self, reason: str, *, left: bool = False) -> None:
        """End it; the thread that reads it tells everybody."""
        with self._lock:
            if self.state == "down":
                return
            self.state = "down"
            self.reason = reason
            self.left = self.left or left
            waiting, self._waiting = self._waiting, {}
        self.stream.shutdown()
        self._fail(waiting)

    def end(self) -> None:
        """The connection is at its end: tell everybody; called once, by who reads it."""
        with self._lock:
            self.state = "down"
            waiting, self._waiting = self._waiting, {}
        self.mesh.link_ended(self)
        self._fail(waiting)
        self.bulk.close()
        self.stream.shutdown()
        if not self._writable or self._sending.acquire(timeout=1.0):  # nobody writes any more
            self._outgoing.clear()
        self.stream.close()

    def _fail(self, waiting: Mapping[int, tuple[Future, Any]]) -> None:
        for future, timer in waiting.values():
            timer.cancel()
            if future.set_running_or_notify_cancel():
                future.set_exception(self.down_error())

    def down_error(self) -> Any:
        """See ``Peer``."""
        error = super().down_error()
        error.args = (f"node {self.name!r} is gone: {self.reason}",)
        return error


def _result(link: Link, future: Future, timeout: float) -> Any:
    try:
        return future.result(timeout + 1.0)
    except concurrent.futures.TimeoutError:
        if future.done():
            raise
        raise unreachable(link.name, timeout) from None


def _kept(payload: Payload) -> Payload:
    """``payload`` that does not share memory with what it was made of."""
    if not payload.buffers:
        return payload
    return Payload(payload.head, [bytes(memoryview(b)) for b in payload.buffers])

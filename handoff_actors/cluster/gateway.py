"""The gateway: the ``BaseManager`` server through which other nodes reach this one.

    greet()                          who is here
    join(card, session, ...)         become a peer; the connection becomes the link
    transfer(session)                a connection beside the link, for large values
    describe()                       the cluster as this node sees it, for people

It is ``multiprocess``'s manager on its own seams: a ``Listener`` and a ``Client`` under a name of
their own, one pinned object with the four methods above, and a ``Server`` whose accepting and
ending are its own. Nothing can be created through it, no reference is counted, no proxy made.

Guarantees: a connection is trusted after ``handshake`` and never before; whoever does not get
through it in time is closed, and so is the oldest of those that are at it when there are too many;
nobody who connects can keep others out, or the server from ending; after ``close()`` no thread and
no socket of it is left but those that were handed over to links.
"""

from __future__ import annotations

import pickle
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from multiprocess import managers
from multiprocess.managers import BaseManager, Server

from handoff_actors.cluster import handshake, transport
from handoff_actors.cluster.stream import Stream
from handoff_actors.cluster.tls import TLS, TLSStream
from handoff_actors.errors import (
    AuthenticationError,
    HandoffError,
    NodeError,
    NodeUnreachableError,
)
from handoff_actors.events import log

SERIALIZER = "handoff"
METHODS = frozenset({"greet", "join", "transfer", "describe"})

_IDENT = "node"
_HANDSHAKE = 5.0  # seconds that a connection has to become trusted
_REQUEST = 10.0  # seconds that a trusted one has to say what it wants, each time
_UNTRUSTED = 64  # connections that may be at the handshake at once
_LIMIT = 1 << 26  # bytes of one message of the manager
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a gateway listens, or a client connects; what the manager takes for an address.

    Attributes:
        name: of the node that listens or connects.
        host: an interface; for clients None when ``local`` is enough.
        port: 0 for any.
        tls: certificates; None for none.
        local: the name of a socket on this machine.
        timeout: seconds a client gives it, handshake included.
    """

    name: str
    host: str | None
    port: int = 0
    tls: TLS | None = None
    local: bytes | None = None
    timeout: float = 5.0


class Connection:
    """What the manager speaks over: whole messages, pickled, after the handshake."""

    def __init__(self, stream: Stream, *, trusted: bool) -> None:
        self.stream = stream
        self.trusted = trusted
        self.closed = False
        self._takeover: Callable[[Stream | None], None] | None = None

    def hand_over(self, takeover: Callable[[Stream | None], None]) -> None:
        """After the answer in progress, ``takeover(stream)`` has the connection, on this thread.

        ``takeover(None)`` tells that it was closed before that.
        """
        self._takeover = takeover

    def send(self, message: Any) -> None:
        """Send a message."""
        self.send_bytes(pickle.dumps(message, 5))

    def recv(self) -> Any:
        """The next message.

        Raises:
            EOFError: the other side has closed, or the connection was taken over and is at its end.
        """
        takeover, self._takeover = self._takeover, None
        if takeover is not None:
            self.closed = True  # as far as the manager is concerned
            self.stream.set_deadline(None)
            takeover(self.stream)
            raise EOFError
        assert self.trusted, "nothing is unpickled before the handshake"
        try:
            data = self.recv_bytes()
        except OSError as error:  # the manager would answer it, and go on
            raise EOFError(str(error)) from error
        return pickle.loads(data)

    def send_bytes(self, data: bytes) -> None:
        """Send one message of bytes."""
        self.stream.set_deadline(_REQUEST)
        self.stream.send_all(_LENGTH.pack(len(data)), data)

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """The next message of bytes.

        Raises:
            OSError: it is too long, or does not come.
        """
        self.stream.set_deadline(_REQUEST)
        (size,) = _LENGTH.unpack(self.stream.read_exactly(_LENGTH.size))
        if size > (_LIMIT if maxlength is None else maxlength):
            raise OSError(f"a message of {size} bytes")
        return self.stream.read_exactly(size)

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether something has come, or comes within ``timeout`` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self.stream.readable():
            if end is not None and time.monotonic() >= end:
                return False
            time.sleep(0.001)
        return True

    def fileno(self) -> int:
        """Of the socket."""
        return self.stream.sock.fileno()

    def close(self) -> None:
        """Close, unless it was taken over."""
        takeover, self._takeover = self._takeover, None
        if takeover is not None:
            takeover(None)
        if not self.closed:
            self.closed = True
            self.stream.shutdown()
            self.stream.close()


class Listener:
    """Accepts on an interface and on a socket for this machine."""

    def __init__(self, address: Place, backlog: int = transport.BACKLOG) -> None:
        del backlog  # transport's
        self._tls = None if address.tls is None else address.tls.contexts()[0]
        assert address.host is not None
        tcp = transport.listen(address.host, address.port)
        try:
            unix, name = transport.listen_locally()
        except OSError:
            unix, name = None, None
        self._sockets = [tcp] if unix is None else [tcp, unix]
        self._wake = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for sock in (*self._sockets, self._wake[0]):
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)
        self._ready: list[socket.socket] = []
        host, port = tcp.getsockname()[:2]
        self.address = Place(address.name, host, port, address.tls, name)
        self.ended = False

    def accept(self) -> Connection:
        """The next connection, nothing of it read yet.

        Raises:
            OSError: one could not be accepted, or the listener has ended.
        """
        while not self.ended:
            if not self._ready:
                found = [key.fileobj for key, _ in self._selector.select()]
                self._ready = [sock for sock in found if isinstance(sock, socket.socket)]
            sock = self._ready.pop()
            if sock is self._wake[0]:
                continue
            try:
                made, _ = sock.accept()
            except BlockingIOError:
                continue
            made.setblocking(True)
            return Connection(Stream(made), trusted=False)
        raise OSError("the listener has ended")

    def secure(self, connection: Connection) -> None:
        """Encrypt an accepted connection, where that is wanted."""
        stream = connection.stream
        transport.tune(stream.sock)
        stream.set_deadline(_HANDSHAKE)
        if self._tls is not None and not stream.local:
            encrypted = TLSStream(stream.sock, self._tls, server=True)
            encrypted.set_deadline(_HANDSHAKE)
            connection.stream = encrypted
            encrypted.handshake()

    def wake(self) -> None:
        """Let ``accept`` raise from now on."""
        self.ended = True
        self._wake[1].send(b"x")

    def close(self) -> None:
        """Free the sockets."""
        self._selector.close()
        for sock in (*self._sockets, *self._wake):
            sock.close()


def client(address: Place, authkey: bytes) -> Connection:
    """Connect to a gateway and prove the key, both ways.

    Raises:
        NodeError: what went wrong.
    """
    where: tuple[str, int] | bytes
    if address.local is not None:
        where = address.local
    else:
        assert address.host is not None
        where = (address.host, address.port)
    stream = transport.dial(where, address.tls, address.timeout)
    try:
        handshake.call(stream, address.name, bytes(authkey))
    except BaseException:
        stream.close()
        raise
    return Connection(stream, trusted=True)


managers.listener_client[SERIALIZER] = (Listener, client)


class Node(Protocol):
    """What the gateway gives access to; all of it may be called by several threads at once."""

    def greet(self) -> Any:
        """Who is here."""

    def join(self, *args: Any) -> Any:
        """Become a peer."""

    def transfer(self, *args: Any) -> Any:
        """Open a connection for large values."""

    def describe(self) -> Any:
        """The cluster, for people."""


class _Current(threading.local):
    connection: Connection | None = None


_current = _Current()


def current_connection() -> Connection:
    """The connection over which the method in progress was called."""
    assert _current.connection is not None
    return _current.connection


class GatewayServer(Server):  # type: ignore[misc]  # multiprocess has no types
    """The manager's server, as this library needs it; see the module."""

    public = ("accept_connection", "dummy")

    def __init__(self, registry: Any, address: Place, authkey: bytes, serializer: str) -> None:
        super().__init__(registry, address, authkey, serializer)
        self.node_name = address.name
        self.stop_event = threading.Event()
        self._lock = threading.Lock()
        self._untrusted: dict[Connection, None] = {}
        self._trusted: dict[Connection, None] = {}
        self._threads: set[threading.Thread] = set()
        self._accepter: threading.Thread | None = None

    def pin(self, node: Node) -> None:
        """Give access to ``node``; it is never counted, and stays as long as the server."""
        self.id_to_obj[_IDENT] = (node, METHODS, None)

    def serve(self) -> None:
        """Accept from now on; returns at once."""
        self._accepter = threading.Thread(
            target=self.accepter, name=f"handoff-{self.node_name}-gateway", daemon=True
        )
        self._accepter.start()

    def accepter(self) -> None:
        """Accept until the end; called by ``serve``."""
        while not self.stop_event.is_set():
            try:
                connection = self.listener.accept()
            except OSError as error:
                if not self.stop_event.wait(0.05):  # out of descriptors, say
                    log.warning("accept_failed", node=self.node_name, error=str(error))
                continue
            thread = threading.Thread(
                target=self.handle_request,
                args=(connection,),
                name=f"handoff-{self.node_name}-connection",
                daemon=True,
            )
            with self._lock:
                self._untrusted[connection] = None
                self._threads.add(thread)
                oldest = next(iter(self._untrusted)) if len(self._untrusted) > _UNTRUSTED else None
            if oldest is not None:
                oldest.stream.shutdown()
            try:
                thread.start()
            except RuntimeError:  # no more threads
                self._forget(connection, thread)
                connection.close()

    def handle_request(self, conn: Connection) -> None:
        """The life of one connection, on a thread of its own."""
        try:
            if self._trust(conn):
                _current.connection = conn
                self._handle_trusted(conn)
        except SystemExit:
            pass  # how the manager ends the thread of a connection that has ended
        finally:
            conn.close()
            self._forget(conn, threading.current_thread())

    def _trust(self, conn: Connection) -> bool:
        try:
            self.listener.secure(conn)
            handshake.answer(conn.stream, self.node_name, bytes(self.authkey))
        except NodeError as error:
            kind = "key" if isinstance(error, AuthenticationError) else "version"
            log.warning(f"refused_{kind}", node=self.node_name, error=str(error))
            return False
        except (OSError, EOFError, ValueError) as error:
            log.info("refused_connection", node=self.node_name, error=str(error))
            return False
        conn.trusted = True
        with self._lock:
            self._untrusted.pop(conn, None)
            self._trusted[conn] = None
        return not self.stop_event.is_set()

    def _handle_trusted(self, conn: Connection) -> None:
        """As the manager does, without its handshake, and telling only what it must."""
        try:
            _ignored, name, args, kwds = conn.recv()
            if name not in self.public:
                raise HandoffError(f"the gateway has no {name!r}")
            message = ("#RETURN", getattr(self, name)(conn, *args, **kwds))
        except (OSError, EOFError):
            return
        except Exception as error:
            message = ("#ERROR", error)
        conn.send(message)

    def _forget(self, conn: Connection, thread: threading.Thread) -> None:
        with self._lock:
            self._untrusted.pop(conn, None)
            self._trusted.pop(conn, None)
            self._threads.discard(thread)

    def close(self, timeout: float = 2.0) -> None:
        """Stop accepting, and end the connections that belong to nobody else.

        Args:
            timeout: seconds for all threads together.
        """
        deadline = time.monotonic() + timeout
        self.stop_event.set()
        self.listener.wake()
        if self._accepter is not None:
            self._accepter.join(timeout)
        self.listener.close()
        with self._lock:
            connections = [*self._untrusted, *self._trusted]
            threads = list(self._threads)
        for connection in connections:
            if not connection.closed:
                connection.stream.shutdown()
        for thread in threads:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))


class GatewayManager(BaseManager):  # type: ignore[misc]  # multiprocess has no types
    """The manager whose server the gateway is, and whose ``connect`` tries one out."""

    def __init__(self, address: Place, authkey: bytes) -> None:
        super().__init__(address=address, authkey=authkey, serializer=SERIALIZER)
        self._key = authkey

    def connect(self) -> None:
        """Find out whether a gateway is there and has the key.

        Raises:
            NodeError: it is not, or has not.
        """
        connection = client(self.address, self._key)
        try:
            managers.dispatch(connection, None, "dummy")
        finally:
            connection.close()

    def get_server(self) -> GatewayServer:
        """The server, bound and not serving yet."""
        return GatewayServer(self._registry, self.address, self._key, SERIALIZER)


GatewayManager.register(_IDENT, exposed=tuple(METHODS))


class Caller:
    """A connection to another node's gateway, to call its methods over.

    Args:
        place: where.
        key: of the cluster.

    Raises:
        NodeError: what went wrong.
    """

    def __init__(self, place: Place, key: bytes) -> None:
        self.connection = client(place, key)
        self._accepted = False

    def call(self, method: str, *args: Any) -> Any:
        """The answer of ``method`` there.

        Raises:
            OSError, EOFError: the connection broke, or no answer came in time.
            Exception: what the method raised.
        """
        if not self._accepted:
            managers.dispatch(self.connection, None, "accept_connection", ("handoff-link",))
            self._accepted = True
        try:
            return managers.dispatch(self.connection, _IDENT, method, args)
        except managers.RemoteError as error:
            raise NodeUnreachableError(f"its gateway failed: {error}", node=None) from error

    def take(self) -> Stream:
        """The connection, to be used for something else from now on."""
        self.connection.closed = True
        self.connection.stream.set_deadline(None)
        return self.connection.stream

    def close(self) -> None:
        """Close the connection, if it is still ours."""
        self.connection.close()

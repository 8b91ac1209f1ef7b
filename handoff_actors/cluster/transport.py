"""Sockets between nodes: addresses, options, TLS, and streams that know when they last heard.

Guarantees: no Nagle (TCP_NODELAY), keepalive on everything that crosses machines, a deadline on
whatever is done before a connection is trusted, and that a stream may be written by one thread
while another one reads it, with TLS too. Nodes of one machine meet on a socket in the abstract
namespace, which leaves no file behind whoever dies.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from handoff_actors.errors import ConfigurationError, NodeUnreachableError, describe

if TYPE_CHECKING:
    import ssl

BACKLOG = 128
_TLS_CHUNK = 1 << 18  # bytes that are encrypted at a time
_BUFFER = 1 << 21  # bytes asked for the buffers of local sockets


# Addresses.


def parse(address: object, what: str = "address") -> tuple[str, int]:
    """Host and port of ``host:port``, ``[v6]:port`` or ``:port`` (loopback).

    Raises:
        ConfigurationError: it is none of these.
    """
    if not isinstance(address, str):
        raise ConfigurationError(f"{what} must be 'host:port', not {describe(address)}")
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"{what} must be 'host:port', not {describe(address)}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigurationError(
            f"{what} must be 'host:port' with an IPv6 host in brackets, not {address!r}"
        )
    return host or "127.0.0.1", int(port)


def text(host: str, port: int) -> str:
    """``host:port``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether an interface can be reached from this machine alone; a name by all it means."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(f[4][0]).is_loopback for f in found)


def is_wildcard(host: str) -> bool:
    """Whether a host means all interfaces."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def machine_id() -> str:
    """The same for two processes that share a kernel, its network names and its process ids."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        spaces = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "pid")]
    except OSError:
        return secrets.token_hex(8)  # like no other: nothing is taken for granted
    return " ".join([boot, *spaces])


# TLS.


@dataclass(frozen=True, slots=True)
class TLS:
    """Certificates for the connections of a node, which both sides show and check.

    Attributes:
        certfile: this node's certificate (PEM), with what is between it and the authority.
        keyfile: its private key (PEM).
        cafile: the authority (PEM) that signed the certificates of all nodes; no other is trusted.
    """

    certfile: str
    keyfile: str
    cafile: str

    @classmethod
    def of(cls, given: object) -> TLS | None:
        """What ``start(tls=...)`` was given: a ``TLS``, or a mapping of its three fields.

        Raises:
            ConfigurationError: it is neither, or a file is missing.
        """
        if given is None or isinstance(given, TLS):
            made = given
        elif isinstance(given, Mapping) and set(given) == {"certfile", "keyfile", "cafile"}:
            made = cls(**{str(name): os.fspath(path) for name, path in given.items()})
        else:
            raise ConfigurationError(
                "tls must be a mapping of 'certfile', 'keyfile' and 'cafile' (paths of PEM files: "
                f"this node's, its key, the authority of all nodes), not {describe(given)}"
            )
        if made is not None:
            made.contexts()
        return made

    def contexts(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        """For connections that are accepted, and for those that are made.

        Raises:
            ConfigurationError: a file is missing or is not what it should be.
        """
        import ssl

        made = []
        for side in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
            try:
                context = ssl.SSLContext(side)
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                # The authority is the cluster's own: whoever has its signature is a node, under
                # whatever address it is reached.
                context.check_hostname = False
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(self.cafile)
                context.load_cert_chain(self.certfile, self.keyfile)
            except (OSError, ValueError) as error:
                raise ConfigurationError(
                    f"tls: cannot use {self.certfile}, {self.keyfile} and {self.cafile}: {error}"
                ) from error
            made.append(context)
        return made[0], made[1]


# Streams.


class Stream:
    """A connected socket.

    Attributes:
        heard: when something last came, monotonic seconds.
        local: whether the other side is on this machine for sure.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.heard = time.monotonic()
        self.local = sock.family == socket.AF_UNIX
        self._deadline: float | None = None
        self._closing = threading.Lock()

    def set_deadline(self, seconds: float | None) -> None:
        """Let what is read and written blocking raise TimeoutError from then on."""
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self.sock.settimeout(seconds)

    def _limit(self) -> None:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the deadline has passed")
            self.sock.settimeout(left)

    def recv_into(self, view: memoryview) -> int:
        """Read something; 0 at the end."""
        self._limit()
        got = self.sock.recv_into(view)
        self.heard = time.monotonic()
        return got

    def recvmsg_into(self, views: Sequence[memoryview]) -> tuple[int, Any, Any, Any]:
        """Read something into several places."""
        self._limit()
        found = self.sock.recvmsg_into(views)
        self.heard = time.monotonic()
        return found

    def read_exactly(self, size: int) -> bytes:
        """So many bytes.

        Raises:
            EOFError: the stream ends before.
        """
        data = bytearray(size)
        self.read_into(memoryview(data))
        return bytes(data)

    def read_into(self, view: memoryview) -> None:
        """Fill ``view``.

        Raises:
            EOFError: the stream ends before.
        """
        while view:
            got = self.recv_into(view)
            if not got:
                raise EOFError("the connection was closed")
            view = view[got:]

    def sendmsg(self, parts: Sequence[Any]) -> int:
        """Send what can be sent without waiting; how many bytes that was.

        Raises:
            BlockingIOError: none.
        """
        return self.sock.sendmsg(parts, (), socket.MSG_DONTWAIT)

    def flush(self) -> None:
        """Send what ``sendmsg`` took but could not send yet.

        Raises:
            BlockingIOError: not all of it could be sent without waiting.
        """

    def wait_writable(self) -> None:
        """Wait until something can be sent, up to the deadline.

        Raises:
            TimeoutError: it has passed.
        """
        left = None if self._deadline is None else self._deadline - time.monotonic()
        poll = select.poll()
        poll.register(self.sock, select.POLLOUT)
        if (left is not None and left <= 0) or not poll.poll(None if left is None else left * 1e3):
            raise TimeoutError("the deadline has passed")

    def send_all(self, *parts: Any) -> None:
        """Send everything, however long the other side takes, up to the deadline."""
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                try:
                    view = view[self.sendmsg([view]) :]
                except BlockingIOError:
                    self.wait_writable()
        self.flush_all()

    def flush_all(self) -> None:
        """Send what is held back, however long the other side takes, up to the deadline."""
        while True:
            try:
                self.flush()
            except BlockingIOError:
                self.wait_writable()
            else:
                return

    def readable(self) -> bool:
        """Whether something has come that was not read yet."""
        try:
            poll = select.poll()
            poll.register(self.sock, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return False

    def peer_host(self) -> str | None:
        """The other side's host, as the system sees it."""
        try:
            return None if self.local else str(self.sock.getpeername()[0])
        except OSError:
            return None

    def shutdown(self) -> None:
        """Let whoever reads or writes it find its end."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        """Free it; nobody may be reading it any more."""
        with self._closing:
            self.sock.close()


class TLSStream(Stream):
    """A stream that is encrypted. The engine is locked, the socket is waited for outside the lock.

    Args:
        sock: connected.
        context: of this side.
        server: whether this side accepted.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server: bool) -> None:
        import ssl

        super().__init__(sock)
        self._want_read: type[Exception] = ssl.SSLWantReadError
        self._ended: tuple[type[Exception], ...] = (ssl.SSLZeroReturnError, ssl.SSLEOFError)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._engine = context.wrap_bio(self._incoming, self._outgoing, server_side=server)
        self._lock = threading.Lock()
        self._pending = memoryview(b"")
        self._raw = bytearray(_TLS_CHUNK)

    def handshake(self) -> None:
        """Agree on keys and show certificates, up to the deadline.

        Raises:
            OSError: one side's certificate was not accepted, or the connection broke.
        """
        while True:
            try:
                self._engine.do_handshake()
            except self._want_read:
                self.flush_all()
                self._receive()
            else:
                self.flush_all()
                return

    def _receive(self) -> None:
        self._limit()
        got = self.sock.recv_into(self._raw)
        self.heard = time.monotonic()
        with self._lock:
            if got:
                self._incoming.write(memoryview(self._raw)[:got])
            else:
                self._incoming.write_eof()

    def recv_into(self, view: memoryview) -> int:
        """Read something; 0 at the end."""
        while True:
            with self._lock:
                try:
                    return int(self._engine.read(len(view), view))
                except self._want_read:
                    pass
                except self._ended:
                    return 0
            self._receive()

    def recvmsg_into(self, views: Sequence[memoryview]) -> tuple[int, Any, Any, Any]:
        """Read something into the first of several places."""
        return self.recv_into(views[0]), (), 0, None

    def sendmsg(self, parts: Sequence[Any]) -> int:
        """See ``Stream``; takes nothing while what it took before is not sent."""
        with self._lock:
            self._flush()
            taken = 0
            for part in parts:
                view = memoryview(part).cast("B")[: _TLS_CHUNK - taken]
                if view:
                    taken += self._engine.write(view)
                if taken >= _TLS_CHUNK:
                    break
            with contextlib.suppress(BlockingIOError):
                self._flush()
            return taken

    def flush(self) -> None:
        """See ``Stream``."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        while True:
            if not self._pending:
                if not self._outgoing.pending:
                    return
                self._pending = memoryview(self._outgoing.read())
            sent = self.sock.send(self._pending, socket.MSG_DONTWAIT)
            self._pending = self._pending[sent:]


# Connecting and listening.


def tune(sock: socket.socket) -> None:
    """Set the options that every connection has."""
    if sock.family == socket.AF_UNIX:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def dial(where: tuple[str, int] | bytes, tls: TLS | None, timeout: float) -> Stream:
    """Connect; the deadline of the stream is what is left of ``timeout``.

    Args:
        where: host and port, or the name of a socket on this machine.
        tls: with which certificates; local sockets go without.
        timeout: seconds, for what follows too, until it is set anew.

    Raises:
        NodeUnreachableError: nothing answers there in time, or not with TLS.
    """
    began = time.monotonic()
    name = f"the local socket {where!r}" if isinstance(where, bytes) else text(*where)
    try:
        if isinstance(where, bytes):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(timeout)
                sock.connect(where)
            except BaseException:
                sock.close()
                raise
        else:
            sock = socket.create_connection(where, timeout)
    except OSError as error:
        raise NodeUnreachableError(
            f"no node answers at {name}: {error or type(error).__name__}", node=name
        ) from error
    try:
        tune(sock)
        stream = Stream(sock)
        left = timeout - (time.monotonic() - began)
        if tls is not None and not isinstance(where, bytes):
            encrypted = TLSStream(sock, tls.contexts()[1], server=False)
            encrypted.set_deadline(left)
            encrypted.handshake()
            return encrypted
        stream.set_deadline(left)
    except (OSError, EOFError) as error:
        sock.close()
        raise NodeUnreachableError(
            f"{name} does not agree on TLS: {error or type(error).__name__}. Both nodes need tls=, "
            "with certificates of one authority",
            node=name,
        ) from error
    except BaseException:
        sock.close()
        raise
    return stream


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {text(host, port)}: {error}") from error
    return sock


def listen_locally() -> tuple[socket.socket, bytes]:
    """A listening socket for this machine, and its name."""
    name = b"\0handoff-" + secrets.token_hex(12).encode()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(name)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock, name

"""Sockets between nodes: connecting and listening.

Guarantees: no Nagle (TCP_NODELAY), keepalive on everything that crosses machines, a deadline on
whatever is done before a connection is trusted. Nodes of one machine meet on a socket in the
abstract namespace, which leaves no file behind whoever dies.
"""

from __future__ import annotations

import secrets
import socket
import time

from handoff_actors.cluster.addresses import text
from handoff_actors.cluster.stream import Stream
from handoff_actors.cluster.tls import TLS, TLSStream
from handoff_actors.errors import ConfigurationError, NodeUnreachableError

BACKLOG = 128
_BUFFER = 1 << 21  # bytes asked for the buffers of local sockets


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

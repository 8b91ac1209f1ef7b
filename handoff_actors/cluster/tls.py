"""TLS between nodes: certificates on both sides, and streams that are encrypted.

Guarantees: both sides show a certificate of the one authority there is; an encrypted stream keeps
what ``Stream`` promises, so one thread may write it while another one reads it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from handoff_actors.cluster.stream import Stream
from handoff_actors.errors import ConfigurationError, describe

if TYPE_CHECKING:
    import ssl

_CHUNK = 1 << 18  # bytes that are encrypted at a time


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
        self._raw = bytearray(_CHUNK)

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
                view = memoryview(part).cast("B")[: _CHUNK - taken]
                if view:
                    taken += self._engine.write(view)
                if taken >= _CHUNK:
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

"""How two nodes find out that they may talk: versions first, then the key, both ways.

    caller  → HANDOFF, its hello                who it is, protocol, features, versions, a nonce
    gateway → HANDOFF, its hello
    caller  → proof of the key                  HMAC-SHA256 over both hellos, and which side it is
    gateway → proof of the key

Guarantees: until the other side has proved that it has the key, nothing it sends is unpickled, at
most some 2,000 bytes of it are read, and the deadline of the stream holds; the proofs are over both
nonces and both versions, so none can be replayed, reflected or bent to an older protocol; the key
itself is never sent.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handoff_actors._version import __version__
from handoff_actors.cluster.stream import Stream
from handoff_actors.errors import (
    AuthenticationError,
    IncompatibleNodeError,
    NodeUnreachableError,
    describe,
)

PROTOCOL = 1
FEATURES: Sequence[str] = ("posts", "calls", "fetch", "facts")
PYTHON = ".".join(map(str, sys.version_info[:3]))

_MAGIC = b"HANDOFF\n"
_LENGTH = struct.Struct("<H")
_LIMIT = 2048  # bytes of a hello
_PROOF = 32
_REFUSED = bytes(_PROOF)


@dataclass(frozen=True, slots=True)
class Hello:
    """What a node says before anything else.

    Attributes:
        name: its own.
        protocol: the version of what is spoken after the proofs.
        features: what it understands beyond that.
        python: its version.
        version: of this library.
    """

    name: str
    protocol: int = PROTOCOL
    features: Sequence[str] = FEATURES
    python: str = PYTHON
    version: str = __version__

    def __str__(self) -> str:
        return (
            f"{self.name} (protocol {self.protocol}, Python {self.python}, "
            f"handoff_actors {self.version})"
        )

    def check(self, other: Hello) -> None:
        """Whether the two can work together.

        Raises:
            IncompatibleNodeError: they cannot; names both.
        """
        mine, theirs = self.python.split("."), other.python.split(".")
        if (
            self.protocol != other.protocol
            or mine[:2] != theirs[:2]
            or self.version != other.version
        ):
            raise IncompatibleNodeError(
                f"nodes must have the same protocol, Python (up to the second number) and "
                f"handoff_actors: here is {self}, there is {other}",
                node=other.name,
            )


def call(stream: Stream, name: str, key: bytes, hello: Hello | None = None) -> Hello:
    """The side that connected. Returns what the other one said.

    Raises:
        IncompatibleNodeError: it has other versions.
        AuthenticationError: it has another key.
        NodeUnreachableError: it is no node, or does not answer before the stream's deadline.
    """
    mine = _encode(hello or Hello(name))
    try:
        stream.send_all(_MAGIC + mine)
        theirs, found = _read(stream)
        (hello or Hello(name)).check(found)
        stream.send_all(_proof(key, b"caller", mine, theirs))
        proof = stream.read_exactly(_PROOF)
    except (OSError, EOFError, ValueError) as error:
        raise NodeUnreachableError(
            f"what answers is no node, or not one that speaks to {name}: "
            f"{error or type(error).__name__}. Does one side use TLS and the other not?",
            node=None,
        ) from error
    if not hmac.compare_digest(proof, _proof(key, b"gateway", mine, theirs)):
        raise AuthenticationError(
            f"{found.name} and {name} do not have the same key: give both the same authkey= or "
            "HANDOFF_AUTHKEY",
            node=found.name,
        )
    return found


def answer(stream: Stream, name: str, key: bytes, hello: Hello | None = None) -> Hello:
    """The side that accepted. Returns what the other one said.

    Raises:
        IncompatibleNodeError: it has other versions.
        AuthenticationError: it has another key.
        OSError, EOFError, ValueError: it is no node, or does not speak before the deadline.
    """
    theirs, found = _read(stream)
    mine = _encode(hello or Hello(name))
    stream.send_all(_MAGIC + mine)
    (hello or Hello(name)).check(found)
    proof = stream.read_exactly(_PROOF)
    if not hmac.compare_digest(proof, _proof(key, b"caller", theirs, mine)):
        stream.send_all(_REFUSED)
        raise AuthenticationError(f"{found.name} has another key than {name}", node=found.name)
    stream.send_all(_proof(key, b"gateway", theirs, mine))
    return found


def _encode(hello: Hello) -> bytes:
    said: dict[str, Any] = {
        "name": hello.name,
        "protocol": hello.protocol,
        "features": list(hello.features),
        "python": hello.python,
        "version": hello.version,
        "nonce": secrets.token_hex(32),
    }
    data = json.dumps(said).encode()
    return _LENGTH.pack(len(data)) + data


def _read(stream: Stream) -> tuple[bytes, Hello]:
    if stream.read_exactly(len(_MAGIC)) != _MAGIC:
        raise ValueError("it does not begin as a node does")
    length = stream.read_exactly(_LENGTH.size)
    (size,) = _LENGTH.unpack(length)
    if size > _LIMIT:
        raise ValueError(f"its hello is {size} bytes")
    data = stream.read_exactly(size)
    try:
        said = json.loads(data)
    except RecursionError as error:
        raise ValueError("its hello is none") from error
    said = said if isinstance(said, Mapping) else {}
    name, protocol, features = said.get("name"), said.get("protocol"), said.get("features")
    python, version = said.get("python"), said.get("version")
    if (
        not all(isinstance(each, str) for each in (name, python, version, said.get("nonce")))
        or not isinstance(protocol, int)
        or not isinstance(features, list)
    ):
        raise ValueError(f"its hello is none: {describe(said)}")
    return length + data, Hello(
        str(name), protocol, [str(each) for each in features], str(python), str(version)
    )


def _proof(key: bytes, side: bytes, caller: bytes, gateway: bytes) -> bytes:
    return hmac.new(key, side + b"\0" + caller + gateway, hashlib.sha256).digest()

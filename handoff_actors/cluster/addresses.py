"""Addresses of nodes: how they are written, what they reach, and who shares a machine."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket

from handoff_actors.errors import ConfigurationError, describe


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

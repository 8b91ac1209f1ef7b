"""The options of ``start()``: defaults, checks, and what makes two sets of them equal. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from handoff_actors.errors import ConfigurationError, describe
from handoff_actors.graph.checks import is_seconds

_UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_AMOUNT = re.compile(
    r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>|B|[KMGT]i?B)\s*", re.ASCII | re.IGNORECASE
)


class StartOptions(TypedDict, total=False):
    """The keyword arguments of ``start`` and ``Runtime``; see ``Runtime``."""

    name: str | None
    capabilities: Mapping[str, float] | None
    listen: str | None
    authkey: str | bytes | None
    tls: Any
    insecure: bool
    isolation: str
    max_workers: int | None
    max_retries: int
    allocator: Any
    resource_tracker: Any
    max_retained_runs: int
    max_restarts: int
    max_seconds: float
    heartbeat_timeout: float
    node_return_timeout: float
    shutdown_timeout: float
    on_failure: Callable[[BaseException], object] | None
    memory_limit: int | str | None
    spill_directory: str | os.PathLike[str] | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """See ``Runtime``; times are seconds."""

    name: str | None = None
    capabilities: Mapping[str, float] | None = None
    listen: str | None = None
    authkey: str | bytes | None = field(default=None, repr=False)
    tls: Any = None
    insecure: bool = False
    isolation: str = "thread"
    max_workers: int | None = None
    max_retries: int = 3
    allocator: Any = None
    resource_tracker: Any = None
    max_retained_runs: int = 256
    max_restarts: int = 3
    max_seconds: float = 5.0
    heartbeat_timeout: float = 5.0
    node_return_timeout: float = 30.0
    shutdown_timeout: float = 5.0
    on_failure: Callable[[BaseException], object] | None = None
    memory_limit: int | str | None = None
    spill_directory: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.name is not None and (not isinstance(self.name, str) or not self.name):
            self._refuse("name", "must be a non-empty str")
        if self.listen is not None and (not isinstance(self.listen, str) or not self.listen):
            self._refuse("listen", 'must be "host:port", or None')
        if not isinstance(self.insecure, bool):
            self._refuse("insecure", "must be True or False")
        if self.isolation not in ("thread", "process"):
            self._refuse("isolation", "must be 'thread' or 'process'")
        if self.max_workers is not None:
            self._count("max_workers", 1)
        for name in ("max_retries", "max_retained_runs", "max_restarts"):
            self._count(name, 0)
        for name in ("max_seconds", "heartbeat_timeout", "node_return_timeout"):
            self._seconds(name)
        self._seconds("shutdown_timeout", zero=True)
        if self.on_failure is not None and not callable(self.on_failure):
            self._refuse("on_failure", "must be callable with the error")
        if self.authkey is not None and not isinstance(self.authkey, (str, bytes)):
            raise ConfigurationError("authkey must be a str of hex digits, or bytes")
        if self.authkey is not None and not self.authkey:
            raise ConfigurationError("authkey must not be empty: leave it out for a random one")
        if self.resource_tracker is not None:
            wanted = ("register", "capabilities", "available", "request", "release")
            missing = [n for n in wanted if not callable(getattr(self.resource_tracker, n, None))]
            if missing:
                self._refuse("resource_tracker", f"lacks the methods {', '.join(missing)}")

        _ = self.memory_bytes
        self._folder("spill_directory")

    @property
    def memory_bytes(self) -> int | None:
        """``memory_limit`` as a number."""
        limit = self.memory_limit
        if isinstance(limit, str):
            found = _AMOUNT.fullmatch(limit)
            if found is not None:
                limit = int(float(found["number"]) * _UNITS[found["unit"].upper()])
        if limit is None or (isinstance(limit, int) and not isinstance(limit, bool) and limit > 0):
            return limit
        self._refuse("memory_limit", 'must be a number of bytes above 0, or text as "2 GB"')
        return None

    def _folder(self, name: str) -> None:
        path = getattr(self, name)
        if path is None:
            return
        if not isinstance(path, (str, os.PathLike)):
            self._refuse(name, "must be the path of a directory")
        if not os.path.isdir(path) or not os.access(path, os.W_OK | os.X_OK):
            self._refuse(name, "must be a directory in which files can be made")

    def _refuse(self, name: str, why: str) -> None:
        raise ConfigurationError(f"{name} {why}, not {describe(getattr(self, name))}")

    def _count(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            self._refuse(name, f"must be an int >= {least}")

    def _seconds(self, name: str, *, zero: bool = False) -> None:
        value = getattr(self, name)
        if not is_seconds(value, zero=zero):
            self._refuse(name, "must be a number of seconds")

    def differences(self, other: Options) -> list[str]:
        """The names of the options in which ``other`` differs."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]


START_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Options)}

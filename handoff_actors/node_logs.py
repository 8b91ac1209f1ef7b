"""Logs of other nodes, and of their worker processes, in this process's logging.

    handoff.collect_logs("info")       from now on, of all nodes that are up or will be

A node sends a line once to each node that has asked, never one that it was sent itself, and never
waits for it. Guarantees that ``rate`` lines a second are not exceeded for long: what is more is
dropped at its node, and counted in the next line's ``dropped_before``.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from handoff_actors import events
from handoff_actors.errors import NodeError
from handoff_actors.execution.workers import relay
from handoff_actors.execution.workers.relay import Relay, log_here

if TYPE_CHECKING:
    from handoff_actors.cluster.mesh import Mesh
    from handoff_actors.cluster.peers import Peer, PeerEvent

SERVICE = "handoff.logs"


class _Arriving(threading.local):
    now = False


_arriving = _Arriving()


class Logs:
    """The log lines of one runtime's node, both ways.

    Args:
        mesh: the cluster.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._lock = threading.Lock()
        self._wanted: tuple[int, float] | None = None
        self._asked: dict[str, tuple[int, Relay]] = {}
        self._undo: list[Callable[[], None]] = []
        mesh.serve(SERVICE, on_post=self._posted)
        mesh.watch(self._changed)

    def collect(self, level: int | None, rate: float) -> None:
        """Ask all nodes for their lines, or to send no more."""
        with self._lock:
            self._wanted = None if level is None else (level, rate)
        for peer in self._mesh.peers().values():
            self._ask(peer)

    def close(self) -> None:
        """Send no more lines, to nobody."""
        with self._lock:
            self._asked.clear()
        self._settle()

    def _ask(self, peer: Peer) -> None:
        with contextlib.suppress(NodeError):
            peer.post(SERVICE, ("send", self._wanted))

    def _changed(self, event: PeerEvent) -> None:
        kind = type(event).__name__
        if kind == "PeerUp" and self._wanted is not None:
            self._ask(event.peer)
        elif kind == "PeerDown":
            with self._lock:
                asked = self._asked.pop(event.peer.session, None)
            if asked is not None:
                self._settle()

    def _posted(self, peer: Peer, message: Any) -> None:
        kind, what = message
        if kind == "line":
            _arriving.now = True
            try:
                log_here(*what)
            finally:
                _arriving.now = False
            return
        with self._lock:
            if what is None:
                self._asked.pop(peer.session, None)
            else:
                level, rate = what
                sender = Relay(lambda *line: peer.post(SERVICE, ("line", line)), rate)
                self._asked[peer.session] = (level, sender)
        self._settle()

    # What this process logs.

    def _line(self, name: str, level: int, message: str, fields: dict[str, Any]) -> None:
        if _arriving.now:
            return
        for least, send in list(self._asked.values()):
            if level >= least:
                send(name, level, message, {"node": self._mesh.node, **fields})

    def _settle(self) -> None:
        """Listen to this process's logs if somebody wants them, else leave them alone."""
        with self._lock:
            undo, self._undo = self._undo, []
            for each in undo:
                each()
            if not self._asked:
                return
            least = min(level for level, _ in self._asked.values())
            handler, root = _Handler(self._line), logging.getLogger()
            before = root.level
            root.addHandler(handler)
            root.setLevel(min(least, root.getEffectiveLevel()))
            events.taps += (self._line,)
            self._undo = [
                lambda: root.removeHandler(handler),
                lambda: root.setLevel(before),
                self._untap,
                _tap_structlog(self._line, least),
            ]

    def _untap(self) -> None:
        events.taps = tuple(tap for tap in events.taps if tap != self._line)


class _Handler(logging.Handler):
    """Takes what was logged by ``logging``, with what was bound to it."""

    def __init__(self, line: Callable[[str, int, str, dict[str, Any]], None]) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        if record.name == "handoff_actors":
            return  # comes through the tap, with its fields
        fields = {k: v for k, v in vars(record).items() if k not in relay.RESERVED}
        if record.exc_info:
            fields["exception"] = logging.Formatter().formatException(record.exc_info)
        self._line(record.name, record.levelno, record.getMessage(), fields)


def _tap_structlog(
    line: Callable[[str, int, str, dict[str, Any]], None], level: int
) -> Callable[[], None]:
    """Have structlog's lines too; returns how to undo that."""
    structlog = sys.modules.get("structlog")
    if structlog is None or not hasattr(structlog, "is_configured"):
        relay.when_structlog_is_imported(lambda: _configure_structlog(line, level))
        return lambda: None
    if not structlog.is_configured():
        return _configure_structlog(line, level)
    before = structlog.get_config()["processors"]

    def tap(_logger: Any, method: str, event: Any) -> Any:
        number = logging.getLevelNamesMapping().get(method.upper(), logging.INFO)
        fields = dict(event)
        line("structlog", number, str(fields.pop("event", "")), fields)
        return event

    def untap() -> None:
        # Others may have changed the configuration since, or gone back to none.
        if structlog.is_configured():
            now = structlog.get_config()["processors"]
            structlog.configure(processors=[each for each in now if each is not tap])

    structlog.configure(processors=[tap, *before])
    return untap


def _configure_structlog(
    line: Callable[[str, int, str, dict[str, Any]], None], level: int
) -> Callable[[], None]:
    relay.set_up_structlog(line, level)
    return sys.modules["structlog"].reset_defaults  # type: ignore[no-any-return]

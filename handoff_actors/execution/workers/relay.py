"""Logs of a worker process, on their way to the process that started it.

``logging``, structlog and the library's own log lines are sent over the control socket and logged
there, with the function they come from. Nobody waits for it. Guarantees that a function which logs
in a loop cannot drown its node: beyond ``_RATE`` lines a second lines are dropped, and counted.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from handoff_actors import events
from handoff_actors.errors import describe
from handoff_actors.execution.context import log_fields

Send = Callable[[str, int, str, dict[str, Any]], None]
"""Takes the name of a logger, a level, a message and fields."""

LOG_LINE = "log line"
"""The name of a request that is a log line; no method could have it."""
_RATE = 500.0
_BURST = 1000.0
_PLAIN = (str, int, float, bool, type(None))


class Relay:
    """Sends log lines; see the module.

    Args:
        send: carries one line to the node.
        rate: lines a second.
    """

    def __init__(self, send: Send, rate: float = _RATE) -> None:
        self._send = send
        self._rate, self._burst = rate, _BURST * rate / _RATE
        self._lock = threading.Lock()
        self._room = self._burst
        self._at = time.monotonic()
        self._dropped = 0
        self._busy = threading.local()

    def __call__(self, name: str, level: int, message: str, fields: dict[str, Any]) -> None:
        """Send one line, if there is room."""
        if getattr(self._busy, "now", False):
            return  # what sending logs by itself
        if not self._may():
            return
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        plain = {
            key: value if isinstance(value, _PLAIN) else describe(value, 500)
            for key, value in {**log_fields(), **fields}.items()
        }
        if dropped:
            plain["dropped_before"] = dropped
        self._busy.now = True
        try:
            self._send(name, level, message, plain)
        except Exception:
            return  # the node is gone, and so is this process in a moment
        finally:
            self._busy.now = False

    def _may(self) -> bool:
        now = time.monotonic()
        with self._lock:
            self._room = min(self._burst, self._room + (now - self._at) * self._rate)
            self._at = now
            if self._room < 1:
                self._dropped += 1
                return False
            self._room -= 1
            return True


class _Handler(logging.Handler):
    """What the root logger of a worker process has."""

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self._relay = relay

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record as its message and traceback."""
        fields: dict[str, Any] = {}
        if record.exc_info:
            fields["exception"] = logging.Formatter().formatException(record.exc_info)
        try:
            message = record.getMessage()
        except Exception as error:
            message = f"{describe(record.msg)} (its arguments do not fit: {error})"
        self._relay(record.name, record.levelno, message, fields)


def install(send: Send, level: int) -> None:
    """Have this worker process's logs sent; to be called once.

    Args:
        send: carries one line to the node.
        level: of the root logger.
    """
    relay = Relay(send)
    root = logging.getLogger()
    root.addHandler(_Handler(relay))
    root.setLevel(level)
    events.relay = relay
    when_structlog_is_imported(lambda: set_up_structlog(relay, level))


def when_structlog_is_imported(then: Callable[[], object]) -> None:
    """Call ``then`` once it is: most code does not, and it costs much."""
    sys.meta_path.insert(0, _WhenImported(then))


class _WhenImported(importlib.abc.MetaPathFinder):
    """Sets structlog up when code imports it."""

    def __init__(self, then: Callable[[], object]) -> None:
        self._then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find structlog by the others, and add to what its loader does."""
        if fullname != "structlog":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute, then = loader.exec_module, self._then

        def exec_module(module: Any) -> None:
            execute(module)
            then()

        loader.exec_module = exec_module
        return spec


def set_up_structlog(relay: Send, level: int) -> None:
    """Have structlog, which is not configured, give its lines to ``relay`` alone."""
    import structlog

    def send(_logger: Any, method: str, event: Any) -> Any:
        number = logging.getLevelNamesMapping().get(method.upper(), logging.INFO)
        fields = dict(event)
        relay("structlog", number, str(fields.pop("event", "")), fields)
        raise structlog.DropEvent

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            send,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )


def level_here() -> int:
    """From which level on this process wants the logs of its worker processes."""
    level = logging.getLogger().getEffectiveLevel()
    if events.configured_structlog() is not None:
        level = min(level, logging.INFO)
    return level


def log_here(name: str, level: int, message: str, fields: dict[str, Any]) -> None:
    """Log what a worker process has sent, as it would have been logged here; never raises."""
    try:
        _log_here(name, level, message, fields)
    except Exception:
        # A logging set-up that raises must not bring down the worker's connection.
        return


def _log_here(name: str, level: int, message: str, fields: dict[str, Any]) -> None:
    structlog = events.configured_structlog()
    if name == "handoff_actors":
        events.Log().write(level, message, fields)
    elif name == "structlog" and structlog is not None:
        method = logging.getLevelName(level).lower()
        getattr(structlog.get_logger(), method, structlog.get_logger().info)(message, **fields)
    else:
        logger = logging.getLogger(name)
        if logger.isEnabledFor(level):
            extra = {k: v for k, v in fields.items() if k not in RESERVED}
            text = message
            if "exception" in extra:
                text += "\n" + str(extra.pop("exception"))
            logger.log(level, "%s", text, extra=extra)


RESERVED = {*vars(logging.makeLogRecord({})), "message", "asctime"}
"""The attributes of a log record that are not of whoever logged."""

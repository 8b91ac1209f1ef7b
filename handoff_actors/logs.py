"""Logs that know which function they come from: in threads, coroutines and worker processes.

    structlog.configure(processors=[handoff.logs.add_context, ..., structlog.dev.ConsoleRenderer()])

or, for the standard library's ``logging``,

    handler.addFilter(handoff.logs.ContextFilter())
    handler.setFormatter(logging.Formatter("%(message)s %(dag_id)s %(function_id)s %(attempt)s"))

``handoff.current().log`` has the fields bound without any of this. What code in a worker process
logs, by ``logging``, structlog or ``current().log``, is logged in the process that started it.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from handoff_actors.execution.context import log_fields

__all__ = ["ContextFilter", "add_context"]

_FIELDS = ("dag_id", "function_id", "attempt", "node")


def add_context(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
    """A processor of structlog's: adds dag_id, function_id, attempt and node inside functions."""
    for name, value in log_fields().items():
        event.setdefault(name, value)
    return event


class ContextFilter(logging.Filter):
    """A filter of ``logging`` that lets everything pass.

    Gives each record ``dag_id``, ``function_id``, ``attempt`` and ``node``; outside functions
    they are None.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes that are not there."""
        found = log_fields()
        for name in _FIELDS:
            if not hasattr(record, name):
                setattr(record, name, found.get(name))
        return True

"""``dump(path)``: one JSON file for a bug report.

What it has: versions, options, the status, what went wrong lately, where each thread is. What it
has not: values of the user's, messages of the user's exceptions, keys, source lines, environment
variables, command lines. Guarantees that it is written also when actors do not answer.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from handoff_actors._version import __version__
from handoff_actors.errors import describe

Runtime = Any  # that of ``runtime``, which is above

_LIBRARIES = ("pykka", "multiprocess", "dill", "structlog", "click", "rich", "numpy", "dask")
_SECRET = ("authkey", "tls")
_PLAIN = (str, int, float, bool, type(None))


def write(path: str | os.PathLike[str], runtime: Runtime | None) -> None:
    """Write the dump of a runtime; without one, of the process.

    Args:
        path: where to; what is there is replaced.
        runtime: may be one that has failed or does not answer.

    Raises:
        OSError: the file cannot be written.
        TypeError: it is no path.
    """
    path = os.fspath(path)  # an int would be an open file of somebody else's
    found = {
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": _try(_versions),
        "process": _try(_process),
        "runtime": None if runtime is None else _of(runtime),
        "threads": _try(_threads),
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1, default=describe)


def _try(part: Callable[[], Any]) -> Any:
    """A part of the dump, or why it is not there."""
    try:
        return part()
    except Exception as error:
        return {"not available": f"{type(error).__name__}: {describe(error, 300)}"}


def _versions() -> dict[str, str]:
    found = {"handoff_actors": __version__, "python": sys.version, "system": platform.platform()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _process() -> dict[str, Any]:
    usage = os.times()
    return {
        "pid": os.getpid(),
        "cores": sorted(os.sched_getaffinity(0)),
        "cpu_seconds": usage.user + usage.system,
        "memory_pages": _read("/proc/self/statm").split()[:2],
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _of(runtime: Runtime) -> dict[str, Any]:
    return {
        "name": runtime.name,
        "running": runtime.running,
        "options": _try(lambda: _options(runtime)),
        "status": _try(lambda: _plain(runtime.status().to_dict())),
        "runs": _try(lambda: _runs(runtime)),
        "events": _try(lambda: _events(runtime)),
    }


def _options(runtime: Runtime) -> dict[str, Any]:
    return {
        name: value if isinstance(value, _PLAIN) else f"a {type(value).__name__}"
        for name, value in vars(runtime.options).items()
        if name not in _SECRET and value is not None
    }


def _runs(runtime: Runtime) -> list[dict[str, Any]]:
    """Of each run counts and what its queues hold; no values."""
    return [
        {
            "dag_id": describe(entry.data.dag_id),
            "state": entry.data.state,
            "finished": entry.data.finished,
            "functions": entry.data.plan.n,
            "not_committed": len(entry.data.done),
            "reports": len(entry.data.reports),
            "retrying": len(entry.data.retrying),
            "error": type(entry.data.error).__name__ if entry.data.error is not None else None,
            "queues": [
                {"ready": len(q.ready), "lanes": len(q.lanes), "apart": len(q.apart)}
                for q in list(entry.data.queues)
            ],
        }
        for entry in runtime.entries()[-100:]
    ]


def _events(runtime: Runtime) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for event in list(runtime.events.recent):
        fields = asdict(event)
        if isinstance(fields.get("error"), str):
            # Of an exception of the user's its class, and not what it says.
            fields["error"] = fields["error"].partition("(")[0].partition(":")[0]
        found.append({"event": type(event).__name__, **_plain(fields)})
    return found


def _threads() -> list[dict[str, Any]]:
    """Where each thread is: files, lines and functions."""
    frames = sys._current_frames()  # noqa: SLF001  the one way to see other threads
    found = []
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        stack: list[str] = []
        while frame is not None and len(stack) < 100:
            code = frame.f_code
            stack.append(f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}")
            frame = frame.f_back
        found.append({"name": thread.name, "daemon": thread.daemon, "stack": stack})
    return found


def _plain(value: Any) -> Any:
    """With keys that JSON knows, and ids as text."""
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else describe(key): _plain(v) for key, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, _PLAIN) else describe(value)

"""Which loaded modules another process cannot import, though it has the same ``sys.path``.

``__main__`` is one; so are modules made by hand, and files that were loaded from outside the path,
as pytest and notebooks do. What lives in them travels by value. Guarantees to look at each module
once, and to cost next to nothing while no module is imported.
"""

from __future__ import annotations

import builtins
import os
import sys
import threading
from typing import Any

_lock = threading.Lock()
_seen: set[str] = set()
_strays: set[str] = {"__main__", "__mp_main__"}
_needles: tuple[bytes, ...] = (b"_main__",)  # of both
_loaded = 0
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: the class was made while Python ran


def is_built_in(cls: type) -> bool:
    """Whether a class is Python's own; one that ``exec`` made may say that it is, and is not."""
    return cls.__module__ == "builtins" and (
        getattr(builtins, cls.__name__, None) is cls or not cls.__flags__ & _HEAP_TYPE
    )


def is_stray(name: str) -> bool:
    """Whether the module ``name``, which is loaded here, cannot be imported elsewhere."""
    needles()
    return name in _strays


def needles() -> tuple[bytes, ...]:
    """What the pickle of anything in a stray module contains one of."""
    if len(sys.modules) != _loaded:
        _look_again()
    return _needles


def _look_again() -> None:
    global _loaded, _needles
    with _lock:
        count = len(sys.modules)
        path = {entry or _folder() for entry in sys.path}
        found = []
        for name in sys.modules.keys() - _seen:
            _seen.add(name)
            if name not in _strays and not _can_be_found(name, sys.modules.get(name), path):
                found.append(name)
        if found:
            _strays.update(found)
            _needles += tuple([name.encode() for name in found])
        _loaded = count


def _folder() -> str:
    """The working directory; a name of none when it has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _can_be_found(name: str, module: Any, path: set[str]) -> bool:
    known = getattr(module, "__dict__", {})
    spec = known.get("__spec__")
    if spec is None:
        return "." in name or known.get("__name__") != name  # made by a package when imported
    if not spec.has_location or not isinstance(spec.origin, str):
        return True
    name = spec.name  # of the module itself, where it is known by other names too
    place = spec.origin.rfind(os.sep + name.replace(".", os.sep))
    if place >= 0 and spec.origin[:place] in path:
        return True
    return _search(name, spec.origin)


def _search(name: str, origin: str) -> bool:
    """Whether the import system finds ``name`` at ``origin``: slower, and sees every hook."""
    parent = name.rpartition(".")[0]
    where = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        try:
            spec = None if find is None else find(name, where)
        except (ImportError, AttributeError, ValueError):
            continue
        if spec is not None:
            return bool(spec.origin == origin)
    return False

"""The script a worker process is started with: makes ready for ``child``, and runs it.

Runs before anything of the library is imported and needs built-in modules only. The face of the
package is loaded when code asks for something in it: most functions never do, and a worker should
be there at once.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType as Module
else:
    Module = type(sys)


class LazyPackage(Module):
    """A package of which nothing but its modules has been asked for yet."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name != "__version__":
            raise AttributeError(name)
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        with loading:
            if self.__class__ is LazyPackage:
                self.__class__ = Module  # type: ignore[assignment]
                spec.loader.exec_module(self)
        return getattr(self, name)


def find(name: str) -> ModuleSpec | None:
    """Where a package is."""
    for finder in sys.meta_path:
        spec = finder.find_spec(name, None)
        if spec is not None:
            return spec
    return None


def begin_lazily(name: str) -> None:
    """Let a package be there without running it."""
    spec = find(name)
    if spec is None or spec.loader is None or not hasattr(spec.loader, "exec_module"):
        return
    package = LazyPackage(name)
    package.__spec__ = spec
    package.__loader__ = spec.loader
    package.__package__ = name
    package.__path__ = spec.submodule_search_locations or []
    if spec.has_location:
        package.__file__ = spec.origin
    sys.modules[name] = package


def offer_to_the_kernel() -> None:
    """When memory runs out this process is to be killed before its parent: it can be replaced."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            score = int(file.read())
            file.seek(0)
            file.write(str(min(1000, score + 500)))
    except (OSError, ValueError):
        return  # the system has no such thing, or does not let us


if __name__ == "__main__":
    from _thread import RLock

    loading = RLock()
    work, control, page, parent, node, argc, *rest = sys.argv[1:]
    sys.argv[:], sys.path[:] = rest[: int(argc)], rest[int(argc) :]
    sys.modules["__main__"] = Module("__main__")  # of its own: nothing of this script is the user's
    offer_to_the_kernel()
    begin_lazily("handoff_actors")

    from handoff_actors.execution.workers.child import main

    main(int(work), int(control), int(page), int(parent), node)

"""Where a module comes from: the standard library, an installed package, or the user's own."""

from __future__ import annotations

import enum
import functools
import platform
import sys
import sysconfig


class Origin(enum.Enum):
    """See the module."""

    STANDARD = "standard library"
    INSTALLED = "installed package"
    OWN = "the user's own"


@functools.cache
def _places() -> tuple[tuple[str, ...], tuple[str, ...]]:
    paths = sysconfig.get_paths()
    installed = tuple({f"{paths[name]}/" for name in ("purelib", "platlib")})
    standard = tuple({f"{paths[name]}/" for name in ("stdlib", "platstdlib")})
    return installed, standard


def origin(name: str | None) -> Origin:
    """Where the module of this name comes from; ``__main__`` is the user's own."""
    if name is None or name == "__main__":
        return Origin.OWN
    top = name.partition(".")[0]
    if top == "handoff_actors":
        return Origin.INSTALLED  # also in a checkout
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return Origin.STANDARD
    module = sys.modules.get(name) or sys.modules.get(top)
    file = getattr(module, "__file__", None)
    if file is None:
        return Origin.OWN
    installed, standard = _places()
    if file.startswith(installed) or "/site-packages/" in file or "/dist-packages/" in file:
        return Origin.INSTALLED
    return Origin.STANDARD if file.startswith(standard) else Origin.OWN


@functools.cache
def version_of(name: str) -> str:
    """The version of what the module belongs to."""
    where = origin(name)
    if where is Origin.STANDARD:
        return f"{platform.python_implementation()} {sys.version_info[0]}.{sys.version_info[1]}"
    top = name.partition(".")[0]
    version = getattr(sys.modules.get(top), "__version__", None)
    if isinstance(version, str):
        return version
    import importlib.metadata

    try:
        names = importlib.metadata.packages_distributions().get(top)
        return importlib.metadata.version(names[0] if names else top)
    except importlib.metadata.PackageNotFoundError:
        return ""

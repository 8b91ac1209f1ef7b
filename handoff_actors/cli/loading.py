"""From ``FILE_OR_MODULE[:DAG]`` to a DAG.

A file is imported with its folder first on ``sys.path``, as ``python FILE`` has it, so that it and
worker processes find its neighbours. It is not ``__main__``: what stands under the main guard of a
script does not run; what stands outside of it does, once, and here only.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from handoff_actors.cli.group import TargetError, one_line
from handoff_actors.errors import HandoffError, describe
from handoff_actors.graph.dag import DAG

T = TypeVar("T")

_BUILDS = {"DAG", "new", "add_function"}
_RUNS = {"start", "execute", "execute_distributed", "execute_local", "submit", "stream", "Runtime"}


def _complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files, for the shell to complete."""
    return [CompletionItem(incomplete, type="file")]


target = click.argument("target", metavar="FILE_OR_MODULE[:DAG]", shell_complete=_complete)
"""The argument that names a DAG."""


def load(target: str) -> DAG:
    """The DAG that ``target`` names.

    Raises:
        TargetError: there is no such file, module or DAG, or several and none was named.
        click.ClickException: the file or function raised.
    """
    place, name = _split(target)
    module = _import_file(Path(place)) if _is_file(place) else _import_module(place)
    found = _candidates(module)
    if name:
        return _made(_named(module, name, place), f"{place}:{name}")
    if not found:
        raise TargetError(
            f"{place} has no DAG: give a module-level DAG, or a function that returns one and is "
            f"annotated with '-> DAG', or name it: {place}:NAME"
        )
    if len(found) == 1:
        (name, value), *_ = found.items()
        return _made(value, f"{place}:{name}")
    name = _ask(place, list(found))
    return _made(found[name], f"{place}:{name}")


def _ask(place: str, names: list[str]) -> str:
    """Which of several; on a terminal the user is asked."""
    if _interactive():
        answer: str = click.prompt(f"{place} has several DAGs", type=click.Choice(names), err=True)
        return answer
    choices = ", ".join(f"{place}:{name}" for name in names)
    raise TargetError(f"{place} has {len(names)} DAGs, say which: {choices}")


def _interactive() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _split(target: str) -> tuple[str, str]:
    """The place and the name after the last colon, if there is one."""
    if os.path.exists(target):
        return target, ""
    place, colon, name = target.rpartition(":")
    return (place, name) if colon and place else (target, "")


def _is_file(place: str) -> bool:
    return place.endswith(".py") or os.sep in place or os.path.isfile(place)


def _import_file(path: Path) -> ModuleType:
    if path.is_dir():
        raise TargetError(f"{path} is a folder: name a file in it, or the module")
    if not path.is_file():
        raise TargetError(f"there is no file {path}")
    folder, parts = path.resolve().parent, [path.stem]
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    if parts[-1] == "__init__":
        parts.pop()
    name = ".".join(parts)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    found = _spec(name)
    in_package = len(parts) > 1
    if (
        in_package
        and found is not None
        and found.origin
        and Path(found.origin).resolve() == path.resolve()
    ):
        return _run(path, lambda: importlib.import_module(name))
    return _run(path, lambda: _import_apart(path))


def _spec(name: str) -> Any:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def _import_apart(path: Path) -> ModuleType:
    """A file that is a script: under a name that nobody can import.

    So its code goes to worker processes by value, as that of a script does: none of them runs the
    file again, which may well start a runtime and a run at its top level.
    """
    from importlib.machinery import SourceFileLoader

    name = f"handoff_file_{path.stem}"
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(place: str) -> ModuleType:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    if not all(part.isidentifier() for part in place.split(".")):
        raise TargetError(f"there is no file {place}, and no module could have that name")
    known = _spec(place.partition(".")[0])
    if known is None:
        raise TargetError(f"there is no file and no module {place}")

    def import_it() -> ModuleType:
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is not None and (place + ".").startswith(error.name + "."):
                raise TargetError(f"there is no module {error.name}") from error
            raise

    return _run(place, import_it)


def _run(what: object, call: Callable[[], T]) -> T:
    """Call code of the user's; what it raises is one line."""
    try:
        return call()
    except (click.ClickException, HandoffError, OSError):
        raise
    except SystemExit as error:
        raise click.ClickException(f"{what} ended by SystemExit({error.code!r})") from error
    except Exception as error:
        # The frames that matter are the user's: the last one is where it was raised.
        text = error.msg if isinstance(error, SyntaxError) else error
        outer = RuntimeError(f"{what} raised {type(error).__name__}: {text}")
        outer.__cause__ = error
        raise click.ClickException(one_line(outer)) from error


def _candidates(module: ModuleType) -> dict[str, Any]:
    """The DAGs of a module, and its functions that say they return one; each once."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for name, value in vars(module).items():
        if name.startswith("_") or id(value) in seen:
            continue
        if isinstance(value, DAG) or _makes_one(module, value):
            seen.add(id(value))
            found[name] = value
    dags = {name: value for name, value in found.items() if isinstance(value, DAG)}
    return dags or found


def _makes_one(module: ModuleType, value: Any) -> bool:
    """Whether it is a function of this module that returns a DAG and needs no arguments.

    Without an annotation it is one that builds a DAG and runs none.
    """
    if not inspect.isfunction(value) or value.__module__ != module.__name__ or _needed(value):
        return False
    if inspect.iscoroutinefunction(value) or inspect.isgeneratorfunction(value):
        return False
    if "return" in value.__annotations__:
        returns = value.__annotations__["return"]
        text = returns if isinstance(returns, str) else getattr(returns, "__name__", "")
        return text.strip("'\"").rpartition(".")[2] == "DAG"
    used = set(value.__code__.co_names)
    return bool(used & _BUILDS) and not used & _RUNS


def _needed(function: Any) -> list[str]:
    """The parameters that a call must give."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [
        p.name for p in parameters if p.default is p.empty and p.kind not in (2, 4)
    ]  # but *args and **kwargs


def _named(module: ModuleType, name: str, place: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            names = ", ".join(_candidates(module)) or "none"
            raise TargetError(f"{place} has no {name!r}; its DAGs: {names}")
        value = getattr(value, part)
    return value


def _made(value: Any, where: str) -> DAG:
    if isinstance(value, DAG):
        return value
    if not callable(value):
        raise TargetError(f"{where} is a {type(value).__name__}, and no DAG or function")
    needed = _needed(value)
    if needed:
        raise TargetError(
            f"{where} needs arguments ({', '.join(needed)}): give them defaults, or name a "
            "function without"
        )
    made = _run(where, value)
    if not isinstance(made, DAG):
        raise TargetError(f"{where}() returned {describe(made)}, and no DAG")
    return made

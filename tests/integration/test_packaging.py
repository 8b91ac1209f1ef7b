"""What users import: the public names, what an import costs, what it does not load."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import handoff_actors

HEAVY = ("structlog", "dill", "multiprocess", "rich", "click", "asyncio", "hypothesis", "pytest")


def public(module):
    """The names a module offers: its own and re-exported ones, but for modules and privates."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not (isinstance(value, types.ModuleType) or name in ("annotations", "TYPE_CHECKING"))
        and str(getattr(value, "__module__", "")).startswith("handoff_actors")
    }


def test_all_is_sorted_and_whole():
    names = handoff_actors.__all__
    assert len(set(names)) == len(names)
    assert names == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    lazy = {"Pipeline", "aio", "events", "testing", "__version__"}
    assert set(names) - lazy == public(handoff_actors)


def test_no_module_takes_the_place_of_a_function_when_it_is_imported():
    modules = {module.name for module in pkgutil.iter_modules(handoff_actors.__path__)}
    shown = {
        name for name in handoff_actors.__all__ if inspect.ismodule(getattr(handoff_actors, name))
    }
    loaded = subprocess.run(
        [sys.executable, "-c", "import handoff_actors, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    late = {name for name in modules if f"handoff_actors.{name}" not in loaded}
    assert not late & (set(handoff_actors.__all__) - shown)


@pytest.mark.parametrize("name", handoff_actors.__all__)
def test_each_public_name_is_there_and_documented(name):
    value = getattr(handoff_actors, name)
    if name == "__version__":
        return
    assert inspect.getdoc(value)
    assert not inspect.getdoc(value).startswith(f"{name}(")  # what dataclasses write by themselves
    if inspect.isclass(value):
        for member, code in vars(value).items():
            if inspect.isfunction(code) and not member.startswith("_"):
                assert code.__doc__, f"{name}.{member}"


def test_aio_has_the_functions_of_the_face():
    aio = importlib.import_module("handoff_actors.aio")
    default = importlib.import_module("handoff_actors.default")
    names = {name for name in handoff_actors.__all__ if hasattr(default, name)}
    assert "execute" in names
    for name in {n for n in names if inspect.isfunction(getattr(default, n))}:
        assert inspect.getdoc(getattr(aio, name)), name


def test_testing_says_what_it_offers():
    testing = importlib.import_module("handoff_actors.testing")
    assert set(testing.__all__) >= {"InjectedCrash", "crash"}
    for name in testing.__all__:
        assert inspect.getdoc(getattr(testing, name)), name


def test_every_error_is_exported():
    errors = importlib.import_module("handoff_actors.errors")
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.HandoffError)
    }
    assert defined <= set(handoff_actors.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = handoff_actors.nothing_like_it


def test_the_example_of_the_readme_prints_what_it_says(tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code, said = re.search(r"```python\n(.*?)```\n.*?```text\n(.*?)```", readme, re.DOTALL).groups()
    script = tmp_path / "readme.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == said


def test_import_loads_nothing_heavy():
    code = f"import handoff_actors, sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_import_time_is_printed(capsys):
    def seconds(code):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - began

    bare = statistics.median(seconds("pass") for _ in range(3))
    ours = statistics.median(seconds("import handoff_actors") for _ in range(3))
    with capsys.disabled():
        print(f"\nimport handoff_actors: {(ours - bare) * 1e3:.0f} ms (to reach: 150)")
    assert ours > 0

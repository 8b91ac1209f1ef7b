"""The census of the standard library: as a command, as a script, and against a plain loop."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import handoff_actors as handoff

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "census.py"

census = importlib.import_module("handoff_actors._examples.census")


def python(*args):
    return subprocess.run(
        [sys.executable, "-W", "error", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_the_example_is_that_of_the_checkout():
    assert Path(census.__file__).resolve() == SCRIPT


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_the_dag_gives_what_the_loop_gives(isolation):
    names = ["json", "this", "_json", "email", "ast"]
    with handoff.Runtime(name="census") as runtime:
        results = runtime.execute(census.build(names, 3, isolation)).results
    assert (results["merge"], results["rank"]) == census.sequentially(names, 3)
    assert results["rank"][0] == "email"
    assert results["merge"].modules["_json"].files == 0
    assert results["merge"].imported_by["re"] >= 2
    assert results["merge"].imported_by["email"] == 0  # but by itself


def test_measures_of_a_module(tmp_path):
    source = tmp_path / "module.py"
    source.write_text(
        "import os.path, sys\n"
        "from json import loads\n"
        "from .near import neighbour\n"
        "class A:\n"
        "    async def f(self): return [x for x in () if x]\n"
        "def g(x):\n"
        "    if x: return lambda: 1\n"
        "    try: pass\n"
        "    except ValueError: pass\n"
    )
    assert census.measure(census.parse([source])) == census.Measures(
        files=1,
        lines=9,
        functions=2,
        classes=1,
        branches=3,
        imports=frozenset({"os", "sys", "json"}),
    )


def test_tests_are_left_out():
    files = census.list_modules(["unittest", "idlelib"])
    assert files["unittest"]
    assert not [f for fs in files.values() for f in fs if {"test", "idle_test"} & set(f.parts)]


def test_no_sources_are_an_error_in_one_line():
    with pytest.raises(FileNotFoundError, match="no sources of _json"):
        census.list_modules(["_json"])


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "handoff_actors", "demo", "--limit", "12", "--top", "3"),
        ("-m", "handoff_actors", "demo", "--limit", "12", "--top", "3", "--isolation", "thread"),
    ],
    ids=["processes", "threads"],
)
def test_the_command(command):
    done = python(*command)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # quiet: it is no terminal
    assert "The standard library of Python" in done.stdout
    assert "argparse" in done.stdout
    assert "with the same result" in done.stdout


def test_the_script():
    # Its functions and classes are those of __main__ here, which no worker process imports.
    done = python(SCRIPT, "12")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "with the same result" in done.stdout

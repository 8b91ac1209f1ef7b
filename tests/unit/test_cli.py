"""The command ``handoff``: what it offers, and how it fails."""

from __future__ import annotations

import sys
import types

import pytest
from click.testing import CliRunner

import handoff_actors
from handoff_actors.cli import handoff
from handoff_actors.errors import ConfigurationError


@pytest.fixture
def census(monkeypatch):
    """A demo that is told what to do by the test, in place of the example."""
    module = types.ModuleType("handoff_actors._examples.census")
    module.calls = []
    module.main = lambda **options: module.calls.append(options)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def run(*args):
    return CliRunner().invoke(handoff, args, prog_name="handoff")


def test_version_is_that_of_the_package():
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"handoff, version {handoff_actors.__version__}\n"


def test_help_names_the_commands():
    result = run("--help")
    assert result.exit_code == 0
    assert "demo" in result.stdout


def test_demo_hands_its_options_over(census):
    assert run("demo", "--limit", "3", "--isolation", "thread", "--top", "2").exit_code == 0
    assert run("demo").exit_code == 0
    assert census.calls == [
        {"limit": 3, "isolation": "thread", "top": 2},
        {"limit": None, "isolation": "process", "top": 12},
    ]


@pytest.mark.parametrize(
    "args",
    [
        ["demo", "--limit", "0"],
        ["demo", "--limit", "many"],
        ["demo", "--top", "-1"],
        ["demo", "--isolation", "fibre"],
        ["demo", "more"],
        ["unknown"],
    ],
)
def test_wrong_usage_is_exit_code_2(census, args):
    result = run(*args)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert census.calls == []


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigurationError("max_workers must be\nan int"), "Error: max_workers must be an int\n"),
        (FileNotFoundError("there are no sources"), "Error: there are no sources\n"),
        (OSError(), "Error: OSError\n"),
    ],
)
def test_a_failure_is_one_line_and_exit_code_1(census, error, line):
    def fail(**_):
        raise error

    census.main = fail
    result = run("demo")
    assert result.exit_code == 1
    assert result.stderr == line
    assert result.stdout == ""


def test_a_defect_of_ours_is_not_hidden(census):
    def fail(**_):
        raise ZeroDivisionError

    census.main = fail
    assert isinstance(run("demo").exception, ZeroDivisionError)

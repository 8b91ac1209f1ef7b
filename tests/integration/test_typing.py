"""Typing as users see it: ``tests/typing`` is accepted, and refused where it is marked."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import handoff_actors

TYPING = Path(__file__).parents[1] / "typing"


def check(*command):
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=TYPING, capture_output=True, text=True, timeout=115
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_says_that_it_is_typed():
    assert (Path(handoff_actors.__file__).parent / "py.typed").exists()


@pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="mypy is in the extra lint")
def test_mypy_takes_user_code(tmp_path):
    check("mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", "user_code.py")


@pytest.mark.skipif(not importlib.util.find_spec("pyright"), reason="pyright is in the extra lint")
def test_pyright_takes_user_code():
    check("pyright", "-p", ".", "--pythonpath", sys.executable)

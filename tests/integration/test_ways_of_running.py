"""The same program, run in every way that Python runs programs: no guard, nothing left unsaid."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROGRAM = """
import handoff_actors as handoff

class Unlucky(Exception):
    pass

class Number:
    def __init__(self, value):
        self.value = value

def number():
    return Number(41)

def fails():
    raise Unlucky("no")

with handoff.start(isolation="process", max_workers=2):
    dag = handoff.new()
    dag.add_function(handoff.Function("a", (), number))
    dag.add_function(handoff.Function("b", ["a"], lambda a: Number(a.value + 1)))
    b = handoff.execute(dag).results["b"]
    failing = handoff.new().add_function(handoff.Function("f", (), fails, max_retries=0))
    try:
        handoff.execute(failing)
    except handoff.FunctionFailedError as error:
        print(type(b) is Number, b.value, type(error.__cause__) is Unlucky)
"""
WAYS = {
    "-c": (["-c", PROGRAM], ""),
    "on stdin": (["-"], PROGRAM),
    "a script": (["-O", "-W", "error", "-X", "dev", "program.py"], ""),
    "a module": (["-m", "program"], ""),
    "an archive": (["program.pyz"], ""),
    "exec without a name": (["-c", f"exec({PROGRAM!r}, {{}})"], ""),
    "exec under another name": (["-c", f"exec({PROGRAM!r}, {{'__name__': 'nowhere'}})"], ""),
    "in a folder that is gone": (
        ["-c", f"import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n{PROGRAM}"],
        "",
    ),
    "with threads that switch all the time": (
        ["-c", f"import sys; sys.setswitchinterval(1e-6)\n{PROGRAM}"],
        "",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_program_is_run(way: str, tmp_path: Path) -> None:
    args, text = WAYS[way]
    (tmp_path / "program.py").write_text(PROGRAM)
    with zipfile.ZipFile(tmp_path / "program.pyz", "w") as archive:
        archive.writestr("__main__.py", PROGRAM)
    done = subprocess.run(
        [sys.executable, *args],
        cwd=tmp_path,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True 42 True\n", "")

"""The documentation: every code block runs, and prints what the page says it prints.

The Python blocks of a page are run in order, in one process, as one script. A ``text`` block right
behind a Python or shell block is its output. What a page needs and does not show stands in a
comment ``<!-- setup ... -->``; a block that cannot be run has ``<!-- not run: why -->`` before it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import handoff_actors

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])

BLOCK = re.compile(
    r"^<!-- setup\n(?P<setup>.*?)^-->\n"
    r"|(?:^<!-- not run: (?P<why>[^\n]*) -->\n+)?"
    r"^(?P<indent> *)```(?P<kind>\w*)[^\n]*\n(?P<body>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)

DRIVER = r"""
def _run_blocks():
    import sys

    with open(sys.argv[1], encoding="utf-8") as listing:
        page, *blocks = eval(listing.read())
    sys.argv[1:] = []
    for line, code in blocks:
        print(f"\x02{line}", flush=True)
        exec(compile("\n" * line + code, page, "exec"), globals())
        sys.stdout.flush()
    import handoff_actors

    handoff_actors.stop()


_run_blocks()
"""


def blocks(page):
    """The blocks of a page: (line, kind, code, output or None)."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        line = text.count(
            "\n", 0, match.start("body") if match["kind"] is not None else match.start()
        )
        if match["setup"] is not None:
            found.append([line, "python", match["setup"], None])
            continue
        indent = len(match["indent"])
        body = "".join(row[indent:] for row in match["body"].splitlines(keepends=True))
        between = (
            text[found[-1][4] : match.start()].strip() if found and len(found[-1]) > 4 else "x"
        )
        output = found and not between and found[-1][1] in ("python", "sh")
        if match["kind"] == "text" and match["why"] is None and output:
            found[-1][3] = None if body.startswith("--8<--") else body
        elif match["why"] is None or match["kind"] == "text":
            found.append([line, match["kind"], body, None, match.end()])
        else:
            found.append([line, "skipped", body, None, match.end()])
    return found


def environment():
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "COLUMNS": "90", "NO_COLOR": "1"}


def plain(text):
    """Output without what differs from run to run: times, pids, names of nodes."""
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.,]*", "N", text)).strip()


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_run(page, folder):
    found = [b for b in blocks(page) if b[1] == "python"]
    if not found:
        return
    script, listing = folder / ".driver.py", folder / ".blocks"
    script.write_text(DRIVER)
    listing.write_text(repr([str(page), *((b[0], b[2]) for b in found)]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(listing)], cwd=folder, env=environment(),
        capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    printed = dict(part.partition("\n")[::2] for part in done.stdout.split("\x02")[1:])
    for line, _, _, said, *_ in found:
        if said is not None:
            assert plain(printed[str(line)]) == plain(said), f"{page}, line {line + 1}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_shell_blocks_run(page, folder):
    for line, kind, code, said, *_ in blocks(page):
        if kind != "sh":
            continue
        done = subprocess.run(
            ["bash", "-e"], input=code, cwd=folder, env=environment(),
            capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, f"{page}, line {line + 1}: {done.stdout}{done.stderr}"
        if said is not None:
            assert plain(done.stdout) == plain(said), f"{page}, line {line + 1}"


@pytest.mark.parametrize(("made", "command"), [("help", []), ("help_run", ["run"])])
def test_the_help_that_is_shown_is_the_help_there_is(made, command):
    done = subprocess.run(
        [sys.executable, "-m", "handoff_actors", *command, "--help"],
        capture_output=True, text=True, timeout=60, check=True, env=environment(),
    )  # fmt: skip
    assert plain(done.stdout) == plain((ROOT / "docs" / "made" / f"{made}.txt").read_text())


def test_what_is_not_run_is_little():
    skipped = [b for page in PAGES for b in blocks(page) if b[1] == "skipped"]
    ran = [b for page in PAGES for b in blocks(page) if b[1] in ("python", "sh")]
    assert len(skipped) <= len(ran) // 5


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs" / "api.md").read_text()
    documented = set(re.findall(r"^::: handoff_actors\.(\S+)", text, re.MULTILINE))
    listed = documented | {name.rpartition(".")[2] for name in documented}
    missing = [n for n in handoff_actors.__all__ if n not in listed and n != "__version__"]
    assert missing == []


def test_the_reference_lists_the_face_of_the_runtime_and_nothing_else():
    text = (ROOT / "docs" / "api.md").read_text()
    (block,) = re.findall(r"^::: handoff_actors\.Runtime\n((?:    .*\n)+)", text, re.MULTILINE)
    listed = re.findall(r"^        - (\w+)$", block, re.MULTILINE)
    runtime = handoff_actors.Runtime
    face = {name for name in handoff_actors.__all__ if callable(getattr(runtime, name, None))}
    assert sorted(listed) == sorted(face | {"name", "address", "running"})


def test_what_the_pages_show_is_made(folder):
    """Whatever a page includes is there, and made by the script."""
    made = ROOT / "docs" / "made"
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r'--8<-- "(?:docs/)?made/([^"]+)"', text):
            assert (made / name).is_file(), f"{page}: {name}"
        for name in re.findall(r"\]\((?:\.\./)?made/([^)]+)\)", text):
            assert (made / name).is_file(), f"{page}: {name}"
    assert importlib.util.spec_from_file_location("make", ROOT / "docs" / "make.py") is not None

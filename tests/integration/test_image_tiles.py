"""The example of nodes: as a script, from a file, and with a node that dies in the middle."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

numpy = pytest.importorskip("numpy")

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "image_tiles.py"


def run(*args, cwd):
    return subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), *args],
        capture_output=True,
        text=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        check=False,
    )


def test_the_picture_is_that_of_one_piece(tmp_path):
    done = run("--size", "320", "--check", "--parts", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the same as in one piece" in done.stdout
    assert (tmp_path / "sharp.pgm").stat().st_size == 320 * 320 + len("P5 320 320 255\n")
    again = run("sharp.pgm", "--check", "--out", "twice.pgm", cwd=tmp_path)
    assert "the same as in one piece" in again.stdout, again.stderr


def test_a_node_dies_in_the_middle(make_runtime, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("image_tiles", SCRIPT)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    tiles = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "image_tiles", tiles)
    spec.loader.exec_module(tiles)
    runtime = make_runtime()
    nodes = runtime.start_nodes(2)
    run = runtime.submit(tiles.build(400, 400, nodes, 4, None), keep=["picture"])
    seen = run.as_completed(20.0)
    for _ in range(7):
        next(seen, None)
    os.kill(runtime.node_info(nodes[0]).pid, signal.SIGKILL)
    found = run.result(60.0).results["picture"]
    assert abs(found.astype(int) - tiles.at_once(400, 400, None)).max() <= 1

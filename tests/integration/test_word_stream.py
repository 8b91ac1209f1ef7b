"""The example of streams: as a script, and against a plain loop."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "word_stream.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("word_stream", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["word_stream"] = module
    spec.loader.exec_module(module)
    return module


def test_it_finds_what_a_loop_finds(example: Any, default: Any, tmp_path: Path) -> None:
    paths = example.corpus(24)
    table = example.rarity(paths)
    wanted = [example.telling(table, example.words(example.read(p)))[0] for p in paths]
    broken = tmp_path / "broken.py"
    broken.write_text("'''never closed")
    default.start()
    results = list(example.stream(paths, [*paths[:10], broken, *paths[10:]]))
    error = results.pop(10)
    assert isinstance(error, default.ItemFailedError)
    assert error.function_id == "words"
    # Which of them the tally saw first is the two processes' affair; the rest is not.
    assert [(m.name, m.words, m.telling) for m in results] == [
        (m.name, m.words, m.telling) for m in wanted
    ]
    assert sorted(m.seen for m in results) == list(range(1, 25))
    assert max(m.total for m in results) == sum(m.words for m in wanted)


def test_as_a_script() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), "12"],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") >= 12
    assert "'tally'" in done.stdout

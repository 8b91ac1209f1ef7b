"""The guide "What happens when": every test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_row_names_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "what-happens-when.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "| … |" not in line]
    assert len(rows) > 10
    for row in rows:
        named = re.search(r"`(test_\w+\.py)(?:::(test_\w+))?` \|$", row)
        assert named, row
        (file,) = (ROOT / "tests").rglob(named[1])
        if named[2]:
            assert f"def {named[2]}(" in file.read_text(), row

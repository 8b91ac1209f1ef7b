"""When memory runs out the kernel looks for a victim: worker processes come first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from handoff_actors import Function, new


def score() -> int:
    return int(Path("/proc/self/oom_score_adj").read_text())


def test_workers_are_killed_first(runtime: Any) -> None:
    dag = new().add_function(Function("f", (), score, isolation="process"))
    assert runtime.execute(dag).results["f"] == min(1000, score() + 500)

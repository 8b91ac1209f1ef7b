"""A node process that takes this machine for another one: ``python -m tests.benchmarks.far_node``.

What goes to it and comes from it goes over TCP. Reads one line of JSON: the address to connect to
and the options of its runtime; ends when its input does.
"""

from __future__ import annotations

import json
import sys

from handoff_actors import Runtime
from handoff_actors.cluster import addresses


def main() -> None:
    """Be a node until the input ends."""
    addresses.machine_id = lambda: "another machine"
    told = json.loads(sys.stdin.readline())
    with Runtime(name="far", capabilities={"cpu": 2}, **told["options"]) as runtime:
        runtime.connect(told["address"], timeout=20.0)
        sys.stdin.read()


if __name__ == "__main__":
    main()

"""The command: ``python -m tests.benchmarks [case ...] [--quick] [--peers] [--json FILE]``."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks import (
    cases_face,
    cases_graph,
    cases_life,
    cases_links,
    cases_nodes,
    cases_parallel,
    cases_streams,
)
from tests.benchmarks.peers import peers
from tests.benchmarks.report import Row, Table, machine

CASES: dict[str, Callable[[bool], Iterator[Row]]] = {
    "processes": cases_parallel.metg_processes,
    "threads": cases_parallel.metg_threads,
    "layered": cases_graph.layered,
    "wide": cases_graph.wide,
    "chain": cases_graph.chain,
    "one": cases_graph.one,
    "contention": cases_parallel.contention,
    "cpu": cases_parallel.cpu_bound,
    "streams": cases_streams.streams,
    "kill": cases_life.kill,
    "actors": cases_life.actors,
    "life": cases_life.life,
    "nodes": cases_nodes.over_nodes,
    "arrays": cases_nodes.arrays,
    "links": cases_links.links,
    "losses": cases_nodes.losses,
    "face": cases_face.face,
    "growth": cases_graph.growth,
    "peers": peers,
}
"""By name, in the order in which they run: what forks a pool comes first."""


def main(argv: list[str] | None = None) -> int:
    """Run the cases; returns how many could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("case", nargs="*", help=f"of {', '.join(CASES)}; all but peers by default")
    parser.add_argument("--quick", action="store_true", help="small and noisy: does it work?")
    parser.add_argument("--peers", action="store_true", help="the case peers as well")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all samples there")
    options = parser.parse_args(argv)
    unknown = [name for name in options.case if name not in CASES]
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")

    wanted = set(options.case or CASES.keys() - {"peers"})
    if options.peers:
        wanted.add("peers")
    chosen = {name: case for name, case in CASES.items() if name in wanted}
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n", flush=True)
    table = Table(lambda line: print(line, flush=True))
    table.begin()
    broken = 0
    for name, case in chosen.items():
        try:
            for row in case(options.quick):
                table.add(row)
        except Exception:
            broken += 1
            print(f"case {name!r} could not be measured:", file=sys.stderr)
            traceback.print_exc()
    judged = [row for row in table.rows if row.reached is not None]
    reached = sum(row.reached is True for row in judged)
    print(f"\n{reached} of {len(judged)} targets reached; load {machine()['load']:.1f} at the end")
    if options.json is not None:
        options.json.write_text(table.to_json(), encoding="utf-8")
    return broken


if __name__ == "__main__":
    sys.exit(main())

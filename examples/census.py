"""A census of the Python standard library, as one DAG: the tutorial of handoff_actors.

Run it as ``handoff demo``, or as ``python examples/census.py [N]`` for N modules only. It finds
the sources of all modules of this machine's standard library, parses, measures and ranks them:

    list ─┬─▶ sources json ────▶ (parse json) ────▶ measure json ────┬─▶ merge ──▶ rank
          ├─▶ sources asyncio ─▶ (parse asyncio) ─▶ measure asyncio ─┤
          └─▶ ...                                                    ┘

Parsing and measuring is pure Python and keeps a core busy, so it is done in worker processes. The
rest is quick, or waits for the disk, and is done in threads, where nothing has to be copied.

Read it from top to bottom: plain functions first, then the DAG that joins them, then the run.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import handoff_actors as handoff

# 1. The work. These are plain functions: they know nothing of DAGs, processes or retries, and can
#    be called, tested and debugged like any others.

TESTS = {"test", "tests", "idle_test"}

BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.match_case,
    ast.comprehension,
)


@dataclass(frozen=True)
class Measures:
    """What is counted of one module; a package counts as one, with all that is in it."""

    files: int
    lines: int
    functions: int
    classes: int
    branches: int
    imports: frozenset[str]


@dataclass(frozen=True)
class Census:
    """All modules by name, and by how many others each is imported."""

    modules: dict[str, Measures]
    imported_by: Counter[str]

    def total(self, what: str) -> int:
        """The sum of one measure over all modules."""
        return sum(getattr(module, what) for module in self.modules.values())


def list_modules(names: Sequence[str]) -> dict[str, list[Path]]:
    """The source files of each module; none for one that is written in C."""
    library = Path(sysconfig.get_path("stdlib"))
    listing = {name: list(source_files(library, name)) for name in names}
    if not any(listing.values()):
        raise FileNotFoundError(f"there are no sources of {', '.join(names)} in {library}")
    return listing


def source_files(library: Path, name: str) -> Iterator[Path]:
    """The file of a module, or all files of a package but its tests."""
    module = library / f"{name}.py"
    if module.is_file():
        yield module
    for path in sorted((library / name).rglob("*.py")):
        if TESTS.isdisjoint(path.relative_to(library).parts):
            yield path


def pick(listing: dict[str, list[Path]], name: str) -> list[Path]:
    """The share of one module, so that no process is sent more than it needs."""
    return listing[name]


def parse(files: list[Path]) -> list[tuple[int, ast.Module]]:
    """The number of lines and the syntax tree of each file."""
    sources = [file.read_bytes() for file in files]
    return [(source.count(b"\n"), ast.parse(source)) for source in sources]


def measure(parsed: list[tuple[int, ast.Module]]) -> Measures:
    """Count what is in the syntax trees of a module."""
    nodes = [node for _, tree in parsed for node in ast.walk(tree)]
    kinds = Counter(map(type, nodes))
    return Measures(
        files=len(parsed),
        lines=sum(lines for lines, _ in parsed),
        functions=kinds[ast.FunctionDef] + kinds[ast.AsyncFunctionDef],
        classes=kinds[ast.ClassDef],
        branches=sum(kinds[kind] for kind in BRANCHES),
        imports=frozenset(name for node in nodes for name in imported(node)),
    )


def imported(node: ast.AST) -> list[str]:
    """The modules that one node of a syntax tree imports."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module.partition(".")[0]]
    return []


def merge(measures: list[Measures], names: Sequence[str]) -> Census:
    """Put the modules together, and count who is imported by how many others."""
    modules = dict(zip(names, measures, strict=True))
    imported_by = Counter(
        target for name, module in modules.items() for target in module.imports - {name}
    )
    return Census(modules, imported_by)


def rank(census: Census, top: int) -> list[str]:
    """The names of the largest modules."""
    by_size = sorted(census.modules, key=lambda name: census.modules[name].lines, reverse=True)
    return by_size[:top]


# 2. The DAG. A function's args are the ids of the functions whose results it takes; extra_args
#    follow them. Nothing runs yet.


def build(names: Sequence[str], top: int, isolation: str) -> handoff.DAG:
    """The census as a DAG."""
    dag = handoff.new("census")
    dag.add_function(handoff.Function("list", (), list_modules, extra_args=[names]))
    for name in names:
        dag.add_function(handoff.Function(f"sources {name}", ["list"], pick, extra_args=[name]))
        # A syntax tree is many times larger than its source and costs more to send than to make.
        # An inline function is evaluated where its result is needed: the trees never leave the
        # worker process that measures them.
        dag.add_function(
            handoff.Function(f"parse {name}", [f"sources {name}"], parse, type="inline")
        )
        dag.add_function(
            handoff.Function(f"measure {name}", [f"parse {name}"], measure, isolation=isolation)
        )
    # One list of all measures instead of some hundred parameters.
    measures = [f"measure {name}" for name in names]
    dag.add_function(
        handoff.Function("merge", measures, merge, extra_args=[names], argument_inclusion="as_list")
    )
    dag.add_function(handoff.Function("rank", ["merge"], rank, extra_args=[top]))
    return dag


# 3. The same without a DAG, to compare with: the same functions, one after another.


def sequentially(names: Sequence[str], top: int) -> tuple[Census, list[str]]:
    """The census by a plain loop."""
    listing = list_modules(names)
    census = merge([measure(parse(pick(listing, name))) for name in names], names)
    return census, rank(census, top)


# 4. The run.


def main(limit: int | None = None, isolation: str = "process", top: int = 12) -> None:
    """Take the census, both ways, and print it.

    Args:
        limit: take only so many modules, the first by name; None takes all.
        isolation: "process" or "thread": where modules are parsed and measured.
        top: how many modules the table shows.
    """
    # The public modules first, then those whose names begin with an underscore.
    names = sorted(sys.stdlib_module_names, key=lambda name: (name.startswith("_"), name))[:limit]
    dag = build(names, top, isolation)

    # start() makes the runtime: a tree of supervised actors, here on all cores of this machine.
    # If a worker process dies on the way, for whatever reason, only what it was doing runs again.
    with handoff.start():
        began = time.perf_counter()
        result = handoff.execute(dag, progress=True)
        together = time.perf_counter() - began
        cores = handoff.node_info().capabilities["cpu"]
        census, ranking = result.results["merge"], result.results["rank"]

    began = time.perf_counter()
    alone = sequentially(names, top)
    one_by_one = time.perf_counter() - began

    report(census, ranking, len(result.results), isolation)
    same = "the same" if alone == (census, ranking) else "ANOTHER"
    print(f"as a DAG             {together:6.2f} s, the start of its workers included")
    print(f"one after another    {one_by_one:6.2f} s, with {same} result")
    print(f"{one_by_one / together:.2f} times as fast, on {cores:g} cores")


def report(census: Census, ranking: list[str], functions: int, isolation: str) -> None:
    """Print the largest modules, and all together."""
    version = ".".join(map(str, sys.version_info[:3]))
    table = Table(title=f"The standard library of Python {version}", show_footer=True)
    table.add_column("module", footer="all modules")
    for what in ("files", "lines", "functions", "classes", "branches"):
        table.add_column(what, footer=f"{census.total(what):,}", justify="right")
    table.add_column("imported by", justify="right")
    for name in ranking:
        module = census.modules[name]
        counts = (module.files, module.lines, module.functions, module.classes, module.branches)
        table.add_row(name, *(f"{n:,}" for n in counts), f"{census.imported_by[name]:,}")
    console = Console()
    console.print(table)
    most = ", ".join(f"{name} ({count})" for name, count in census.imported_by.most_common(5))
    print(f"imported by most modules: {most}")
    print(f"{functions:,} functions ran, those that measure in {isolation} workers")


if __name__ == "__main__":
    main(limit=int(sys.argv[1]) if sys.argv[1:] else None)

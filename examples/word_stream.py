"""Which words set a module apart? A stream over the standard library's own sources.

Run it as ``python examples/word_stream.py [N]``, for N modules only if you like. The corpus is on
every machine that has Python: the sources of its library. Modules flow through a pipeline:

    path ──▶ read ──▶ words ──▶ telling ──▶ tally
             thread   2 processes   thread,     thread, batches of 16,
                                    costly init  running totals

``words`` takes a source apart, which is pure Python, so it has two processes. ``telling`` weighs
each word by how rare it is in all modules; for that it needs a table which takes long to make, so
it is made once, by ``init``, before the first module comes. ``tally`` keeps totals from batch to
batch. A module that cannot be read becomes an ``ItemFailedError`` in its place, and the rest flows
on.
"""

from __future__ import annotations

import io
import keyword
import math
import re
import sys
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import handoff_actors as handoff

WORD = re.compile(r"[A-Za-z]{3,}")
COMMON = frozenset(word.lower() for word in keyword.kwlist)


@dataclass(frozen=True)
class Module:
    """One module of the corpus, as it comes out of the stream.

    Attributes:
        name: of its file.
        words: how many it has.
        telling: those that set it apart, most telling first.
        seen: how many modules the tally had seen with it.
        total: how many words they had together.
    """

    name: str
    words: int
    telling: tuple[str, ...]
    seen: int = 0
    total: int = 0


def corpus(limit: int | None = None) -> list[Path]:
    """The sources of the library's modules, by name."""
    folder = Path(sysconfig.get_path("stdlib"))
    return sorted(folder.glob("*.py"))[:limit]


# The stages: plain functions.


def read(path: Path) -> tuple[str, str]:
    """A module's name and source."""
    with tokenize.open(path) as file:
        return path.stem, file.read()


def words(module: tuple[str, str]) -> tuple[str, Counter[str]]:
    """How often each word occurs in its comments and texts."""
    name, source = module
    found: Counter[str] = Counter()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            found.update(word.lower() for word in WORD.findall(token.string))
    return name, found


def rarity(paths: Sequence[Path]) -> dict[str, float]:
    """How rare each word is: the costly table, made once per worker."""
    modules_with: Counter[str] = Counter()
    for path in paths:
        modules_with.update({word.lower() for word in WORD.findall(path.read_text("latin-1"))})
    return {word: math.log(len(paths) / count) for word, count in modules_with.items()}


def telling(table: dict[str, float], counted: tuple[str, Counter[str]]) -> tuple[Module, object]:
    """The words that say most about a module; the table is handed on as it is."""
    name, found = counted
    weights = {w: n * table.get(w, 0.0) for w, n in found.items() if w not in COMMON}
    best = sorted(weights, key=lambda word: (-weights[word], word))[:5]
    return Module(name, found.total(), tuple(best)), table


def tally(state: tuple[int, int], rows: list[tuple[Module]]) -> tuple[list[Module], object]:
    """Number the modules, and add up their words, from batch to batch."""
    seen, total = state
    numbered = []
    for (module,) in rows:
        seen, total = seen + 1, total + module.words
        numbered.append(Module(module.name, module.words, module.telling, seen, total))
    return numbered, (seen, total)


# The DAG that joins them.


def build(paths: Sequence[Path]) -> handoff.DAG:
    """The stages as a DAG."""
    dag = handoff.DAG("words")
    dag.add_function(handoff.Function("path", type="input"))
    dag.add_function(handoff.Function("read", ["path"], read))
    dag.add_function(handoff.Function("words", ["read"], words, isolation="process", parallelism=2))
    dag.add_function(handoff.Function("telling", ["words"], telling, init=(rarity, [paths])))
    dag.add_function(
        handoff.Function("tally", ["telling"], tally, init=lambda: (0, 0), batch_size=16)
    )
    return dag


def stream(paths: Sequence[Path], items: Iterable[Path]) -> Iterator[Module | Exception]:
    """What comes of each of ``items``, in their order."""
    with handoff.stream(build(paths), max_pending=64) as pipeline:
        yield from pipeline.map(items, progress=True)
        print(pipeline.statistics())


def main(limit: int | None = None) -> None:
    """Print a line for each module."""
    paths = corpus(limit)
    for module in stream(paths, paths):
        if isinstance(module, handoff.ItemFailedError):
            print("cannot be read:", module.__cause__)
        else:
            assert isinstance(module, Module)
            print(f"{module.name:20} {', '.join(module.telling)}")


if __name__ == "__main__":
    with handoff.start():
        main(int(sys.argv[1]) if len(sys.argv) > 1 else None)

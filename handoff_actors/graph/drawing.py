"""Pictures of a DAG: Mermaid, Graphviz DOT, and HTML that needs no network.

Guarantees that every DAG can be drawn, also one that cannot be run, and that no id, however odd,
breaks the picture or the page around it.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from handoff_actors.errors import amounts_text, describe
from handoff_actors.graph.function import Collocated, Function
from handoff_actors.graph.order import arg_ids

if TYPE_CHECKING:
    from handoff_actors.graph.dag import DAG

MOST_DRAWN = 500  # beyond it a notebook shows levels, not functions

# Fill and border of the states of a run; other states are drawn without color.
_COLORS = {
    "waiting": ("#f4f4f5", "#a1a1aa"),
    "ready": ("#fef9c3", "#ca8a04"),
    "running": ("#dbeafe", "#2563eb"),
    "done": ("#dcfce7", "#16a34a"),
    "failed": ("#fee2e2", "#dc2626"),
    "cancelled": ("#e4e4e7", "#52525b"),
    "missing": ("#ffffff", "#dc2626"),
}


@dataclass(frozen=True, slots=True)
class _Box:
    """One thing to draw.

    Attributes:
        lines: its text.
        kind: regular, inline, input, or missing.
        state: of the run, or None.
        level: the longest way that leads to it.
        bold: it is to stand out.
    """

    lines: tuple[str, ...]
    kind: str
    state: str | None
    level: int
    bold: bool = False


@dataclass(frozen=True, slots=True)
class _Picture:
    boxes: list[_Box]
    edges: list[tuple[int, int]]


def to_mermaid(dag: DAG, states: Mapping[Hashable, str] | None = None) -> str:
    """The DAG as a Mermaid flowchart.

    Args:
        dag: any DAG, also one that is not valid.
        states: the state of functions in a run, which is told and colors them.
    """
    return _mermaid(_picture(dag, states or {}))


def to_dot(dag: DAG, states: Mapping[Hashable, str] | None = None) -> str:
    """The DAG in Graphviz' language; the arguments are those of ``to_mermaid``."""
    picture = _picture(dag, states or {})
    lines = ["digraph {", "  rankdir=TB;", '  node [shape=box, style="rounded"];']
    for number, box in enumerate(picture.boxes):
        text = "\\n".join(map(_dot_text, box.lines))
        style = ["rounded"]
        more = ""
        if box.kind == "input":
            style, more = [], ", shape=parallelogram"
        elif box.kind in ("inline", "missing"):
            style.append("dashed")
        color = _COLORS.get(box.state or box.kind)
        if color is not None:
            style.append("filled")
            more += f', fillcolor="{color[0]}", color="{color[1]}"'
        lines.append(f'  n{number} [label="{text}", style="{",".join(style)}"{more}];')
    lines.extend(f"  n{a} -> n{b};" for a, b in picture.edges)
    return "\n".join([*lines, "}"]) + "\n"


def to_svg(dag: DAG, states: Mapping[Hashable, str] | None = None) -> str:
    """The DAG as an SVG picture; of a large DAG the levels are drawn."""
    return _svg(_shown(dag, states)) + "\n"


def svg_of(
    functions: Mapping[Hashable, Function],
    states: Mapping[Hashable, str],
    path: Collection[Hashable],
) -> str:
    """An SVG picture of functions by id, colored by state, those of ``path`` with a bold border."""
    picture = _picture_of(functions, states, path)
    return _svg(picture if len(picture.boxes) <= MOST_DRAWN else _collapsed(picture))


def to_html(dag: DAG) -> str:
    """The DAG as HTML with a drawing of its own; of a large DAG the levels are drawn."""
    picture = _shown(dag)
    return f"<div><p>{html.escape(repr(dag))}</p>{_svg(picture)}</div>"


def display(dag: DAG) -> dict[str, str]:
    """What a notebook shows, by MIME type; of a large DAG the levels are drawn."""
    text = _mermaid(_shown(dag))
    return {
        "text/plain": repr(dag),
        "text/markdown": f"```mermaid\n{text}```\n",
        "text/html": to_html(dag),
    }


def _shown(dag: DAG, states: Mapping[Hashable, str] | None = None) -> _Picture:
    picture = _picture(dag, states or {})
    return picture if len(picture.boxes) <= MOST_DRAWN else _collapsed(picture)


def _picture(dag: DAG, states: Mapping[Hashable, str]) -> _Picture:
    return _picture_of(dag.functions, states, ())


def _picture_of(
    functions: Mapping[Hashable, Function],
    states: Mapping[Hashable, str],
    path: Collection[Hashable],
) -> _Picture:
    number = {id_: i for i, id_ in enumerate(functions)}
    missing: dict[Hashable, int] = {}
    edges: dict[tuple[int, int], None] = {}
    for function in functions.values():
        here = number[function.id]
        for id_ in arg_ids(function):
            there = number.get(id_)
            if there is None:
                there = missing.setdefault(id_, len(functions) + len(missing))
            edges[there, here] = None
    levels = _levels(len(functions) + len(missing), list(edges))
    boxes = [
        _Box(tuple(_label(f, states.get(f.id))), f.type, states.get(f.id), levels[i], f.id in path)
        for i, f in enumerate(functions.values())
    ]
    boxes.extend(
        _Box((_id_text(id_), "missing"), "missing", None, levels[i]) for id_, i in missing.items()
    )
    return _Picture(boxes, list(edges))


def _levels(count: int, edges: list[tuple[int, int]]) -> list[int]:
    """The longest way to each box; what lies on or behind a cycle comes below all else."""
    after: list[list[int]] = [[] for _ in range(count)]
    waiting = [0] * count
    for a, b in edges:
        after[a].append(b)
        waiting[b] += 1
    level = [0] * count
    ready = [i for i in range(count) if not waiting[i]]
    for a in ready:  # grows while it is walked
        for b in after[a]:
            level[b] = max(level[b], level[a] + 1)
            waiting[b] -= 1
            if not waiting[b]:
                ready.append(b)
    return level


def _collapsed(picture: _Picture) -> _Picture:
    """One box for each level, and one edge wherever functions of two levels are joined."""
    count = 1 + max((box.level for box in picture.boxes), default=0)
    members: list[list[_Box]] = [[] for _ in range(count)]
    for box in picture.boxes:
        members[box.level].append(box)
    shown = [level for level in range(count) if members[level]]
    step = -(-len(shown) // MOST_DRAWN)  # a very deep DAG: several levels to a box
    box_of = {level: i // step for i, level in enumerate(shown)}
    boxes: list[_Box] = []
    for first in range(0, len(shown), step):
        part = shown[first : first + step]
        inside = [box for level in part for box in members[level]]
        name = f"level {part[0]}" if len(part) == 1 else f"levels {part[0]} to {part[-1]}"
        kind = "missing" if any(box.kind == "missing" for box in inside) else "regular"
        example = f"{inside[0].lines[0]} …" if len(inside) > 1 else inside[0].lines[0]
        text = (name, f"{len(inside)} function{'s' if len(inside) > 1 else ''}", example)
        boxes.append(_Box(text, kind, None, len(boxes)))
    edges: dict[tuple[int, int], None] = {}
    for a, b in picture.edges:
        edge = box_of[picture.boxes[a].level], box_of[picture.boxes[b].level]
        if edge[0] != edge[1]:
            edges[edge] = None
    return _Picture(boxes, list(edges))


def _id_text(id_: Hashable) -> str:
    return id_ if isinstance(id_, str) else describe(id_)


def _label(function: Function, state: str | None) -> Iterator[str]:
    yield _id_text(function.id)
    if function.type != "regular":
        yield function.type
    if function.cost:
        yield _amounts(function.cost)
    if isinstance(function.node, Collocated):
        yield f"with {_id_text(function.node.id)}"
    elif function.node is not None:
        yield f"on {function.node}"
    if state is not None:
        yield state


def _amounts(cost: Mapping[str, float]) -> str:
    return amounts_text({name: float(amount) for name, amount in cost.items()})


def _mermaid(picture: _Picture) -> str:
    lines = ["flowchart TD"]
    used: dict[str, list[int]] = {}
    for number, box in enumerate(picture.boxes):
        text = "<br/>".join(map(_mermaid_text, box.lines))
        left, right = ("[/", "/]") if box.kind == "input" else ("[", "]")
        lines.append(f'    n{number}{left}"{text}"{right}')
        if box.kind in ("inline", "missing"):
            used.setdefault(box.kind, []).append(number)
        if box.state in _COLORS:
            used.setdefault(f"state_{box.state}", []).append(number)
    lines.extend(f"    n{a} --> n{b}" for a, b in picture.edges)
    for name, numbers in used.items():
        color = _COLORS.get(name.removeprefix("state_"))
        style = "" if color is None else f"fill:{color[0]},stroke:{color[1]},color:#18181b"
        dashed = "stroke-dasharray:5 4" if name in ("inline", "missing") else ""
        lines.append(f"    classDef {name} {','.join(filter(None, (style, dashed)))}")
        lines.append(f"    class {','.join(f'n{i}' for i in numbers)} {name}")
    return "\n".join(lines) + "\n"


def _mermaid_text(text: str) -> str:
    """Text between double quotes: all but letters, digits and spaces as entity codes."""
    return "".join(c if c.isalnum() or c in " _" else f"#{ord(c)};" for c in _printable(text))


def _dot_text(text: str) -> str:
    return _printable(text).replace("\\", "\\\\").replace('"', '\\"')


_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 150, 54, 18, 46
_ROW = 12


def _svg(picture: _Picture) -> str:
    """Boxes in centred rows by level; text that is too long is cut, and whole in a tooltip."""
    rows = _rows(picture)
    widest = max(map(len, rows), default=1)
    width = widest * (_WIDTH + _GAP_X) + _GAP_X
    height = max(1, len(rows)) * (_HEIGHT + _GAP_Y) + _GAP_Y // 2
    place: dict[int, tuple[float, float]] = {}
    for row, members in enumerate(rows):
        left = (width - len(members) * (_WIDTH + _GAP_X) + _GAP_X) / 2
        for column, number in enumerate(members):
            x = left + column * (_WIDTH + _GAP_X)
            place[number] = x, _GAP_Y // 4 + row * (_HEIGHT + _GAP_Y)
    size = f'viewBox="0 0 {width} {height}" style="max-width:{width}px;width:100%"'
    font = 'font-family="sans-serif" font-size="11"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>']
    for a, b in picture.edges:
        (x1, y1), (x2, y2) = place[a], place[b]
        x1, x2, y1 = x1 + _WIDTH / 2, x2 + _WIDTH / 2, y1 + _HEIGHT
        middle = (y1 + y2) / 2
        parts.append(
            f'<path d="M{x1:g} {y1:g}C{x1:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2:g}" '
            'fill="none" stroke="#a1a1aa"/>'
            f'<circle cx="{x2:g}" cy="{y2:g}" r="2.5" fill="#52525b"/>'
        )
    for number, box in enumerate(picture.boxes):
        parts.append(_svg_box(box, *place[number]))
    return "".join([*parts, "</svg>"])


def _rows(picture: _Picture) -> list[list[int]]:
    """The boxes of each level below what they need, in rows that fit on a page."""
    before: list[list[int]] = [[] for _ in picture.boxes]
    for a, b in picture.edges:
        before[b].append(a)
    levels: dict[int, list[int]] = {}
    for number, box in enumerate(picture.boxes):
        levels.setdefault(box.level, []).append(number)
    across = [0.0] * len(picture.boxes)
    rows: list[list[int]] = []
    for _, members in sorted(levels.items()):
        for number in members:
            if before[number]:
                across[number] = sum([across[a] for a in before[number]]) / len(before[number])
        members.sort(key=across.__getitem__)
        for column, number in enumerate(members):
            across[number] = (column + 0.5) / len(members)
        rows.extend(members[i : i + _ROW] for i in range(0, len(members), _ROW))
    return rows


def _svg_box(box: _Box, x: float, y: float) -> str:
    fill, stroke = _COLORS.get(box.state or box.kind, ("#ffffff", "#52525b"))
    dash = ' stroke-dasharray="5 4"' if box.kind in ("inline", "missing") else ""
    if box.kind == "input":
        fill = "#f0f9ff"
    title = html.escape("\n".join(map(_printable, box.lines)))
    shown = "".join(
        f'<text x="{x + _WIDTH / 2:g}" y="{y + 16 + 14 * i:g}" text-anchor="middle" '
        f'fill="#18181b">{html.escape(_printable(_cut(line)))}</text>'
        for i, line in enumerate(box.lines[:3])
    )
    radius = 16 if box.kind == "input" else 4
    bold = ' stroke-width="3"' if box.bold else ""
    return (
        f"<g><title>{title}</title>"
        f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="{radius}" '
        f'fill="{fill}" stroke="{stroke}"{bold}{dash}/>{shown}</g>'
    )


def _cut(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _printable(text: str) -> str:
    """Without what no format can hold or show: control characters and lone surrogates."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)

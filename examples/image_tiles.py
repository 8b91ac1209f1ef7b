"""A large picture is sharpened on two nodes, with its parts handed straight from node to node.

Run it as ``python examples/image_tiles.py [--size 2048] [--nodes 2] [--out sharp.pgm] [photo.pgm]``
(it needs NumPy). Each node has strips of the picture, so it can transform along their rows; then
each needs columns, which lie across the strips of all nodes:

    strip 0 (n1) ─▶ rows 0 (n1) ═╤═▶ columns 0 (n1) ═╤═▶ sharp 0 (n1) ─┐
                                 X                   X                 ├─▶ picture (here)
    strip 1 (n2) ─▶ rows 1 (n2) ═╧═▶ columns 1 (n2) ═╧═▶ sharp 1 (n2) ─┘

The double lines cross between nodes. What crosses is cut out where it is, by the serializer of an
``Argument``: a node asks for the block it needs, and only that is sent, from the node that has it
to the node that asked. This process sees none of it but the finished strips.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import handoff_actors as handoff

# 1. The work: plain functions on arrays.


def drawn(size: int, first: int, last: int) -> Any:
    """Rows of a Julia set, for want of a photo."""
    y, x = np.mgrid[first:last, 0:size].astype(np.float64)
    z = (x + 1j * y) / size * 3.0 - 1.5 - 1.5j
    steps = np.zeros(z.shape)
    for _ in range(48):
        alive = np.abs(z) <= 2.0
        z[alive] = z[alive] ** 2 - 0.8 + 0.156j
        steps += alive
    return steps * (255.0 / 48.0)


def read_rows(path: str, first: int, last: int) -> Any:
    """Rows of a grey picture: a binary PGM."""
    width, _, offset = header(path)
    with open(path, "rb") as file:
        file.seek(offset + first * width)
        data = file.read((last - first) * width)
    return np.frombuffer(data, np.uint8).reshape(-1, width).astype(np.float64)


def header(path: str) -> tuple[int, int, int]:
    """Width, height, and where the pixels begin."""
    with open(path, "rb") as file:
        fields: list[bytes] = []
        while len(fields) < 4:
            line = file.readline()
            if not line:
                raise ValueError(f"{path} is no binary PGM")
            fields += line.split(b"#")[0].split()
        if fields[0] != b"P5" or fields[3] != b"255":
            raise ValueError(f"{path} is no binary PGM with 8 bits a pixel")
        return int(fields[1]), int(fields[2]), file.tell()


def transformed_rows(strip: Any) -> Any:
    """The spectrum along the rows."""
    return np.fft.fft(strip, axis=1)


def transformed_columns(blocks: Sequence[Any], first: int, width: int) -> Any:
    """The spectrum along the columns too, sharpened, and back to columns."""
    spectrum = np.fft.fft(np.concatenate(blocks, axis=0), axis=0)
    height = spectrum.shape[0]
    fy = np.fft.fftfreq(height)[:, None]
    fx = np.fft.fftfreq(width)[None, first : first + spectrum.shape[1]]
    return np.fft.ifft(spectrum * sharpening(fy, fx), axis=0)


def sharpening(fy: Any, fx: Any) -> Any:
    """How much each frequency is raised: fine detail by up to a half."""
    return 1.0 + 2.0 * (fy**2 + fx**2)


def sharp_rows(blocks: Sequence[Any]) -> Any:
    """Pixels again."""
    pixels = np.fft.ifft(np.concatenate(blocks, axis=1), axis=1).real
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def picture(*strips: Any) -> Any:
    """All strips."""
    return np.concatenate(strips, axis=0)


# 2. What of a value another node needs: this runs where the value is.


def block_of_columns(rows: Any, _source: str, _target: str, first: int, last: int) -> Any:
    """The columns that one node works on, of another one's strip."""
    return np.ascontiguousarray(rows[:, first:last])


def block_of_rows(columns: Any, _source: str, _target: str, first: int, last: int) -> Any:
    """The rows that one node finishes, of another one's columns."""
    return np.ascontiguousarray(columns[first:last])


# 3. The DAG.


def build(
    width: int, height: int, nodes: Sequence[str], parts: int, path: str | None
) -> handoff.DAG:
    """Everything from the source to the sharpened picture, in ``parts`` strips."""
    dag = handoff.DAG("image_tiles")
    across = [width * k // parts for k in range(parts + 1)]
    down = [height * k // parts for k in range(parts + 1)]
    for k in range(parts):
        node = nodes[k % len(nodes)]
        rows = (down[k], down[k + 1])
        code = drawn if path is None else read_rows
        dag.add_function(
            handoff.Function(("strip", k), code=code, extra_args=[path or width, *rows], node=node)
        )
        dag.add_function(handoff.Function(("rows", k), [("strip", k)], transformed_rows, node=node))
        dag.add_function(
            handoff.Function(
                ("columns", k),
                [
                    handoff.Argument(("rows", i), (block_of_columns, [across[k], across[k + 1]]))
                    for i in range(parts)
                ],
                transformed_columns,
                extra_args=[across[k], width],
                argument_inclusion="as_list",
                node=node,
            )
        )
        dag.add_function(
            handoff.Function(
                ("sharp", k),
                [
                    handoff.Argument(("columns", i), (block_of_rows, list(rows)))
                    for i in range(parts)
                ],
                sharp_rows,
                argument_inclusion="as_list",
                node=node,
            )
        )
    strips = [("sharp", k) for k in range(parts)]
    return dag.add_function(handoff.Function("picture", strips, picture))


def at_once(width: int, height: int, path: str | None) -> Any:
    """The same in one piece, to compare with."""
    whole = drawn(width, 0, height) if path is None else read_rows(path, 0, height)
    spectrum = np.fft.fft2(whole)
    raised = sharpening(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    return np.clip(np.rint(np.fft.ifft2(spectrum * raised).real), 0, 255).astype(np.uint8)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", nargs="?", help="a binary PGM; a Julia set when none is given")
    parser.add_argument("--size", type=int, default=2048, help="of the Julia set, in pixels")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--out", default="sharp.pgm")
    parser.add_argument("--check", action="store_true", help="compare with NumPy in one piece")
    options = parser.parse_args()
    photo = None if options.photo is None else str(Path(options.photo).resolve())
    width, height = (options.size, options.size) if photo is None else header(photo)[:2]
    with handoff.Runtime() as runtime:
        nodes = runtime.start_nodes(options.nodes)
        dag = build(width, height, nodes, options.parts, photo)
        began = time.perf_counter()
        with runtime.execute(dag, keep=["picture"]) as result:
            found = result.results["picture"]
            took = time.perf_counter() - began
            for node in sorted(set(result.allocations.values())):
                count = list(result.allocations.values()).count(node)
                print(f"{node}: {count} functions")
        print(f"{width} x {height} pixels in {took:.2f} s over {len(nodes)} nodes")
        if options.check:
            # The order of sums differs between one piece and many, and so does the last bit.
            far = np.abs(found.astype(int) - at_once(width, height, photo)).max()
            print("the same as in one piece" if far <= 1 else f"WRONG by up to {far}")
    with open(options.out, "wb") as file:
        file.write(b"P5 %d %d 255\n" % (width, height))
        file.write(found.tobytes())
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()

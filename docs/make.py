"""Make what the documentation shows: outputs of examples, pictures, the notebook, screenshots.

    python docs/make.py            # all of it; screenshots only if there is a chromium
    python docs/make.py notebook   # one part

Nothing in ``docs/made`` is written by hand. Needs the extras ``test`` and ``docs``.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import handoff_actors as handoff

ROOT = Path(__file__).resolve().parents[1]
MADE = ROOT / "docs" / "made"
TRACE = ROOT.parent / "shared" / "data" / "workflows" / "1000genome-chameleon-2ch-100k-001.json"

CELLS: list[tuple[str, str]] = [
    ("markdown", "# handoff_actors in a notebook\n\nStarting again is harmless: cells may be run in any "
                 "order, and again. What you define here reaches worker processes as it is."),
    ("code", "import random\nimport time\n\nimport handoff_actors as handoff\n\nruntime = handoff.start()"),
    ("markdown", "## A DAG\n\nA function's name is its id, its parameters are the functions whose results it "
                 "takes. A DAG shows itself."),
    ("code", "dag = handoff.new('means')\n\n\n@dag.function\ndef numbers():\n"
             "    return [random.random() for _ in range(100_000)]\n\n\n"
             "@dag.function(isolation='process')\ndef total(numbers):\n    return sum(numbers)\n\n\n"
             "@dag.function\ndef largest(numbers):\n    time.sleep(0.2)\n    return max(numbers)\n\n\n"
             "@dag.function(max_retries=2)\ndef mean(total, numbers):\n"
             "    if handoff.current().attempt == 1:\n        raise ConnectionError('try again')\n"
             "    return total / len(numbers)\n\n\n"
             "@dag.function\ndef report(mean, largest):\n"
             "    return f'mean {mean:.2f}, largest {largest:.2f}'\n\n\ndag"),
    ("markdown", "## A run\n\n`progress=True` draws in the cell while it runs."),
    ("code", "result = handoff.execute(dag, progress=True)\nresult.results['report']"),
    ("markdown", "The result shows how it went: the graph with the critical path in bold, the slowest "
                 "functions and on which workers they ran, attempts that did not count."),
    ("code", "result"),
    ("markdown", "Change a function, and run again: add it under the same id to a new DAG. A timeline for "
                 "[Perfetto](https://ui.perfetto.dev) is one call."),
    ("code", "result.to_chrome_trace('timeline.json')\nprint(result)"),
    ("markdown", "## When it fails\n\nThe error names the function; its own exception is the cause."),
    ("code", "bad = handoff.new()\nbad.add_function(handoff.Function('ratio', (), lambda: 1 / 0, max_retries=1))\n"
             "try:\n    handoff.execute(bad)\nexcept handoff.FunctionFailedError as error:\n"
             "    print(error)\n    print(repr(error.__cause__))"),
    ("code", "handoff.stop()"),
]  # fmt: skip
"""The notebook: kinds and sources of its cells."""


def notebook() -> None:
    """Write and run ``examples/notebook.ipynb``, so that it has its outputs."""
    import nbclient
    import nbformat
    from nbformat import v4

    cells = [
        v4.new_markdown_cell(text) if kind == "markdown" else v4.new_code_cell(text)
        for kind, text in CELLS
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    book = v4.new_notebook(cells=cells)
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(
            book, timeout=120, resources={"metadata": {"path": folder}}
        ).execute()
    for cell in book.cells:
        cell.get("metadata", {}).pop("execution", None)
    nbformat.write(book, ROOT / "examples" / "notebook.ipynb")


def outputs() -> None:
    """Run the examples, and keep what they print."""
    run("census.txt", sys.executable, "examples/census.py", "60")
    if TRACE.is_file():
        run(
            "replay.txt",
            sys.executable,
            "examples/replay_workflow.py",
            str(TRACE),
            "--scale",
            "0.002",
        )
    run("check.txt", sys.executable, "-m", "handoff_actors", "check", "examples/service.py")
    run("graph.txt", sys.executable, "-m", "handoff_actors", "graph", "examples/service.py")
    run("help.txt", sys.executable, "-m", "handoff_actors", "--help")
    run("help_run.txt", sys.executable, "-m", "handoff_actors", "run", "--help")
    run("property_test.txt", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "examples/property_test.py")  # fmt: skip


def run(name: str, *command: str) -> None:
    """Keep the standard output of a command."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "90"},
    )
    (MADE / name).write_text(re.sub(r"[ \t]+$", "", done.stdout, flags=re.MULTILINE))


def eventful() -> handoff.DAG:
    """A DAG with something to see: waits, a retry, processes."""
    import time

    dag = handoff.new("nightly")

    def work(*_: object) -> int:
        time.sleep(0.25)
        if handoff.current().function_id == "load 3" and handoff.current().attempt == 1:
            raise ConnectionError("no answer from shop 3")
        return 1

    for i in range(8):
        isolation = "process" if i % 2 else "thread"
        dag.add_function(
            handoff.Function(f"load {i}", (), work, isolation=isolation, retry_delay=0.1)
        )
        dag.add_function(handoff.Function(f"clean {i}", [f"load {i}"], work, cost={"cpu": 1}))
    cleaned = [f"clean {i}" for i in range(8)]
    dag.add_function(handoff.Function("join", cleaned, work))
    dag.add_function(handoff.Function("report", ["join"], work))
    return dag


def pictures() -> None:
    """Draw a DAG, a result, and the terminal while it runs."""
    from rich.console import Console

    from handoff_actors.progress import terminal

    dag = eventful()
    (MADE / "dag.svg").write_text(dag.to_svg())
    console = Console(record=True, width=96, force_terminal=True, file=io.StringIO())
    frames: list[str] = []
    draw = terminal.Screen._draw

    def keep(screen: terminal.Screen) -> None:
        draw(screen)
        if screen._bars:
            recorder = Console(record=True, width=96, force_terminal=True, file=io.StringIO())
            if told:
                recorder.print("\n".join(told), style="yellow", highlight=False)
            for part in terminal._drawn(screen._bars[0], screen._bars[0].view.shot()):
                recorder.print(part)
            frames.append(recorder.export_svg(title="handoff run nightly.py --watch"))

    told: list[str] = []
    tell = terminal.Screen.tell
    terminal.Screen._draw = keep  # type: ignore[method-assign]
    terminal.Screen.tell = lambda self, bar, line: (
        told.append(f"nightly {line}") or tell(self, bar, line)
    )  # type: ignore
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    with contextlib.redirect_stderr(stream), handoff.Runtime(capabilities={"cpu": 3}) as runtime:
        result = runtime.execute(dag, progress=True)
    terminal.Screen._draw, terminal.Screen.tell = draw, tell  # type: ignore[method-assign]
    del console
    (MADE / "progress.svg").write_text(max(frames[len(frames) // 4 :], key=len))
    (MADE / "result.html").write_text(result._repr_html_())
    (MADE / "result.txt").write_text(f"{result}\n")
    result.to_chrome_trace(MADE / "timeline.json")


def screenshots() -> None:
    """Photograph what is HTML, if there is a browser."""
    browser = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if browser is None:
        print("no chromium: the screenshots are left as they are")
        return
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--window-size=1200,860", f"--screenshot={MADE / 'result.png'}", str(MADE / "result.html")],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip


PARTS: dict[str, Callable[[], None]] = {
    "notebook": notebook,
    "outputs": outputs,
    "pictures": pictures,
    "screenshots": screenshots,
}

if __name__ == "__main__":
    MADE.mkdir(exist_ok=True)
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()

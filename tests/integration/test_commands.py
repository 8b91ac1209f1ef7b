"""The commands ``handoff run``, ``graph``, ``check`` and ``completion``, as they are typed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from handoff_actors.cli import handoff

MEANS = """
    import handoff_actors as handoff

    dag = handoff.new("means")
    dag.add_function(handoff.Function("n", type="input"))

    @dag.function
    def numbers(n):
        return list(range(n))

    @dag.function(isolation="process")
    def total(numbers):
        return sum(numbers)

    @dag.function
    def mean(total, numbers):
        return total / len(numbers)
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes a source file; what its import leaves behind is cleaned up."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write(source, name="means.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return str(path)

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def run(*args):
    return CliRunner().invoke(handoff, args, prog_name="handoff")


def refused(result, code, text):
    assert result.exit_code == code, result.output
    assert re.search(text, result.stderr), result.stderr
    assert result.stdout == ""
    if code == 1:
        assert result.stderr.count("\n") == 1


# run


def test_run_prints_the_results_of_the_last_functions(file, leaks):
    result = run("run", file(MEANS), "--input", "n=10")
    assert result.exit_code == 0, result.output
    assert result.stdout == "mean = 4.5\n"
    assert re.fullmatch(r"3 functions in \d+\.\d\d s\n", result.stderr)


def test_run_as_a_process_and_under_a_module_name(file):
    file(MEANS)
    command = [sys.executable, "-m", "handoff_actors", "run", "means:dag", "--input", "n=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "mean = 1.0\n"), done.stderr


@pytest.mark.parametrize(
    ("keep", "printed"),
    [
        ("sinks", ["mean = 1.0"]),
        ("all", ["mean = 1.0", "numbers = [0, 1, 2]", "total = 3"]),
        ("total,numbers", ["numbers = [0, 1, 2]", "total = 3"]),
    ],
)
def test_keep_says_what_is_printed(file, keep, printed):
    result = run("run", file(MEANS), "--input", "n=3", "--keep", keep)
    assert sorted(result.stdout.splitlines()) == printed


def test_inputs_are_json_or_text_or_files(file, tmp_path):
    path = file(
        """
        import handoff_actors as handoff
        dag = handoff.new("in")
        for id in ("text", "number", "file", 4):
            dag.add_function(handoff.Function(id, type="input"))
        dag.add_function(handoff.Function("all", ["text", "number", "file", 4], lambda *a: list(a)))
        """
    )
    (tmp_path / "one.json").write_text('{"a": [1, null]}')
    (tmp_path / "two.json").write_text('{"text": "overridden", "4": true}')
    args = ["--input", "@two.json", "--input", "text=a b", "--input", "number=1.5"]
    result = run("run", path, *args, "--input", "file=@one.json", "--json")
    assert json.loads(result.stdout)["results"]["all"] == ["a b", 1.5, {"a": [1, None]}, True]


def test_json_tells_results_and_timings(file, tmp_path):
    trace = tmp_path / "trace.json"
    result = run(
        "run",
        file(MEANS),
        "--input",
        "n=4",
        "--json",
        "--trace",
        str(trace),
        "--isolation",
        "thread",
    )
    said = json.loads(result.stdout)
    assert (said["dag_id"], said["state"]) == ("means", "succeeded")
    assert said["results"] == {"numbers": [0, 1, 2, 3], "total": 6, "mean": 1.5}
    assert said["functions"].keys() == said["results"].keys()
    assert result.stderr == ""
    names = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"numbers", "total", "mean"} <= names


def test_json_holds_any_value(file):
    path = file(
        """
        import handoff_actors as handoff
        dag = handoff.new("any")
        dag.add_function(handoff.Function("a", (), lambda: {(1, 2): float("nan"), "s": {3}}))
        """
    )
    assert json.loads(run("run", path, "--json").stdout)["results"] == {
        "a": {"(1, 2)": "nan", "s": "{3}"}
    }


def test_a_function_that_fails_is_one_line_with_its_place(file):
    path = file(MEANS)
    result = run("run", path, "--input", "n=0")
    refused(result, 1, r"Error: function 'mean' .*ZeroDivisionError: division by zero \(.*means.py")
    result = run("run", path, "--input", "n=0", "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert said["state"] == "failed"
    assert said["error"]["type"] == "FunctionFailedError"
    assert said["error"]["function_id"] == "mean"


@pytest.mark.parametrize("place", ["before", "after"])
def test_traceback_shows_where_it_came_from(file, place):
    args = ["run", file(MEANS), "--input", "n=0"]
    result = run(*(["--traceback", *args] if place == "before" else [*args, "--traceback"]))
    assert result.exit_code == 1
    assert "return total / len(numbers)" in result.stderr
    assert "Traceback (most recent call last)" in result.stderr
    assert "Traceback" not in run(*args).stderr


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        ([], 1, "lack .*: give --input NAME=VALUE"),
        (["--input", "n=1", "--input", "m=1"], 1, "'m'"),
        (["--input", "n"], 2, "NAME=VALUE"),
        (["--input", "@nothing.json"], 2, "nothing.json: No such file"),
        (["--input", "@means.py"], 2, "is not JSON"),
        (["--input", "n=1", "--keep", "nobody"], 1, "'nobody'"),
        (["--input", "n=1", "--trace", "no/where.json"], 2, "there is no folder no"),
        (["--input", "n=1", "--max-concurrency", "0"], 2, "max-concurrency"),
        (["--input", "n=1", "--timeout", "0"], 2, "timeout"),
        (["--resource", "gpu"], 2, "NAME=AMOUNT"),
        (["--resource", "gpu=-1"], 1, "gpu"),
    ],
)
def test_what_run_refuses(file, args, code, text):
    refused(run("run", file(MEANS), *args), code, text)


def test_lines_of_ours_are_no_place_of_an_error(file):
    source = """
        import handoff_actors as handoff
        numbers = (n for n in range(3))
        dag = handoff.new("d").add_function(handoff.Function("a", (), lambda: next(numbers)))
        """
    result = run("run", file(source), "--isolation", "process")
    refused(result, 1, "cannot pickle 'generator' object")
    assert ".py, line" not in result.stderr


def test_a_run_that_takes_too_long_ends(file):
    path = file(
        """
        import threading
        import handoff_actors as handoff
        dag = handoff.new("long")

        @dag.function
        def wait():
            while not handoff.current().cancelled():
                threading.Event().wait(0.01)
        """
    )
    refused(run("run", path, "--timeout", "0.2"), 1, "did not end within 0.2 s")


def test_a_resource_can_be_offered(file):
    path = file(
        """
        import handoff_actors as handoff
        dag = handoff.new("costly")
        dag.add_function(handoff.Function("a", (), lambda: 1, cost={"gpu": 1}))
        """
    )
    refused(run("run", path), 1, "gpu=1")
    assert run("run", path, "--resource", "gpu=1").stdout == "a = 1\n"


# Finding the DAG.


TWO = """
    import handoff_actors as handoff
    one, two = handoff.new("1"), handoff.new("2")
    one.add_function(handoff.Function("a", (), lambda: 1))
    two.add_function(handoff.Function("b", (), lambda: 2))
"""


def test_more_than_one_dag_asks_which(file):
    path = file(TWO)
    refused(run("run", path), 2, r"has 2 DAGs, say which: .*:one, .*:two")
    assert run("run", f"{path}:two").stdout == "b = 2\n"


def test_on_a_terminal_it_asks(file, monkeypatch):
    from handoff_actors.cli import loading

    path = file(TWO)
    monkeypatch.setattr(loading, "_interactive", lambda: True)
    result = CliRunner().invoke(handoff, ["run", path], input="three\ntwo\n", prog_name="handoff")
    assert result.exit_code == 0, result.output
    assert result.stdout == "b = 2\n"
    assert "one, two" in result.stderr


@pytest.mark.parametrize(
    "source",
    [
        "def build(n=1) -> handoff.DAG:\n    return handoff.new().add_function(one)",
        "def build() -> 'handoff.DAG':\n    return handoff.new().add_function(one)",
        "def build():\n    return handoff.new().add_function(one)",
        "from handoff_actors import DAG\ndef build():\n    return DAG().add_function(one)",
        "def build(): return dag\ndag = handoff.new().add_function(one)\nsame = dag",
        "def _hidden(): return handoff.DAG()\ndef build(): return handoff.DAG().add_function(one)",
        "def main():\n    handoff.execute(1)\ndef build(): return handoff.new().add_function(one)",
        "if __name__ == '__main__':\n    raise SystemExit\ndag = handoff.new().add_function(one)",
    ],
)
def test_a_dag_is_found(file, source):
    head = "import handoff_actors as handoff\none = handoff.Function('a', (), lambda: 1)\n"
    result = run("run", file(head + source, "found.py"))
    assert (result.exit_code, result.stdout) == (0, "a = 1\n"), result.output


@pytest.mark.parametrize(
    ("source", "name", "code", "text"),
    [
        ("", "", 2, "has no DAG"),
        ("def build(n): return n", ":build", 2, "needs arguments"),
        ("def build(): return 1", ":build", 2, "returned 1, and no DAG"),
        ("x = 1", ":x", 2, "is a int"),
        ("import handoff_actors\nd = handoff_actors.DAG()", ":y", 2, "has no 'y'; its DAGs: d"),
        ("1 / 0", "", 1, r"ZeroDivisionError: division by zero \(.*, line 1\)"),
        ("import nothing_like_it", "", 1, "No module named 'nothing_like_it'"),
        ("x = 1\ndef f(:", "", 1, r"SyntaxError: invalid syntax \(\S*odd.py, line 2\)$"),
        ("raise SystemExit(3)", "", 1, r"SystemExit\(3\)"),
        ("def build(): 1 / 0", ":build", 1, "ZeroDivisionError"),
        ("import handoff_actors as h\nd = h.DAG()\nd.add_function(h.Function('a', ['b'], abs))",
         "", 1, "'b'"),
    ],
)  # fmt: skip
def test_what_is_no_dag(file, source, name, code, text):
    refused(run("check", file(source, "odd.py") + name), code, text)


@pytest.mark.parametrize(
    "target", ["nothing.py", "nothing_like_it", "json.nothing", "no file:x", "."]
)
def test_what_is_not_there(file, target):
    refused(run("check", target), 2, "Error: ")


def test_a_file_whose_name_is_taken_or_no_name(file):
    """Its functions reach worker processes all the same."""
    for name in ("json.py", "my-dag.py", "deep/er/pkg/dags.py"):
        result = run("run", file(MEANS, name), "--input", "n=3")
        assert result.stdout == "mean = 1.0\n", result.output
    assert json.loads("1") == 1


def test_a_script_that_runs_its_dag_itself_is_not_run_by_worker_processes(file, tmp_path):
    path = file(
        """
        import handoff_actors as handoff

        dag = handoff.new("itself")

        @dag.function(isolation="process")
        def a():
            return helper()

        def helper():
            return 1

        with open("loads", "a") as loads:
            loads.write("x")
        with handoff.start() as runtime:
            print(runtime.execute(dag, timeout=30).results["a"])
        """,
        "script.py",
    )
    done = subprocess.run(
        [sys.executable, "-m", "handoff_actors", "run", path],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "1\na = 1\n"), done.stderr
    assert (tmp_path / "loads").read_text() == "x"


def test_a_file_of_a_package_may_import_relatively(file):
    file("", "pkg/__init__.py")
    file("N = 3", "pkg/numbers.py")
    path = file("from .numbers import N\nimport handoff_actors as h\n"
                "dag = h.DAG().add_function(h.Function('n', (), lambda: N, isolation='process'))",
                "pkg/dags.py")  # fmt: skip
    assert run("run", path).stdout == "n = 3\n"
    assert run("run", "pkg.dags").stdout == "n = 3\n"


# graph and check


def test_graph_prints_each_format(file):
    path = file(MEANS)
    assert run("graph", path).stdout.startswith("flowchart TD\n")
    assert run("graph", path, "--format", "dot").stdout.startswith("digraph {\n")
    svg = ElementTree.fromstring(run("graph", path, "--format", "svg").stdout)
    assert svg.tag.endswith("svg")
    assert run("graph", path, "--format", "png").exit_code == 2


def test_check_describes_the_plan(file):
    result = run("check", file(MEANS))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "'means': 3 functions, 1 input"
    assert lines[1] == "plan: 3 levels, 4 edges"
    assert "critical path: 3 functions (numbers → total → mean)" in lines
    assert lines[-1] == "it can be run here"


def test_check_finds_what_cannot_be_run(file):
    path = file(
        """
        import threading
        import handoff_actors as handoff
        dag = handoff.new("odd")
        locks = [threading.Lock()]
        dag.add_function(handoff.Function("a", (), lambda: 1, cost={"gpu": 2}))
        dag.add_function(handoff.Function("b", (), id, extra_args=locks, isolation="process"))
        dag.add_function(handoff.Function("c", (), lambda: 1, node="elsewhere", cost={"x": 9}))
        """
    )
    result = run("check", path)
    assert result.exit_code == 1
    assert "function 'a' needs gpu=2, and this machine has 0" in result.stderr
    assert "'b'" in result.stderr
    assert "pinned to nodes: elsewhere (not checked)" in result.stdout
    assert "gpu" not in run("check", path, "--resource", "gpu=2").stderr


# completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell):
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_HANDOFF_COMPLETE" in result.stdout


def test_completion_knows_the_shell_in_use(monkeypatch):
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert run("completion").stdout == run("completion", "fish").stdout
    monkeypatch.setenv("SHELL", "/bin/odd")
    assert run("completion").exit_code == 2


def test_the_shell_completes_commands():
    done = subprocess.run(
        [sys.executable, "-c", "from handoff_actors.cli import main; main()"],
        env={**os.environ, "_HANDOFF_COMPLETE": "bash_complete", "COMP_WORDS": "handoff r",
             "COMP_CWORD": "1"},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["plain,run"]


# explain


def test_each_error_is_explained():
    import handoff_actors
    from handoff_actors.cli.explain import sections

    bases = {"HandoffError", "InvalidDAGError", "ExecutionError", "NodeError", "ActorError",
             "PipelineError"}  # fmt: skip
    errors = {n for n in handoff_actors.__all__ if n.endswith("Error")}
    assert set(sections()) == errors - bases
    for name, text in sections().items():
        assert "*Do:*" in text, name


@pytest.mark.parametrize(
    "name", ["FunctionCrashedError", "functioncrashed", "handoff_actors.FunctionCrashedError"]
)
def test_explain_tells_what_to_do(name):
    result = run("explain", name)
    assert result.exit_code == 0
    assert result.stdout.startswith("FunctionCrashedError\n\nIts worker process died under it")
    assert "\nDo: " in result.stdout


def test_explain_finds_what_is_meant():
    refused(run("explain", "crash"), 2, "one of FunctionCrashedError, ActorCrashedError?")
    assert run("explain", "FunctionCrash").stdout.startswith("FunctionCrashedError\n")
    assert run("explain", "SerialisationError").stdout.startswith("SerializationError\n")


def test_explain_lists_what_there_is():
    assert "AllocationError" in run("explain").stdout.splitlines()
    refused(run("explain", "Nothing"), 2, "there is no error Nothing; there are NotStartedError")


def test_errors_name_the_command_that_explains_them():
    import pickle
    import traceback

    import handoff_actors

    class Mine(handoff_actors.AllocationError):
        pass

    error = pickle.loads(pickle.dumps(handoff_actors.NodeDownError("gone", node="n")))
    assert error.__notes__ == ["What to do: handoff explain NodeDownError"]
    text = "".join(traceback.format_exception(Mine("no room")))
    assert text.endswith("Mine: no room\nWhat to do: handoff explain AllocationError\n")

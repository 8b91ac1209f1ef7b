"""``progress=``: callables and the bar, from the first function to the end of the run."""

from __future__ import annotations

import gc
import io
import re
import sys
import threading
import weakref

import pytest

import handoff_actors as handoff
from handoff_actors.progress import terminal as screens

DEADLINE = 20.0


@pytest.fixture
def runtime():
    with handoff.Runtime() as runtime:
        yield runtime


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


class Seen:
    """Keeps what it is called with, and says when the run has ended."""

    def __init__(self):
        self.all = []
        self.threads = set()
        self.ended = threading.Event()

    def __call__(self, progress):
        self.all.append(progress)
        self.threads.add(threading.current_thread().name)
        if progress.state != "running":
            self.ended.set()


def chain(n, code=lambda *_: None, id=None):
    dag = handoff.new(id)
    for i in range(n):
        dag.add_function(handoff.Function(i, [i - 1] if i else (), code))
    return dag


def no_subscription(runtime, eventually):
    eventually(lambda: not runtime.events.active)


def test_a_callable_follows_a_run_to_its_end(runtime, eventually):
    seen = Seen()
    runtime.execute(chain(100), progress=seen)
    assert seen.ended.wait(DEADLINE)
    no_subscription(runtime, eventually)
    finished = [p.finished for p in seen.all]
    assert finished == sorted(finished)
    assert seen.all[-1] == handoff.Progress(total=100, finished=100, state="succeeded")
    assert {p.total for p in seen.all} == {100}
    assert seen.threads == {"handoff-events"}
    assert [p for p in seen.all if p.state == "succeeded"][-1] is seen.all[-1]


def test_it_is_called_while_the_run_goes_on(runtime):
    go_on = threading.Event()
    half = threading.Event()
    dag = handoff.new()
    dag.add_function(handoff.Function("first", (), lambda: None))
    dag.add_function(handoff.Function("second", ["first"], lambda _: go_on.wait(DEADLINE)))
    run = runtime.submit(dag, progress=lambda p: p.finished == 1 and half.set())
    try:
        assert half.wait(DEADLINE)
        assert not run.done()
    finally:
        go_on.set()
    assert run.result(DEADLINE).results["second"] is True


def test_a_failed_run_ends_as_failed(runtime, eventually):
    def fail(*_):
        raise RuntimeError

    seen = Seen()
    with pytest.raises(handoff.FunctionFailedError):
        runtime.execute(chain(3, fail), max_retries=0, progress=seen)
    assert seen.ended.wait(DEADLINE)
    assert seen.all[-1] == handoff.Progress(3, 0, "failed")
    no_subscription(runtime, eventually)


def test_a_cancelled_run_ends_as_cancelled(runtime, eventually):
    go_on = threading.Event()
    seen = Seen()
    run = runtime.submit(chain(2, lambda *_: go_on.wait(DEADLINE)), progress=seen)
    try:
        assert run.cancel()
        assert seen.ended.wait(DEADLINE)
    finally:
        go_on.set()
    assert seen.all[-1].state == "cancelled"
    no_subscription(runtime, eventually)


def test_a_runtime_that_stops_ends_it():
    go_on = threading.Event()
    began = threading.Event()

    def wait(*_):
        began.set()
        go_on.wait(DEADLINE)

    seen = Seen()
    runtime = handoff.Runtime(shutdown_timeout=0.2).start()
    try:
        runtime.submit(chain(1, wait), progress=seen)
        assert began.wait(DEADLINE)
    finally:
        runtime.stop()
        go_on.set()
    assert seen.ended.wait(DEADLINE)
    assert seen.all[-1].state == "cancelled"


def test_a_refused_run_leaves_no_subscription(runtime, eventually):
    go_on = threading.Event()
    run = runtime.submit(chain(1, lambda *_: go_on.wait(DEADLINE), id="one"))
    try:
        with pytest.raises(handoff.AlreadyRunningError):
            runtime.submit(chain(1, id="one"), progress=Seen())
        with pytest.raises(handoff.AlreadyRunningError):
            runtime.execute(chain(1, id="one"), progress=Seen())
        no_subscription(runtime, eventually)
    finally:
        go_on.set()
    run.result(DEADLINE)


def test_runs_are_told_apart(runtime):
    go_on = threading.Event()
    first, second = Seen(), Seen()
    waiting = runtime.submit(chain(1, lambda *_: go_on.wait(DEADLINE), id="a"), progress=first)
    try:
        runtime.execute(chain(50, id="b"), progress=second)
        assert second.ended.wait(DEADLINE)
        assert first.all == []
    finally:
        go_on.set()
    waiting.result(DEADLINE)
    assert first.ended.wait(DEADLINE)
    assert {p.total for p in first.all} == {1}
    assert {p.total for p in second.all} == {50}


def test_a_callable_that_raises_harms_nobody(runtime, eventually):
    def fail(_):
        raise RuntimeError

    assert len(runtime.execute(chain(5), progress=fail).results) == 5
    no_subscription(runtime, eventually)


def test_a_synchronous_run_is_followed(runtime, eventually):
    seen = Seen()
    runtime.execute(chain(5), synchronous=True, progress=seen)
    assert seen.ended.wait(DEADLINE)
    assert seen.all[-1] == handoff.Progress(5, 5, "succeeded")
    no_subscription(runtime, eventually)


@pytest.mark.parametrize("wrong", ["bar", 1, object()])
def test_what_is_no_progress_is_refused(runtime, wrong):
    with pytest.raises(handoff.ConfigurationError, match="progress must be True or a callable"):
        runtime.execute(chain(1), progress=wrong)
    assert not runtime.events.active


def test_the_run_is_not_kept_alive(runtime, eventually):
    seen = Seen()
    run = runtime.submit(chain(3), progress=seen)
    run.result(DEADLINE)
    assert seen.ended.wait(DEADLINE)
    no_subscription(runtime, eventually)
    # The runtime forgets the run in its own time; the cycle collector must not be needed.
    gc.disable()
    try:
        gone = weakref.ref(run)
        del run
        eventually(lambda: gone() is None)
    finally:
        gc.enable()


def test_no_terminal_no_bar(runtime, capsys):
    runtime.execute(chain(3), progress=True)
    assert not runtime.events.active
    assert capsys.readouterr() == ("", "")


def test_the_bar_on_a_terminal(runtime, eventually, monkeypatch):
    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("TERM", "xterm-256color")
    before = set(threading.enumerate())
    go_on = threading.Event()
    waits = lambda *_: go_on.wait(DEADLINE)  # noqa: E731
    runs = [runtime.submit(chain(n, waits, id=f"run [red] {n}"), progress=True) for n in (40, 60)]
    try:
        eventually(lambda: "0/60" in stderr.getvalue())
    finally:
        go_on.set()
    for run in runs:
        run.result(DEADLINE)
    no_subscription(runtime, eventually)
    eventually(lambda: not screens.screen.active)
    drawn = stderr.getvalue()
    assert "run [red] 40" in drawn  # an id is no markup
    assert "40/40" in drawn
    assert "60/60" in drawn
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")  # the cursor is back
    mine = {t for t in threading.enumerate() if t.name.startswith("handoff")}
    eventually(lambda: set(threading.enumerate()) <= before | mine)


def test_a_run_that_is_over_at_once_leaves_its_last_line(runtime, eventually, monkeypatch):
    """Nothing was drawn for it, nor is a display told of each function."""
    stderr, following = Terminal(), []
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(screens.ticker, "add", lambda _: None)
    dag = chain(3, lambda *_: following.append(runtime.events.following), id="short")
    runtime.execute(dag, progress=True)
    no_subscription(runtime, eventually)
    written = stderr.getvalue()
    assert "\x1b[?25l" not in written
    lines = seen(written)
    assert lines[0].startswith("short")
    assert lines[0].endswith("3/3 succeeded")
    assert lines[1].startswith("succeeded: 3/3 functions in ")
    assert following == [False] * 3


def test_the_bar_says_how_a_run_failed(runtime, eventually, monkeypatch):
    def fail(*_):
        raise RuntimeError

    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("TERM", "xterm-256color")
    with pytest.raises(handoff.FunctionFailedError):
        runtime.execute(chain(3, fail), max_retries=0, progress=True)
    no_subscription(runtime, eventually)
    assert "failed" in stderr.getvalue()


def test_output_into_a_file_stays_there(runtime, eventually, monkeypatch):
    stderr, stdout = Terminal(), io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setattr("sys.stdout", stdout)
    monkeypatch.setenv("TERM", "xterm-256color")

    def write(*_):
        eventually(lambda: "\x1b[?25l" in stderr.getvalue())
        print("a row of data")

    runtime.execute(chain(2, write), progress=True)
    no_subscription(runtime, eventually)
    assert stdout.getvalue() == "a row of data\n" * 2
    assert "a row of data" not in stderr.getvalue()


def test_the_screen_says_what_runs_and_what_went_wrong(runtime, eventually, monkeypatch):
    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("TERM", "xterm-256color")
    go_on = threading.Event()

    def flaky():
        if handoff.current().attempt == 1:
            raise ValueError("no [answer]")
        go_on.wait(DEADLINE)

    dag = handoff.new("one [bold]")
    dag.add_function(handoff.Function("flaky [red]", (), flaky))
    run = runtime.submit(dag, progress=True)
    try:
        eventually(lambda: "attempt 2" in stderr.getvalue())
    finally:
        go_on.set()
    run.result(DEADLINE)
    no_subscription(runtime, eventually)
    drawn = stderr.getvalue()
    assert "flaky [red]: attempt 1 failed, again at once: ValueError('no [answer]')" in drawn
    assert "1 running, 0 ready, 0 waiting, 1 attempt failed" in drawn
    assert "succeeded: 1/1 functions in " in drawn
    eventually(lambda: "handoff-progress" not in {t.name for t in threading.enumerate()})


def test_execute_returns_when_the_display_has_ended(runtime, eventually, monkeypatch):
    """Or what the caller prints next is drawn over."""
    order, remove = [], screens.Screen.remove

    def slowly(screen, bar):
        threading.Event().wait(0.1)
        remove(screen, bar)
        order.append("the display has ended")

    monkeypatch.setattr(screens.Screen, "remove", slowly)
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")
    runtime.execute(chain(2), progress=True)
    order.append("the caller goes on")
    no_subscription(runtime, eventually)
    assert order == ["the display has ended", "the caller goes on"]


def seen(written):
    """The lines that a terminal shows after this was written to it."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[[?0-9;]*[A-Za-z]|\n|\r)", written):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif match := re.fullmatch(r"\x1b\[(\d*)([AK])", part):
            if match[2] == "A":
                row = max(0, row - int(match[1] or 1))
            else:
                lines[row] = ""
        elif part and part != "\r" and not part.startswith("\x1b"):
            lines[row] += part
    return [line.strip() for line in lines if line.strip()]


def test_when_a_run_is_over_only_its_last_lines_are_on_the_terminal(
    runtime, eventually, monkeypatch
):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    begun, go_on = threading.Event(), threading.Event()
    dag = chain(3, lambda *_: begun.set() or go_on.wait(DEADLINE), id="seen")
    run = runtime.submit(dag, progress=True)
    try:
        assert begun.wait(DEADLINE)
        eventually(lambda: "0/3" in " ".join(seen(terminal.getvalue())))
        eventually(lambda: "1 running" in " ".join(seen(terminal.getvalue())))
    finally:
        go_on.set()
    run.result(DEADLINE)
    no_subscription(runtime, eventually)
    print("the result")
    lines = seen(terminal.getvalue())
    assert lines[0].startswith("seen")
    assert lines[0].endswith("3/3 succeeded")
    assert lines[1].startswith("succeeded: 3/3 functions in ")
    assert lines[2:] == ["the result"]


def test_a_log_gets_plain_lines(runtime, eventually, monkeypatch, tmp_path):
    from handoff_actors.progress import lines

    monkeypatch.setattr(lines, "_FIRST", 0.01)
    go_on = threading.Event()

    def fail():
        if handoff.current().attempt == 1:
            raise ValueError("no answer")

    dag = chain(3, id="logged")
    dag.add_function(handoff.Function("fails", (), fail))
    dag.add_function(handoff.Function("waits", (), lambda: go_on.wait(DEADLINE)))
    with open(tmp_path / "log", "w") as log:
        monkeypatch.setattr("sys.stderr", log)
        run = runtime.submit(dag, progress=True)
        try:
            eventually(lambda: "4/5 (80 %)" in (tmp_path / "log").read_text())
        finally:
            go_on.set()
        run.result(DEADLINE)
        no_subscription(runtime, eventually)
        monkeypatch.undo()
    said = (tmp_path / "log").read_text().splitlines()
    assert all(line.startswith("handoff logged: ") for line in said)
    assert "handoff logged: fails: attempt 1 failed, again at once: ValueError('no answer')" in said
    assert "1 running, 0 ready, 0 waiting" in " ".join(said)
    assert said[-1].startswith("handoff logged: succeeded: 5/5 functions in ")


def test_many_failures_do_not_flood_a_log(runtime, eventually, monkeypatch, tmp_path):
    def fail():
        if handoff.current().attempt == 1:
            raise ValueError

    dag = handoff.new("flood")
    for i in range(200):
        dag.add_function(handoff.Function(i, (), fail))
    with open(tmp_path / "log", "w") as log:
        monkeypatch.setattr("sys.stderr", log)
        runtime.execute(dag, progress=True)
        no_subscription(runtime, eventually)
        monkeypatch.undo()
    said = (tmp_path / "log").read_text().splitlines()
    assert len(said) == 22
    assert said[-2] == "handoff flood: 180 more like these"


def test_a_log_that_is_closed_harms_nobody(runtime, eventually, monkeypatch, tmp_path):
    with open(tmp_path / "log", "w") as log:
        monkeypatch.setattr("sys.stderr", log)
        go_on = threading.Event()
        run = runtime.submit(chain(1, lambda: go_on.wait(DEADLINE)), progress=True)
        monkeypatch.undo()
    go_on.set()
    assert run.result(DEADLINE).results[0] is True
    no_subscription(runtime, eventually)


def test_a_notebook_gets_an_output_that_is_updated(runtime, eventually, monkeypatch):
    from types import ModuleType, SimpleNamespace

    shown = []

    class ZMQInteractiveShell:
        pass

    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = ZMQInteractiveShell
    display.HTML = str
    display.display = lambda html, **_: shown.append(html) or SimpleNamespace(update=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)

    def fail():
        if handoff.current().attempt == 1:
            raise ValueError("<no answer>")

    dag = chain(2, id="<cell>")
    dag.add_function(handoff.Function("fails", (), fail))
    runtime.execute(dag, progress=True)
    no_subscription(runtime, eventually)
    assert "0/3" in shown[0]
    assert "width:100%" in shown[-1]
    assert "<b>&lt;cell&gt;</b> 3/3" in shown[-1]
    assert "ValueError(&#x27;&lt;no answer&gt;&#x27;)" in shown[-1]
    eventually(lambda: "handoff-progress" not in {t.name for t in threading.enumerate()})

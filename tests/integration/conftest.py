"""Fixtures for tests of whole runtimes: all is stopped afterwards, and nothing may be left."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import handoff_actors as handoff
from handoff_actors.testing import Leaks
from tests.cluster_in_process import Net
from tests.functions import Gate

ROOT = Path(__file__).parents[2]


@pytest.fixture
def leaks(handoff_leaks: Leaks) -> Leaks:
    """Afterwards no thread, process or descriptor may be there that was not before."""
    return handoff_leaks


@pytest.fixture
def make_runtime(leaks: Leaks) -> Iterator[Callable[..., handoff.Runtime]]:
    """Makes started runtimes; all are stopped at the end, and must leave nothing."""
    made: list[handoff.Runtime] = []

    def make(**options: Any) -> handoff.Runtime:
        options.setdefault("shutdown_timeout", 2.0)
        runtime = handoff.Runtime(**options)
        made.append(runtime)
        return runtime.start()

    yield make
    for runtime in made:
        runtime.stop()


@pytest.fixture
def runtime(make_runtime: Callable[..., handoff.Runtime]) -> handoff.Runtime:
    """A runtime with two cpus and 1000 MB, whatever the machine has."""
    return make_runtime(capabilities={"cpu": 2, "memory": 1000})


@pytest.fixture
def default(leaks: Leaks) -> Iterator[Any]:
    """The library, with its default runtime stopped before and after."""
    handoff.stop()
    yield handoff
    handoff.stop()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A function that waits to be let go, as it is at the end at the latest."""
    made = Gate()
    yield made
    made.open.set()


@pytest.fixture
def together() -> Callable[..., list[Any]]:
    """Runs callables at once, each on a daemon thread; their values, or the first error.

    A caller that is left hanging fails the test instead of hanging it too.
    """

    def run(calls: Iterable[Callable[[], Any]], timeout: float = 20.0) -> list[Any]:
        futures = [spawn(call) for call in calls]
        return [future.result(timeout) for future in futures]

    return run


def spawn(call: Callable[[], Any]) -> concurrent.futures.Future[Any]:
    """Runs ``call`` on a daemon thread."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name="test-caller").start()
    return future


@pytest.fixture(name="spawn")
def _spawn() -> Callable[[Callable[[], Any]], concurrent.futures.Future[Any]]:
    """``spawn``."""
    return spawn


@pytest.fixture
def claims_at_zero(eventually: Callable[..., None]) -> Callable[[handoff.Runtime], None]:
    """Waits until a runtime holds no claim, and all it offers is free."""

    def check(runtime: handoff.Runtime) -> None:
        eventually(lambda: not runtime.status().claims, 10.0)
        info = runtime.node_info()
        assert dict(info.available) == dict(info.capabilities)

    return check


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a source as a script of its own, without main guard; returns how it ended."""

    def run(
        source: str, *, timeout: float = 30.0, args: tuple[str, ...] = (), check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *args, str(write(source))],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment(),
            stdin=subprocess.DEVNULL,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def write(source: str) -> Path:
        path = tmp_path / f"script_{len(list(tmp_path.iterdir()))}.py"
        path.write_text(textwrap.dedent(source))
        return path

    run.write = write  # type: ignore[attr-defined]
    return run


@pytest.fixture
def popen(script: Any, leaks: Leaks) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a source as a script of its own, to talk to; killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(script.write(source))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def environment() -> dict[str, str]:
    """What scripts are started with: this checkout is importable."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Reads the metrics of runtimes that are instrumented; skips where OpenTelemetry is not."""
    sdk = pytest.importorskip("opentelemetry.sdk.metrics")
    export = pytest.importorskip("opentelemetry.sdk.metrics.export")
    from handoff_actors import telemetry

    made = export.InMemoryMetricReader()
    provider = sdk.MeterProvider([made])
    monkeypatch.setattr(telemetry.metrics, "get_meter", provider.get_meter)
    yield made
    provider.shutdown()


@pytest.fixture
def net(leaks: Leaks) -> Iterator[Net]:
    """The network of nodes that share this process."""
    made = Net()
    yield made
    made.close()


@pytest.fixture
def nodes(
    net: Net, make_runtime: Callable[..., handoff.Runtime]
) -> Callable[..., list[handoff.Runtime]]:
    """Makes nodes of a cluster, by name: ``nodes("a", "b")``; capabilities may be given."""

    def make(*names: str, **options: Any) -> list[handoff.Runtime]:
        runtimes = []
        for name in names:
            fields = {"capabilities": {"cpu": 2}, **options}
            runtime = make_runtime(name=name, **fields)
            net.node(name, runtime._serve_cluster)
            runtimes.append(runtime)
        return runtimes

    return make

"""What watching costs: progress, events, logs and metrics on 10,000 functions that do nothing.

A run that is watched counts until all has been told, which is a little after its caller has the
answer. What it costs while nobody watches is measured against a runner that tells nobody.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from handoff_actors import DAG, Function, Runtime
from handoff_actors.execution import runner
from tests.benchmarks.report import Row, Target, quantile


def nothing() -> None:
    """No work."""


def face(quick: bool) -> Iterator[Row]:
    """Each kind of watching in turn with not watching, so that both see the same machine."""
    n = 1000 if quick else 10_000
    rounds = 3 if quick else 15
    dag = DAG("watched")
    for i in range(n):
        dag.add_function(Function(i, (), nothing))
    watching: dict[str, Callable[[Runtime], Any]] = {
        "nobody": lambda _: None,
        "events": lambda runtime: runtime.subscribe(_seen),
        "progress, a terminal": lambda _: _progress(_Terminal()),
        "progress, a log": lambda _: _progress(_Log()),
        "logs": lambda _: _logs(),
    }
    if importlib.util.find_spec("opentelemetry") is not None:
        watching["metrics and traces"] = _telemetry
    with Runtime() as runtime:
        _run(runtime, dag, None)
        for name, begin in watching.items():
            on: list[float] = []
            off: list[float] = []
            for _ in range(rounds):
                with _dumb() if name == "nobody" else contextlib.nullcontext():
                    off.append(_run(runtime, dag, None))
                watch = begin(runtime)
                on.append(_run(runtime, dag, watch))
            ours, floor = quantile(on, 0.25) / n, quantile(off, 0.25) / n
            against = "a runner that tells nobody" if name == "nobody" else "nobody watching"
            target = Target(1.02 if name == "nobody" else 1.3)
            note = f"{n:,} functions, against {against}"
            yield Row(f"watched by {name}", ours, floor, target, "µs", note, (on, off))


def _run(runtime: Runtime, dag: DAG, watch: Any) -> float:
    gc.collect()
    with watch if watch is not None else contextlib.nullcontext():
        progress = isinstance(watch, _progress)
        began = perf_counter()
        result = runtime.execute(dag, progress=progress or None)
        runtime.events.flush()
        took = perf_counter() - began
        result.release()
    return took


@contextlib.contextmanager
def _dumb() -> Iterator[None]:
    """A runner without the place where it looks whether anybody watches."""
    announce = runner.announce  # type: ignore[attr-defined]
    runner.announce = lambda *_: None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        runner.announce = announce  # type: ignore[attr-defined]


_count = 0


def _seen(_event: object) -> None:
    global _count
    _count += 1


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Log(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed with its owner

    def fileno(self) -> int:
        return self._file.fileno()


class _progress(contextlib.AbstractContextManager[None]):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        self._before, sys.stderr = sys.stderr, self._stream

    def __exit__(self, *_: object) -> None:
        sys.stderr = self._before


@contextlib.contextmanager
def _logs() -> Iterator[None]:
    root, handler = logging.getLogger(), logging.StreamHandler(io.StringIO())
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


@contextlib.contextmanager
def _telemetry(runtime: Runtime) -> Iterator[None]:
    from handoff_actors import telemetry

    with contextlib.suppress(ImportError):
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.trace import TracerProvider

        if type(metrics.get_meter_provider()).__name__ != "MeterProvider":
            metrics.set_meter_provider(MeterProvider())
            trace.set_tracer_provider(TracerProvider())
    telemetry.instrument(runtime)
    try:
        yield
    finally:
        assert runtime.telemetry is not None
        runtime.telemetry.close()
        runtime.telemetry = None

"""Programs of their own that tests talk to: what they print is kept, and can be waited for."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from tests.integration.conftest import environment

_END = "<end>"


class Program:
    """A process whose lines, of both outputs, are kept as they come.

    Args:
        argv: what to run.
        more: added to its environment.
    """

    def __init__(self, argv: Sequence[str], more: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            argv,
            env={**environment(), **(more or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._came:
                self.lines.append(line.rstrip())
                self._came.notify_all()
        with self._came:
            self.lines.append(_END)
            self._came.notify_all()

    def wait_for(self, pattern: str, timeout: float = 30.0, times: int = 1) -> re.Match[str]:
        """The line in which ``pattern`` is found for the ``times``th time, once it is there."""

        def found() -> Any:
            matches = filter(None, (re.search(pattern, line) for line in self.lines))
            return next((m for n, m in enumerate(matches, 1) if n == times), None)

        with self._came:
            assert self._came.wait_for(lambda: found() or _END in self.lines, timeout), self.lines
            match = found()
        assert match, (pattern, self.lines)
        return match

    def tell(self, line: str = "") -> None:
        """Give it a line to read."""
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue

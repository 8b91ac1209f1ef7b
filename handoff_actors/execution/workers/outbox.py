"""The outcomes of a worker process on their way to its parent.

Any thread of the process puts outcomes in; they are sent in batches. Guarantees that a value is
pickled on the thread whose function made it, when it was made, and that what cannot be pickled or
told becomes an error that can: an outcome is never lost.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import deque
from time import perf_counter as clock
from typing import Any

from handoff_actors.cluster.framing import Slots, send_frame
from handoff_actors.cluster.payload import Payload, dumps
from handoff_actors.cluster.remote_errors import dump_exception
from handoff_actors.errors import SerializationError, describe
from handoff_actors.execution.workers.attempts import Batch

PLAIN_VALUE, PICKLED_VALUE, PICKLED_ERROR = range(3)


class Outbox:
    """See the module.

    Args:
        sock: where outcomes go.

    Attributes:
        rows: the outcomes that were not sent yet: token, value, started, ended, and what the value
            is; plain values may be appended by anyone.
        flushed: when some were last sent, by ``time.perf_counter()``.
    """

    __slots__ = ("_lock", "_sock", "flushed", "rows")

    def __init__(self, sock: socket.socket) -> None:
        self.rows: deque[tuple[int, Any, float, float, int]] = deque()
        self.flushed = 0.0
        self._sock = sock
        self._lock = threading.Lock()

    def value(self, batch: Batch, index: int, token: int, value: Any, started: float) -> None:
        """An attempt has a result."""
        ended = clock()
        try:
            payload = dumps(value, f"result of function {describe(batch.function_id(index))}")
        except BaseException as error:
            self.error(batch, index, token, error, started)
        else:
            self.rows.append((token, payload, started, ended, PICKLED_VALUE))

    def error(
        self, batch: Batch, index: int, token: int, error: BaseException, started: float
    ) -> None:
        """An attempt raised."""
        ended = clock()
        if isinstance(error, SerializationError) and getattr(error, "function_id", None) is None:
            with contextlib.suppress(BaseException):  # the ids are the user's objects
                error.function_id = batch.function_id(index)
                error.dag_id = batch.dag_id()
        payload = _dump_error(error)
        error.__traceback__ = None  # its frames hold the arguments
        self.rows.append((token, payload, started, ended, PICKLED_ERROR))

    def flush(self, wait: bool = True) -> None:
        """Send what is there; ends the process when the parent is gone.

        Args:
            wait: also when another thread is at it.
        """
        if not self._lock.acquire(wait):
            return
        try:
            pop = self.rows.popleft
            rows = [pop() for _ in range(len(self.rows))]
            if rows:
                self._send(rows)
                self.flushed = clock()
        except OSError:
            os._exit(1)
        finally:
            self._lock.release()

    def _send(self, rows: list[tuple[int, Any, float, float, int]]) -> None:
        tokens, values, started, ended, kinds = zip(*rows, strict=True)
        if not any(kinds):
            send_frame(self._sock, (tokens, values, started, ended, (), ()))
            return
        slots = Slots()
        pickled: list[tuple[int, int, bool]] = []
        plain = list(values)
        for i, kind in enumerate(kinds):
            if kind:
                pickled.append((i, slots.add(values[i]), kind == PICKLED_VALUE))
                plain[i] = None
        send_frame(self._sock, (tokens, plain, started, ended, pickled, slots.slots), slots.buffers)


def _dump_error(error: BaseException) -> Payload:
    """The error; if not even its text can be had, one that says so."""
    try:
        return dump_exception(error)
    except BaseException as problem:
        problem.__traceback__ = None
        text = f"{type(error).__name__} that could not be sent: {describe(problem)}"
        return dump_exception(RuntimeError(text))

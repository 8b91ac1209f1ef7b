"""The checkpoint of one run: what it begins with, and a thread that writes what comes.

The thread is off everybody's path: whoever commits results appends them to a queue. It pickles and
writes what has gathered in one transaction, again and again, and at the end tells whoever waits
that all of it is in the file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from handoff_actors.checkpoint.file import CheckpointFile, pack
from handoff_actors.checkpoint.keys import keys
from handoff_actors.errors import CheckpointError, SerializationError, describe, text_of
from handoff_actors.events import EventBus, ResultNotKept, log
from handoff_actors.graph.dag import DAG

_MOST = 500
"""Results in one transaction."""
_LETTING_GO = 5.0
"""Seconds that the end of a run may take to write what is left."""


class Keeper:
    """See the module.

    Args:
        path: of the file.
        dag: what is run, validated.
        inputs: the values of its inputs.
        dag_id: the run's, for events.
        ids: the ids of its regular functions by index.
        events: where it tells of results that are not kept.
        resolve: the value itself, for an index and what was put; may block; LookupError when gone.

    Attributes:
        had: indices of the functions whose result the file has.

    Raises:
        CheckpointError: the file is in use, damaged, or none of ours.
        ConfigurationError: it is no path.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        dag: DAG,
        inputs: Mapping[Hashable, Any],
        dag_id: Hashable,
        ids: Sequence[Hashable],
        events: EventBus,
        resolve: Callable[[int, Any], Any],
    ) -> None:
        self._file = CheckpointFile(path)
        self._dag_id = dag_id
        self._ids = ids
        self._events = events
        self._resolve = resolve
        self._queue: SimpleQueue[list[tuple[int, Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closing = False
        self._written = False
        self._then: list[Callable[[], None]] = []
        try:
            found = keys(dag, inputs)
            self._keys = [found.of.get(id_) for id_ in ids]
            for id_, why in found.unknown.items():
                self._not_kept(id_, f"it cannot be known again: {why}; give it version=")
            has = self._file.has(key for key in self._keys if key is not None)
            self.had = {i for i, key in enumerate(self._keys) if key in has}
        except BaseException:
            self._file.close()
            raise
        self._thread = threading.Thread(target=self._run, name="handoff-checkpoint", daemon=True)

    def read(self, indices: Iterable[int]) -> dict[int, Any]:
        """The values of those among ``had``; what cannot be read any more is left out."""
        wanted = {key: i for i in indices if (key := self._keys[i]) is not None}
        return {wanted[key]: value for key, value in self._file.read(wanted).items()}

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def put(self, batch: list[tuple[int, Any]]) -> None:
        """Keep results: index and value. Never blocks."""
        if not self._closing:
            self._queue.put(batch)

    def close(self, then: Callable[[], None] | None = None) -> bool:
        """Write what has come, let go of the file, then call ``then``, on the thread that writes.

        Returns:
            False if that has happened already; then ``then`` is not called.
        """
        with self._lock:
            if self._written:
                return False
            if then is not None:
                self._then.append(then)
            first, self._closing = not self._closing, True
        if first:
            self._queue.put(None)
            if self._thread.ident is None:
                self._run()
        return True

    def let_go(self, path: object) -> None:
        """If this is just letting go of the file at ``path``, wait until it has."""
        if self._closing and str(path) == str(self._file.path):
            self.join(_LETTING_GO)

    def join(self, timeout: float | None = None) -> None:
        """Wait until the file is let go of."""
        if self._thread.ident is not None and threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while self._write_some():
                pass
        except BaseException as error:  # the wall: the run goes on without its checkpoint
            log.error("checkpoint_failed", dag_id=self._dag_id, exc_info=error)
        finally:
            self._closing = True
            self._file.close()
            with self._lock:
                self._written = True
            for then in self._then:
                then()

    def _write_some(self) -> bool:
        """Write what has gathered; False at the end."""
        packed: dict[bytes, tuple[str, bytes]] = {}
        batch = self._queue.get()
        more = batch is not None
        while batch is not None:
            for i, value in batch:
                key = self._keys[i]
                if key is not None:
                    self._pack(packed, i, key, value)
            if len(packed) >= _MOST:
                break
            try:
                batch = self._queue.get_nowait()  # what came while the last ones were written
            except Empty:
                break
            more = batch is not None
        if packed:
            try:
                self._file.write(packed)
            except CheckpointError as error:
                for name in packed.values():
                    self._not_kept(name[0], str(error))
        return more

    def _pack(self, packed: dict[bytes, tuple[str, bytes]], i: int, key: bytes, value: Any) -> None:
        id_ = self._ids[i]
        try:
            value = self._resolve(i, value)
            packed[key] = describe(id_), pack(value, f"result of function {id_!r}")
        except LookupError:
            return  # nobody needed it any more: it was freed where it was
        except SerializationError as error:
            self._not_kept(id_, str(error))
        except Exception as error:  # MemoryError: the run has its value all the same
            self._not_kept(id_, f"{type(error).__name__}: {text_of(error)}")

    def _not_kept(self, id_: Hashable, why: str) -> None:
        log.warning("result_not_kept", dag_id=self._dag_id, function_id=id_, reason=why)
        self._events.publish(ResultNotKept(dag_id=self._dag_id, function_id=id_, reason=why))

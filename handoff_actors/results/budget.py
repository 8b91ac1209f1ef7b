"""How much memory the values of a runtime may take, and what goes to disk when it is more.

    values[i] = value ─▶ counted ─▶ over the limit ─▶ the oldest, not lately used ─▶ a file
    values[i] ◀── read back, counted again ◀── what stands for it is in its place

A run keeps its values in a list; with a limit the list is a ``Kept``, to whose readers a value is
where it always was. Without a limit none of this exists. Guarantees: a value is in memory or
whole in the file, whatever goes wrong with the file; what cannot be pickled stays; whoever makes
values faster than they can be written waits for it (``relieve``), so the limit holds, but for what
functions themselves have in their hands.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

from handoff_actors.cluster.payload import dumps
from handoff_actors.errors import SerializationError, SpillError, describe
from handoff_actors.events import EventBus, Log, SpillFailed
from handoff_actors.results.elsewhere import Elsewhere, Placeholder
from handoff_actors.results.sizes import deep_size_of
from handoff_actors.results.spill_file import Spilled, SpillFile

SMALLEST = 1024
"""Bytes of a value that is counted, at least."""
_TRY_AGAIN = 5.0
"""Seconds until a disk that was full, or broken, is tried again."""


class _Entry:
    """A value that is counted: the ``index``-th of ``kept``."""

    __slots__ = ("guess", "index", "kept", "mark", "size", "spilled")

    def __init__(
        self,
        kept: Kept,
        index: int,
        value: Any,
        size: int,
        guess: int,
        spilled: Spilled | None = None,
    ) -> None:
        self.kept = weakref.ref(kept)
        self.index = index
        self.mark = id(value)
        self.size = size
        self.guess = guess
        self.spilled = spilled  # it is on disk too: it was read back

    def value(self, kept: Kept) -> Any:
        """The value; what stands for one if it is just being replaced."""
        value = kept.peek(self.index)
        return value if id(value) == self.mark else _GONE


_GONE = Placeholder()
_get, _set = list.__getitem__, list.__setitem__


class Kept(list[Any]):
    """Values that count, and of which some may be on disk.

    Args:
        budget: whose.
        values: the first ones.
        new: those from this index on are counted.
        name: what errors call a value.
    """

    __slots__ = ("__weakref__", "_budget", "_counted", "_used", "name", "number")

    def __init__(
        self, budget: Budget, values: Iterable[Any], new: int, name: Callable[[int], str]
    ) -> None:
        super().__init__(values)
        self._budget = budget
        self._used = bytearray(len(self))
        self._counted = bytearray(len(self))
        self.name = name
        self.number = budget.admit(self)
        for index in range(new, len(self)):
            self._count(index, _get(self, index))

    def __getitem__(self, index: Any) -> Any:
        value = _get(self, index)
        if value.__class__ is Spilled:
            try:
                return self._budget.read(self, index, value)
            except SpillError as error:
                del value  # the traceback of an error that is kept must not keep the file
                raise error.with_traceback(None) from error.__cause__
        if index.__class__ is int:
            self._used[index] = 1
        return value

    def __setitem__(self, index: Any, value: Any) -> None:
        _set(self, index, value)
        if isinstance(index, slice):
            for at in range(*index.indices(len(self))):
                self._count(at, _get(self, at))
        else:
            self._count(index, value)

    def _count(self, index: int, value: Any) -> None:
        size, sure = (0, True) if issubclass(type(value), Placeholder) else deep_size_of(value)
        if self._counted[index] or size >= SMALLEST or not sure:
            self._counted[index] = self._budget.count(self, index, value, size, sure)

    def replace(self, index: int, old: Any, new: Any) -> bool:
        """Put ``new`` where ``old`` is, without counting it; False if it is there no more."""
        if _get(self, index) is not old:
            return False
        _set(self, index, new)
        return True

    def empty(self, gone: Any) -> None:
        """Nobody will read what is on disk."""
        for index, value in enumerate(list.__iter__(self)):
            if value.__class__ is Spilled:
                _set(self, index, gone)

    def peek(self, index: int) -> Any:
        """What is in the place of a value: it, or what stands for it."""
        return _get(self, index)

    def counts(self, index: int) -> None:
        """A value that was read back is counted again, as the youngest."""
        self._counted[index], self._used[index] = 1, 0

    def was_used(self, index: int) -> bool:
        """Whether it was read since this was last asked."""
        used, self._used[index] = self._used[index], 0
        return bool(used)

    def __del__(self) -> None:
        # A finalizer may run anywhere: it does nothing but put a number on a queue.
        self._budget.gone.append(self.number)


class Budget:
    """See the module.

    Args:
        limit: bytes.
        directory: where the file is; None is the system's for temporary files.
        run_soon: has a job run on another thread.
        events: where a disk that fails is told of.
        log: the same.

    Attributes:
        over: there is more in memory than there may be, and something can be done about it.
        gone: numbers of lists that are no more.
    """

    def __init__(
        self,
        limit: int,
        directory: str | None,
        run_soon: Callable[[Callable[[], None]], object],
        events: EventBus,
        log: Log,
    ) -> None:
        self.limit = limit
        self.over = False
        self.gone: deque[int] = deque()
        self._directory = directory
        self._run_soon = run_soon
        self._events = events
        self._log = log
        self._lock = threading.Lock()
        self._working = threading.Lock()
        self._numbers = 0
        self._lists: weakref.WeakValueDictionary[int, Kept] = weakref.WeakValueDictionary()
        self._held = 0
        self._stuck = 0
        self._entries: OrderedDict[tuple[int, int], _Entry] = OrderedDict()
        self._unspillable: dict[tuple[int, int], _Entry] = {}
        self._unsure: dict[tuple[int, int], _Entry] = {}
        self._ratios: dict[type, float] = {}
        self._file: SpillFile | None = None
        self._problem: str | None = None
        self._again = 0.0
        self._called = False
        self._closed = False

    def admit(self, kept: Kept) -> int:
        """A list begins; its number."""
        with self._lock:
            self._numbers += 1
            self._lists[self._numbers] = kept
            return self._numbers

    # Counting.

    def count(self, kept: Kept, index: int, value: Any, size: int, sure: bool) -> bool:
        """There is another value in this place.

        Args:
            kept: the list.
            index: the place.
            value: what is there now; what stands for a value is nothing.
            size: about how large it is.
            sure: whether all of it says how large it is.

        Returns:
            Whether it is counted.
        """
        key = (kept.number, index)
        kind = type(value)
        with self._lock:
            self._drop(key)
            guess, ratio = size, 1.0
            if not sure:
                ratio = self._ratios.get(kind, 0.0)
                size = int(size * ratio) if ratio else max(size, SMALLEST)
            counted = size >= SMALLEST and not self._closed
            if counted:
                entry = self._entries[key] = _Entry(kept, index, value, size, guess)
                self._held += size
                if not sure:
                    self._unsure[key] = entry
            self._look()
            if self.over or (self._unsure and (not ratio or 2 * self._held > self.limit)):
                self._call()
        return counted

    def _drop(self, key: tuple[int, int]) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            entry = self._unspillable.pop(key, None)
            if entry is not None:
                self._stuck -= entry.size
        self._unsure.pop(key, None)
        if entry is not None:
            self._held -= entry.size

    def _look(self) -> None:
        """See whether there is too much; the lock is held."""
        if self.gone:
            numbers = {self.gone.popleft() for _ in range(len(self.gone))}
            every = [*self._entries, *self._unspillable]
            for key in [key for key in every if key[0] in numbers]:
                self._drop(key)
        over = self._held > self.limit and bool(self._entries)
        if over and self._problem is not None:
            over = time.monotonic() >= self._again
        self.over = over and not self._closed

    def _call(self) -> None:
        """Have somebody come and see to it; the lock is held."""
        if not self._called and not self._closed:
            self._called = True
            self._run_soon(self._come)

    def _come(self) -> None:
        self._called = False
        self._measure()
        self.relieve()

    # What no class says the size of.

    def _measure(self) -> None:
        """Learn how large those values are whose size was guessed, by pickling them."""
        while not self._closed:
            with self._lock:
                key = next(iter(self._unsure), None)
                entry = None if key is None else self._unsure.pop(key)
            if key is None or entry is None:
                return
            kept = entry.kept()
            value = _GONE if kept is None else entry.value(kept)
            if issubclass(type(value), Placeholder):
                continue
            try:
                size = dumps(value).nbytes
            except (SerializationError, MemoryError):
                continue
            with self._lock:
                if self._entries.get(key) is entry:
                    self._ratios[type(value)] = max(1.0, size / max(1, entry.guess))
                    self._held += size - entry.size
                    entry.size = size
                    self._look()
            del value

    # To disk.

    def relieve(self) -> None:
        """Write values to disk until no more is in memory than may be; blocks."""
        if not self.over:
            return
        with self._working:
            while self.over:
                self._spill_one()

    def _spill_one(self) -> None:
        with self._lock:
            found = self._oldest()
            if found is None:
                self._look()
                return
        key, entry, kept, value = found
        spilled = entry.spilled or self._write(key, entry, kept, value)
        if spilled is None:
            return
        with self._lock:
            if self._entries.get(key) is entry and kept.replace(entry.index, value, spilled):
                self._drop(key)
            self._look()

    def _write(self, key: tuple[int, int], entry: _Entry, kept: Kept, value: Any) -> Spilled | None:
        """Write a value; None if it cannot be pickled, or not be written."""
        what = kept.name(entry.index)
        try:
            payload = dumps(value, what)
        except (SerializationError, MemoryError) as error:
            self._log.warning("value_not_spilled", why=describe(error, 300), bytes=entry.size)
            with self._lock:
                if self._entries.get(key) is entry:
                    self._unspillable[key] = self._entries.pop(key)
                    self._stuck += entry.size
                self._look()
            return None
        try:
            file = self._file or SpillFile(self._directory)
            self._file = None if self._closed else file
            spilled = file.write(payload, what)
        except OSError as error:
            self._failed(error, payload.nbytes)
            return None
        self._problem = None
        return spilled

    def _oldest(self) -> tuple[tuple[int, int], _Entry, Kept, Any] | None:
        """The value that was there longest of those not read lately; the lock is held."""
        for _ in range(2 * len(self._entries)):
            key, entry = next(iter(self._entries.items()))
            kept = entry.kept()
            if kept is None:
                self._drop(key)
            elif kept.was_used(entry.index):
                self._entries.move_to_end(key)
            elif isinstance(value := entry.value(kept), Placeholder):
                self._drop(key)  # it is just being replaced
            else:
                return key, entry, kept, value
            if not self._entries:
                return None
        return None

    def _failed(self, error: OSError, nbytes: int) -> None:
        directory = self._directory or "the system's directory for temporary files"
        with self._lock:
            self._problem = f"{error} (in {directory})"
            self._again = time.monotonic() + _TRY_AGAIN
            self._look()
        self._log.error("spill_failed", error=str(error), directory=directory, bytes=nbytes)
        self._events.publish(SpillFailed(directory=directory, error=str(error), bytes=nbytes))

    # And back.

    def read(self, kept: Kept, index: int, spilled: Spilled) -> Any:
        """A value that is on disk; it is in memory then, for whoever wants it next.

        Raises:
            SpillError: it cannot be read.
        """
        with spilled.lock:
            now = kept.peek(index)
            if not issubclass(type(now), Elsewhere):
                return now  # somebody else has read it meanwhile
            value = spilled.load()
            with self._lock:
                if kept.replace(index, spilled, value) and not self._closed:
                    key, size = (kept.number, index), spilled.nbytes
                    self._drop(key)
                    self._entries[key] = _Entry(kept, index, value, size, size, spilled)
                    self._held += size
                    kept.counts(index)
                self._look()
        self.relieve()
        return value

    # And otherwise.

    def status(self) -> tuple[int, int, int, int, int, str | None]:
        """How much is where: the fields of ``MemoryStatus``."""
        with self._lock:
            self._look()
            file = self._file
        count, spilled = (0, 0) if file is None else file.used()
        return self.limit, self._held, spilled, count, self._stuck, self._problem

    def close(self, held: Iterable[tuple[Any, Any]], gone: Any) -> None:
        """Spill no more. The file is there until nobody can read a value in it.

        Args:
            held: who may read from a list still, and the list.
            gone: what is put in the place of all values that are on disk and cannot be read.
        """
        left: set[int] = set()
        for reader, kept in held:
            left.add(kept.number)
            weakref.finalize(reader, kept.empty, gone).atexit = False
        with self._lock:
            self._closed, self.over = True, False
            for number, kept in list(self._lists.items()):
                if number not in left:
                    kept.empty(gone)
            self._entries.clear()
            self._unsure.clear()
            self._unspillable.clear()
            self._file = None

"""A worker process as its parent sees it.

``send`` and ``receive`` are for whoever has the worker, one thread at a time; everything else may be
called by anyone. Guarantees that what was refused was not sent, that each attempt that was sent
comes back once: as an outcome, as taken back, or lost with the process; and that nothing here
waits for a process that is dead.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple

from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.cluster.remote_errors import dump_exception, load_exception
from handoff_actors.errors import CrashedAttempt, SerializationError, describe
from handoff_actors.execution.workers.child import (
    CANCEL,
    HELLO,
    REPLY,
    REQUEST,
    TAKE,
    TAKEN,
)
from handoff_actors.execution.workers.frames import (
    PLAIN,
    FrameReader,
    Slots,
    payload_of,
    send_frame,
)
from handoff_actors.execution.workers.spawn import Started
from handoff_actors.graph.calls import Call

Values = Mapping[int, Any] | Sequence[Any]
Request = Callable[["ProcessWorker", int, int, str, tuple[Any, ...], dict[str, Any]], None]

_LATE = 1.0
"""Seconds a process that is ready to be read may take to be gone."""


class WorkItem(NamedTuple):
    """One attempt.

    Attributes:
        token: names the attempt; no two that a worker holds are equal.
        key: what its function was taught as.
        function_id: the function's id.
        attempt: 1 for the first.
        values: the values of the indices that the call names: a mapping, or, when the call's
            sources are just 0, 1, 2 and so on, a tuple.
    """

    token: int
    key: int
    function_id: Hashable
    attempt: int
    values: Values


class Outcome(NamedTuple):
    """How an attempt ended.

    Attributes:
        token: which.
        ok: whether ``value`` is its result; else it is the exception.
        value: see ``ok``.
        started: when, by ``time.perf_counter()`` of any process of this machine.
        ended: when.
    """

    token: int
    ok: bool
    value: Any
    started: float
    ended: float


class WorkerLost(Exception):  # noqa: N818  an event of the world, not a mistake
    """The process is dead; ``crash`` says how it died."""

    def __init__(self, crash: CrashedAttempt) -> None:
        super().__init__(f"process {crash.pid} {crash.reason}")
        self.crash = crash


def check_call(call: Call, dag_id: Hashable) -> None:
    """Refuse a call that cannot be sent to a process.

    Raises:
        SerializationError: names the function, and what of its code it is.
    """
    _dump_call(call, dag_id)


def _dump_call(call: Call, dag_id: Hashable = None) -> Payload:
    try:
        return dumps(call, f"code of function {describe(call.id)}")
    except SerializationError as error:
        error.function_id = call.id
        error.dag_id = dag_id
        raise


class ProcessWorker:
    """See the module.

    Args:
        started: the process.
        node: the name of the node it works for.
        on_request: called when its code calls the library, with the worker, the attempt, the
            number to ``reply`` to, and name, args and kwargs; must not block.
    """

    def __init__(self, started: Started, node: str, on_request: Request) -> None:
        self.pid = started.process.pid
        self.node = node
        self.ready = False
        self.ending = False
        self._started = started
        self._work = started.work
        self._on_request = on_request
        self._reader = FrameReader(started.work)
        self._control_reader = FrameReader(started.control)
        self._control_lock = threading.Lock()
        self._io = threading.Lock()
        self._inbox: deque[tuple[Any, list[bytearray]]] = deque()
        self._frames = itertools.count(1)
        self._frame_of: dict[int, int] = {}
        self._known: set[int] = set()
        self._lessons: list[tuple[int, Payload]] = []
        self._numbers = itertools.count(1)
        self._takes: dict[int, _Take] = {}
        self._crash: CrashedAttempt | None = None
        self._crash_lock = threading.Lock()
        self._closed = False
        self._waiting = select.poll()
        self._waiting.register(started.work, select.POLLIN)
        if started.pidfd >= 0:
            self._waiting.register(started.pidfd, select.POLLIN)

    def __repr__(self) -> str:
        return f"<ProcessWorker {self.pid} {'alive' if self.alive else 'dead'}>"

    @property
    def alive(self) -> bool:
        """Whether the process lives, as far as is known."""
        return self._crash is None and not self._closed

    def fileno_control(self) -> int:
        """The descriptor that is readable when ``on_control`` has something to do."""
        return self._started.control.fileno()

    def fileno_exit(self) -> int:
        """The descriptor that is readable when the process is dead; -1 where there is none."""
        return self._started.pidfd

    # Work.

    def knows(self, key: int) -> bool:
        """Whether the process was taught a call under ``key``."""
        return key in self._known

    def teach(self, key: int, call: Call) -> None:
        """Teach the process a call; it goes with the next ``send``.

        Raises:
            SerializationError: it cannot be sent: names the function, and what of it.
        """
        self._lessons.append((key, _dump_call(call)))
        self._known.add(key)

    def forget(self, keys: Iterable[int]) -> None:
        """Have the process forget calls."""
        known = self._known.intersection(keys)
        if not known:
            return
        self._known -= known
        self._lessons = [lesson for lesson in self._lessons if lesson[0] not in known]
        with self._io:
            self._push((next(self._frames), None, (), list(known), ()), ())

    def send(
        self, dag_id: Hashable, items: Sequence[WorkItem]
    ) -> list[tuple[int, SerializationError]]:
        """Send attempts; returns as soon as the process has, or will find, all of them.

        Args:
            dag_id: whose attempts they are.
            items: the attempts, in the order in which they are to run.

        Returns:
            Those that cannot be sent, and why; the others were.

        Raises:
            WorkerLost: the process is dead.
        """
        slots = Slots()
        refused: list[tuple[int, SerializationError]] = []
        tokens, keys, ids, attempts, values = map(list, zip(*items, strict=True))
        refs: dict[int, dict[int, int]] = {}
        made: dict[int, int] = {}
        is_plain = PLAIN.issuperset
        for i, given in enumerate(values):
            if given.__class__ is tuple:
                if is_plain(map(type, given)):
                    continue
            elif is_plain(map(type, given.values())):
                continue
            try:
                values[i], refs[i] = _pack(slots, made, given, items[i])
            except SerializationError as error:
                error.dag_id = dag_id
                refused.append((tokens[i], error))
        if refused:
            gone = {token for token, _ in refused}
            rest = [item for item in items if item.token not in gone]
            if rest:
                refused += self.send(dag_id, rest)
            return refused
        odd: dict[int, int] = {}
        if not is_plain(map(type, ids)):
            for i, id_ in enumerate(ids):
                if type(id_) not in PLAIN:
                    odd[i] = slots.add(dumps(id_, f"id of function {describe(id_)}"))
                    ids[i] = None
        dag_slot = -1
        if type(dag_id) not in PLAIN:
            dag_slot, dag_id = slots.add(dumps(dag_id, "dag_id")), None
        lessons = [(key, slots.add(payload)) for key, payload in self._lessons]
        self._lessons.clear()
        number = next(self._frames)
        columns = (dag_id, dag_slot, tokens, keys, ids, odd, attempts, values, refs)
        self._frame_of.update(dict.fromkeys(tokens, number))
        with self._io:
            self._push((number, columns, lessons, (), slots.slots), slots.buffers)
        return refused

    def _push(self, message: Any, buffers: Sequence[Any]) -> None:
        try:
            send_frame(self._work, message, buffers, self._blocked)
        except (OSError, EOFError):
            raise WorkerLost(self.crash()) from None

    def _blocked(self) -> None:
        """The process does not read: it may be unable to write, so read meanwhile."""
        waiting = select.poll()
        waiting.register(self._work, select.POLLIN | select.POLLOUT)
        if self._started.pidfd >= 0:
            waiting.register(self._started.pidfd, select.POLLIN)
        for fd, _ in waiting.poll():
            if fd == self._started.pidfd:
                raise EOFError
        frame = self._reader.read()
        if frame is not None:
            self._inbox.append(frame)

    def receive(self, timeout: float | None = None) -> list[Outcome]:
        """Wait for outcomes.

        Args:
            timeout: seconds to wait; None is as long as the process lives.

        Returns:
            What came, in the order in which it ended; nothing when the time is over.

        Raises:
            WorkerLost: the process is dead, and all that it had sent was received.
        """
        end = None if timeout is None else monotonic() + timeout
        with self._io:
            while True:
                try:
                    frame = self._inbox.popleft() if self._inbox else self._reader.read()
                except (OSError, EOFError):
                    raise WorkerLost(self.crash()) from None
                if frame is not None:
                    outcomes = self._outcomes(*frame)
                    if outcomes:
                        return outcomes
                    continue
                left = None if end is None else max(0.0, end - monotonic()) * 1e3
                ready = self._waiting.poll(left)
                if not ready:
                    return []
                if len(ready) == 1 and ready[0][0] == self._started.pidfd:
                    raise WorkerLost(self.crash())

    def _outcomes(self, message: Any, buffers: list[bytearray]) -> list[Outcome]:
        tokens, values, started, ended, pickled, slots = message
        frame_of = self._frame_of
        for token in tokens:
            frame_of.pop(token, None)
        if not pickled:
            make = Outcome._make
            return [
                make((token, True, value, begin, end))
                for token, value, begin, end in zip(tokens, values, started, ended, strict=True)
            ]
        oks = [True] * len(tokens)
        for i, slot, ok in pickled:
            oks[i], values[i] = _load(payload_of(slots[slot], buffers), ok)
        return list(map(Outcome, tokens, oks, values, started, ended))

    # Control.

    def take_back(self, tokens: Iterable[int], timeout: float) -> list[int]:
        """Take back attempts that have not begun.

        Args:
            tokens: which.
            timeout: seconds to wait for the answer.

        Returns:
            Those that will never run there. None if the process does not answer in time; should
            it then have taken some back all the same, it is killed, so that none is lost unseen.
        """
        groups: dict[int, list[int]] = {}
        for token in tokens:
            number = self._frame_of.get(token)
            if number is not None:
                groups.setdefault(number, []).append(token)
        if not groups or not self.alive:
            return []
        take = _Take()
        number = next(self._numbers)
        self._takes[number] = take
        try:
            self._tell(TAKE, number, list(groups.items()), timeout=timeout)
        except OSError:
            self._takes.pop(number, None)
            return []
        if not self.alive:
            take.answer([])
        taken = take.wait(timeout)
        for token in taken:
            self._frame_of.pop(token, None)
        return taken

    def cancel(self, tokens: Iterable[int]) -> None:
        """Have ``current().cancelled()`` say so in these attempts; coroutines are cancelled."""
        with contextlib.suppress(OSError):
            self._tell(CANCEL, 0, list(tokens))

    def reply(self, number: int, ok: bool, value: Any) -> None:
        """Answer a request.

        Args:
            number: which.
            ok: whether ``value`` is the answer; else it is the exception to raise.
            value: see ``ok``.
        """
        try:
            payload = dumps(value, "answer") if ok else dump_exception(value)
        except SerializationError as error:
            ok, payload = False, dump_exception(error)
        slots = Slots()
        slots.add(payload)
        with contextlib.suppress(OSError):
            self._tell(REPLY, number, (ok, slots.slots[0]), slots.buffers)

    def _tell(
        self,
        kind: int,
        number: int,
        content: Any,
        buffers: Sequence[Any] = (),
        timeout: float = 60.0,
    ) -> None:
        if not self._control_lock.acquire(timeout=timeout):
            raise TimeoutError
        try:
            if self._closed:
                raise BrokenPipeError
            send_frame(self._started.control, (kind, number, content), buffers, self._wait_control)
        finally:
            self._control_lock.release()

    def _wait_control(self) -> None:
        waiting = select.poll()
        waiting.register(self._started.control, select.POLLOUT)
        if self._started.pidfd >= 0:
            waiting.register(self._started.pidfd, select.POLLIN)
        for fd, _ in waiting.poll():
            if fd == self._started.pidfd:
                raise BrokenPipeError

    def on_control(self) -> bool:
        """Handle what came on the control socket; one thread calls this.

        Returns:
            False when nothing will come any more.
        """
        try:
            while (frame := self._control_reader.read()) is not None:
                self._told(*frame)
        except (EOFError, OSError):
            return False
        return True

    def _told(self, message: Any, buffers: list[bytearray]) -> None:
        kind, number, content = message
        if kind == HELLO:
            self.ready = True
        elif kind == TAKEN:
            take = self._takes.pop(number, None)
            if take is not None and not take.answer(content) and content:
                self.kill()
        elif kind == REQUEST:
            token, name, slot = content
            try:
                args, kwargs = loads(payload_of(slot, buffers), f"arguments of {name}()")
            except SerializationError as error:
                self.reply(number, False, error)
            else:
                self._on_request(self, token, number, name, args, kwargs)

    # Its end.

    def crash(self) -> CrashedAttempt:
        """How the process died; one that is no use any more but still lives is killed."""
        process = self._started.process
        with self._crash_lock:
            if self._crash is None:
                try:
                    code: int | None = process.wait(_LATE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    code = process.wait()
                self._crash = CrashedAttempt(self.node, self.pid, code, exit_reason(code))
        for number in list(self._takes):
            take = self._takes.pop(number, None)
            if take is not None:
                take.answer([])
        return self._crash

    def kill(self) -> None:
        """Kill the process; ``receive`` then raises ``WorkerLost``."""
        self.ending = True
        self._started.process.kill()

    def end(self) -> None:
        """Ask the process to end once it has done what it was sent."""
        self.ending = True
        with contextlib.suppress(OSError):
            self._work.shutdown(1)

    def close(self, timeout: float) -> None:
        """End the process: politely, and after ``timeout`` seconds by force; free what it held."""
        self.end()
        process = self._started.process
        try:
            process.wait(max(0.0, timeout))
        except subprocess.TimeoutExpired:
            process.kill()
        self.crash()
        with self._control_lock:
            if self._closed:
                return
            self._closed = True
        with self._io:
            self._work.close()
            self._started.control.close()
            if self._started.pidfd >= 0:
                os.close(self._started.pidfd)
        self._frame_of.clear()
        self._inbox.clear()


class _Take:
    """The answer to a take-back: exactly one of whoever waits and whoever answers is too late."""

    __slots__ = ("_done", "_lock", "_over", "_taken")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._over = False
        self._taken: list[int] = []

    def answer(self, taken: list[int]) -> bool:
        """Give the answer; False when nobody waits for it any more."""
        with self._lock:
            if self._over:
                return False
            self._over = True
            self._taken = taken
        self._done.set()
        return True

    def wait(self, timeout: float) -> list[int]:
        """The answer, or nothing when it is late."""
        self._done.wait(timeout)
        with self._lock:
            self._over = True
            return self._taken


def _pack(
    slots: Slots, made: dict[int, int], given: Values, item: WorkItem
) -> tuple[dict[int, Any], dict[int, int]]:
    """Values of which some are not plain: the plain ones, and the slots of the others."""
    plain: dict[int, Any] = {}
    refs: dict[int, int] = {}
    pairs = given.items() if isinstance(given, Mapping) else enumerate(given)
    for number, value in pairs:
        if type(value) in PLAIN:
            plain[number] = value
            continue
        slot = made.get(id(value))
        if slot is None:
            what = f"argument {number} of function {describe(item.function_id)}"
            try:
                payload = dumps(value, what)
            except SerializationError as error:
                error.function_id = item.function_id
                raise
            slot = made[id(value)] = slots.add(payload)
        refs[number] = slot
    return plain, refs


def _load(payload: Payload, ok: bool) -> tuple[bool, Any]:
    try:
        return (True, loads(payload, "result")) if ok else (False, load_exception(payload))
    except Exception as error:  # noqa: BLE001  a user's class may raise anything when it is made
        return False, error


def exit_reason(code: int | None) -> str:
    """The end of a process in words.

    Args:
        code: as ``subprocess`` gives it; negative is the number of a signal.
    """
    if code is None:
        return "ended in an unknown way"
    if code >= 0:
        return f"exited with code {code} (does the function end its process?)"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hints = {
        "SIGKILL": " (was the machine out of memory?)",
        "SIGSEGV": " (a fault in native code)",
        "SIGBUS": " (a fault in native code, or a full shared memory)",
        "SIGABRT": " (native code gave up)",
    }
    return f"was killed by {name}{hints.get(name, '')}"

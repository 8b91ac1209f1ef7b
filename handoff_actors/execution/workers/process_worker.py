"""A worker process as its parent sees it.

``teach``, ``send``, ``receive`` and ``forget`` are for whoever has the worker, one thread at a
time; everything else may be called by anyone. Guarantees that what was refused was not sent, that
each attempt that was sent comes back once: as an outcome, as taken back, or lost with the process;
and that nothing here waits for a process that is dead.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from time import monotonic
from typing import Any

from handoff_actors.cluster.framing import FrameReader, Slots, payload_of, send_frame
from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.cluster.remote_errors import dump_exception
from handoff_actors.errors import CrashedAttempt, SerializationError
from handoff_actors.execution.workers.controls import CANCEL, HELLO, REPLY, REQUEST, TAKE, TAKEN
from handoff_actors.execution.workers.exits import WorkerLost, exit_reason
from handoff_actors.execution.workers.packing import (
    Outcome,
    Refused,
    WorkItem,
    dump_call,
    pack,
    unpack,
)
from handoff_actors.execution.workers.relay import LOG_LINE, log_here
from handoff_actors.execution.workers.spawn import Started
from handoff_actors.graph.calls import Call

Request = Callable[["ProcessWorker", int, int, str, tuple[Any, ...], dict[str, Any]], None]

_LATE = 1.0
"""Seconds a process that has closed its sockets may take to be gone."""
_TELL_TIMEOUT = 60.0
"""Seconds to wait for the turn to write to a process that reads slowly."""

_DOUBLE = struct.Struct("d")


class ProcessWorker:
    """See the module.

    Args:
        started: the process.
        node: the name of the node it works for.
        on_request: called when its code calls the library, with the worker, the attempt, the
            number to ``reply`` to, and name, args and kwargs; must not block.

    Attributes:
        pid: its process id.
        ready: it has said that it is there.
        ending: we ended it: its death is no news.
    """

    def __init__(self, started: Started, node: str, on_request: Request) -> None:
        self.pid = started.process.pid
        self.ready = False
        self.ending = False
        self._node = node
        self._process = started.process
        self._pidfd = started.pidfd
        self._work = started.work
        self._control = started.control
        self._page = started.began
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
        self._taught = 0
        self._numbers = itertools.count(1)
        self._takes: dict[int, _Take] = {}
        self._crash: CrashedAttempt | None = None
        self._crash_lock = threading.Lock()
        self._closed = False
        self._waiting = self._poll(self._work, select.POLLIN)

    def __repr__(self) -> str:
        return f"<ProcessWorker {self.pid} {'alive' if self.alive else 'dead'}>"

    @property
    def began(self) -> float:
        """When it began to call the function it is at, or was at last; ``perf_counter()``."""
        try:
            return float(_DOUBLE.unpack_from(self._page)[0])
        except ValueError:
            return 0.0  # it is closed

    @property
    def last_begun(self) -> int:
        """The last attempt whose code has called ``Child.begin``."""
        try:
            return int(_DOUBLE.unpack_from(self._page, _DOUBLE.size)[0])
        except ValueError:
            return 0

    @property
    def alive(self) -> bool:
        """Whether the process lives, as far as is known."""
        return self._crash is None and not self._closed

    @property
    def reusable(self) -> bool:
        """Whether somebody else may have it: it lives, and holds nothing of anybody."""
        return self.alive and not self.ending and not self._frame_of

    @property
    def taught(self) -> int:
        """Bytes of the calls that the process knows."""
        return self._taught

    def descriptors(self) -> list[int]:
        """What is readable when ``on_control`` has something to do or the process is dead."""
        return [fd for fd in (self._control.fileno(), self._pidfd) if fd >= 0]

    def _poll(self, sock: socket.socket, events: int) -> select.poll:
        poll = select.poll()
        poll.register(sock, events)
        if self._pidfd >= 0:
            poll.register(self._pidfd, select.POLLIN)
        return poll

    # Work.

    def knows(self, key: int) -> bool:
        """Whether the process was taught a call under ``key``."""
        return key in self._known

    def teach(self, key: int, call: Call) -> None:
        """Teach the process a call; it goes with the next ``send``.

        Raises:
            SerializationError: it cannot be sent: names the function, and what of it.
        """
        payload = dump_call(call)
        self._taught += payload.nbytes
        self._lessons.append((key, payload))
        self._known.add(key)

    def forget(self, keys: Iterable[int] | None = None) -> None:
        """Have the process forget calls; without ``keys`` all of them.

        Raises:
            WorkerLost: the process is dead.
        """
        known = self._known if keys is None else self._known.intersection(keys)
        if not known:
            return
        forgotten = list(known)
        self._lessons = [lesson for lesson in self._lessons if lesson[0] not in known]
        self._known = self._known.difference(forgotten)
        if not self._known:
            self._taught = 0
        self._push((next(self._frames), None, (), forgotten, ()), ())

    def send(self, dag_id: Hashable, items: Sequence[WorkItem]) -> Refused:
        """Send attempts.

        Args:
            dag_id: whose attempts they are.
            items: the attempts, in the order in which they are to run; the process was taught
                their calls.

        Returns:
            Those that cannot be sent, and why; the others were.

        Raises:
            WorkerLost: the process is dead.
        """
        slots = Slots()
        columns, refused = pack(dag_id, items, slots)
        if columns is None:
            return refused
        lessons = [(key, slots.add(payload)) for key, payload in self._lessons]
        self._lessons.clear()
        number = next(self._frames)
        self._frame_of.update(dict.fromkeys(columns[2], number))
        self._push((number, columns, lessons, (), slots.slots), slots.buffers)
        return refused

    def _push(self, message: Any, buffers: Sequence[Any]) -> None:
        with self._io:
            if self._closed:
                raise WorkerLost(self.crash())
            try:
                send_frame(self._work, message, buffers, self._blocked)
            except (OSError, EOFError):
                raise WorkerLost(self.crash()) from None

    def _blocked(self) -> None:
        """The process does not read: perhaps because nobody reads what it writes."""
        ready = dict(self._poll(self._work, select.POLLIN | select.POLLOUT).poll())
        if self._pidfd in ready:
            raise EOFError
        if ready[self._work.fileno()] & select.POLLIN:
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
            if self._closed:
                raise WorkerLost(self.crash())
            try:
                frame = self._inbox.popleft() if self._inbox else self._reader.buffered()
                while frame is None:
                    left = None if end is None else max(0.0, end - monotonic()) * 1e3
                    ready = self._waiting.poll(left)
                    if not ready:
                        return []
                    frame = self._reader.read()
                    if frame is None and any(fd == self._pidfd for fd, _ in ready):
                        raise EOFError
            except (OSError, EOFError):
                raise WorkerLost(self.crash()) from None
        outcomes = unpack(*frame)
        frame_of = self._frame_of
        for outcome in outcomes:
            frame_of.pop(outcome[0], None)
        return outcomes

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
        groups = self._by_frame(tokens)
        if not groups or not self.alive:
            return []
        take = _Take()
        number = next(self._numbers)
        self._takes[number] = take
        try:
            self._tell(TAKE, number, groups, timeout=timeout)
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
        groups = self._by_frame(tokens)
        if groups:
            with contextlib.suppress(OSError):
                self._tell(CANCEL, 0, groups)

    def _by_frame(self, tokens: Iterable[int]) -> list[tuple[int, list[int]]]:
        groups: dict[int, list[int]] = {}
        for token in tokens:
            number = self._frame_of.get(token)
            if number is not None:
                groups.setdefault(number, []).append(token)
        return list(groups.items())

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
        timeout: float = _TELL_TIMEOUT,
    ) -> None:
        if not self._control_lock.acquire(timeout=timeout):
            raise TimeoutError
        try:
            if self._closed:
                raise BrokenPipeError
            send_frame(self._control, (kind, number, content), buffers, self._control_blocked)
        finally:
            self._control_lock.release()

    def _control_blocked(self) -> None:
        if self._pidfd in dict(self._poll(self._control, select.POLLOUT).poll()):
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
                self._process.kill()
        elif kind == REQUEST:
            token, name, slot = content
            try:
                args, kwargs = loads(payload_of(slot, buffers), f"arguments of {name}()")
            except SerializationError as error:
                self.reply(number, False, error)
            else:
                if name == LOG_LINE:
                    # Here and now, so that lines stay in order.
                    log_here(*args)
                    return
                self._on_request(self, token, number, name, args, kwargs)

    # Its end.

    def crash(self) -> CrashedAttempt:
        """How the process died; one that is no use any more but still lives is killed."""
        with self._crash_lock:
            if self._crash is None:
                if not self._wait(_LATE):
                    self._process.kill()
                code = self._process.wait()
                reason = exit_reason(code, self.ending)
                self._crash = CrashedAttempt(self._node, self.pid, code, reason)
        for number in list(self._takes):
            take = self._takes.pop(number, None)
            if take is not None:
                take.answer([])
        return self._crash

    def _wait(self, timeout: float) -> bool:
        """Whether the process ends within so many seconds."""
        if self._pidfd >= 0 and not self._closed:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            return bool(poll.poll(max(0.0, timeout) * 1e3))
        try:
            self._process.wait(max(0.0, timeout))
        except subprocess.TimeoutExpired:
            return False
        return True

    def dead(self) -> bool:
        """Whether the process is dead, whoever has noticed."""
        return not self.alive or self._wait(0.0)

    def kill(self) -> None:
        """Kill the process; ``receive`` then raises ``WorkerLost``."""
        self._is_ended_by_us()
        self._process.kill()

    def end(self) -> None:
        """Ask the process to end once it has done what it was sent."""
        self._is_ended_by_us()
        with contextlib.suppress(OSError):
            self._work.shutdown(socket.SHUT_WR)

    def _is_ended_by_us(self) -> None:
        if self._crash is None:  # else it was dead before, which stays news to whoever hears it
            self.ending = True

    def close(self, timeout: float) -> None:
        """End the process: politely, and after ``timeout`` seconds by force; free what it held."""
        self.end()
        with self._crash_lock:
            if not self._wait(timeout):
                self._process.kill()
        self.crash()
        with self._control_lock, self._io:
            if self._closed:
                return
            self._closed = True
            self._work.close()
            self._control.close()
            self._page.close()
            if self._pidfd >= 0:
                os.close(self._pidfd)
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

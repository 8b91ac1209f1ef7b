"""The program of a worker process: it runs the functions that its parent sends.

Three kinds of threads: the main thread runs functions one after another; a control thread answers
the parent at once, whatever the main thread does (take back, cancel, answers to forwarded calls),
and sends results on that wait behind a slow function; one event loop runs coroutine functions.

Guarantees that every attempt that is read gets exactly one outcome, whatever it raises; that an
attempt which was taken back does not run; and that the process ends when its parent does.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import mmap
import os
import queue
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterable
from time import perf_counter as clock
from typing import TYPE_CHECKING, Any

from handoff_actors.cluster.framing import PLAIN, FrameReader, Slots, payload_of, send_frame
from handoff_actors.cluster.main_types import settle_in_main
from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.cluster.remote_errors import load_exception
from handoff_actors.cluster.spawner import die_with_parent
from handoff_actors.errors import HandoffError, describe
from handoff_actors.execution.context import place
from handoff_actors.execution.invoke import invoke, invoke_async
from handoff_actors.execution.workers.attempts import Batch, Function, Here
from handoff_actors.execution.workers.controls import CANCEL, HELLO, REPLY, REQUEST, TAKE, TAKEN
from handoff_actors.execution.workers.outbox import PLAIN_VALUE, Outbox
from handoff_actors.execution.workers.relay import LOG_LINE

if TYPE_CHECKING:
    import asyncio

_FLUSH = 0.0005
"""Seconds between results that are sent while there is more to do."""
_TICK_MS = 3
"""How often the control thread looks for results that wait behind a slow function."""
_SLOWEST_TICK_MS = 48
"""The same once a function has proved slow."""
_SWITCH = 0.001
"""Seconds the main thread may keep the interpreter from the control thread."""
_FAREWELL = 0.5
"""Seconds that coroutines get to end when the parent ends this process."""

Flight = tuple[Batch, int, int, Function, Any]
Outcome = tuple[float, bool, Any]
"""When an attempt began, whether it succeeded, and its value or error."""


class Child:
    """The state of the process.

    Args:
        work: attempts come and outcomes go here.
        control: see the module.
        node: the name of the node this process works for.
    """

    def __init__(
        self,
        work: socket.socket,
        control: socket.socket,
        began: memoryview[float],
        node: str,
    ) -> None:
        self.node = node
        self._began = began
        self.cancelled: set[tuple[int, int]] = set()
        self._work = work
        self._control = control
        self._control_lock = threading.Lock()
        self._functions: dict[int, Any] = {}
        self._pending: dict[int, None] = {}
        self._refused: dict[int, set[int]] = {}
        self._read_up_to = 0
        self._frame_lock = threading.Lock()
        self._outbox = Outbox(work)
        self._here = Here(self)
        self._busy = False
        self._ticking = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._requests = itertools.count(1)
        self._answers: dict[int, queue.SimpleQueue[Any]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: threading.Thread | None = None
        self._tasks: dict[tuple[int, int], asyncio.Task[Outcome]] = {}
        self._flush_soon = False
        self._pid = os.getpid()
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        """A process that a function forks has no part in this."""
        for sock in (self._work, self._control):
            with contextlib.suppress(OSError):
                sock.close()

    # The main thread.

    def run(self) -> None:
        """Run what comes until the parent closes."""
        threading.Thread(target=self._serve_control, name="handoff-control", daemon=True).start()
        self._tell(HELLO, self._pid)
        reader = FrameReader(self._work)
        waiting = select.poll()
        waiting.register(self._work, select.POLLIN)
        outbox = self._outbox
        base = contextvars.Context()
        base.run(place.set, self._here)
        try:
            while True:
                if outbox.rows and not (clock() - outbox.flushed < _FLUSH and waiting.poll(0)):
                    outbox.flush()
                self._busy = False
                frame = reader.read()
                assert frame is not None
                self._accept(*frame, base)
                del frame
        except (EOFError, OSError):
            self._end_loop()

    def _accept(self, message: Any, buffers: list[bytearray], base: contextvars.Context) -> None:
        number, columns, lessons, forgotten, slots = message
        for key in forgotten:
            self._functions.pop(key, None)
        for key, slot in lessons:
            self._functions[key] = payload_of(slots[slot], buffers)
        if columns is None:
            with self._frame_lock:
                self._read_up_to = number
            return
        batch = Batch(number, columns, slots, buffers)
        with self._frame_lock:
            self._read_up_to = number
            self._pending.update(dict.fromkeys(batch.tokens))
            for token in self._refused.pop(number, ()):
                self._pending.pop(token, None)
            if self.cancelled and not self._tasks:
                self.cancelled = {mark for mark in self.cancelled if mark[0] >= number}
        if len(batch.tokens) > 1 or self._outbox.rows:
            self._busy = True
            if not self._ticking:
                os.eventfd_write(self._bell, 1)
        self._run(batch, base)

    def _run(self, batch: Batch, base: contextvars.Context) -> None:
        here, began = self._here, self._began
        pending, functions, outbox = self._pending, self._functions, self._outbox
        done = outbox.rows.append
        keys, values, refs = batch.keys, batch.values, batch.refs
        copy = base.copy
        flights: list[Flight] = []
        here.batch = batch
        started = clock()
        for index, token in enumerate(batch.tokens):
            try:
                del pending[token]
            except KeyError:
                continue
            here.index = index
            here.token = token
            try:
                function = functions[keys[index]]
                if function.__class__ is not Function:
                    function = self._learn(keys[index], batch, index)
                args = batch.arguments(index) if index in refs else values[index]
                if function.code is not None:
                    if args.__class__ is not tuple:
                        args = [args[source] for source in function.sources]
                    began[0] = clock()
                    value = copy().run(function.code, *args)
                elif function.call.is_async:
                    flights.append((batch, index, token, function, args))
                    continue
                else:
                    began[0] = clock()
                    value = invoke(function.call, args, here, base)
            except BaseException as error:
                self._outbox.error(batch, index, token, error, started)
            else:
                if value.__class__ in PLAIN:
                    done((token, value, started, clock(), PLAIN_VALUE))
                else:
                    self._outbox.value(batch, index, token, value, started)
                del value
            args = None
            started = clock()
            if started - outbox.flushed > _FLUSH:
                outbox.flush()
                started = clock()
        here.batch = None
        if flights:
            self._begin(flights)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()

    def _learn(self, key: int, batch: Batch, index: int) -> Function:
        what = f"code of function {describe(batch.function_id(index))}"
        call = loads(self._functions[key], what)
        function = self._functions[key] = Function(call)
        return function

    # Coroutines.

    def _begin(self, flights: list[Flight]) -> None:
        loop = self._loop
        if loop is None:
            import asyncio

            loop = self._loop = asyncio.new_event_loop()
            self._loop_thread = threading.Thread(
                target=loop.run_forever, name="handoff-loop", daemon=True
            )
            self._loop_thread.start()
        loop.call_soon_threadsafe(self._begin_tasks, flights)

    def _begin_tasks(self, flights: list[Flight]) -> None:
        loop = self._loop
        assert loop is not None
        for flight in flights:
            batch, _, token, _, _ = flight
            task = loop.create_task(self._attempt(flight), context=contextvars.Context())
            mark = (batch.number, token)
            self._tasks[mark] = task
            task.add_done_callback(functools.partial(self._landed, flight))
            if mark in self.cancelled:
                task.cancel()

    async def _attempt(self, flight: Flight) -> Outcome:
        """The wall: not even SystemExit may reach the loop."""
        batch, index, token, function, args = flight
        here = Here(self)
        here.batch, here.index, here.token = batch, index, token
        started = self._began[0] = clock()
        try:
            return started, True, await invoke_async(function.call, args, here)
        except BaseException as error:
            return started, False, error

    def _landed(self, flight: Flight, task: asyncio.Task[Outcome]) -> None:
        batch, index, token, _, _ = flight
        if task.cancelled():  # before it began
            import asyncio

            self._outbox.error(batch, index, token, asyncio.CancelledError(), clock())
        else:
            started, succeeded, outcome = task.result()
            tell = self._outbox.value if succeeded else self._outbox.error
            tell(batch, index, token, outcome, started)
        del self._tasks[batch.number, token]
        if not self._flush_soon:
            assert self._loop is not None
            self._flush_soon = True
            self._loop.call_soon(self._flush_from_loop)

    def _flush_from_loop(self) -> None:
        self._flush_soon = False
        self._outbox.flush()

    # The control thread.

    def _serve_control(self) -> None:
        self._control.setblocking(False)
        reader = FrameReader(self._control)
        waiting = select.poll()
        waiting.register(self._control, select.POLLIN)
        waiting.register(self._bell, select.POLLIN)
        outbox = self._outbox
        bell, tick, token = self._bell, _TICK_MS, -1
        while True:
            self._ticking = self._busy
            for fd, _ in waiting.poll(tick if self._ticking or self._busy else None):
                if fd == bell:
                    os.eventfd_read(bell)
                    tick = _TICK_MS
            tick = min(2 * tick, _SLOWEST_TICK_MS) if token == self._here.token else _TICK_MS
            token = self._here.token
            if outbox.rows and clock() - outbox.flushed > _FLUSH:
                outbox.flush(wait=False)
            try:
                while (frame := reader.read()) is not None:
                    self._told(*frame)
            except (EOFError, OSError):
                os._exit(1)  # the parent is gone, and the main thread may be at work for ever

    def _told(self, message: Any, buffers: list[bytearray]) -> None:
        kind, number, content = message
        if kind == TAKE:
            self._tell(TAKEN, number, self._take_back(content))
        elif kind == CANCEL:
            marks = [(frame, token) for frame, tokens in content for token in tokens]
            with self._frame_lock:
                self.cancelled.update(marks)
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cancel_tasks, marks)
        elif kind == REPLY:
            answer = self._answers.pop(number, None)
            if answer is not None:
                ok, slot = content
                answer.put((ok, payload_of(slot, buffers)))

    def _take_back(self, groups: list[tuple[int, list[int]]]) -> list[int]:
        taken: list[int] = []
        with self._frame_lock:
            for number, tokens in groups:
                if number > self._read_up_to:
                    self._refused.setdefault(number, set()).update(tokens)
                    taken += tokens
                    continue
                for token in tokens:
                    with contextlib.suppress(KeyError):
                        del self._pending[token]
                        taken.append(token)
        return taken

    def _cancel_tasks(self, marks: Iterable[tuple[int, int]]) -> None:
        for mark in marks:
            task = self._tasks.get(mark)
            if task is not None:
                task.cancel()

    def _end_loop(self) -> None:
        """Cancel what is in flight, and give it a moment."""
        loop, thread = self._loop, self._loop_thread
        if loop is None or thread is None:
            return

        async def end() -> None:
            import asyncio

            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=_FAREWELL)
            loop.stop()

        loop.call_soon_threadsafe(lambda: loop.create_task(end()))
        thread.join(2 * _FAREWELL)

    def _tell(self, kind: int, number: int, content: Any = None, buffers: Any = ()) -> None:
        with self._control_lock:
            send_frame(self._control, (kind, number, content), buffers, self._wait_for_room)

    def send_log(self, name: str, level: int, message: str, fields: dict[str, Any]) -> None:
        """Have the node log a line; nobody waits for it."""
        if os.getpid() != self._pid:
            return
        slots = Slots()
        slots.add(dumps(((name, level, message, fields), {}), "a log line"))
        number = next(self._requests)
        content = (self._here.token, LOG_LINE, slots.slots[0])
        self._tell(REQUEST, number, content, slots.buffers)

    def _wait_for_room(self) -> None:
        waiting = select.poll()
        waiting.register(self._control, select.POLLOUT)
        waiting.poll()

    # Calls of the library by the functions.

    def begin(self, token: int) -> None:
        """An attempt that must not run twice begins: what ended before is told, and that it does.

        So whatever kills the process, the parent knows which attempt it was at, and has all others.
        """
        self._outbox.flush()
        self._began[1] = token

    def forward(self, token: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Have the node do something.

        Args:
            token: the attempt that asks.
            name: the method of the runtime.
            args: its arguments.
            kwargs: and by keyword.

        Raises:
            SerializationError: the arguments or the answer cannot cross.
            BaseException: what the method raises there.
        """
        if os.getpid() != self._pid:
            raise HandoffError(
                f"{name}() was called in a process that a function forked: call it in the function"
            )
        slots = Slots()
        slots.add(dumps((args, kwargs), f"arguments of {name}()"))
        number = next(self._requests)
        answer: queue.SimpleQueue[tuple[bool, Payload]] = queue.SimpleQueue()
        self._answers[number] = answer
        self._outbox.flush()
        self._tell(REQUEST, number, (token, name, slots.slots[0]), slots.buffers)
        ok, payload = answer.get()
        if ok:
            return loads(payload, f"answer of {name}()")
        raise load_exception(payload)


def main(work: int, control: int, page: int, parent: int, node: str) -> None:
    """Be a worker process.

    Args:
        work: the descriptor of the socket for attempts.
        control: the descriptor of the socket for control.
        page: the descriptor of the memory in which the parent sees when a call began.
        parent: the process id of the parent.
        node: the name of the node.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    die_with_parent(parent)
    sys.setswitchinterval(_SWITCH)
    settle_in_main()
    sockets = socket.socket(fileno=work), socket.socket(fileno=control)
    for sock in sockets:
        sock.set_inheritable(False)
    began = memoryview(mmap.mmap(page, 16)).cast("d")
    os.close(page)
    child = Child(*sockets, began, node)
    level = os.environ.pop("HANDOFF_LOG_LEVEL", "")
    if level:
        from handoff_actors.execution.workers import relay

        relay.install(child.send_log, int(level))
    child.run()

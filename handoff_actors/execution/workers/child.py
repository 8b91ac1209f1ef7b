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
import itertools
import os
import queue
import select
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter as clock
from typing import TYPE_CHECKING, Any

from handoff_actors.cluster.main_types import settle_in_main
from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.cluster.remote_errors import dump_exception, load_exception
from handoff_actors.errors import HandoffError, SerializationError, describe
from handoff_actors.execution.context import Context, place
from handoff_actors.execution.invoke import invoke, invoke_async
from handoff_actors.execution.workers.frames import (
    PLAIN,
    FrameReader,
    Slots,
    payload_of,
    send_frame,
)
from handoff_actors.graph.calls import Call

if TYPE_CHECKING:
    import asyncio

# Kinds of control messages: the first two are for the parent, the others for the child.
HELLO, TAKEN, REQUEST, TAKE, CANCEL, REPLY = range(6)

_FLUSH = 0.0005
"""Seconds between results that are sent while there is more to do."""
_TICK_MS = 3
"""How often the control thread looks for results that wait behind a slow function."""
_SWITCH = 0.001
"""Seconds the main thread may keep the interpreter from the control thread."""
_OK, _VALUE, _ERROR = range(3)  # plain value, pickled value, pickled exception
_PDEATHSIG = 1


class Function:
    """A call as this process knows it.

    Attributes:
        call: the call.
        code: what to call with the values alone, when that is all there is to it; else None.
        sources: the value indices of the arguments of ``code``.
    """

    __slots__ = ("call", "code", "sources")

    def __init__(self, call: Call) -> None:
        self.call = call
        plain = (
            all(source.__class__ is int for source in call.sources)
            and not (call.extra_args or call.extra_kwargs or call.as_list)
            and not (call.is_async or call.batching)
            and call.init is None
        )
        self.code = call.code if plain else None
        self.sources: tuple[Any, ...] = tuple(call.sources)


class Batch:
    """The attempts of one frame, as columns."""

    __slots__ = ("_buffers", "_dag", "_dag_slot", "_loaded", "_odd", "_slots", "attempts", "ids",
                 "keys", "refs", "tokens", "values")  # fmt: skip

    def __init__(self, columns: Any, slots: list[Any], buffers: list[bytearray]) -> None:
        (self._dag, self._dag_slot, self.tokens, self.keys, self.ids, self._odd, self.attempts,
         self.values, self.refs) = columns  # fmt: skip
        self._slots = slots
        self._buffers = buffers
        self._loaded: dict[int, Any] = {}

    def load(self, slot: int, what: str) -> Any:
        """The value of a slot, made once."""
        if slot not in self._loaded:
            self._loaded[slot] = loads(payload_of(self._slots[slot], self._buffers), what)
        return self._loaded[slot]

    def dag_id(self) -> Any:
        """Whose attempts these are."""
        return self._dag if self._dag_slot < 0 else self.load(self._dag_slot, "dag_id")

    def function_id(self, index: int) -> Any:
        """The function of an attempt."""
        slot = self._odd.get(index)
        return self.ids[index] if slot is None else self.load(slot, "the id of a function")

    def arguments(self, index: int) -> Any:
        """The values of an attempt, those in slots among them."""
        values = self.values[index]
        refs = self.refs.get(index)
        if refs is None:
            return values
        values = dict(enumerate(values)) if values.__class__ is tuple else values
        for number, slot in refs.items():
            what = f"argument {number} of function {describe(self.function_id(index))}"
            values[number] = self.load(slot, what)
        return values


class Here:
    """Where an attempt runs: its place."""

    __slots__ = ("batch", "child", "index", "token")

    def __init__(self, child: Child) -> None:
        self.child = child
        self.batch: Batch | None = None
        self.index = 0
        self.token = -1

    def context(self) -> Context:
        """The attempt that runs here now."""
        batch, index, token, child = self.batch, self.index, self.token, self.child
        if batch is None:
            raise HandoffError("no function runs here any more")
        return Context(
            batch.dag_id(),
            batch.function_id(index),
            batch.attempts[index],
            child.node,
            lambda: token in child.cancelled,
        )

    def lend(self) -> None:
        """The node lends what it holds when the forwarded call arrives there."""

    def reclaim(self, loan: None) -> None:
        """See ``lend``."""

    def home(self) -> Home:
        """The runtime: a stand-in that forwards."""
        return Home(self.child, self.token)


class Home:
    """Stands for the runtime: its methods are calls to the node of this process."""

    __slots__ = ("_child", "_token")

    def __init__(self, child: Child, token: int) -> None:
        self._child = child
        self._token = token

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def forwarded(*args: Any, **kwargs: Any) -> Any:
            return self._child.forward(self._token, name, args, kwargs)

        forwarded.__name__ = name
        return forwarded


class Child:
    """The state of the process.

    Args:
        work: attempts come and outcomes go here.
        control: see the module.
        node: the name of the node this process works for.
    """

    def __init__(self, work: socket.socket, control: socket.socket, node: str) -> None:
        self.node = node
        self.cancelled: set[int] = set()
        self._work = work
        self._control = control
        self._control_lock = threading.Lock()
        self._functions: dict[int, Any] = {}
        self._pending: dict[int, None] = {}
        self._refused: dict[int, set[int]] = {}
        self._read_up_to = 0
        self._frame_lock = threading.Lock()
        self._out: deque[tuple[int, Any, float, float, int]] = deque()
        self._out_lock = threading.Lock()
        self._flushed = 0.0
        self._busy = False
        self._ticking = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._requests = itertools.count(1)
        self._answers: dict[int, queue.SimpleQueue[Any]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
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
        here = Here(self)
        base = contextvars.Context()
        base.run(place.set, here)
        try:
            while True:
                if self._out and not (clock() - self._flushed < _FLUSH and waiting.poll(0)):
                    self._flush()
                self._busy = False
                frame = reader.read()
                assert frame is not None
                self._accept(*frame, here, base)
        except (EOFError, OSError):
            return

    def _accept(
        self, message: Any, buffers: list[bytearray], here: Here, base: contextvars.Context
    ) -> None:
        number, columns, lessons, forgotten, slots = message
        for key in forgotten:
            self._functions.pop(key, None)
        for key, slot in lessons:
            self._functions[key] = payload_of(slots[slot], buffers)
        if columns is None:
            with self._frame_lock:
                self._read_up_to = number
            return
        batch = Batch(columns, slots, buffers)
        with self._frame_lock:
            self._read_up_to = number
            self._pending.update(dict.fromkeys(batch.tokens))
            for token in self._refused.pop(number, ()):
                self._pending.pop(token, None)
        if len(batch.tokens) > 1 or self._out:
            self._busy = True
            if not self._ticking:
                os.eventfd_write(self._bell, 1)
        self._run(batch, here, base)

    def _run(self, batch: Batch, here: Here, base: contextvars.Context) -> None:
        pending, functions, done = self._pending, self._functions, self._out.append
        keys, values, refs = batch.keys, batch.values, batch.refs
        copy = base.copy
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
                    value = copy().run(function.code, *args)
                elif function.call.is_async:
                    self._begin(batch, index, token, function, args)
                    continue
                else:
                    value = invoke(function.call, args, here, base)
            except BaseException as error:  # noqa: BLE001  the wall: whatever it is, is an outcome
                self._failed(batch, index, token, error, started)
            else:
                if value.__class__ in PLAIN:
                    done((token, value, started, clock(), _OK))
                else:
                    self._finished(batch, index, token, value, started)
                del value
            args = None
            if self.cancelled:
                self.cancelled.discard(token)
            started = clock()
            if started - self._flushed > _FLUSH:
                self._flush()
                started = clock()
        here.batch = None
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()

    def _learn(self, key: int, batch: Batch, index: int) -> Function:
        what = f"code of function {describe(batch.function_id(index))}"
        call = loads(self._functions[key], what)
        function = self._functions[key] = Function(call)
        return function

    def _finished(self, batch: Batch, index: int, token: int, value: Any, started: float) -> None:
        ended = clock()
        try:
            payload = dumps(value, f"result of function {describe(batch.function_id(index))}")
        except BaseException as error:  # noqa: BLE001  a user's reducer may raise anything
            self._failed(batch, index, token, error, started)
        else:
            self._out.append((token, payload, started, ended, _VALUE))

    def _failed(
        self, batch: Batch, index: int, token: int, error: BaseException, started: float
    ) -> None:
        ended = clock()
        with contextlib.suppress(BaseException):
            if isinstance(error, SerializationError):
                vars(error).setdefault("function_id", batch.function_id(index))
                vars(error).setdefault("dag_id", batch.dag_id())
        payload = _dump_error(error)
        error.__traceback__ = None
        self._out.append((token, payload, started, ended, _ERROR))

    def _flush(self, wait: bool = True) -> None:
        """Send the outcomes that are there."""
        if not self._out_lock.acquire(wait):
            return
        try:
            out = self._out
            rows = [out.popleft() for _ in range(len(out))]
            if not rows:
                return
            tokens, values, started, ended, kinds = zip(*rows, strict=True)
            if not any(kinds):
                send_frame(self._work, (tokens, values, started, ended, (), ()))
            else:
                slots = Slots()
                pickled: list[tuple[int, int, bool]] = []
                plain = list(values)
                for i, kind in enumerate(kinds):
                    if kind:
                        pickled.append((i, slots.add(values[i]), kind == _VALUE))
                        plain[i] = None
                send_frame(
                    self._work,
                    (tokens, plain, started, ended, pickled, slots.slots),
                    slots.buffers,
                )
            self._flushed = clock()
        except OSError:
            os._exit(1)  # the parent is gone: nobody wants anything of this process
        finally:
            self._out_lock.release()

    # Coroutines.

    def _begin(self, batch: Batch, index: int, token: int, function: Function, args: Any) -> None:
        loop = self._loop
        if loop is None:
            import asyncio

            loop = self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._serve_loop, name="handoff-loop", daemon=True).start()
        loop.call_soon_threadsafe(self._begin_task, batch, index, token, function, args)

    def _serve_loop(self) -> None:
        assert self._loop is not None
        self._loop.run_forever()

    def _begin_task(
        self, batch: Batch, index: int, token: int, function: Function, args: Any
    ) -> None:
        assert self._loop is not None
        task = self._loop.create_task(
            self._attempt(batch, index, token, function, args), context=contextvars.Context()
        )
        self._tasks[token] = task
        if token in self.cancelled:
            task.cancel()

    async def _attempt(
        self, batch: Batch, index: int, token: int, function: Function, args: Any
    ) -> None:
        here = Here(self)
        here.batch, here.index, here.token = batch, index, token
        started = clock()
        try:
            value = await invoke_async(function.call, args, here)
        except BaseException as error:  # noqa: BLE001  the wall: whatever it is, is an outcome
            self._failed(batch, index, token, error, started)
        else:
            self._finished(batch, index, token, value, started)
        self._tasks.pop(token, None)
        self.cancelled.discard(token)
        if not self._flush_soon:
            assert self._loop is not None
            self._flush_soon = True
            self._loop.call_soon(self._flush_from_loop)

    def _flush_from_loop(self) -> None:
        self._flush_soon = False
        self._flush()

    # The control thread.

    def _serve_control(self) -> None:
        self._control.setblocking(False)
        reader = FrameReader(self._control)
        waiting = select.poll()
        waiting.register(self._control, select.POLLIN)
        waiting.register(self._bell, select.POLLIN)
        bell = self._bell
        while True:
            self._ticking = self._busy
            for fd, _ in waiting.poll(_TICK_MS if self._ticking or self._busy else None):
                if fd == bell:
                    os.eventfd_read(bell)
            if self._out and clock() - self._flushed > _FLUSH:
                self._flush(wait=False)
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
            self.cancelled.update(content)
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cancel_tasks, content)
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

    def _cancel_tasks(self, tokens: list[int]) -> None:
        for token in tokens:
            task = self._tasks.get(token)
            if task is not None:
                task.cancel()

    def _tell(self, kind: int, number: int, content: Any = None, buffers: Any = ()) -> None:
        with self._control_lock:
            send_frame(self._control, (kind, number, content), buffers, self._wait_for_room)

    def _wait_for_room(self) -> None:
        waiting = select.poll()
        waiting.register(self._control, select.POLLOUT)
        waiting.poll()

    # Calls of the library by the functions.

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
        self._flush()
        self._tell(REQUEST, number, (token, name, slots.slots[0]), slots.buffers)
        ok, payload = answer.get()
        if ok:
            return loads(payload, f"answer of {name}()")
        raise load_exception(payload)


def _dump_error(error: BaseException) -> Payload:
    """The error; if not even its text can be had, one that says so."""
    try:
        return dump_exception(error)
    except BaseException as problem:  # noqa: BLE001  the wall must hold
        problem.__traceback__ = None
        text = f"{type(error).__name__} that could not be sent: {describe(problem)}"
        return dump_exception(RuntimeError(text))


def main(work: int, control: int, parent: int, node: str) -> None:
    """Be a worker process.

    Args:
        work: the descriptor of the socket for attempts.
        control: the descriptor of the socket for control.
        parent: the process id of the parent.
        node: the name of the node.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _die_with_parent(parent)
    sys.setswitchinterval(_SWITCH)
    settle_in_main()
    sockets = [socket.socket(fileno=fd) for fd in (work, control)]
    for sock in sockets:
        sock.set_inheritable(False)
    Child(*sockets, node).run()


def _die_with_parent(parent: int) -> None:
    """Have the kernel end this process with its parent, even while it holds the interpreter."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)

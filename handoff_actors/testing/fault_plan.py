"""FaultPlan: which fault happens when, drawn from a seed, written so that it can be run again.

    plan = FaultPlan(seed=7)
    result = plan.execute(dag)          # faults happen around the functions of the DAG

    FaultPlan(seed=7, points=[At('before', 'x', Fault('crash', 'resource_tracker')), ...])

A plan wraps the code of the functions. In worker processes, also those of other nodes on this
machine, the wrapper tells the process that has the plan, over a Unix socket, and waits until the
fault has been applied: so what is killed "before x" is the very worker that was about to run x.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import random
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Unpack

from handoff_actors.errors import ConfigurationError, HandoffError, describe
from handoff_actors.execution.context import current
from handoff_actors.execution.result import ExecutionResult
from handoff_actors.graph.callables import is_coroutine_callable, resolve_code
from handoff_actors.graph.dag import DAG
from handoff_actors.graph.function import Function
from handoff_actors.life import NAMES
from handoff_actors.runtime import Runtime, SubmitOptions

WHENS = ("before", "while", "after")
_DRAWN = ("crash", "crash", "crash", "delay")
_live: dict[str, FaultPlan] = {}
"""The plans that are applied in this process, by the path of their socket."""


class Fault:
    """One call of a function of ``handoff_actors.testing``: ``Fault("crash", "result_store")``.

    Args:
        kind: the function's name.
        args: its arguments, without the runtime.
    """

    __slots__ = ("args", "kind")

    def __init__(self, kind: str, *args: Any) -> None:
        from handoff_actors import testing

        if kind not in testing.FAULTS:
            raise ConfigurationError(
                f"there is no fault {describe(kind)}; there are {', '.join(testing.FAULTS)}"
            )
        self.kind = kind
        self.args = args

    def apply(self, runtime: Runtime | None = None) -> Any:
        """Do it now; None is the default runtime. Raises what the function raises."""
        from handoff_actors import testing

        return getattr(testing, self.kind)(*self.args, runtime=runtime)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fault) and (self.kind, self.args) == (other.kind, other.args)

    def __hash__(self) -> int:
        return hash((self.kind, self.args))

    def __repr__(self) -> str:
        return f"Fault({', '.join(map(repr, (self.kind, *self.args)))})"


@dataclass(frozen=True, slots=True)
class At:
    """A fault and its moment.

    Attributes:
        when: ``"before"`` the code of the function is called, ``"while"`` it runs (from another
            thread), or ``"after"`` it returned or raised and before anybody knows.
        function_id: around which function.
        fault: what happens.
        attempt: in which attempt of it.
    """

    when: str
    function_id: Hashable
    fault: Fault
    attempt: int = 1

    def __post_init__(self) -> None:
        if self.when not in WHENS:
            raise ConfigurationError(f"when is one of {WHENS}, not {describe(self.when)}")

    def __repr__(self) -> str:
        more = "" if self.attempt == 1 else f", attempt={self.attempt}"
        return f"At({self.when!r}, {self.function_id!r}, {self.fault!r}{more})"


class FaultPlan:
    """See the module.

    Args:
        points: what happens when; None draws ``n`` of them for the first DAG it is applied to.
        seed: of the drawing; None takes one at random, and says which.
        n: how many are drawn.
        kinds: what is drawn from: names of functions of ``handoff_actors.testing``.
        runtime: whose faults they are; None is the default runtime.

    Attributes:
        points: what happens when; empty until drawn.
        happened: the points whose moment has come, in that order.
        refused: those among them that could not be applied, with the error: no worker was up to
            be killed, say.
    """

    def __init__(
        self,
        points: Iterable[At] | None = None,
        *,
        seed: int | None = None,
        n: int = 5,
        kinds: Sequence[str] = _DRAWN,
        runtime: Runtime | None = None,
    ) -> None:
        self.seed = random.SystemRandom().randrange(2**32) if seed is None else seed
        self.points = list(points or ())
        self.happened: list[At] = []
        self.refused: list[tuple[At, BaseException]] = []
        self._done: set[int] = set()
        self._drawn = points is not None
        self._n = n
        self._kinds = tuple(kinds)
        self._runtime = runtime
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"FaultPlan(seed={self.seed}, points={self.points!r})"

    def draw(self, dag: DAG) -> None:
        """Draw the points for this DAG, if there are none yet: the same for the same seed."""
        ids = [f.id for f in dag.functions.values() if f.type == "regular"]
        if self._drawn or not ids:
            return
        self._drawn = True
        rng = random.Random(self.seed)  # noqa: S311  it is to be the same again
        for _ in range(self._n):
            kind = rng.choice(self._kinds)
            args: tuple[Any, ...] = ()
            if kind in ("crash", "delay", "drop_replies"):
                args = (rng.choice((*NAMES, f"run:{dag.id}")),)
            if kind == "delay":
                args += (rng.choice([0.001, 0.005, 0.02]),)
            self.points.append(At(rng.choice(WHENS), rng.choice(ids), Fault(kind, *args)))

    @contextlib.contextmanager
    def applied(self, dag: DAG) -> Iterator[DAG]:
        """Give a DAG as this one, with the faults around its functions; they happen inside.

        An error that is raised inside gets the plan as a note, so that it can be run again.
        """
        self.draw(dag)
        self._done.clear()
        self.happened.clear()
        self.refused.clear()
        folder = tempfile.mkdtemp(prefix="handoff-faults-")
        path = os.path.join(folder, "plan")
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen(64)
        listener = threading.Thread(target=self._serve, args=(server,), daemon=True)
        listener.start()
        _live[path] = self
        try:
            yield self._around(dag, path)
        except BaseException as error:
            error.add_note(f"under {self!r}")
            raise
        finally:
            del _live[path]
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
            listener.join(5.0)
            os.unlink(path)
            os.rmdir(folder)

    def execute(self, dag: DAG, **options: Unpack[SubmitOptions]) -> ExecutionResult:
        """Execute a DAG with the faults around its functions; as ``Runtime.execute``."""
        import handoff_actors

        with self.applied(dag) as faulty:
            if self._runtime is not None:
                return self._runtime.execute(faulty, **options)
            return handoff_actors.execute(faulty, **options)

    def _around(self, dag: DAG, path: str) -> DAG:
        wanted = {point.function_id for point in self.points}
        unknown = wanted.difference(f.id for f in dag.functions.values() if f.type == "regular")
        if unknown:
            raise ConfigurationError(f"{self!r} names {unknown}, which {dag!r} does not have")
        faulty = DAG(dag.id)
        for function in dag.functions.values():
            if function.id in wanted:
                code = resolve_code(function.code or "", function.id)
                moments = tuple(
                    Moment(number, point.when, point.attempt)
                    for number, point in enumerate(self.points)
                    if point.function_id == function.id
                )
                function = rebuilt(function, code=wrapped(code, path, moments))
            faulty.add_function(function)
        return faulty

    def reached(self, number: int, pid: int) -> None:
        """The moment of a point has come, in the process ``pid``: apply its fault, once."""
        point = self.points[number]
        with self._lock:
            if number in self._done:
                return
            self._done.add(number)
            self.happened.append(point)
        try:
            if point.fault == Fault("kill_worker") and pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
            else:
                point.fault.apply(self._runtime)
        except (HandoffError, OSError) as error:
            self.refused.append((point, error))

    def _serve(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            message = b""
            while not message.endswith(b"\n"):
                received = connection.recv(64)
                if not received:
                    return
                message += received
            number, pid = map(int, message.split())
            self.reached(number, pid)
            connection.sendall(b"\n")


def rebuilt(function: Function, **changes: Any) -> Function:
    """The same function but for these fields."""
    names = [f.name for f in fields(function) if f.init]
    return Function(**{**{name: getattr(function, name) for name in names}, **changes})


class Moment(NamedTuple):
    """When the fault of a point is due, as the wrapper of its function knows it."""

    number: int
    when: str
    attempt: int


def wrapped(code: Callable[..., Any], path: str, moments: tuple[Moment, ...]) -> Callable[..., Any]:
    """The code of a function with the moments of a plan around it; can be pickled if it can."""
    kind = _around_async if is_coroutine_callable(code) else _around
    return functools.partial(kind, code, path, moments)


def _around(
    code: Callable[..., Any], path: str, moments: tuple[Moment, ...], /, *args: Any,
    **kwargs: Any,
) -> Any:  # fmt: skip
    tell = _Teller(path, moments)
    tell("before")
    beside = tell.beside()
    try:
        return code(*args, **kwargs)
    finally:
        if beside is not None:
            beside.join()
        tell("after")


async def _around_async(
    code: Callable[..., Any], path: str, moments: tuple[Moment, ...], /, *args: Any,
    **kwargs: Any,
) -> Any:  # fmt: skip
    import asyncio

    tell = _Teller(path, moments)
    await asyncio.to_thread(tell, "before")
    beside = tell.beside()
    try:
        value = code(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value
    finally:
        if beside is not None:
            await asyncio.to_thread(beside.join)
        await asyncio.to_thread(tell, "after")


class _Teller:
    """Tells the plan of the moments of one attempt."""

    def __init__(self, path: str, moments: tuple[Moment, ...]) -> None:
        attempt = current().attempt
        self.path = path
        self.due = [moment for moment in moments if moment.attempt == attempt]

    def beside(self) -> threading.Thread | None:
        """Tell of "while" from another thread, if anything is planned then."""
        if not any(moment.when == "while" for moment in self.due):
            return None
        thread = threading.Thread(target=self, args=("while",), daemon=True)
        thread.start()
        return thread

    def __call__(self, when: str) -> None:
        plan = _live.get(self.path)
        for moment in self.due:
            if moment.when != when:
                continue
            if plan is not None:
                plan.reached(moment.number, os.getpid())
            else:
                # Another process has the plan, or it is over and nobody waits for this attempt.
                with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
                    connection.connect(self.path)
                    connection.sendall(b"%d %d\n" % (moment.number, os.getpid()))
                    connection.recv(1)

"""Faults, one function each: crash an actor, kill a worker, slow one down, lose its answers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Hashable
from typing import Any

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.server import Crash
from handoff_actors.default import _runtime
from handoff_actors.errors import ConfigurationError, describe
from handoff_actors.runtime import Runtime
from handoff_actors.status import ActorStatus


class InjectedCrash(Exception):  # noqa: N818  it is no error of anybody's
    """What an actor dies of when ``crash`` is given nothing else."""


def crash(name: str, error: BaseException | None = None, runtime: Runtime | None = None) -> None:
    """Send an actor a message whose handling raises; its supervisor restarts it.

    Returns at once: the actor crashes when it comes to the message.

    Args:
        name: of the actor, as ``status()`` shows it: ``"result_store"``, ``"run:<dag_id>"``, ...
        error: what its handler raises; None is an ``InjectedCrash``.
        runtime: whose actor; None is the default runtime.

    Raises:
        ConfigurationError: no actor has that name now, or ``error`` is no exception.
        NotStartedError: the runtime is not running.
    """
    if error is not None and not isinstance(error, BaseException):
        raise ConfigurationError(
            f"crash() raises its error in the actor: give an exception, not {describe(error)}"
        )
    ref = actor(name, runtime)
    ref.cast(Crash(error or InjectedCrash(f"crash({name!r}) was called")))


def delay(name: str, seconds: float, runtime: Runtime | None = None) -> None:
    """Keep an actor busy for so long: what is sent to it meanwhile waits.

    Returns at once. Calls whose deadline passes meanwhile raise ``ActorTimeoutError``.

    Args:
        name: of the actor, as for ``crash``.
        seconds: how long.
        runtime: whose actor; None is the default runtime.

    Raises:
        ConfigurationError: no actor has that name now, or ``seconds`` is no positive number.
        NotStartedError: the runtime is not running.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise ConfigurationError(
            f"delay() takes a positive number of seconds, not {describe(seconds)}"
        )
    actor(name, runtime).cast(Crash(None, seconds))


def drop_replies(name: str, n: int = 1, runtime: Runtime | None = None) -> Callable[[], int]:
    """Lose the next ``n`` answers of an actor: it does what it is asked, and nobody hears of it.

    Whoever asked gets ``ActorTimeoutError`` when its deadline has passed. A crash of the actor
    ends this.

    Args:
        name: of the actor, as for ``crash``.
        n: how many.
        runtime: whose actor; None is the default runtime.

    Returns:
        A callable that ends it, and returns how many answers were lost.

    Raises:
        ConfigurationError: no actor has that name now, or ``n`` is no positive int.
        NotStartedError: the runtime is not running.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ConfigurationError(f"drop_replies() takes a positive int, not {describe(n)}")
    ref = actor(name, runtime)
    incarnation = ref.incarnation
    if incarnation is None:
        raise ConfigurationError(f"{name} is just being restarted: nothing answers for it now")
    behaviour: Any = incarnation.behaviour
    handle, left, lost, lock = behaviour.handle, [n], [n], threading.Lock()

    def lossy(message: Any) -> Any:
        reply = behaviour.asker()
        with lock:
            drops = reply is not None and left[0] > 0
            if drops:
                left[0] -= 1
        if drops:
            reply.lose()
        return handle(message)

    def end() -> int:
        with lock:
            if left[0] > 0:
                lost[0], left[0] = n - left[0], 0
            return lost[0]

    behaviour.handle = lossy
    return end


def kill_worker(function_id: Hashable = None, runtime: Runtime | None = None) -> int:
    """Kill a worker process with SIGKILL: one that is at work, if there is any.

    Args:
        function_id: kill the one that has this function; None is any.
        runtime: whose worker; None is the default runtime.

    Returns:
        Its process id.

    Raises:
        ConfigurationError: no worker process is up, or none has this function.
        NotStartedError: the runtime is not running.
    """
    found = (_runtime() if runtime is None else runtime).workers.processes.victims()
    for pid, _, function_ids in found:
        if function_id is None or function_id in function_ids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it was dying already
            return pid
    if function_id is not None:
        raise ConfigurationError(f"no worker process has function {describe(function_id)} now")
    raise ConfigurationError("no worker process is up: run something with isolation='process'")


def actor(name: str, runtime: Runtime | None) -> Ref:
    """The address of a runtime's actor.

    Raises:
        ConfigurationError: no actor has that name now.
        NotStartedError: the runtime is not running.
    """
    home: Runtime = _runtime() if runtime is None else runtime
    ref = home.whereis(name) if isinstance(name, str) else None
    if ref is None:
        known = ", ".join(sorted(_names(home.status().tree)))
        raise ConfigurationError(f"no actor is named {describe(name)}; there are {known}")
    return ref


def _names(status: ActorStatus) -> set[str]:
    return {status.name}.union(*map(_names, status.children))

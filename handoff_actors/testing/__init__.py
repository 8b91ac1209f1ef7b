"""Faults for tests: make a runtime's own actors crash, and see that nothing is lost.

import handoff_actors as handoff

with handoff.start() as runtime:
    run = handoff.submit(dag)
    handoff.testing.crash("resource_tracker")
    run.result()                                # as if nothing had happened
    runtime.status().restarts                   # {"resource_tracker": 1}
"""

from __future__ import annotations

from handoff_actors.actors.server import Crash
from handoff_actors.default import _runtime
from handoff_actors.errors import ConfigurationError, describe
from handoff_actors.runtime import Runtime
from handoff_actors.status import ActorStatus

__all__ = ["InjectedCrash", "crash"]


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
    if runtime is None:
        runtime = _runtime()
    ref = runtime.whereis(name)
    if ref is None:
        known = ", ".join(sorted(_names(runtime.status().tree)))
        raise ConfigurationError(f"no actor is named {describe(name)}; there are {known}")
    ref.cast(Crash(error or InjectedCrash(f"crash({name!r}) was called")))


def _names(actor: ActorStatus) -> set[str]:
    return {actor.name}.union(*map(_names, actor.children))

"""Faults of nodes: kill, freeze and thaw their processes, cut and heal their links."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from handoff_actors.default import _runtime
from handoff_actors.errors import ConfigurationError, describe
from handoff_actors.runtime import Runtime
from handoff_actors.runtime_nodes import SERVICE

if TYPE_CHECKING:
    from handoff_actors.status import NodeInfo

_PATIENCE = 10.0
"""Seconds for another node to do it."""


def kill_node(name: str, runtime: Runtime | None = None) -> int:
    """Kill the process of a node of this machine with SIGKILL.

    One that ``start_nodes`` made is restarted under its name.

    Args:
        name: of the node.
        runtime: who knows it; None is the default runtime.

    Returns:
        The process id of the life that ended.

    Raises:
        ConfigurationError: no such node is up, or it is this one, or on another machine.
        NotStartedError: the runtime is not running.
    """
    return _signal(name, signal.SIGKILL, runtime)


def freeze_node(name: str, runtime: Runtime | None = None) -> int:
    """Stop the process of a node (SIGSTOP): it lives, and answers nobody until ``thaw_node``.

    Arguments, result and errors are those of ``kill_node``.
    """
    return _signal(name, signal.SIGSTOP, runtime)


def thaw_node(name: str, runtime: Runtime | None = None) -> int:
    """Let the process of a frozen node go on (SIGCONT), also when it is held to be down by now.

    Arguments, result and errors are those of ``kill_node``.
    """
    return _signal(name, signal.SIGCONT, runtime)


def cut(a: str, b: str, runtime: Runtime | None = None) -> None:
    """Cut the link between two nodes: neither reaches the other until ``heal``; both live on.

    Args:
        a: a node's name.
        b: another's.
        runtime: who knows both; None is the default runtime.

    Raises:
        ConfigurationError: a node is unknown, or they are one.
        NodeDownError: neither is this node, and ``a`` is not up.
        NotStartedError: the runtime is not running.
    """
    _link(a, b, "cut", runtime)


def heal(a: str, b: str, runtime: Runtime | None = None) -> None:
    """Undo a ``cut``: the two join again, when this returns. Arguments and errors are those of it.

    Raises:
        NodeUnreachableError: they do not find each other.
    """
    _link(a, b, "heal", runtime)


def _link(a: str, b: str, what: str, runtime: Runtime | None) -> None:
    home: Runtime = _runtime() if runtime is None else runtime
    for name in (a, b):
        _known(home, name)
    if a == b:
        raise ConfigurationError(f"{what}() takes two nodes, not {a!r} twice")
    here, there = (b, a) if b == home.node() else (a, b)
    mesh = home.cluster()
    if here == home.node():
        (mesh.cut if what == "cut" else mesh.heal)(there)
    else:
        mesh.peer(here).call(SERVICE, (what, there), _PATIENCE)


def _signal(name: str, number: int, runtime: Runtime | None) -> int:
    home: Runtime = _runtime() if runtime is None else runtime
    info = _known(home, name)
    if name == home.node():
        raise ConfigurationError(f"node {name!r} is this process itself")
    peer = home.cluster().peers().get(name)
    if peer is not None and not peer.same_machine:
        raise ConfigurationError(f"node {name!r} is on another machine")
    if peer is None and number != signal.SIGCONT:
        raise ConfigurationError(f"node {name!r} is {info.state}")
    try:
        os.kill(info.pid, number)
    except ProcessLookupError:
        raise ConfigurationError(f"node {name!r} has no process any more") from None
    return info.pid


def _known(home: Runtime, name: str) -> NodeInfo:
    for info in home.status().nodes:
        if info.name == name:
            return info
    known = ", ".join(info.name for info in home.status().nodes)
    raise ConfigurationError(f"no node is named {describe(name)}; there are {known}")

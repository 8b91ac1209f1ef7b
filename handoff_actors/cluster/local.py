"""Node processes that this runtime starts: supervised children, restarted under their names.

    node_supervisor
    └─ node:<name>     one actor for each process: starts it, and dies when it dies, so that the
                       supervisor starts both again, ever later the more often it happens in a row

Guarantees: a process ends with this one, however this one ends; the key of the cluster travels
through the environment of the process, which it leaves at once, and never on a command line; the
crash of an actor here costs no process (its next incarnation adopts it); the deaths of processes
are not counted against anybody.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.reasons import Exit, Reason
from handoff_actors.actors.server import Actor
from handoff_actors.actors.specs import Backoff, ChildSpec, StartChild, TerminateChild
from handoff_actors.cluster.spawner import Spawner
from handoff_actors.errors import HandoffError, NodeDownError
from handoff_actors.events import log

CONFIG = "HANDOFF_NODE"
KEY = "HANDOFF_AUTHKEY"

BACKOFF = Backoff(0.05, 5.0)
_FAREWELL = 1.0  # seconds that processes get to end by themselves
_SPAWN = 10.0


class NodeProcessDied(Exception):  # noqa: N818  it is a reason to restart, not an error of anybody's
    """What the actor of a node process dies of."""


@dataclass(eq=False)
class NodeProcess:
    """What outlives the actors of one node process.

    Attributes:
        name: of the node.
        config: what it is started with; see ``handoff_actors.node_process``.
        process: the present one.
        exits: the exit codes of those before, newest last.
        wanted: whether it is to run at all.
        up: whether it was up once; one that ends before is told of, and not started again.
    """

    name: str
    config: Mapping[str, Any]
    process: subprocess.Popen[bytes] | None = None
    exits: list[int] = field(default_factory=list)
    wanted: bool = True
    up: bool = False


class LocalNodes:
    """The node processes of a runtime. A plain object that outlives its actors.

    Args:
        node: the name of this node.
        key: of the cluster, hex digits.
        script: what a node process runs.
    """

    def __init__(self, node: str, key: str, script: str) -> None:
        self._key = key
        self._script = script
        self._spawner = Spawner(f"handoff-{node}-node-spawner")
        self._lock = threading.Lock()
        self.processes: dict[str, tuple[NodeProcess, Ref]] = {}

    def start(
        self,
        supervisor: Ref,
        configs: Sequence[Mapping[str, Any]],
        ready: Callable[[Sequence[str]], bool],
        timeout: float,
    ) -> None:
        """Start a process for each of ``configs`` and wait until all are ``ready``.

        Args:
            supervisor: under which.
            configs: a mapping for each, with its ``name``.
            ready: called with the names, again and again, until it holds.
            timeout: seconds.

        Raises:
            NodeDownError: one of them ended before it was up, or is not up in time. None of them
                is left then.
        """
        begun: list[NodeProcess] = []
        try:
            for config in configs:
                holder = NodeProcess(config["name"], config)
                begun.append(holder)
                spec = ChildSpec(
                    f"node:{holder.name}",
                    lambda holder=holder: NodeKeeper(self, holder),  # type: ignore[misc]
                    name=f"node:{holder.name}",
                    shutdown=_FAREWELL + 1.0,
                    counted=False,
                )
                ref: Ref = supervisor.call(StartChild(spec), timeout=_SPAWN)
                with self._lock:
                    self.processes[holder.name] = (holder, ref)
            names = [holder.name for holder in begun]
            deadline = time.monotonic() + timeout
            while not ready(names):
                _check_none_ended(begun)
                if time.monotonic() > deadline:
                    raise NodeDownError(
                        f"node processes {', '.join(names)} are not up within {timeout:g} s",
                        node=names[0],
                    )
                time.sleep(0.002)
            for holder in begun:
                holder.up = True
            _check_none_ended(begun)  # its actor may have heard of it before this
        except BaseException:
            for holder in begun:
                self.end(supervisor, holder.name)
            raise

    def end(self, supervisor: Ref, name: str) -> None:
        """End a process for good."""
        with self._lock:
            holder, ref = self.processes.pop(name, (None, None))
        if holder is not None and ref is not None:
            holder.wanted = False
            try:
                supervisor.call(TerminateChild(ref))
            except HandoffError:
                kill(holder)

    def spawn(self, holder: NodeProcess, ended: Callable[[int, int], None]) -> None:
        """Start the process; ``ended(pid, code)`` is called once it is dead.

        Raises:
            OSError: the system cannot.
        """
        done = threading.Event()
        failed: list[BaseException] = []

        def start() -> None:
            try:
                holder.process = self._popen(holder.config)
            except BaseException as error:
                failed.append(error)
            done.set()

        self._spawner.submit(start)
        if not done.wait(_SPAWN):
            raise TimeoutError(f"node process {holder.name!r} could not be started")
        if failed:
            raise failed[0]
        process = holder.process
        assert process is not None

        def watch() -> None:
            code = process.wait()
            holder.exits.append(code)
            del holder.exits[:-10]
            ended(process.pid, code)

        threading.Thread(target=watch, name=f"handoff-node-{holder.name}", daemon=True).start()
        log.info("node_process_started", peer=holder.name, pid=process.pid)

    def _popen(self, config: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        said = {
            **config,
            "parent": os.getpid(),
            "path": [entry for entry in sys.path if isinstance(entry, str)],
            "argv": list(sys.argv),
        }
        return subprocess.Popen(
            [
                sys.executable,
                *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]  # noqa: SLF001
                self._script,
            ],
            stdin=subprocess.DEVNULL,
            env={**os.environ, KEY: self._key, CONFIG: json.dumps(said)},
        )

    def close(self) -> None:
        """End all processes, together, and then the thread that started them."""
        with self._lock:
            holders = [holder for holder, _ in self.processes.values()]
            self.processes.clear()
        for holder in holders:
            holder.wanted = False
        end_together(holders)
        self._spawner.close(1.0)


def _check_none_ended(holders: Sequence[NodeProcess]) -> None:
    for holder in holders:
        if holder.exits:
            raise NodeDownError(
                f"node process {holder.name!r} ended with {holder.exits[0]} before it was up; what "
                "it wrote to stderr says why",
                node=holder.name,
            )


def end_together(holders: Sequence[NodeProcess]) -> None:
    """Ask processes to end, and kill those that do not."""
    living = [h.process for h in holders if h.process is not None and h.process.poll() is None]
    for process in living:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _FAREWELL
    for process in living:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
    for process in living:
        process.wait(5.0)


def kill(holder: NodeProcess) -> None:
    """Kill a process, if there is one."""
    if holder.process is not None and holder.process.poll() is None:
        holder.process.kill()
        holder.process.wait(5.0)


@dataclass(frozen=True, slots=True)
class _Exited:
    pid: int
    code: int


class NodeKeeper(Actor):
    """The actor of one node process.

    Args:
        nodes: what starts it.
        holder: what is left by the actor before.
    """

    def __init__(self, nodes: LocalNodes, holder: NodeProcess) -> None:
        self.nodes = nodes
        self.holder = holder

    def init(self) -> None:
        """Adopt the process, or start one."""
        holder, ref = self.holder, self.ref
        process = holder.process
        if process is None or process.returncode is not None:
            self.nodes.spawn(holder, lambda pid, code: ref.cast(_Exited(pid, code)))

    def handle(self, message: Any) -> Any:
        """Hear of the process's end."""
        if not isinstance(message, _Exited):
            return super().handle(message)
        process = self.holder.process
        if process is None or process.pid != message.pid:
            return None  # an older one
        if not (self.holder.wanted and self.holder.up):
            return None
        log.warning("node_process_died", peer=self.holder.name, code=message.code, pid=message.pid)
        raise NodeProcessDied(f"the process of node {self.holder.name} ended with {message.code}")

    def terminate(self, reason: Reason) -> None:
        """Nothing is left of a node that is not wanted any more."""
        if reason is Exit.SHUTDOWN:
            self.holder.wanted = False
            end_together([self.holder])

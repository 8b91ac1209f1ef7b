"""How a runtime comes to have a cluster: options, key, gateway, membership, node processes.

Nothing of ``cluster`` that costs import time is loaded before the runtime listens, connects, or
starts nodes.
"""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from handoff_actors.actors.dynamic_supervisor import DynamicSupervisor
from handoff_actors.actors.specs import ChildSpec, StartChild, SupervisorFlags
from handoff_actors.arguments import check_node, items_of
from handoff_actors.errors import ConfigurationError, describe
from handoff_actors.events import (
    NodeBack,
    NodeDown,
    NodeSuspect,
    NodeUp,
    log,
)
from handoff_actors.graph.checks import real_number
from handoff_actors.life import Life
from handoff_actors.options import Options, StartOptions
from handoff_actors.resources.capabilities import to_micro

if TYPE_CHECKING:
    from handoff_actors.cluster.local import LocalNodes
    from handoff_actors.cluster.mesh import Mesh
    from handoff_actors.cluster.peers import Cluster, PeerEvent
    from handoff_actors.node_logs import Logs

_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "node_process.py")
_MOST_NODES = 1000
_UP = 30.0  # seconds for node processes to be up
_INHERITED = (
    "heartbeat_timeout",
    "node_return_timeout",
    "isolation",
    "max_workers",
    "max_retries",
    "max_restarts",
    "max_seconds",
    "memory_limit",
    "spill_directory",
)
"""Options that node processes have from the runtime that starts them."""


def check_listening(options: Options) -> str | None:
    """Refuse to listen where others could come in unless that is safe, or wanted all the same.

    Returns:
        What to warn of, if it is not safe but wanted.

    Raises:
        ConfigurationError: it is neither; or an address or a certificate cannot be used.
    """
    if options.listen is None and options.tls is None:
        return None
    from handoff_actors.cluster import addresses
    from handoff_actors.cluster.tls import TLS

    tls = TLS.of(options.tls)
    host, _ = addresses.parse(options.listen or "127.0.0.1:0", "listen")
    if addresses.is_loopback(host):
        return None
    explicit = options.authkey is not None or bool(os.environ.get("HANDOFF_AUTHKEY"))
    if explicit and tls is not None:
        return None
    missing = [
        *([] if explicit else ["a key of your own (authkey=, or HANDOFF_AUTHKEY)"]),
        *([] if tls is not None else ["certificates (tls=)"]),
    ]
    if not options.insecure:
        raise ConfigurationError(
            f"listen={options.listen!r} can be reached from other machines, and whoever has the "
            f"key can run any code here: that needs {' and '.join(missing)}; or insecure=True, in "
            "a network where nobody else is"
        )
    return (
        f"listening on {options.listen} without {' and '.join(missing)}: whoever can read or guess "
        "the key can run any code here"
    )


class Clustered(Life):
    """Part of ``Runtime``: its cluster."""

    _mesh: Mesh | None = None
    _local: LocalNodes | None = None
    _logs: Logs | None = None

    def __init__(self, **options: Unpack[StartOptions]) -> None:
        super().__init__(**options)
        check_listening(self.options)

    def _prepare_cluster(self) -> None:
        self._mesh = self._local = None
        self._numbers = itertools.count(1)
        warning = check_listening(self.options)
        if warning:
            log.warning("insecure_gateway", node=self._name, listen=self.options.listen)
            warnings.warn(warning, UserWarning, stacklevel=4)

    @property
    def address(self) -> str | None:
        """``host:port`` where others can connect; None while nobody can."""
        mesh = self._mesh
        return None if mesh is None else mesh.address

    def cluster(self) -> Mesh:
        """This node among the others; its gateway opens with the first call, if it was not open.

        Raises:
            ConfigurationError: it cannot listen where it is to listen.
        """
        self._ref("resource_tracker")
        mesh = self._mesh
        if mesh is not None:
            return mesh
        with self._lock:
            self._ref("resource_tracker")
            if self._mesh is None:
                self._open_cluster()
            assert self._mesh is not None
            return self._mesh

    def _open_cluster(self) -> None:
        from handoff_actors.cluster.keepers import GatewayKeeper, MembershipKeeper
        from handoff_actors.cluster.mesh import Mesh, place_for
        from handoff_actors.cluster.tls import TLS
        from handoff_actors.node_logs import Logs

        system = self._system
        assert system is not None
        mesh = Mesh(
            self._name,
            bytes.fromhex(self.authkey),
            place_for(self._name, self.options.listen, TLS.of(self.options.tls)),
            self.options.heartbeat_timeout,
            system.carriers,
            system.timers,
            self._describe,
        )
        self._serve_cluster(mesh)
        mesh.watch(self._node_changed)
        self._logs = Logs(mesh)
        refs = {}
        membership = ChildSpec("membership", lambda: MembershipKeeper(mesh), name="membership")
        refs["membership"] = mesh.membership = self._root.call(StartChild(membership))
        try:
            mesh.open()
        except BaseException:
            mesh.close()
            raise
        gateway = ChildSpec("gateway", lambda: GatewayKeeper(mesh), name="gateway")
        refs["gateway"] = self._root.call(StartChild(gateway))
        self._refs = {**self._refs, **refs}
        self._mesh = mesh
        log.info("gateway_open", node=self._name, address=mesh.address)

    def _serve_cluster(self, mesh: Cluster) -> None:
        """Register what this node answers to others, before there are any."""

    def _describe(self) -> Any:
        """What ``handoff status`` shows of this node."""

    def _node_changed(self, event: PeerEvent) -> None:
        kind = type(event).__name__
        name = event.peer.name
        if kind == "PeerUp":
            self.events.publish(NodeUp(node=name, address=event.peer.address, pid=event.peer.pid))
        elif kind == "PeerDown":
            self.events.publish(NodeDown(node=name, reason=getattr(event, "reason", "")))
        elif kind == "PeerSuspect":
            self.events.publish(NodeSuspect(node=name))
        elif kind == "PeerBack":
            self.events.publish(NodeBack(node=name))

    def collect_logs(self, level: str | int | None = "info", rate: float = 500.0) -> None:
        """Log here what the other nodes and their worker processes log, those to come too.

        By ``logging``, structlog or the library itself; with ``node``, and inside functions with
        ``dag_id``, ``function_id`` and ``attempt``.

        Args:
            level: from which on, a name or number of ``logging``; None: no more.
            rate: lines a second of each node; what is more is dropped there, and counted.

        Raises:
            ConfigurationError: ``level`` or ``rate`` cannot be used.
        """
        number = level
        if isinstance(level, str):
            number = logging.getLevelNamesMapping().get(level.upper())
        if (level is not None and not isinstance(number, int)) or isinstance(level, bool):
            raise ConfigurationError(f"level is a level of logging, not {describe(level)}")
        lines = real_number(rate)
        if lines is None or not lines > 0:
            raise ConfigurationError(f"rate must be a number of lines, not {describe(rate)}")
        self.cluster()
        assert self._logs is not None
        self._logs.collect(None if number is None else int(number), lines)

    # Node processes.

    def start_nodes(
        self,
        n: int,
        *,
        capabilities: Mapping[str, float] | None = None,
        names: Iterable[str] | None = None,
    ) -> list[str]:
        """Start node processes on this machine, which join this runtime's cluster.

        They are supervised: one that dies is started again under its name; all end with this
        process, however it ends. They are up, and know each other, when this returns.

        Args:
            n: how many.
            capabilities: of each; None is those of this machine.
            names: theirs; None makes some.

        Returns:
            Their names.

        Raises:
            NodeDownError: one of them ended before it was up.
            ConfigurationError: an argument cannot be used, or a name is taken.
        """
        if capabilities is not None:
            to_micro(capabilities, "the capabilities of the nodes")
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= _MOST_NODES:
            raise ConfigurationError(
                f"start_nodes: n must be an int >= 1 and at most {_MOST_NODES}, not {describe(n)}"
            )
        mesh = self.cluster()
        wanted = self._names_for(n, names)
        configs = [self._node_config(name, capabilities) for name in wanted]
        local, supervisor = self._local_nodes()

        def ready(starting: Sequence[str]) -> bool:
            peers = mesh.peers()
            return all(name in peers and peers[name].facts.get("ready") for name in starting)

        local.start(supervisor, configs, ready, _UP)
        mesh.notifier.flush()
        return wanted

    def _names_for(self, n: int, names: Iterable[str] | None) -> list[str]:
        mesh = self.cluster()
        with self._lock:
            taken = {self._name, *mesh.peers()}
            if self._local is not None:
                taken.update(self._local.processes)
            if names is None:
                made = (f"{self._name}-node-{number}" for number in self._numbers)
                return list(itertools.islice((name for name in made if name not in taken), n))
        found = list(items_of("names", names, "names"))
        for name in found:
            check_node(name)
        if len(found) != n or len(set(found)) != n:
            raise ConfigurationError(f"start_nodes: {n} nodes need {n} different names: {found}")
        for name in found:
            if name in taken:
                raise ConfigurationError(f"start_nodes: a node is called {name!r} already")
        return found

    def _node_config(self, name: str, capabilities: Mapping[str, float] | None) -> dict[str, Any]:
        from handoff_actors.cluster import addresses

        mesh = self.cluster()
        options = {each: getattr(self.options, each) for each in _INHERITED}
        if self.options.spill_directory is not None:
            options["spill_directory"] = os.path.abspath(self.options.spill_directory)
        if capabilities is not None:
            options["capabilities"] = dict(capabilities)
        host = mesh.place.host or "127.0.0.1"
        options["listen"] = addresses.text(host, 0)
        options["shutdown_timeout"] = min(self.options.shutdown_timeout, 0.5)
        options["insecure"] = self.options.insecure
        tls = mesh.place.tls
        if tls is not None:
            options["tls"] = {
                each: os.path.abspath(getattr(tls, each))
                for each in ("certfile", "keyfile", "cafile")
            }
        return {"name": name, "connect": mesh.address, "options": options}

    def _local_nodes(self) -> tuple[LocalNodes, Any]:
        from handoff_actors.cluster.local import BACKOFF, LocalNodes

        with self._lock:
            self._ref("resource_tracker")
            if self._local is None:
                flags = SupervisorFlags(
                    "one_for_one",
                    self.options.max_restarts,
                    self.options.max_seconds,
                    backoff=BACKOFF,
                )
                spec = ChildSpec(
                    "node_supervisor",
                    lambda: DynamicSupervisor(flags, on_restart=self._on_restart),
                    name="node_supervisor",
                    type="supervisor",
                    shutdown=5.0,
                )
                ref = self._root.call(StartChild(spec))
                self._refs = {**self._refs, "node_supervisor": ref}
                self._local = LocalNodes(self._name, self.authkey, _SCRIPT)
            return self._local, self._refs["node_supervisor"]

    def _close_cluster(self) -> None:
        """End node processes and links; part of the end of the runtime."""
        local, self._local = self._local, None
        if local is not None:
            local.close()
        mesh, self._mesh = self._mesh, None
        if mesh is not None:
            mesh.close()
        logs, self._logs = self._logs, None
        if logs is not None:
            logs.close()

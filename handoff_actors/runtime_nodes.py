"""What a runtime can be asked about nodes: what they offer, who is up, joining and leaving."""

from __future__ import annotations

import abc
import contextlib
import os
import sys
from collections.abc import Hashable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from handoff_actors._version import __version__
from handoff_actors.arguments import check_node
from handoff_actors.errors import (
    AlreadyRunningError,
    ConfigurationError,
    HandoffError,
    NodeDownError,
    NodeUnreachableError,
    describe,
)
from handoff_actors.execution.workers.supervisor import Describe
from handoff_actors.graph.checks import is_seconds
from handoff_actors.resources.capabilities import NodeCapacity, to_micro
from handoff_actors.resources.tracker import Available, Discover, Fits, RegisterNode
from handoff_actors.runtime_cluster import Clustered
from handoff_actors.runtime_values import Values
from handoff_actors.status import NodeInfo, RuntimeStatus

if TYPE_CHECKING:
    from handoff_actors.cluster.peers import Cluster, Peer
    from handoff_actors.execution.nodes.hub import Hub


SERVICE = "handoff.node"
_PATIENCE = 2.0  # seconds for another node to say what it has free


class Nodes(Clustered, Values):
    """Part of ``Runtime``: nodes and their resources."""

    # Resources.

    def register_node(self, node: str, capabilities: Mapping[str, float]) -> None:
        """Say what a node offers; replaces what was there. What is in use stays in use."""
        to_micro(capabilities, f"the capabilities of node {describe(node)}")
        check_node(node)
        self._ref("resource_tracker").call(RegisterNode(node, dict(capabilities)))
        self._offered = {**self._offered, node: dict(capabilities)}
        if node == self._name and self._mesh is not None:
            self._mesh.publish(capabilities=dict(capabilities))

    def register_local_node(self, capabilities: Mapping[str, float]) -> None:
        """Say what this node offers."""
        self.register_node(self._name, capabilities)

    def discover_nodes(self) -> dict[str, dict[str, float]]:
        """What each node offers: this one, those that are up, and those registered here."""
        found: dict[str, dict[str, float]] = self._ref("resource_tracker").call(Discover())
        mesh = self._mesh
        for name, peer in {} if mesh is None else mesh.peers().items():
            found.setdefault(name, dict(peer.facts.get("capabilities", {})))
        return found

    def resources_available(self, node: str, requirements: Mapping[str, float]) -> bool:
        """Whether the node has so much free now; False for an unknown node."""
        to_micro(requirements, "the requirements")
        tracker = self._ref("resource_tracker")
        peer = None if self._mesh is None else self._mesh.peers().get(node)
        if peer is not None and node not in self._offered:
            try:
                return bool(peer.call(SERVICE, ("fits", dict(requirements)), _PATIENCE))
            except (NodeDownError, NodeUnreachableError):
                return False
        return bool(tracker.call(Fits(node, dict(requirements))))

    def offered(self) -> Mapping[str, Mapping[str, float]]:
        """What each node was registered with; no call, for the check at admission."""
        return self._offered

    def capacities(self) -> dict[str, NodeCapacity]:
        """This node's capacity, for allocators."""
        tracker = self._ref("resource_tracker")
        free: Mapping[str, float] = tracker.call(Available(self._name))
        return {self._name: NodeCapacity(free, self._offered.get(self._name, {}))}

    # Nodes.

    def node(self) -> str:
        """This node's name."""
        self._must_run()
        return self._name

    def nodes(self) -> list[str]:
        """The other nodes that are up, in order of their names; those that are suspect too."""
        self._ref("resource_tracker")
        return [] if self._mesh is None else sorted(self._mesh.peers())

    def connect(self, address: str, timeout: float = 5.0) -> str:
        """Join the cluster of the node at ``address``: this node is linked with all of it then.

        Args:
            address: ``host:port``, of any of its nodes.
            timeout: seconds.

        Returns:
            The name of the node at ``address``.

        Raises:
            NodeUnreachableError: nothing answers there within ``timeout`` seconds.
            AuthenticationError: it has another key.
            IncompatibleNodeError: it has another version of Python or of this library.
            NameTakenError: the cluster has a node of this one's name.
            ConfigurationError: ``address`` is none, or this node's own.
        """
        if not is_seconds(timeout):
            raise ConfigurationError(
                f"timeout must be a number of seconds, not {describe(timeout)}"
            )
        return self.cluster().connect(address, timeout)

    def disconnect(self, node: str) -> None:
        """Leave a node: neither takes the other for a peer until one connects again.

        Raises:
            NodeDownError: it is not connected.
        """
        self._ref("resource_tracker")
        check_node(node)
        if self._mesh is None:
            raise NodeDownError(f"node {node!r} is not connected to {self._name}", node=node)
        self._mesh.disconnect(node)

    def node_info(self, name: str | None = None) -> NodeInfo:
        """What is known of a node; None is this one. A node that is down shows its last process.

        Raises:
            NodeDownError: no such node is known.
        """
        tracker = self._ref("resource_tracker")
        if name is not None:
            check_node(name)
        if name is None or name == self._name:
            return NodeInfo(
                self._name,
                self.address,
                os.getpid(),
                "up",
                dict(self._offered.get(self._name, {})),
                dict(tracker.call(Available(self._name))),
                ".".join(map(str, sys.version_info[:3])),
                __version__,
            )
        record = None if self._mesh is None else self._mesh.known().get(name)
        if record is None:
            raise NodeDownError(f"node {name!r} is not known to {self._name}", node=name)
        capabilities = self._offered.get(name, record.facts.get("capabilities", {}))
        return NodeInfo(
            name,
            record.address,
            record.pid,
            record.state,
            dict(capabilities),
            self._available_at(name) if record.state == "up" else {},
            record.python,
            record.version,
        )

    def _available_at(self, name: str) -> dict[str, float]:
        """What is free at a node; nothing if it does not say."""
        try:
            found = self.cluster().peer(name).call(SERVICE, ("available",), _PATIENCE)
        except (NodeDownError, NodeUnreachableError):
            return {}
        return dict(found)

    def busy(self) -> bool:
        """Whether anything runs on this node."""
        counts = self._ref("worker_supervisor").call(Describe())
        return bool(
            any(entry.data.state == "running" for entry in list(self._runs.view.values()))
            or counts["threads"]["busy"]
            or counts["processes"]["busy"]
            or counts["coroutines"]
        )

    # What other nodes ask.

    def _serve_cluster(self, mesh: Cluster) -> None:
        mesh.serve(SERVICE, on_call=self._asked)
        mesh.publish(capabilities=dict(self._offered.get(self._name, {})))
        self._open_hub(mesh)

    def _open_hub(self, cluster: Cluster) -> None:
        """Have runs use other nodes, and run for them, from now on."""
        from handoff_actors.execution.nodes.hub import Hub
        from handoff_actors.results.remote import RemoteStore

        hub = Hub(
            cluster,
            self._workers,
            self._ref("execution_supervisor"),
            self._ref("resource_tracker"),
            lambda: self._offered,
            lambda: next(self._keys),
            self.options.max_restarts,
            self.options.node_return_timeout,
        )
        hub.open()
        self._contention.changed = hub.changed
        self._hub = hub
        self._far = RemoteStore(
            cluster,
            self._values_here,
            self._locate_here,
            self._clear_if_it_may_be,
            self.events,
        )

    def _clear_if_it_may_be(self, dag_id: Hashable) -> None:
        """Another node clears a DAG; a run of this node goes on."""
        with contextlib.suppress(AlreadyRunningError):
            self._clear_here(dag_id)

    def hub(self) -> Hub | None:
        """What it has of runs over several nodes, if there are or were other nodes."""
        hub = self._hub
        return hub if hub is not None and hub.is_used() else None

    def _asked(self, _peer: Peer, request: Any) -> Any:
        tracker = self._ref("resource_tracker")
        if request[0] == "fits":
            return tracker.call(Fits(self._name, request[1]))
        if request[0] == "available":
            return tracker.call(Available(self._name))
        if request[0] in ("cut", "heal"):
            mesh = self.cluster()
            return (mesh.cut if request[0] == "cut" else mesh.heal)(request[1])
        raise HandoffError(f"node {self._name} does not answer {describe(request)}")

    def _describe(self) -> dict[str, Any]:
        """For ``handoff status``: this node, and the others as it sees them."""
        names = [] if self._mesh is None else sorted(self._mesh.known())
        return {
            "node": self._name,
            "nodes": [asdict(self.node_info(name)) for name in (self._name, *names)],
            "status": str(self.status()),
        }

    @abc.abstractmethod
    def status(self) -> RuntimeStatus:
        """How it is doing."""

"""What a runtime can be asked about nodes: what they offer, who is up, joining and leaving."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from handoff_actors._version import __version__
from handoff_actors.errors import (
    ConfigurationError,
    NodeDownError,
    NodeUnreachableError,
    describe,
)
from handoff_actors.life import Life
from handoff_actors.resources.capabilities import NodeCapacity, to_micro
from handoff_actors.resources.tracker import Available, Discover, Fits, RegisterNode
from handoff_actors.status import NodeInfo


class Nodes(Life):
    """Part of ``Runtime``: nodes and their resources."""

    # Resources.

    def register_node(self, node: str, capabilities: Mapping[str, float]) -> None:
        """Say what a node offers; replaces what was there. What is in use stays in use."""
        to_micro(capabilities, f"the capabilities of node {describe(node)}")
        if not isinstance(node, str) or not node:
            raise ConfigurationError(f"a node's name is a non-empty str, not {describe(node)}")
        self._ref("resource_tracker").call(RegisterNode(node, dict(capabilities)))
        self._offered = {**self._offered, node: dict(capabilities)}

    def register_local_node(self, capabilities: Mapping[str, float]) -> None:
        """Say what this node offers."""
        self.register_node(self._name, capabilities)

    def discover_nodes(self) -> dict[str, dict[str, float]]:
        """What each known node offers, this one included."""
        found: dict[str, dict[str, float]] = self._ref("resource_tracker").call(Discover())
        return found

    def resources_available(self, node: str, requirements: Mapping[str, float]) -> bool:
        """Whether the node has so much free now; False for an unknown node."""
        to_micro(requirements, "the requirements")
        return bool(self._ref("resource_tracker").call(Fits(node, dict(requirements))))

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
        return self._name

    def nodes(self) -> list[str]:
        """The other nodes that are up."""
        self._ref("resource_tracker")
        return []

    def connect(self, address: str, timeout: float = 5.0) -> str:
        """Join the cluster of the node at ``address``.

        Raises:
            NodeUnreachableError: nothing answers there within ``timeout`` seconds.
        """
        self._ref("resource_tracker")
        raise NodeUnreachableError(
            f"node {self._name} has no gateway in this version, so it cannot join {address!r} "
            f"(within {timeout} s or ever)",
            node=str(address),
        )

    def disconnect(self, node: str) -> None:
        """Leave a node.

        Raises:
            NodeDownError: it is not connected.
        """
        self._ref("resource_tracker")
        raise NodeDownError(f"node {node!r} is not connected to {self._name}", node=node)

    def node_info(self, name: str | None = None) -> NodeInfo:
        """What is known of a node; None is this one.

        Raises:
            NodeDownError: no such node is known.
        """
        tracker = self._ref("resource_tracker")
        if name is not None and name != self._name:
            raise NodeDownError(f"node {name!r} is not connected to {self._name}", node=name)
        return NodeInfo(
            self._name,
            None,
            os.getpid(),
            "up",
            dict(self._offered.get(self._name, {})),
            dict(tracker.call(Available(self._name))),
            ".".join(map(str, sys.version_info[:3])),
            __version__,
        )

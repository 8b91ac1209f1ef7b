"""The script a node process is started with by ``start_nodes``.

Runs before anything of the library is imported: the module path is the parent's, ``__main__`` is an
empty module of its own (the user's script is never run again), and the key leaves the environment
before anybody can inherit it.
"""

from __future__ import annotations

import sys


def begin() -> None:
    """Make ready, and be a node until the end."""
    import json
    import os

    config = json.loads(os.environ.pop("HANDOFF_NODE"))
    key = os.environ.pop("HANDOFF_AUTHKEY")
    sys.path[:] = config.pop("path")
    sys.argv[:] = config.pop("argv")
    sys.modules["__main__"] = type(sys)("__main__")

    from handoff_actors.cluster.spawner import die_with_parent

    die_with_parent(config.pop("parent"))
    from handoff_actors.node_service import local_node

    local_node(key, **config)


if __name__ == "__main__":
    begin()

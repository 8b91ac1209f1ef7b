"""Tests of your own DAGs, and faults: see that nothing is lost, whatever crashes.

    import handoff_actors as handoff
    from handoff_actors import testing

    with handoff.start() as runtime:
        run = handoff.submit(dag)
        testing.crash("resource_tracker")
        run.result()                                # as if nothing had happened
        runtime.status().restarts                   # {"resource_tracker": 1}

    @given(testing.dags())
    def test_any_dag(handoff_runtime, dag):
        assert handoff.execute(dag).results == testing.sequential(dag)

Faults: ``crash``, ``delay``, ``drop_replies``, ``kill_worker``, ``kill_node``, ``freeze_node``,
``thaw_node``, ``cut`` and ``heal``, and a ``FaultPlan`` of them. The strategies ``costs``,
``functions``, ``dags`` and ``faults`` need Hypothesis; the fixtures ``handoff_runtime``,
``handoff_cluster`` and ``handoff_leaks`` come with pytest. All is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handoff_actors.testing.fault_plan import At, Fault, FaultPlan
    from handoff_actors.testing.injection import (
        InjectedCrash,
        crash,
        delay,
        drop_replies,
        kill_worker,
    )
    from handoff_actors.testing.leaks import Leaks
    from handoff_actors.testing.nodes import cut, freeze_node, heal, kill_node, thaw_node
    from handoff_actors.testing.oracle import sequential
    from handoff_actors.testing.simulated import SimulatedCluster
    from handoff_actors.testing.strategies import costs, dags, faults, functions

__all__ = [
    "At",
    "Fault",
    "FaultPlan",
    "InjectedCrash",
    "Leaks",
    "SimulatedCluster",
    "costs",
    "crash",
    "cut",
    "dags",
    "delay",
    "drop_replies",
    "faults",
    "freeze_node",
    "functions",
    "heal",
    "kill_node",
    "kill_worker",
    "sequential",
    "thaw_node",
]

FAULTS = (
    "crash", "delay", "drop_replies", "kill_worker", "kill_node", "freeze_node", "thaw_node", "cut",
    "heal",
)  # fmt: skip
"""The functions here that are faults: what a ``Fault`` may be."""

_HOME = {
    "At": "fault_plan",
    "Fault": "fault_plan",
    "FaultPlan": "fault_plan",
    "InjectedCrash": "injection",
    "Leaks": "leaks",
    "SimulatedCluster": "simulated",
    "costs": "strategies",
    "crash": "injection",
    "cut": "nodes",
    "dags": "strategies",
    "delay": "injection",
    "drop_replies": "injection",
    "faults": "strategies",
    "freeze_node": "nodes",
    "functions": "strategies",
    "heal": "nodes",
    "kill_node": "nodes",
    "kill_worker": "injection",
    "sequential": "oracle",
    "thaw_node": "nodes",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

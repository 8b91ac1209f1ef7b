"""From ``stream(dag)`` to a pipeline that runs: every check, the claims, the workers."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Any, Protocol

from handoff_actors.actors.calls import Ref
from handoff_actors.actors.latches import heard
from handoff_actors.actors.reasons import Reason
from handoff_actors.actors.specs import ChildSpec, StartChild
from handoff_actors.arguments import check_count, items_of
from handoff_actors.errors import (
    AllocationError,
    ConfigurationError,
    HandoffError,
    InvalidDAGError,
    NodeDownError,
    amounts_text,
    describe,
)
from handoff_actors.execution.placement import check_feasible
from handoff_actors.execution.workers.roster import Workers
from handoff_actors.graph.checks import is_seconds
from handoff_actors.graph.dag import DAG
from handoff_actors.graph.plan import Plan
from handoff_actors.pipeline.coordinator import Coordinator
from handoff_actors.pipeline.handle import Follow, Pipeline
from handoff_actors.pipeline.intake import Limits
from handoff_actors.pipeline.line import Line
from handoff_actors.pipeline.placing import Site, capacities, place, send_away
from handoff_actors.resources.capabilities import MICRO


class Home(Site, Protocol):
    """What a pipeline needs of the runtime."""

    pipelines: dict[str, Line]

    @property
    def workers(self) -> Workers:
        """Its workers."""

    def nodes_known(self) -> list[str]:
        """The other nodes that were ever seen."""

    def whereis(self, name: str) -> Ref | None:
        """The actor of that name."""


def open_pipeline(
    home: Home,
    dag: DAG,
    *,
    max_pending: int,
    max_demand: int | None,
    min_demand: int | None,
    join_timeout: float | None,
    timeout: float | None,
    follow: Follow,
    nodes: Collection[str] | None = None,
    claim: Mapping[str, int] | None = None,
) -> Pipeline:
    """A pipeline that runs; see ``Runtime.stream`` for arguments and errors.

    One with a ``claim`` of its own, in micro-units, is here whatever its functions say.
    """
    if not isinstance(dag, DAG):
        raise InvalidDAGError(f"what is streamed must be a DAG, not {describe(dag)}")
    limits = _limits(max_pending, max_demand, min_demand, join_timeout)
    _seconds("timeout", timeout)
    plan = dag.plan()
    _check_plan(plan, dag.id)
    options = home.options
    where: dict[int, str] = {}
    if claim is None:
        every = capacities(home)
        known: dict[str, Any] = {name: has.total for name, has in every.items()}
        known = {**dict.fromkeys(home.nodes_known()), **known}
        here = known.pop(home.node())
        check_feasible(plan, home.node(), {home.node(): here}, dag.id, known)
        among = _among(nodes, (home.node(), *known), dag.id)
        may = {name: has for name, has in every.items() if name in among}
        if not may:
            raise NodeDownError(
                f"none of the nodes that pipeline {describe(dag.id)} may be on is up: "
                f"{', '.join(among)}"
            )
        where = place(plan, home, dag.id, may)
    _check_code(plan, options.isolation, dag.id)
    id_, name = _free_name(home, dag.id)
    line = Line(
        id_,
        name,
        plan,
        limits,
        home.workers,
        options.isolation,
        (options.max_restarts, options.max_seconds),
    )
    if claim is None:
        wanted, line.steps = send_away(
            plan, line.crews, where, home, timeout, None if nodes is None else among
        )
    else:
        wanted = {home.node(): dict(claim)} if claim else {}
    home.pipelines[name] = line
    supervisor = home.whereis("pipeline_supervisor")
    if supervisor is None:
        raise HandoffError("the pipeline supervisor is gone")

    def forget(ended: Line) -> None:
        home.pipelines.pop(ended.name, None)

    def coordinator() -> Coordinator:
        return Coordinator(
            line,
            wanted,
            supervisor,
            options.max_restarts,
            forget,
        )

    spec = ChildSpec(
        name,
        coordinator,
        restart="transient",
        name=name,
        counted=False,
        max_restarts=options.max_restarts,
    )
    try:
        ref: Ref = supervisor.call(StartChild(spec))
    except BaseException:
        home.pipelines.pop(name, None)
        raise
    ref.when_gone(_Buried(line, home.pipelines))
    _await_start(line, timeout, wanted)
    return Pipeline(line, follow)


class _Buried:
    """The coordinator is gone for good."""

    def __init__(self, line: Line, pipelines: dict[str, Line]) -> None:
        self.line = line
        self.pipelines = pipelines

    def __call__(self, reason: Reason) -> None:
        line = self.line
        if line.phase == "ended":
            return
        self.pipelines.pop(line.name, None)
        if isinstance(reason, BaseException):
            line.bury(reason)
        else:
            line.stop("was stopped with its runtime")
            line.bury(line.error())


def _await_start(line: Line, timeout: float | None, wanted: dict[str, dict[str, int]]) -> None:
    """Wait until it has its claims, which may take ``timeout`` seconds, and its workers."""
    try:
        claimed = heard(line.settled.wait, timeout) or line.phase != "claiming"
        if not claimed:
            amounts = {name: a / MICRO for of in wanted.values() for name, a in of.items()}
            error = AllocationError(
                f"pipeline {line.id!r} did not get the resources it holds for its life, "
                f"{amounts_text(amounts)}, within {timeout} s: others have them; wait longer, "
                "or lower cost or parallelism",
                function_id=None,
                resource=None,
                asked=None,
                most=None,
            )
            line.end(error)
            heard(line.ended.wait, timeout)
            raise error
        heard(line.settled.wait)
    except BaseException:
        line.stop("was not started")
        raise
    if line.root is not None:
        line.ended.wait(1.0)
        raise line.root


def _among(nodes: Any, known: Collection[str], id_: Hashable) -> Collection[str]:
    """The nodes that stages may be on, of those that are known."""
    if nodes is None:
        return known
    among = items_of("nodes", nodes, "names")
    if not among:
        raise ConfigurationError("nodes must name a node at least; None is all of them")
    for name in among:
        if name not in known:
            raise AllocationError(
                f"pipeline {id_!r} is to be on node {describe(name)}, which was never seen; "
                f"known are {', '.join(known)}",
                function_id=None,
                resource=None,
                asked=None,
                most=None,
            )
    return among


def _free_name(home: Home, id_: Hashable) -> tuple[Hashable, str]:
    """What it is called: as its DAG, with a number when there is such a pipeline already."""
    name, number = f"pipeline:{id_}", 1
    while name in home.pipelines or home.whereis(name) is not None:
        number += 1
        name = f"pipeline:{id_}#{number}"
    return (id_ if number == 1 else f"{id_}#{number}"), name


def _limits(max_pending: Any, max_demand: Any, min_demand: Any, join_timeout: Any) -> Limits:
    check_count("max_pending", max_pending, 1)
    if max_demand is None:
        if min_demand is not None:
            raise ConfigurationError("min_demand without max_demand: give both")
    else:
        check_count("max_demand", max_demand, 1)
        if min_demand is None:
            min_demand = max_demand // 2
        check_count("min_demand", min_demand, 0)
        if min_demand >= max_demand:
            raise ConfigurationError(
                f"min_demand must be less than max_demand={max_demand}, not {min_demand}"
            )
    _seconds("join_timeout", join_timeout)
    return Limits(max_pending, max_demand, min_demand or 0, join_timeout)


def _seconds(name: str, value: Any) -> None:
    if value is not None and not is_seconds(value):
        raise ConfigurationError(f"{name} must be a number of seconds > 0, not {describe(value)}")


def _check_plan(plan: Plan, dag_id: Hashable) -> None:
    if not plan.n_inputs:
        raise InvalidDAGError(
            f"DAG {dag_id!r} has no input to push into: add a Function with type='input'"
        )
    if not plan.n:
        raise InvalidDAGError(f"DAG {dag_id!r} has inputs only: there is nothing to do")


def _check_code(plan: Plan, isolation: str, dag_id: Hashable) -> None:
    """Refuse code that has to run in a process and cannot be sent there."""
    for i in range(plan.n):
        if (plan.functions[i].isolation or isolation) == "process":
            from handoff_actors.execution.workers.process import check_call

            check_call(plan.call(i), dag_id)

"""From what a caller asks for to a run that can begin: every check that needs no actor."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from handoff_actors.arguments import check_count, unlike
from handoff_actors.errors import (
    ConfigurationError,
    InvalidDAGError,
    MissingInputError,
    describe,
    unfit_id,
)
from handoff_actors.execution.placement import check_feasible, check_portable
from handoff_actors.execution.run import Run
from handoff_actors.execution.run_data import RunData, RunOptions
from handoff_actors.execution.run_state import keep_mask
from handoff_actors.execution.workers.roster import Workers
from handoff_actors.graph.checks import is_seconds
from handoff_actors.graph.dag import DAG
from handoff_actors.graph.plan import Plan
from handoff_actors.resources.allocator import by_name

if TYPE_CHECKING:
    from handoff_actors.execution.nodes.hub import Hub


class Home(Protocol):
    """What admission needs of the runtime."""

    options: Any

    @property
    def usual(self) -> tuple[Mapping[str, Any], RunOptions]:
        """The arguments of a run when none are given, and how it is run then on one node."""

    @property
    def workers(self) -> Workers:
        """Its workers."""

    def node(self) -> str:
        """Its node's name."""

    def offered(self) -> Mapping[str, Mapping[str, float]]:
        """What each node offers."""

    def hub(self) -> Hub | None:
        """What it has of runs over several nodes, if there are or were other nodes."""


def prepare(
    home: Home,
    dag: DAG,
    key: int,
    given: Mapping[str, Any],
    local: bool,
) -> tuple[Run, RunData]:
    """A run of ``dag`` that has not begun.

    Args:
        home: the runtime.
        dag: what to run.
        key: of the run.
        given: all the arguments of ``Runtime.submit``, which says what they mean and is raised.
        local: everything is to run here, costs and pins ignored.
    """
    if not isinstance(dag, DAG):
        raise InvalidDAGError(f"what is run must be a DAG, not {describe(dag)}")
    plan = dag.plan()
    dag_id = given["dag_id"]
    if dag_id is None:
        dag_id = dag.id
    elif (reason := unfit_id(dag_id)) is not None:
        raise ConfigurationError(f"dag_id {reason}")
    inputs = given["inputs"]
    values = {} if inputs is None and not plan.n_inputs else _inputs(plan, inputs, dag_id)
    node, workers, hub = home.node(), home.workers, None if local else home.hub()
    defaults, options = home.usual
    if given is not defaults or local or hub is not None:
        usual = home.options
        strategy = given["allocation_strategy"]
        options = RunOptions(
            _count("max_retries", given["max_retries"], 0, usual.max_retries),
            _count("max_concurrency", given["max_concurrency"], 1, None),
            _seconds(given["timeout"]),
            _keep(plan, given["keep"], dag_id),
            usual.isolation,
            _allocator(strategy, usual.allocator, local, hub is not None),
            local,
        )
    if not local:
        others = {} if hub is None else hub.offered()
        check_feasible(plan, node, home.offered(), dag_id, others)
        if hub is not None:
            check_portable(plan, node, dag_id)
    workers.processes.check(plan, options.isolation, dag_id)
    run = Run(dag_id)
    data = RunData(key, dag_id, plan, values, options, node, run)
    data.limit(workers.budget)
    data.functions = dag.functions
    data.submitted = perf_counter()
    run.bind(data)
    return run, data


def usual_options(runtime: Any) -> RunOptions:
    """How a run is run on one node when nothing is said of it, by the options of its runtime."""
    return RunOptions(
        runtime.max_retries,
        isolation=runtime.isolation,
        allocator=_allocator(None, runtime.allocator, False, False),
    )


def _inputs(
    plan: Plan, inputs: Mapping[Hashable, Any] | None, dag_id: Hashable
) -> Mapping[Hashable, Any]:
    inputs = {} if inputs is None else inputs
    if not isinstance(inputs, Mapping):
        raise ConfigurationError(f"inputs must map ids to values, not {describe(inputs)}")
    wanted = plan.ids[plan.n :]
    missing, unknown = unlike(wanted, inputs)
    if missing or unknown:
        what = f"lack {missing!r}" if missing else f"have {unknown!r}, which are no inputs of it"
        raise MissingInputError(
            f"the inputs for DAG {dag_id!r} {what}; its inputs are {wanted!r}",
            missing=missing,
            unknown=unknown,
        )
    return inputs


def _allocator(strategy: Any, default: Any, local: bool, choose: bool) -> Any:
    """An allocator of the user's own; the built-in ones have nothing to choose on one node."""
    chosen = default if strategy is None else strategy
    if chosen is not None:
        by_name(chosen)
    if choose:
        return chosen
    return None if local or chosen is None or isinstance(chosen, str) else chosen


def _keep(plan: Plan, keep: str | Iterable[Hashable], dag_id: Hashable) -> str | tuple[Any, ...]:
    if isinstance(keep, str):
        if keep not in ("all", "sinks"):
            raise ConfigurationError(
                f"keep must be 'all', 'sinks' or a list of ids, not {keep!r}: for one id write "
                f"[{keep!r}]"
            )
        return keep
    try:
        ids = tuple(keep)
        keep_mask(plan, ids)
    except KeyError as error:
        raise InvalidDAGError(
            f"keep names {error.args[0]!r}, which is no regular function of DAG {dag_id!r}"
        ) from None
    except TypeError:
        raise ConfigurationError(
            f"keep must be 'all', 'sinks' or a list of ids, not {describe(keep)}"
        ) from None
    return ids


def _count(name: str, value: Any, least: int, usual: Any) -> Any:
    if value is None:
        return usual
    check_count(name, value, least)
    return value


def _seconds(timeout: Any) -> float | None:
    if timeout is None:
        return None
    if not is_seconds(timeout):
        raise ConfigurationError(
            f"timeout must be a positive number of seconds, not {describe(timeout)}"
        )
    return float(timeout)

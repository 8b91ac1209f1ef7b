"""What to compute: functions, the DAG they make, and the plan it is compiled to. Pure."""

from __future__ import annotations

from handoff_actors.graph.callables import is_coroutine_callable, resolve_code
from handoff_actors.graph.compiler import compile_plan
from handoff_actors.graph.dag import DAG
from handoff_actors.graph.function import Argument, Collocated, Function, to_micro
from handoff_actors.graph.plan import (
    Call,
    Converted,
    InlineCall,
    LaneClass,
    Plan,
    Source,
)

__all__ = [
    "DAG",
    "Argument",
    "Call",
    "Collocated",
    "Converted",
    "Function",
    "InlineCall",
    "LaneClass",
    "Plan",
    "Source",
    "compile_plan",
    "is_coroutine_callable",
    "resolve_code",
    "to_micro",
]

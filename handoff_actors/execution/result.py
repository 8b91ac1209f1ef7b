"""What a run leaves to its caller: ``ExecutionResult``, with values, places and times."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, ItemsView, Iterator, Mapping, ValuesView
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from handoff_actors.errors import ConfigurationError, ValueNotFoundError
from handoff_actors.execution.run_data import FREED, MISSING, RunData
from handoff_actors.results.elsewhere import Elsewhere


@dataclass(frozen=True, slots=True)
class Timing:
    """When a function ran.

    Attributes:
        start: seconds since the run was submitted.
        duration: seconds its last attempt took.
    """

    start: float
    duration: float


class Results(Mapping[Hashable, Any]):
    """The values of a run's regular functions by id. Freed ones (see ``keep``) are not in it."""

    __slots__ = ("_data",)

    def __init__(self, data: RunData) -> None:
        self._data = data

    def __getitem__(self, id_: Hashable) -> Any:
        data = self._data
        i = data.plan.index.get(id_)
        if i is None or i >= data.plan.n:
            raise KeyError(id_)
        value = data.peek(i)
        if value is MISSING or value is FREED:
            raise ReleasedKeyError(id_, value is FREED)
        if isinstance(value, Elsewhere):
            value = data.read(i)
            if value is FREED:
                raise ReleasedKeyError(id_, True)
        return value

    def values(self) -> ValuesView[Any]:
        """The values; what is on other nodes is fetched at once."""
        self._data.bring(range(self._data.plan.n))
        return super().values()

    def items(self) -> ItemsView[Hashable, Any]:
        """The ids and values; what is on other nodes is fetched at once."""
        self._data.bring(range(self._data.plan.n))
        return super().items()

    def __contains__(self, id_: object) -> bool:
        i = self._data.plan.index.get(id_)
        return i is not None and i < self._data.plan.n and self._there(i)

    def _there(self, i: int) -> bool:
        value = self._data.peek(i)
        return value is not MISSING and value is not FREED

    def __iter__(self) -> Iterator[Hashable]:
        plan = self._data.plan
        return (plan.ids[i] for i in range(plan.n) if self._there(i))

    def __len__(self) -> int:
        return sum(self._there(i) for i in range(self._data.plan.n))

    def __repr__(self) -> str:
        return f"<Results of {self._data.dag_id!r}: {len(self)} values>"


class ReleasedKeyError(KeyError, ValueNotFoundError):
    """The value is not there any more, or never came to be."""

    def __init__(self, id_: Hashable, freed: bool) -> None:
        why = "was freed: name it in keep=, or keep the run" if freed else "never finished"
        KeyError.__init__(self, f"the value of {id_!r} {why}")
        self.value_id = id_


class ExecutionResult:
    """The outcome of a run.

    Attributes:
        dag_id: the run's.
        results: each regular function's id to its value.
        allocations: each function's id to the node it ran on.
        timings: each function's id to its ``Timing``.
    """

    __slots__ = ("__weakref__", "_copied", "_data", "_on_release", "dag_id", "results")

    _copied: tuple[dict[Hashable, str], dict[Hashable, Timing]]

    def __init__(self, data: RunData, on_release: Callable[[RunData], None]) -> None:
        self._data: RunData | None = data
        self._on_release: Callable[[RunData], None] | None = on_release
        self.dag_id = data.dag_id
        self.results: Mapping[Hashable, Any] = Results(data)

    def __reduce__(self) -> tuple[Any, ...]:
        # What crosses to another process is a copy, which nothing here depends on.
        results = dict(self.results.items())
        return _copy, (self.dag_id, results, self.allocations, self.timings)

    @property
    def allocations(self) -> dict[Hashable, str]:
        """The node that each finished function ran on."""
        data = self._data
        if data is None:
            return self._copied[0]
        made = {} if data.away is None else data.away.made
        return {
            data.plan.ids[i]: made.get(i, data.node) for i in range(data.plan.n) if data.ends[i]
        }

    @property
    def timings(self) -> dict[Hashable, Timing]:
        """When each finished function ran."""
        data = self._data
        if data is None:
            return self._copied[1]
        return {
            data.plan.ids[i]: Timing(start - data.submitted, end - start)
            for i, (start, end) in enumerate(zip(data.starts, data.ends, strict=True))
            if end
        }

    def to_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the timeline for Perfetto (ui.perfetto.dev) or ``chrome://tracing``.

        A row for each worker of each node; retries, waits and transfers are told apart by their
        categories.

        Raises:
            ConfigurationError: this is a copy that came from another process.
        """
        import json

        from handoff_actors.execution.timeline import trace

        if self._data is None:
            raise ConfigurationError(
                "a copy of an ExecutionResult has no timeline: write it in the process of the run"
            )
        if self._data.away is not None:
            self._data.away.learn_crew()
        with open(path, "w", encoding="utf-8") as file:
            json.dump(trace(self._data, self.allocations), file)

    def release(self) -> None:
        """Free the values now; reading one afterwards raises."""
        if self._data is not None and self._on_release is not None:
            self._on_release(self._data)
        elif isinstance(self.results, dict):
            self.results.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<ExecutionResult of {self.dag_id!r}: {len(self.results)} values>"

    def __str__(self) -> str:
        from handoff_actors.execution.summary import Summary

        return Summary.of(self, self._data).text()

    def _repr_html_(self) -> str:
        from handoff_actors.execution.summary import Summary, html

        if self._data is not None and self._data.away is not None:
            self._data.away.learn_crew()
        return html(Summary.of(self, self._data), self._data)


def _copy(
    dag_id: Hashable,
    results: dict[Hashable, Any],
    allocations: dict[Hashable, str],
    timings: dict[Hashable, Timing],
) -> ExecutionResult:
    copied = ExecutionResult.__new__(ExecutionResult)
    copied._data = copied._on_release = None  # noqa: SLF001  it is made here
    copied._copied = (allocations, timings)  # noqa: SLF001
    copied.dag_id = dag_id
    copied.results = results
    return copied

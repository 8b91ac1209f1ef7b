"""What this machine offers: usable cores and memory, as far as the system lets this process.

Guarantees: never raises, whatever files are missing; never less than one core.
"""

from __future__ import annotations

import os
from pathlib import Path

from handoff_actors.control_groups import groups, memory_limit, read

MEGABYTE = 1_000_000
"""Bytes in the unit of ``memory``."""


def machine_capabilities() -> dict[str, float]:
    """The capabilities of this machine.

    Returns:
        ``cpu``: cores this process may use, by affinity and by its control group's quota, which
        may be a fraction; ``memory``: megabytes of the machine, or of the control group's limit.
    """
    root = Path("/")
    cores = float(len(os.sched_getaffinity(0)))
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    quota, limit = cgroup_limits(root)
    if quota is not None:
        cores = max(1.0, min(cores, quota))
    if limit is not None:
        memory = min(memory, limit)
    return {"cpu": cores, "memory": float(memory // MEGABYTE)}


def cgroup_limits(root: Path) -> tuple[float | None, float | None]:
    """The limits of the control groups this process is in; the tightest on the way up counts.

    Args:
        root: where ``proc`` and ``sys`` are.

    Returns:
        Cores and bytes; None where there is no limit.
    """
    quotas: list[float] = []
    for group in groups(root, "cpu"):
        quotas += _ratio(*_fields(read(group / "cpu.max"), 2))
        quotas += _ratio(read(group / "cpu.cfs_quota_us"), read(group / "cpu.cfs_period_us"))
    limits = [memory_limit(group) for group in groups(root, "memory")]
    tightest = min((float(limit) for limit in limits if limit is not None), default=None)
    return min(quotas, default=None), tightest


def _fields(text: str, count: int) -> list[str]:
    return (text.split() + [""] * count)[:count]


def _number(text: str) -> list[float]:
    """One positive number, or nothing: ``max``, ``-1`` and an empty file are no limit."""
    text = text.strip()
    return [float(text)] if text.isdecimal() and int(text) > 0 else []


def _ratio(quota: str, period: str) -> list[float]:
    return [q / p for q in _number(quota) for p in _number(period)]

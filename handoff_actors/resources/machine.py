"""What this machine offers: usable cores and memory, as far as the system lets this process.

Guarantees: never raises, whatever files are missing; never less than one core.
"""

from __future__ import annotations

import os
from pathlib import Path

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
    limits: list[float] = []
    base = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = controllers.split(",")
        if not controllers:  # version 2
            for group in _upwards(base, path):
                quotas += _ratio(*_fields(_read(group / "cpu.max"), 2))
                limits += _number(_read(group / "memory.max"))
        if "cpu" in names:
            for group in _upwards(base / "cpu", path):
                quotas += _ratio(
                    _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
                )
        if "memory" in names:
            for group in _upwards(base / "memory", path):
                limits += _number(_read(group / "memory.limit_in_bytes"))
    return min(quotas, default=None), min(limits, default=None)


def _upwards(base: Path, path: str) -> list[Path]:
    """The group and all above it, up to the mount; inside a container only the mount is there."""
    parts = [part for part in path.strip().split("/") if part not in ("", "..")]
    return [base.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _fields(text: str, count: int) -> list[str]:
    return (text.split() + [""] * count)[:count]


def _number(text: str) -> list[float]:
    """One positive number, or nothing: ``max``, ``-1`` and an empty file are no limit."""
    text = text.strip()
    return [float(text)] if text.isdecimal() and int(text) > 0 else []


def _ratio(quota: str, period: str) -> list[float]:
    return [q / p for q in _number(quota) for p in _number(period)]

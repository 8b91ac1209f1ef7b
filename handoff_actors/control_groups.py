"""The control groups this process is in, of both versions, as far as they can be read."""

from __future__ import annotations

from pathlib import Path

NO_LIMIT = 1 << 60
"""Bytes from which a limit is none: what version 1 says where nothing was set."""


def groups(root: Path, controller: str) -> list[Path]:
    """The folders of the groups that may bound what ``controller`` counts for this process.

    Its own and all above it, up to the mount; inside a container only the mount may be there.

    Args:
        root: where ``proc`` and ``sys`` are.
        controller: ``"cpu"`` or ``"memory"``.
    """
    base = root / "sys/fs/cgroup"
    found: list[Path] = []
    for line in read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # version 2
            found += _upwards(base, path)
        elif controller in controllers.split(","):
            found += _upwards(base / controller, path)
    return found


def memory_limit(group: Path) -> int | None:
    """Bytes that a group may have; None: as many as there are."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = read(group / name).strip()
        if text.isdecimal() and 0 < int(text) < NO_LIMIT:
            return int(text)
    return None


def memory_used(group: Path) -> int:
    """Bytes that a group has, but for those that it gives up when they are wanted."""
    for name, cached in (
        ("memory.current", "inactive_file"),
        ("memory.usage_in_bytes", "total_inactive_file"),
    ):
        text = read(group / name).strip()
        if text.isdecimal():
            fields = dict(_pairs(read(group / "memory.stat")))
            return max(0, int(text) - fields.get(cached, 0))
    return 0


def read(file: Path) -> str:
    """What is in a file; nothing if it cannot be read."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _pairs(text: str) -> list[tuple[str, int]]:
    rows = [line.split() for line in text.splitlines()]
    return [(row[0], int(row[1])) for row in rows if len(row) == 2 and row[1].isdecimal()]


def _upwards(base: Path, path: str) -> list[Path]:
    parts = [part for part in path.strip().split("/") if part not in ("", "..")]
    return [base.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]

"""The control group: how much of the machine this process may use, as in a container.

Both versions are read as the kernel documents them: cgroup-v2.rst; cgroup-v1/memory.rst and
scheduler/sched-bwc.rst. Where there are none, nothing is limited.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLE, ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60  # version 1 writes the largest number of pages instead


def cores() -> float | None:
    """Return the quota of processor time, in cores; None: as much as there is.

    It limits time, not cores: threads run on all of them until it is used up, and then all wait for
    the period's end, 100 ms as a rule.
    """
    quota = _quota()
    return quota and quota[0]


def whole_cores() -> int | None:
    """Return the quota in whole cores, at least one: of one thread more, all others would wait."""
    quota = cores()
    return None if quota is None else max(1, int(quota))


def periods() -> dict[str, int]:
    """Return how often the quota was handed out so far, and how often it was used up.

    That is ``nr_periods`` and ``nr_throttled``, the kernel's names; nothing where there is none.
    """
    quota = _quota()
    counted = dict(line.split() for line in _lines(quota[1] / "cpu.stat")) if quota else {}
    return {name: int(counted[name]) for name in ("nr_periods", "nr_throttled") if name in counted}


def memory_bytes() -> int | None:
    """Return the limit of its memory; None: as much as there is."""
    limits = [
        int(line)
        for group in _groups("memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        for line in _lines(group / name)
        if line != "max"
    ]
    return min((limit for limit in limits if limit < _NO_LIMIT), default=None)


def _quota() -> tuple[float, Path] | None:
    """Return the smallest quota, in cores, and the group that has it."""
    found = []
    for group in _groups("cpu"):
        quota, period = (_lines(group / f"cpu.cfs_{part}_us") for part in ("quota", "period"))
        written = [*quota, *period] or " ".join(_lines(group / "cpu.max")).split()
        match written:
            case ["-1" | "max", *_] | []:
                pass
            case [time, period_of_time]:
                found.append((int(time) / int(period_of_time), group))
    return min(found, default=None)


def _groups(controller: str) -> Iterator[Path]:
    """Yield the directories of this process's groups, the innermost first.

    In a container the path may be the host's, which is not seen there: its own group is the root.
    """
    for line in _lines(TABLE):
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            inside = PurePosixPath(path)
            for group in (inside, *inside.parents):
                yield ROOT / controllers / group.relative_to("/")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except OSError:
        return []

"""What this machine is: its processor, its memory, its packages."""

from __future__ import annotations

import os
import platform
import sysconfig
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bert_infer import cgroup


def package_version(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def python_header() -> Path:
    """Return where the header lies, if it is installed, that inductor's and Triton's C includes."""
    return Path(sysconfig.get_paths()["include"]) / "Python.h"


def cores() -> frozenset[int]:
    """Return the numbers of the cores that this process may run on.

    That is its threads together: OpenMP may bind each to a core of its own (OMP_PROC_BIND).
    """
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is None:
        return frozenset(range(os.cpu_count() or 1))
    found: set[int] = set(affinity(0))
    for thread in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # it has ended
            found |= affinity(int(thread.name))
    return frozenset(found)


def cores_allowed() -> int:
    """Return how many cores' time this process may use."""
    found = len(cores())
    return min(found, cgroup.whole_cores() or found)


def cpu_model() -> str | None:
    """Return the processor's name; unknown is None."""
    return _cpuinfo().get("model name") or platform.processor() or None


def cpu_flags() -> frozenset[str]:
    """Return the processor's features by Linux' names; none where they cannot be read."""
    return frozenset(_cpuinfo().get("flags", _cpuinfo().get("Features", "")).split())


@cache
def _cpuinfo() -> dict[str, str]:
    """Return the first core's entries."""
    entries: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())
    return entries


def memory_bytes() -> int | None:
    """Return the memory that this process may use, as in a container; unknown is None."""
    limits = (cgroup.memory_bytes(), _physical_memory_bytes())
    return min((limit for limit in limits if limit is not None), default=None)


def _physical_memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def governor() -> str | None:
    """Return the policy by which the first core's clock changes; unknown is None."""
    return _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except OSError:
        return ""

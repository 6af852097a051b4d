"""What this machine is: its processor, its memory, its packages."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def package_version(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cores_allowed() -> int:
    """Return how many of the machine's cores this process may use.

    That is its threads together: OpenMP may bind each to a core of its own (OMP_PROC_BIND).
    """
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is None:
        return os.cpu_count() or 1
    cores: set[int] = set(affinity(0))
    for thread in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # it has ended
            cores |= affinity(int(thread.name))
    return len(cores)


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


def physical_memory_bytes() -> int | None:
    """Return the machine's memory; unknown is None."""
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

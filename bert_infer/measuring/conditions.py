"""What else went on while a run was measured, and may have disturbed it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import psutil

from bert_infer import cgroup, machine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bert_infer.devices import Device
    from bert_infer.devices.readings import Reading

BUSY, STOLEN = 0.05, 0.01
"""Fractions of the processor's time that others may have before timings are not to be trusted."""
_LEAST_S = 0.5
_HELD_DOWN_S = 1e-6  # less is what rounding leaves


@dataclass(frozen=True)
class Snapshot:
    """The machine at one moment; what cannot be read is None, or missing from the totals.

    Attributes:
        load_average: runnable tasks, averaged over the last minute.
        cores: how many this process may run on; the times are theirs.
        cpu_mhz: the processor's clock, averaged over cores.
        device: what the device tells.
        totals: what only grows. Seconds of processor time: all of it (``total_s``), spent by all
            processes (``busy_s``), by this one (``own_s``), taken by other virtual machines
            (``stolen_s``); ``swapped_bytes`` to or from swap space; and ``cgroup.periods``.
    """

    load_average: float
    cores: int
    cpu_mhz: float | None
    device: Reading
    totals: dict[str, float]


class Pauses:
    """Spans for which a run waits while others have the machine: no part of what it measures."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.spans: list[tuple[Snapshot, Snapshot]] = []

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count what goes on inside as a pause."""
        begun = snapshot(self._device)
        yield
        self.spans.append((begun, snapshot(self._device)))


@dataclass(frozen=True)
class Conditions:
    """What happened between two snapshots, in terms that a reader wants to know.

    Attributes:
        load_average: of the last minute, at the end.
        cores: how many share the load.
        other_processes: fraction of the time of this process's cores that other processes had; None
            where that was too short to tell (see ``completed``).
        stolen: fraction that other virtual machines had.
        quota_used_up: fraction of the periods of the control group's quota in which it was used up,
            so that all threads waited; None without one.
        swapped_bytes: bytes moved to or from swap space meanwhile.
        cpu_mhz: the clock before and after.
        accelerator: the device's clock, temperature and the like, before and after.
        accelerator_processes: other processes on the device.
        throttled: why the device held its clock down, before, after or, where counted, between.
        is_alone: whether the run had the machine all the time; a side of a duel has not.
    """

    load_average: float | None
    cores: int
    other_processes: float | None
    stolen: float | None
    quota_used_up: float | None
    swapped_bytes: float | None
    cpu_mhz: tuple[float | None, float | None]
    accelerator: tuple[dict[str, float], dict[str, float]]
    accelerator_processes: tuple[int, ...]
    throttled: tuple[str, ...]
    is_alone: bool = True

    @property
    def is_shared(self) -> bool:
        """Whether other programs had much of the processor, or used the device."""
        busy, stolen = self.other_processes or 0.0, self.stolen or 0.0
        return busy > BUSY or stolen > STOLEN or bool(self.accelerator_processes)

    def as_json(self) -> dict[str, Any]:
        """Return them for environment.json."""
        return asdict(self)


def snapshot(device: Device) -> Snapshot:
    """Read the counters now."""
    cores, times = _own_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    stolen = {"stolen_s": times.steal} if hasattr(times, "steal") else {}
    # The kernel counts a guest's time in user time as well.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    own = psutil.Process().cpu_times()
    return Snapshot(
        load_average=os.getloadavg()[0],
        cores=cores,
        cpu_mhz=_cpu_mhz(),
        device=device.reading(),
        totals={
            "total_s": total,
            "busy_s": total - idle - sum(stolen.values()),
            "own_s": own.user + own.system,
            **stolen,
            **_swapped(),
            **cgroup.periods(),
        },
    )


def between(
    before: Snapshot, after: Snapshot, pauses: Sequence[tuple[Snapshot, Snapshot]] = ()
) -> Conditions:
    """Return what happened from one snapshot to the other, and not in ``pauses``."""
    grown = _grown(before, after)
    for pause in pauses:
        meanwhile = _grown(*pause)
        grown = {name: grown[name] - meanwhile[name] for name in grown.keys() & meanwhile.keys()}
    total, stolen = grown["total_s"], grown.get("stolen_s")
    others = grown["busy_s"] - grown["own_s"]
    # The kernel counts each core in hundredths of a second: a share of only a few means nothing.
    counted = total > after.cores * _LEAST_S
    periods, used_up = grown.get("nr_periods"), grown.get("nr_throttled")
    longer = (why for why in after.device.throttled_s if grown.get(why, 0) > _HELD_DOWN_S)
    return Conditions(
        load_average=after.load_average,
        cores=os.cpu_count() or 1,
        other_processes=max(0.0, others / total) if counted else None,
        stolen=stolen / total if counted and stolen is not None else None,
        quota_used_up=used_up / periods if periods and used_up is not None else None,
        swapped_bytes=grown.get("swapped_bytes"),
        cpu_mhz=(before.cpu_mhz, after.cpu_mhz),
        accelerator=(before.device.gauges, after.device.gauges),
        # Those for which it paused are among them, and cannot be told from strangers.
        accelerator_processes=()
        if pauses
        else tuple(sorted({*before.device.processes, *after.device.processes})),
        throttled=tuple(sorted({*before.device.throttled, *after.device.throttled, *longer})),
        is_alone=not pauses,
    )


def completed(found: Conditions, before: Snapshot, after: Snapshot) -> Conditions:
    """Return ``found``, with others' shares between the two snapshots where it has none.

    Passes of less than half a second tell none; with the ceiling that follows them they may.
    """
    if found.other_processes is not None:
        return found
    longer = between(before, after)
    return replace(found, other_processes=longer.other_processes, stolen=longer.stolen)


def _own_times() -> tuple[int, Any]:
    """Return how many cores this process may run on, and what they did in seconds, by kind.

    What goes on on others is not beside the run. Where a container shows fewer, all are counted.
    """
    own, of_core = machine.cores(), psutil.cpu_times(percpu=True)
    times = [of_core[core] for core in own] if max(own) < len(of_core) else of_core
    return len(times), type(times[0])(*map(sum, zip(*times, strict=True)))


def _grown(before: Snapshot, after: Snapshot) -> dict[str, float]:
    """Return by how much each total has grown, throttling's included, if it was read both times."""
    first, last = (moment.totals | moment.device.throttled_s for moment in (before, after))
    return {name: last[name] - first[name] for name in first.keys() & last.keys()}


def _cpu_mhz() -> float | None:
    try:
        frequency = psutil.cpu_freq()
    except (AttributeError, NotImplementedError, OSError):  # some systems show a part of cpufreq
        return None
    return (frequency and frequency.current) or None


def _swapped() -> dict[str, float]:
    try:
        swap = psutil.swap_memory()
    except (OSError, RuntimeError):
        return {}
    return {"swapped_bytes": swap.sin + swap.sout}

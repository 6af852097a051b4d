"""Warnings of what went on beside a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bert_infer.machine import cores_allowed
from bert_infer.measuring.conditions import BUSY, STOLEN
from bert_infer.records import Caveat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bert_infer.measuring.conditions import Conditions
    from bert_infer.running.preparation import Prepared
    from bert_infer.running.run_record import Record

_CLOCK_MOVED = 0.1
_QUOTA_USED_UP = 0.01
_FEWER = "set device=cpu device.threads=N for fewer threads"
_BY_DUEL = "compare by the ratio of a `duel`, whose sides alternate."
_BY_PAIRS = "give the duel --pairs 5 or more: its interval is then of pairs of processes."


def of(record: Record, prepared: Prepared, figures: dict[str, Any]) -> Iterator[Caveat]:
    """Yield what may have slowed it."""
    del figures
    threads = record.environment["threads"]["intra_op"] if record.environment else 1
    if prepared.device.computes_on_cores:
        yield from _threads(threads)
    if record.conditions:
        fewer = prepared.device.computes_on_cores and threads > 1
        sized_by = prepared.batching.sized_by
        yield from _machine(record.conditions, f", {_FEWER}," if fewer else ",", sized_by)
        yield from _accelerator(record.conditions)


def _threads(threads: int) -> Iterator[Caveat]:
    cores = cores_allowed()
    if threads > cores:
        yield Caveat(
            "more_threads_than_cores",
            f"{threads} threads computed on {cores} core{'s' * (cores > 1)}, and waited for one "
            "another.",
            f"Set device=cpu device.threads={cores}, or fewer.",
        )


def _machine(conditions: Conditions, fewer: str, sized_by: str) -> Iterator[Caveat]:
    others, stolen, load = conditions.other_processes, conditions.stolen, conditions.load_average
    otherwise = _BY_DUEL if conditions.is_alone else _BY_PAIRS
    if others is not None and others > BUSY:
        yield Caveat(
            "busy_machine",
            f"Other processes had {others:.0%} of the processor's time while measuring.",
            f"Stop them{fewer} or {otherwise}",
        )
    elif load is not None and load > 1.5 * conditions.cores:
        yield Caveat(
            "loaded_machine",
            f"The load average is {load:.1f} on {conditions.cores} cores.",
            f"Wait until it is less{fewer} or {otherwise}",
        )
    if stolen is not None and stolen > STOLEN:
        yield Caveat(
            "stolen_time",
            f"Other virtual machines took {stolen:.0%} of the processor's time (steal).",
            f"Use a machine of your own, or {otherwise}",
        )
    if conditions.quota_used_up and conditions.quota_used_up > _QUOTA_USED_UP:
        yield Caveat(
            "cpu_quota",
            "The control group's quota of processor time was used up in "
            f"{conditions.quota_used_up:.0%} of its periods, and all threads waited.",
            f"Raise it{fewer} or use cores of your own (docker's --cpuset-cpus).",
        )
    if conditions.swapped_bytes:
        yield Caveat(
            "swapping",
            f"{conditions.swapped_bytes / 2**20:,.0f} MiB went to or from swap while measuring.",
            f"Lower {sized_by}, choose a smaller dtype, or free memory.",
        )
    before, after = conditions.cpu_mhz
    if before and after and abs(after / before - 1) > _CLOCK_MOVED:
        yield Caveat(
            "clock_moved",
            f"The processor's clock went from {before:,.0f} to {after:,.0f} MHz.",
            "Set the governor to performance, and look for heat.",
        )


def _accelerator(conditions: Conditions) -> Iterator[Caveat]:
    if conditions.accelerator_processes:
        listed = ", ".join(map(str, conditions.accelerator_processes))
        yield Caveat(
            "shared_accelerator",
            f"Other processes use the device: {listed}.",
            "Stop them, or choose another device.index.",
        )
    if conditions.throttled:
        yield Caveat(
            "throttled",
            f"The device held its clock down: {', '.join(conditions.throttled)}.",
            "Cool it, raise its power limit, or lock its clock lower and say so.",
        )

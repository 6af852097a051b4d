"""Warnings of how a run was measured, and of what its timings show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bert_infer.measuring import warmup
from bert_infer.measuring.intervals import FEWEST_FOR_INTERVAL
from bert_infer.records import Caveat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bert_infer.running.preparation import Prepared
    from bert_infer.running.run_record import Record

_MANY_OUTLIERS = 0.05
_BY_CHANCE = 2  # near the fences, as in 5 to 10 % of runs of 5 to 20 normal timings
_CEILING_MOVED = 0.1
_ABOVE_CEILING = 1.05


def of(record: Record, prepared: Prepared, figures: dict[str, Any]) -> Iterator[Caveat]:
    """Yield what keeps the figures from being sure."""
    del prepared
    if record.forwards:
        yield from _measuring(record, figures)
    yield from _compilations(figures["accelerator"])
    yield from _changes(figures["measurement"])
    yield from _ceiling(record, figures["compute"]["fraction_of_ceiling"])


def _measuring(record: Record, figures: dict[str, Any]) -> Iterator[Caveat]:
    measurement, phases = figures["measurement"], record.phases.seconds
    samples = len(record.forwards)
    if figures["choice"]["iterations"] == 1 and measurement["samples"] < FEWEST_FOR_INTERVAL:
        yield Caveat(
            "one_iteration",
            "One measured pass says nothing about how far a second one would differ.",
            "Set iterations=10 or more before comparing.",
        )
    elif measurement["samples"] < FEWEST_FOR_INTERVAL:
        yield Caveat(
            "no_interval",
            f"{measurement['samples']} {_unit(measurement)} are too few for confidence intervals.",
            "Set iterations=10 or more before comparing.",
        )
    if figures["latency_ms"]["p99"] is None:
        yield Caveat(
            "few_samples",
            f"p99 is null: it takes 100 forwards or more, and this run has {samples}.",
            "Raise iterations.",
        )
    if phases["warmup"] is None and phases["compile"] is None:
        yield Caveat(
            "no_warmup",
            "There was no warm-up: the first forward of each shape is among the figures.",
            "Leave warmup=auto.",
        )
    if measurement["warmup_shapes_left"]:
        yield Caveat(
            "shapes_not_warmed",
            f"{measurement['warmup_shapes_left']} of the batch shapes had not run when "
            f"{warmup.LIMIT_S:.0f} s of warm-up were over: their first forward, which can take "
            "longer, is among the figures.",
            "Set warmup=1, which runs all of them.",
        )
    if measurement["warmup_steady"] is False:
        yield Caveat(
            "not_steady",
            f"Passes had not settled after {warmup.LIMIT_S:.0f} s of warm-up.",
            "Set warmup=N for longer, and see what else the machine does.",
        )
    asked, reached = measurement["relative_ci_asked"], measurement["relative_ci"]
    is_over = record.status in {"ok", "drift_exceeded"}
    if is_over and asked is not None and (reached is None or reached > asked):
        yield Caveat(
            "until_not_reached",
            f"until.relative_ci={asked} was not reached in until.max_s"
            + (f": half the interval is {reached:.1%} of throughput." if reached else "."),
            "Raise until.max_s, or quiet the machine.",
        )


def _compilations(counted: dict[str, Any] | None) -> Iterator[Caveat]:
    if counted and counted["measured_compilations"]:
        yield Caveat(
            "recompiled",
            f"The device compiled {counted['measured_compilations']} graphs while the passes were "
            "measured: compiling is among the figures.",
            "Use graph=hpu_graphs or batching=padded, whose shapes are all compiled before, or "
            "warm up longer: warmup=N.",
        )


def _changes(measurement: dict[str, Any]) -> Iterator[Caveat]:
    trend, step, outliers = (measurement[key] for key in ("trend", "step", "outliers"))
    unit = _unit(measurement)
    if step:
        yield Caveat(
            "step",
            f"From number {step['at'] + 1} of {measurement['samples']} on, {unit} took "
            f"{_changed(step['change'])} time.",
            "Something changed while measuring; run it again on a quiet machine.",
        )
    elif trend:
        yield Caveat(
            "trend",
            f"The {unit} took ever {'less' if trend < 0 else 'more'} time: the last "
            f"{_changed(trend)} than the first.",
            "Warm up longer (warmup=N)." if trend < 0 else "Look for heat, or for other load.",
        )
    elif measurement["autocorrelation"]:
        yield Caveat(
            "not_independent",
            f"Slow {unit} came together, and fast ones (correlation of each with the one before: "
            f"{measurement['autocorrelation']:.2f}), so they tell less than as many independent "
            "ones; the intervals are wider for it.",
            "Measure for longer than such spells last, quiet the machine, or compare by the "
            "ratio of a `duel`, whose sides alternate.",
        )
    far = outliers["low"] + outliers["high"] if outliers else 0
    few = 1 if outliers and outliers["severe"] else _BY_CHANCE
    if outliers and far > max(few, _MANY_OUTLIERS * outliers["samples"]):
        yield Caveat(
            "outliers",
            f"{far} of {outliers['samples']} forwards lie beyond Tukey's fences "
            f"({outliers['severe']} of them far beyond); none was dropped.",
            "Quiet the machine; of a single run, latency_ms.p50 tells more than its mean.",
        )


def _changed(change: float) -> str:
    return f"{abs(change):.0%} {'less' if change < 0 else 'more'}"


def _unit(measurement: dict[str, Any]) -> str:
    return "forwards" if measurement["sample"] == "forward" else "passes"


def _ceiling(record: Record, fraction: float | None) -> Iterator[Caveat]:
    change = record.ceiling.change if record.ceiling else None
    if change is not None and abs(change) > _CEILING_MOVED:
        yield Caveat(
            "ceiling_moved",
            f"After the measured passes the same matmul ran {abs(change):.0%} "
            + ("slower than before them." if change < 0 else "faster than before them."),
            "Look for heat, a power limit or other load, and run it again.",
        )
    if fraction is not None and fraction > _ABOVE_CEILING:
        yield Caveat(
            "above_ceiling",
            f"The run reached {fraction:.0%} of the ceiling, so one of the two figures is wrong.",
            "Run it again on a quiet machine; if it stays, do not quote either.",
        )

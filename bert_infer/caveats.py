"""Every warning that a run can give, each with its remedy.

The rules stand in the order in which a reader wants the warnings: what the outputs are worth, what
was run, how it was measured, and what went on beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bert_infer import warmup
from bert_infer.conditions import BUSY, STOLEN
from bert_infer.records import Caveat
from bert_infer.statistics import FEWEST_FOR_INTERVAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bert_infer.conditions import Conditions
    from bert_infer.preparation import Prepared
    from bert_infer.run_record import Record

_MUCH_PADDING = 0.3
_MANY_OUTLIERS = 0.05
_POOR_COSINE = 0.99
_CEILING_MOVED = 0.1
_CLOCK_MOVED = 0.1
_ABOVE_CEILING = 1.05


def of(record: Record, figures: dict[str, Any]) -> list[Caveat]:
    """Return every warning that a run deserves.

    Args:
        record: what is known of the run.
        figures: the content of its metrics.json.
    """
    if record.prepared is None:
        return []
    rules = [
        _outputs(record, record.prepared),
        _drift(figures["drift"], is_finite=record.is_finite),
        _workload(record.prepared),
        _choice(record.prepared, emulated=record.emulated),
        _measuring(record, figures) if record.forwards else (),
        _changes(figures["measurement"]),
        _ceiling(record, figures["compute"]["fraction_of_ceiling"]),
        _machine(record.conditions) if record.conditions else (),
        _accelerator(record.conditions) if record.conditions else (),
        _counted(record.prepared, figures["accelerator"]),
    ]
    return [caveat for rule in rules for caveat in rule]


def _outputs(record: Record, prepared: Prepared) -> Iterator[Caveat]:
    workload, limit = prepared.workload, prepared.max_length
    if prepared.source.kind == "random":
        yield Caveat(
            "random_weights",
            "The weights are random: outputs are meaningless, timings are valid.",
            "Set model.checkpoint, or model.weights=auto and go online once to fetch the hub's.",
        )
    elif prepared.tokenizer_provenance["source"].startswith("bundled"):
        yield Caveat(
            "bundled_tokenizer",
            "The model's own tokenizer was not found; the bundled bert-*-uncased vocabulary "
            "stands in.",
            "Right for those models; for another, put its tokenizer.json beside its weights.",
        )
    if record.weights and record.weights.get("pooler"):
        yield Caveat(
            "random_pooler",
            "The weights have no pooler, as those of models for single tokens; a random one stands "
            "in, whose pooled output is meaningless.",
            "Take output.pooling=cls, or mean or hidden states (not of engine=fused_cls).",
        )
    if workload.truncated:
        yield Caveat(
            "truncated_texts",
            f"{workload.truncated} of {workload.texts} texts had more than {limit} tokens and lost "
            "what followed them.",
            "Split them: this is the model's limit."
            if limit == prepared.architecture.max_length
            else "Split them, or raise max_length.",
        )
    if workload.skipped:
        yield Caveat(
            "empty_texts",
            f"Empty texts were skipped: {workload.skipped}.",
            "Nothing to do; outputs keep the positions that the others have in the input.",
        )


def _drift(drift: dict[str, Any] | None, *, is_finite: bool) -> Iterator[Caveat]:
    measured = ("min_cosine", "pooled_min_cosine", "max_abs")
    if not is_finite or (drift and None in map(drift.get, measured)):
        yield Caveat(
            "not_finite",
            "Some outputs are infinite or NaN.",
            "Use a dtype of greater range (bf16, fp32); if it stays, look into the weights.",
        )
        return
    if drift is None:
        return
    cosines = {
        "first token" if drift["tokens"] == "first" else "token": drift["min_cosine"],
        "pooled output": drift["pooled_min_cosine"],
    }
    what, least = min(cosines.items(), key=lambda item: item[1])
    if least < _POOR_COSINE:
        yield Caveat(
            "large_drift",
            f"Outputs drift: some {what}'s cosine to the fp32 reference is {least:.4f} (tokens' "
            f"mean {drift['mean_cosine']:.4f}).",
            "Check what it costs your task, or use a more exact dtype.",
        )


def _workload(prepared: Prepared) -> Iterator[Caveat]:
    workload, batching = prepared.workload, prepared.batching
    batch = prepared.runner.settings.batch
    is_repeated = len(workload.lengths) > workload.texts
    if workload.padding_waste > _MUCH_PADDING:
        yield Caveat(
            "padding_waste",
            f"{workload.padding_waste:.0%} of the computed tokens are padding.",
            f"graph={prepared.graph.name} adds most of it, filling batches up to few sizes: take "
            "more graph.edges or graph.max_buckets"
            + (", or a batch that divides the texts." if batching.uses_batch else ".")
            if workload.filling_waste > workload.padding_waste / 2
            else batching.less_padding,
        )
    if batching.uses_batch and workload.largest < batch:
        yield Caveat(
            "batch_not_filled",
            f"batch={batch} was asked, but no forward holds more than {workload.largest} "
            "sequences.",
            "Give more texts, widen batching.window where there is one, or set "
            f"batch={workload.largest}.",
        )
    if not batching.uses_batch and batch > 1 and not is_repeated:
        yield Caveat(
            "batch_ignored",
            f"batch={batch} has no effect: batching={batching.name} decides how many sequences a "
            "forward holds.",
            "Leave batch out, or set batching.max_tokens.",
        )


def _choice(prepared: Prepared, *, emulated: bool) -> Iterator[Caveat]:
    dtype = prepared.dtype
    if emulated:
        yield Caveat(
            "emulated_dtype",
            f"This {prepared.device.name} does not compute in the format of dtype={dtype.name}: it "
            "is emulated, and slow.",
            "Use dtype=fp32 here, or a processor that has the format (environment.json lists this "
            "one's features).",
        )
    if dtype.is_measuring:
        yield Caveat(
            "measuring",
            "This run measured the model for fp8: its timings are of the measuring.",
            "Run the same with dtype=fp8.",
        )
    if dtype.autocast_to:
        yield Caveat(
            "autocast",
            "Autocast converts weights and activations anew in every forward, which inference "
            "seldom needs.",
            f"Compare speed and drift with dtype={dtype.autocast_to}, which converts weights once.",
        )


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


def _changes(measurement: dict[str, Any]) -> Iterator[Caveat]:
    trend, step, outliers = (measurement[key] for key in ("trend", "step", "outliers"))
    unit = _unit(measurement)
    if step:
        yield Caveat(
            "step",
            f"From number {step['at']} of {measurement['samples']} on, {unit} took "
            f"{step['change']:+.0%}.",
            "Something changed while measuring; run it again on a quiet machine.",
        )
    elif trend:
        yield Caveat(
            "trend",
            f"From the first of the {unit} to the last, times moved by {trend:+.0%}.",
            "Warm up longer (warmup=N) if they fell; look for heat or other load if they rose.",
        )
    elif measurement["autocorrelation"]:
        yield Caveat(
            "not_independent",
            f"Slow {unit} came together, and fast ones (correlation of each with the one before: "
            f"{measurement['autocorrelation']:.2f}), so they tell less than as many independent "
            "ones; the intervals are wider for it.",
            "Measure for longer than such spells last, quiet the machine, or compare by `duel`.",
        )
    far = outliers["low"] + outliers["high"] if outliers else 0
    if outliers and far > max(1, _MANY_OUTLIERS * outliers["samples"]):
        yield Caveat(
            "outliers",
            f"{far} of {outliers['samples']} forwards lie beyond Tukey's fences "
            f"({outliers['severe']} of them far beyond); none was dropped.",
            "Compare medians rather than means, and quiet the machine.",
        )


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


def _machine(conditions: Conditions) -> Iterator[Caveat]:
    others, stolen, load = conditions.other_processes, conditions.stolen, conditions.load_average
    if others is not None and others > BUSY:
        yield Caveat(
            "busy_machine",
            f"Other processes had {others:.0%} of the processor's time while measuring.",
            "Stop them, lower device.threads, or compare by `duel`, which alternates.",
        )
    elif load is not None and load > 1.5 * conditions.cores:
        yield Caveat(
            "loaded_machine",
            f"The load average is {load:.1f} on {conditions.cores} cores.",
            "Wait until other work is done, or lower device.threads.",
        )
    if stolen is not None and stolen > STOLEN:
        yield Caveat(
            "stolen_time",
            f"Other virtual machines took {stolen:.0%} of the processor's time (steal).",
            "Run on a machine of your own, or compare by `duel`, which alternates.",
        )
    if conditions.swapped_bytes:
        yield Caveat(
            "swapping",
            f"{conditions.swapped_bytes / 2**20:,.0f} MiB went to or from swap while measuring.",
            "Lower batch, choose a smaller dtype, or free memory.",
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


def _counted(prepared: Prepared, counted: dict[str, Any] | None) -> Iterator[Caveat]:
    without_graph = prepared.graph.without_graph(prepared.shapes)
    if without_graph:
        yield Caveat(
            "without_graph",
            f"{without_graph} of the batch shapes ran operator by operator: "
            "graph.max_graphs keeps no more recordings.",
            "Raise graph.max_graphs, or make fewer shapes: graph.edges.",
        )
    if counted and counted["measured_compilations"]:
        yield Caveat(
            "recompiled",
            f"The device compiled {counted['measured_compilations']} graphs while the passes were "
            "measured: compiling is among the figures.",
            "Use graph=hpu_graphs or batching=padded, whose shapes are all compiled before, or "
            "warm up longer: warmup=N.",
        )
    for name, times in ((counted and counted["cpu_fallbacks"]) or {}).items():
        yield Caveat(
            "cpu_fallback",
            f"The device has no operator {name}: the CPU ran it {times} times, with its operands "
            "copied there and back.",
            "Look for another engine, attention or release of the device's software.",
        )

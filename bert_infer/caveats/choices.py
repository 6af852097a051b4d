"""Warnings of what was run: batches, formats, graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bert_infer.configuration.settings import Until
from bert_infer.records import Caveat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bert_infer.running.preparation import Prepared
    from bert_infer.running.run_record import Record

_MUCH_PADDING = 0.3


def of(record: Record, prepared: Prepared, figures: dict[str, Any]) -> Iterator[Caveat]:
    """Yield where another choice may serve better, or was made in vain."""
    yield from _workload(prepared)
    yield from _choice(prepared, emulated=record.emulated)
    yield from _until(prepared.runner.until)
    if record.environment:
        yield from prepared.device.overruled(prepared.dtype, record.environment["variables"])
    yield from _counted(prepared, figures["accelerator"])


def _workload(prepared: Prepared) -> Iterator[Caveat]:
    workload, batching = prepared.workload, prepared.batching
    batch = prepared.runner.settings.batch
    by_batch = batching.sized_by == "batch"
    is_repeated = len(workload.lengths) > workload.texts
    if workload.padding_waste > _MUCH_PADDING:
        yield Caveat(
            "padding_waste",
            f"{workload.padding_waste:.0%} of the computed tokens are padding.",
            f"graph={prepared.graph.name} adds most of it, filling batches up to few sizes: take "
            "more graph.edges or graph.max_buckets"
            + (", or a batch that divides the texts." if by_batch else ".")
            if workload.filling_waste > workload.padding_waste / 2
            else batching.less_padding,
        )
    if by_batch and workload.largest < batch:
        yield Caveat(
            "batch_not_filled",
            f"batch={batch} was asked, but no forward holds more than {workload.largest} "
            "sequences.",
            "Give more texts, widen batching.window where there is one, or set "
            f"batch={workload.largest}.",
        )
    if not by_batch and batch > 1 and not is_repeated:
        yield Caveat(
            "batch_ignored",
            f"batch={batch} has no effect: batching={batching.name} decides how many sequences a "
            "forward holds.",
            f"Leave batch out, or set {batching.sized_by}.",
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


def _until(until: Until) -> Iterator[Caveat]:
    if until.relative_ci is None and until.max_s != Until.max_s:
        yield Caveat(
            "max_s_ignored",
            f"until.max_s={until.max_s:g} has no effect without until.relative_ci.",
            "Set until.relative_ci=0.02, say, or iterations=N.",
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
    for name, times in ((counted and counted["cpu_fallbacks"]) or {}).items():
        yield Caveat(
            "cpu_fallback",
            f"The device has no operator {name}: the CPU ran it {times} times, with its operands "
            "copied there and back.",
            "Look for another engine, attention or release of the device's software.",
        )

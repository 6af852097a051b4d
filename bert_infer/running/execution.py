"""A run: load the model, warm up, measure; what is found out goes into its record on the way."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bert_infer.devices import variables
from bert_infer.devices.counters import Counted
from bert_infer.measuring import ceiling, conditions, drift, environment
from bert_infer.measuring.measure import collector_off, without_garbage_collection
from bert_infer.memory import PeakMemory
from bert_infer.models import weights
from bert_infer.records import wall_s
from bert_infer.running import interruption
from bert_infer.running.passes import Passes
from bert_infer.running.schedule import as_long_as_asked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bert_infer.batching.layouts import Batch
    from bert_infer.measuring.conditions import Pauses
    from bert_infer.outputs import Sink
    from bert_infer.records import Forward, Outputs
    from bert_infer.running.preparation import Prepared
    from bert_infer.running.run_record import Record

ShowProgress = Callable[[int, "int | None"], None]
"""Takes the number of forwards done, and their total; None where that is unknown."""

Turns = Callable[["list[Forward]", "Pauses"], "Iterator[int]"]
"""Takes what has been measured so far, and what notes pauses; yields the index of each pass."""


def execute(
    prepared: Prepared,
    record: Record,
    sinks: Sequence[Sink] = (),
    progress: ShowProgress = lambda _done, _total: None,
    turns: Turns | None = None,
) -> tuple[Batch, Outputs]:
    """Load, warm up, measure; fill ``record`` and ``sinks`` on the way.

    Args:
        prepared: what to run.
        record: holds what was found out even when this breaks off.
        sinks: are given every batch of every pass; the last pass is what they keep.
        progress: is told of every forward, never while the clock runs.
        turns: yields the passes to measure where other runs work on the machine between them;
            None: as many as the settings ask, and this run is alone.

    Returns:
        The last batch and its outputs, in host memory.

    Raises:
        OutOfMemoryError: a batch does not fit in memory.
        UnrecordableError: a forward cannot be recorded as a graph.
    """
    record.prepared = prepared
    with _imported(prepared, record):
        return _executed(prepared, record, sinks, progress, turns)


def _executed(
    prepared: Prepared,
    record: Record,
    sinks: Sequence[Sink],
    progress: ShowProgress,
    turns: Turns | None,
) -> tuple[Batch, Outputs]:
    import torch

    runner, device, architecture = prepared.runner, prepared.device, prepared.architecture
    iterations, until, is_alone = runner.settings.iterations, runner.until, turns is None
    is_counted = is_alone and until.relative_ci is None
    total = prepared.workload.forwards * iterations if is_counted else None
    compared = drift.sample(prepared)
    record.emulated = device.emulates(prepared.dtype.matmuls())
    with torch.inference_mode(), device.active():
        record.environment = environment.describe(device)
        memory, begun = PeakMemory(device), device.reading().counters
        with record.phases("load"):
            loaded = weights.load(prepared.source, architecture)
            record.weights = dict(loaded.provenance)
        if compared:
            with record.phases("drift"), memory.uncounted():
                reference = compared.reference(architecture, loaded)
            sinks = (*sinks, *compared.sinks)
        with prepared.dtype.active(device):
            with record.phases("load"):
                encode = runner.engine.load(architecture, loaded, prepared.dtype, device)
                work = Passes.of(prepared, encode, record)
            with record.phases("ceiling"), memory.uncounted():
                record.ceiling = ceiling.before(device, prepared.dtype, architecture)
            work.compile()
            # The ceiling comes before the warm-up, and no garbage collection after it: other
            # matmuls, memory given back or all objects touched would undo it.
            with without_garbage_collection():
                record.warm_up = work.warm_up(
                    runner.settings.warmup, is_single=total == prepared.workload.forwards
                )
                earlier, pauses = conditions.snapshot(device), conditions.Pauses(device)
                indices = (
                    turns(record.forwards, pauses)
                    if turns
                    else as_long_as_asked(iterations, until, record.forwards, record.relative_ci)
                )
                last = _measure(
                    record,
                    work.measured(indices),
                    sinks,
                    lambda: progress(len(record.forwards), total),
                )
            later = conditions.snapshot(device)
            counted = Counted(begun, earlier.device.counters, later.device.counters)
            record.peak_host_bytes, record.peak_device_bytes = memory.bytes()
            record.conditions = conditions.between(earlier, later, pauses.spans)
            if is_alone:
                record.counted = counted
                with record.phases("ceiling"):
                    record.ceiling = ceiling.after(record.ceiling, device, prepared.dtype)
                ended = conditions.snapshot(device)
                record.conditions = conditions.completed(record.conditions, earlier, ended)
            else:
                record.counted = counted.beside_others()
                # Without the time for which others had the machine.
                record.phases.seconds["measure"] = wall_s(record.forwards)
            for sink in sinks:
                sink.watch(work.one(), work.encode, device)
        if compared:
            with record.phases("drift"):
                record.drift = drift.compare(compared.outputs(), reference, compared.kept)
    record.finish(runner.drift.min_cosine)
    return last


@contextmanager
def _imported(prepared: Prepared, record: Record) -> Iterator[None]:
    """Import what the parts need, the device's first: it may change what the others find.

    torch and transformers are some 600,000 objects. While the run that imports them goes on, no
    garbage collection passes over them, which would take a tenth of a short run's time.
    """
    device = prepared.device
    is_first, was_frozen = "torch" not in sys.modules, gc.get_freeze_count() > 0
    # Collections among imports find nothing, and take a seventh of their time.
    with record.phases("import"), interruption.held_back(), collector_off():
        variables.settle(device.variables(prepared.graph), device.imports)
        for name in (*device.imports, *prepared.runner.imports):
            importlib.import_module(name)
        if is_first:
            gc.freeze()
    try:
        yield
    finally:
        if is_first and not was_frozen:  # what a program has frozen itself stays so
            gc.unfreeze()


def _measure(
    record: Record,
    forwards: Iterable[tuple[Forward, Batch, Outputs]],
    sinks: Sequence[Sink],
    progress: Callable[[], None],
) -> tuple[Batch, Outputs]:
    """Fill ``record`` and ``sinks`` with ``forwards`` as they are measured; return the last."""
    with record.phases("measure"):
        for measured, batch, outputs in forwards:
            record.forwards.append(measured)
            if measured.pass_index == 0:  # the others compute the same
                record.is_finite &= bool(outputs.hidden_states.isfinite().all())
            for sink in sinks:
                sink.collect(batch, outputs)
            progress()
    record.passes = measured.pass_index + 1
    return batch, outputs

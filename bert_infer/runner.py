"""The Runner: text -> tokens -> batches -> device -> model -> outputs -> metrics."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bert_infer import (
    ceiling,
    conditions,
    drift,
    environment,
    interruption,
    preparation,
    variables,
    weights,
)
from bert_infer.counters import Counted
from bert_infer.inputs.prompt import Prompt
from bert_infer.measure import without_garbage_collection
from bert_infer.memory import PeakMemory
from bert_infer.metrics import Record
from bert_infer.outputs import HiddenStates, Pooled
from bert_infer.passes import Passes
from bert_infer.profile import Trace
from bert_infer.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bert_infer.batching import Batching
    from bert_infer.devices import Device
    from bert_infer.dtypes import Dtype
    from bert_infer.engines import Engine
    from bert_infer.graphs import Graph
    from bert_infer.inputs import Input
    from bert_infer.layouts import Batch
    from bert_infer.models import Model
    from bert_infer.outputs import Output, Sink
    from bert_infer.preparation import Prepared
    from bert_infer.records import Forward, Outputs, Tokens
    from bert_infer.settings import DriftSettings, Settings, Until

ShowProgress = Callable[[int, "int | None"], None]
"""Takes the number of forwards done, and their total; None where that is unknown."""


@dataclass(frozen=True, eq=False)
class Result:
    """What a run gives a Python program.

    Attributes:
        record: the content of metrics.json.
        hidden_states: a tensor ``[tokens, hidden]`` for each text, in input order; with
            engine=fused_cls ``[1, hidden]``.
        pooled: ``[texts, hidden]``, by ``output.pooling``.
        positions: ``int64 [texts]``, where each text stood in the input, empty ones counted.
    """

    record: dict[str, Any]
    hidden_states: list[torch.Tensor]
    pooled: torch.Tensor
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class Runner:
    """One composed configuration."""

    input: Input
    model: Model
    batching: Batching
    device: Device
    dtype: Dtype
    engine: Engine
    graph: Graph
    output: Output
    settings: Settings
    until: Until
    drift: DriftSettings
    overrides: tuple[str, ...] = ()

    def run(self, texts: str | Iterable[str] | None = None) -> Result:
        """Run ``texts``, or the configured input, and return the outputs of the last pass.

        Args:
            texts: a text, or several; None: the configured input.

        Raises:
            RefusedError: the request cannot be met.
            OutOfMemoryError: a batch does not fit in memory.
            UnrecordableError: a forward cannot be recorded as a graph.
        """
        is_some = isinstance(texts, Iterable) and not isinstance(texts, str)
        given = list(texts) if is_some else texts  # type: ignore[arg-type]
        runner = self if texts is None else replace(self, input=Prompt(given))
        prepared = runner.prepare()
        hidden_states = HiddenStates(prepared.tokens)
        pooled = Pooled(prepared.tokens, runner.output.pooling)
        record = runner.new_record()
        runner.execute(record, prepared, (hidden_states, pooled))
        return Result(
            record.metrics(), hidden_states.in_order, pooled.stacked(), prepared.tokens.positions
        )

    def new_record(self, isolation: str = "inline") -> Record:
        """Return a record that says which run this is."""
        started = datetime.now(UTC)
        # What is kept or compared does not change what is computed.
        config_hash = self._digest(but={"output", "drift"})
        return Record(
            run={
                "id": f"{started:%Y%m%dT%H%M%S%f}-{config_hash[:8]}",
                "started_at": started.isoformat(),
                "config_hash": config_hash,
                "overrides": list(self.overrides),
                "isolation": isolation,
            }
        )

    def content_hash(self, prepared: Prepared) -> str:
        """Return a hash of what tells runs apart: configuration, weights and input's content."""
        contents = [weights.identity(prepared.source), prepared.tokens.sha256]
        return environment.digest([self._digest(), *contents])

    @property
    def imports(self) -> tuple[str, ...]:
        """The modules that a run needs."""
        return (*self.engine.imports, *self.until.imports)

    def variables(self) -> dict[str, str]:
        """Return the environment variables that must be set before torch is imported."""
        device = self.device.resolve()
        return dict(device.variables(self.graph.resolve(device)))

    @property
    def preload(self) -> frozenset[str]:
        """The modules that are worth importing once for many runs."""
        return frozenset({*self.imports, *(drift.IMPORTS if self.drift.texts else ())})

    def _digest(self, but: Collection[str] = ()) -> str:
        """Return a hash of all parts except those in ``but``: their types and fields."""
        parts = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in {"overrides", *but}
        }
        return environment.digest(
            {name: [type(part).__name__, asdict(part)] for name, part in parts.items()}
        )

    def prepare(self) -> Prepared:
        """Check everything that can be checked before anything is loaded, and tokenise the input.

        Raises:
            RefusedError: the request cannot be met.
        """
        return preparation.prepare(self)

    def sinks(self, tokens: Tokens) -> tuple[Sink, ...]:
        """Return the sinks whose files a run writes."""
        trace = (Trace(),) if self.settings.profile else ()
        return *self.output.sinks(tokens), *trace

    def execute(
        self,
        record: Record,
        prepared: Prepared,
        sinks: Sequence[Sink] = (),
        progress: ShowProgress = lambda _done, _total: None,
        schedule: Schedule | None = None,
    ) -> tuple[Batch, Outputs]:
        """Load, warm up, measure; fill ``record`` and ``sinks`` on the way.

        Args:
            record: holds what was found out even when this breaks off.
            prepared: what ``prepare`` returned.
            sinks: are given every batch of every pass; the last pass is what they keep.
            progress: is told of every forward, never while the clock runs.
            schedule: which passes are measured; None: as many as the settings ask.

        Returns:
            The last batch and its outputs, in host memory.

        Raises:
            OutOfMemoryError: a batch does not fit in memory.
            UnrecordableError: a forward cannot be recorded as a graph.
        """
        self._note_request(record, prepared)
        device, architecture = prepared.device, prepared.architecture
        with record.phases("import"):
            self._import(prepared)
        import torch

        until, iterations = self.until, self.settings.iterations
        schedule = schedule or Schedule.of(iterations, until, record.relative_ci)
        total = prepared.workload.forwards * schedule.passes if schedule.passes else None
        compared = drift.sample(self, prepared)
        record.emulated = device.emulates(prepared.dtype.matmuls())
        with torch.inference_mode(), device.active():
            record.environment = environment.describe(device)
            memory, begun = PeakMemory(device), device.counters()
            with record.phases("load"):
                loaded = weights.load(prepared.source, architecture)
                record.provenance["weights"] = dict(loaded.provenance)
            if compared:
                with record.phases("drift"), memory.uncounted():
                    reference = compared.reference(architecture, loaded)
                sinks = (*sinks, *compared.sinks)
            with prepared.dtype.active(device):
                with record.phases("load"):
                    encode = self.engine.load(architecture, loaded, prepared.dtype, device)
                    work = Passes.of(self, prepared, encode, record)
                with record.phases("ceiling"), memory.uncounted():
                    record.ceiling = ceiling.before(device, prepared.dtype, architecture)
                work.compile()
                # The ceiling comes before the warm-up, and no garbage collection after it: other
                # matmuls, memory given back or all objects touched would undo it.
                with without_garbage_collection():
                    record.warm_up = work.warm_up(
                        self.settings.warmup, is_single=total == prepared.workload.forwards
                    )
                    earlier = conditions.snapshot(device)
                    last = _measure(
                        record,
                        work.measured(schedule.indices(record.forwards)),
                        sinks,
                        lambda: progress(len(record.forwards), total),
                    )
                later = conditions.snapshot(device)
                counted = Counted(begun, earlier.counters, later.counters)
                record.peak_host_bytes, record.peak_device_bytes = memory.bytes()
                if schedule.is_alone:
                    record.counted = counted
                    record.conditions = conditions.between(earlier, later)
                    with record.phases("ceiling"):
                        record.ceiling = ceiling.after(record.ceiling, device, prepared.dtype)
                else:
                    record.counted = counted.beside_others()
                for sink in sinks:
                    sink.watch(work.one(), work.encode, device)
            if compared:
                with record.phases("drift"):
                    record.drift = drift.compare(compared.outputs(), reference, compared.kept)
        record.finish(self.drift.min_cosine)
        return last

    def _note_request(self, record: Record, prepared: Prepared) -> None:
        """Note what is known before anything is loaded."""
        record.architecture, record.workload = prepared.architecture, prepared.workload
        record.until, record.choice = self.until, self.choice(prepared)
        record.dtype = prepared.dtype
        record.shapes_without_graph = prepared.graph.without_graph(prepared.groups)
        record.provenance = {
            "tokenizer": prepared.tokenizer_provenance,
            "input": {"sha256": prepared.tokens.sha256},
        }
        record.in_flight = prepared.device.in_flight
        lengths = prepared.tokens.lengths
        record.unneeded_flop = self.engine.unneeded_flop(prepared.architecture, lengths)

    def _import(self, prepared: Prepared) -> None:
        """Import what the parts need, the device's first: it may change what the others find."""
        device = prepared.device
        variables.settle(device.variables(prepared.graph), device.imports)
        with interruption.held_back():
            for name in (*device.imports, *self.imports):
                importlib.import_module(name)

    def choice(self, prepared: Prepared) -> dict[str, Any]:
        """Return the choice as resolved, as metrics.json has it."""
        return {
            "device": prepared.device.name,
            "dtype": prepared.dtype.name,
            "graph": prepared.graph.name,
            "batching": self.batching.name,
            "engine": self.engine.name,
            "model": self.model.name,
            "weights": prepared.source.kind,
            "batch": self.settings.batch if self.batching.uses_batch else None,
            "batching.max_tokens": prepared.batching.budget,
            "iterations": self.settings.iterations,
            "max_length": prepared.max_length,
        }


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
    record.choice["iterations"] = measured.pass_index + 1
    return batch, outputs

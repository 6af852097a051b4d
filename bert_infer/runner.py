"""The Runner: text -> tokens -> batches -> device -> model -> outputs -> metrics."""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bert_infer import batching as batches
from bert_infer import caveats, environment, preparation, weights
from bert_infer.inputs.prompt import Prompt
from bert_infer.measure import forward, measured_pass
from bert_infer.metrics import Record
from bert_infer.outputs import HiddenStates, Pooled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bert_infer.batching import Batching
    from bert_infer.devices import Device
    from bert_infer.dtypes import Dtype
    from bert_infer.engines import Encode, Engine
    from bert_infer.graphs import Graph
    from bert_infer.inputs import Input
    from bert_infer.models import Model
    from bert_infer.outputs import Output, Sink
    from bert_infer.preparation import Prepared
    from bert_infer.records import Outputs, PaddedBatch
    from bert_infer.settings import Settings


@dataclass(frozen=True, eq=False)
class Result:
    """What a run gives a Python program.

    Attributes:
        record: the content of metrics.json.
        hidden_states: a tensor ``[tokens, hidden]`` for each text, in input order.
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

    def run(self, texts: Sequence[str] | None = None) -> Result:
        """Run ``texts``, or the configured input, and return the outputs of the last pass.

        Raises:
            RefusedError: the request cannot be met.
        """
        runner = self if texts is None else replace(self, input=Prompt(list(texts)))
        prepared = runner.prepare()
        hidden_states = HiddenStates(prepared.tokens)
        pooled = Pooled(prepared.tokens, runner.output.pooling)
        record = runner.new_record()
        runner.execute(record, prepared, (hidden_states, pooled))
        return Result(
            record.metrics(), hidden_states.in_order, pooled.stacked(), prepared.tokens.positions
        )

    def new_record(self, overrides: Sequence[str] = ()) -> Record:
        """Return a record that says which run this is."""
        started = datetime.now(UTC)
        work = {
            part.name: [type(getattr(self, part.name)).__name__, asdict(getattr(self, part.name))]
            for part in fields(self)
            if part.name != "output"  # what is kept does not change what is computed
        }
        config_hash = environment.digest(work)
        return Record(
            run={
                "id": f"{started:%Y%m%dT%H%M%S%f}-{config_hash[:8]}",
                "started_at": started.isoformat(),
                "config_hash": config_hash,
                "overrides": list(overrides),
                "isolation": "inline",
            }
        )

    def prepare(self) -> Prepared:
        """Check everything that can be checked without torch, and tokenise the input.

        Raises:
            RefusedError: the request cannot be met.
        """
        return preparation.prepare(self)

    def execute(
        self,
        record: Record,
        prepared: Prepared,
        sinks: Sequence[Sink] = (),
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> tuple[PaddedBatch, Outputs]:
        """Load, warm up, measure; fill ``record`` and ``sinks`` on the way.

        Args:
            record: holds what was found out even when this breaks off.
            prepared: what ``prepare`` returned.
            sinks: are given every batch of the last pass.
            progress: is told the forwards done and in all, never while the clock runs.

        Returns:
            The last batch and its outputs, in host memory.
        """
        record.architecture, record.workload = prepared.architecture, prepared.workload
        record.choice = self._choice(prepared)
        record.provenance = {
            "tokenizer": prepared.tokenizer_provenance,
            "input": {"sha256": prepared.tokens.sha256},
        }
        environment.reset_peak_host_memory()
        with record.phases("import"):
            for name in self.engine.imports:
                importlib.import_module(name)
        import torch

        device = prepared.device
        with torch.inference_mode(), device.active(), self.dtype.active(device):
            with record.phases("load"):
                encode = self._load(record, prepared)
                device.reset_peak_memory()
            self._warm_up(record, prepared, encode)
            last = self._measure(record, prepared, encode, sinks, progress)
            record.peak_device_bytes = device.peak_memory()
        record.peak_host_bytes = environment.peak_host_bytes()
        record.warnings = caveats.of(record)
        record.status = "ok"
        return last

    def _load(self, record: Record, prepared: Prepared) -> Encode:
        loaded = weights.load(prepared.source, prepared.architecture)
        record.provenance["weights"] = dict(loaded.provenance)
        encode = self.engine.load(prepared.architecture, loaded, self.dtype, prepared.device)
        return prepared.graph.wrap(encode, prepared.groups)

    def _warm_up(self, record: Record, prepared: Prepared, encode: Encode) -> None:
        """Run every shape once, and then the passes that ``warmup`` asks for."""

        def every_shape() -> None:
            for group in prepared.groups.values():
                batch = batches.lay_out(group, prepared.tokens, prepared.architecture.pad_token_id)
                forward(encode, self._inputs(batch, prepared), prepared.device)

        if prepared.graph.compiles:
            with record.phases("compile"):
                every_shape()
        if self.settings.warmup == "auto":
            with record.phases("warmup"):
                every_shape()
        elif int(self.settings.warmup):
            with record.phases("warmup"):
                for _ in range(int(self.settings.warmup)):
                    for _, inputs in self._batches(prepared):
                        forward(encode, inputs, prepared.device)

    def _measure(
        self,
        record: Record,
        prepared: Prepared,
        encode: Encode,
        sinks: Sequence[Sink],
        progress: Callable[[int, int], None],
    ) -> tuple[PaddedBatch, Outputs]:
        iterations = self.settings.iterations
        total = iterations * prepared.workload.forwards
        with record.phases("measure"):
            for index in range(iterations):
                for measured, batch, outputs in measured_pass(
                    index, self._batches(prepared), encode, prepared.device
                ):
                    record.forwards.append(measured)
                    if index == iterations - 1:
                        for sink in sinks:
                            sink.collect(batch, outputs)
                    progress(len(record.forwards), total)
        return batch, outputs

    def _batches(
        self, prepared: Prepared
    ) -> Iterator[tuple[PaddedBatch, tuple[NDArray[np.generic], ...]]]:
        """Yield one pass' batches, planned anew: sorting is part of what is measured."""
        lengths, limit = prepared.tokens.lengths, prepared.architecture.max_length
        for group in self.batching.plan(lengths, self.settings.batch, limit):
            batch = batches.lay_out(group, prepared.tokens, prepared.architecture.pad_token_id)
            yield batch, self._inputs(batch, prepared)

    def _inputs(self, batch: PaddedBatch, prepared: Prepared) -> tuple[NDArray[np.generic], ...]:
        return self.engine.inputs(batch, keep_mask=prepared.graph.keeps_mask)

    def _choice(self, prepared: Prepared) -> dict[str, Any]:
        """Return the resolved values."""
        return {
            "device": prepared.device.name,
            "dtype": self.dtype.name,
            "graph": prepared.graph.name,
            "batching": self.batching.name,
            "engine": self.engine.name,
            "model": self.model.name,
            "weights": prepared.source.kind,
            "batch": self.settings.batch if self.batching.uses_batch else None,
            "iterations": self.settings.iterations,
            "max_length": prepared.max_length,
        }

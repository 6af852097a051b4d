"""The Runner: text -> tokens -> batches -> device -> model -> outputs -> metrics."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from threading import RLock
from typing import TYPE_CHECKING, Any

from bert_infer import metrics
from bert_infer.errors import RefusedError
from bert_infer.inputs.prompt import Prompt
from bert_infer.measuring import drift, environment
from bert_infer.outputs import HiddenStates, Pooled
from bert_infer.running import execution, preparation
from bert_infer.running.profile import Trace
from bert_infer.running.run_record import Record

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bert_infer.batching import Batching
    from bert_infer.configuration.settings import DriftSettings, Settings, Until
    from bert_infer.devices import DeviceChoice
    from bert_infer.dtypes import Dtype
    from bert_infer.engines import Engine
    from bert_infer.graphs import GraphChoice
    from bert_infer.inputs import Input
    from bert_infer.models import Model
    from bert_infer.outputs import Output, Sink
    from bert_infer.records import Tokens
    from bert_infer.running.preparation import Prepared


_ONE_AT_A_TIME = RLock()
"""Runs of several threads would share the tokenizer, the device, the precision, the figures."""


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

    record: dict[str, Any] = field(repr=False)
    hidden_states: list[torch.Tensor] = field(repr=False)
    pooled: torch.Tensor
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class Runner:
    """One composed configuration."""

    input: Input
    model: Model
    batching: Batching
    device: DeviceChoice
    dtype: Dtype
    engine: Engine
    graph: GraphChoice
    output: Output
    settings: Settings
    until: Until
    drift: DriftSettings
    overrides: tuple[str, ...] = ()

    def run(self, texts: str | Iterable[str] | None = None) -> Result:
        """Run ``texts``, or the configured input, and return the outputs of the last pass.

        Threads that call this wait for one another.

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
        with _ONE_AT_A_TIME:
            prepared = runner.prepare()
            if runner.sinks(prepared.tokens):
                raise RefusedError(
                    "output.save and profile=true write files, and a run from Python writes none.",
                    "Leave them out, and take the result's tensors; or run it by the command line.",
                )
            hidden_states = HiddenStates(prepared.tokens)
            pooled = Pooled(prepared.tokens, runner.output.pooling)
            record = runner.new_record()
            execution.execute(prepared, record, (hidden_states, pooled))
        return Result(
            record=metrics.of(record),
            hidden_states=hidden_states.in_order,
            pooled=pooled.stacked(),
            positions=prepared.tokens.positions.copy(),  # those here are cached
        )

    def new_record(self, isolation: str = "inline") -> Record:
        """Return a record that says which run this is."""
        started = datetime.now(UTC)
        # What is kept or compared does not change what is computed.
        config_hash = self.digest(but={"output", "drift"})
        return Record(
            run={
                "id": f"{started:%Y%m%dT%H%M%S%f}-{config_hash[:8]}",
                "started_at": started.isoformat(),
                "config_hash": config_hash,
                "overrides": list(self.overrides),
                "isolation": isolation,
            }
        )

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

    def digest(self, but: Collection[str] = ()) -> str:
        """Return a hash of all parts except those in ``but``: their types and fields."""
        parts = {
            part.name: getattr(self, part.name)
            for part in fields(self)
            if part.name not in {"overrides", *but}
        }
        return environment.digest(
            {
                name: [type(part).__module__, type(part).__qualname__, asdict(part)]
                for name, part in parts.items()
            }
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

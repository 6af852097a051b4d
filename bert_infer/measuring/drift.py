"""Drift: how far outputs are from those of the fp32 transformers engine on the same texts.

A few texts, of lengths spread over the input's, go through the reference one by one, unpadded, on
the CPU, before the run's own engine loads its weights. They are compared with the outputs of the
measured passes.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bert_infer.batching.layouts import Kept, PaddedBatch
from bert_infer.devices.cpu import FPMATH, Cpu
from bert_infer.dtypes import Fp32
from bert_infer.engines.transformers import Transformers
from bert_infer.files import caches
from bert_infer.graphs import Eager
from bert_infer.measuring.environment import digest
from bert_infer.measuring.measure import forward
from bert_infer.outputs import HiddenStates, Pooled

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from bert_infer.models.architecture import Architecture
    from bert_infer.outputs import Pooling, Sink
    from bert_infer.records import Tokens, Weights
    from bert_infer.running.preparation import Prepared

REFERENCE = "transformers fp32 eager, unpadded, on the CPU"
IMPORTS = Transformers.imports
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drift:
    """How far apart two sets of outputs are; None where a value is not finite.

    Attributes:
        texts: how many texts were compared.
        reference: what they were compared with.
        tokens: whose hidden states were compared, "all" or each text's "first".
        max_abs: largest difference of two hidden states' values.
        mean_cosine: mean over these tokens of the cosine between hidden states.
        min_cosine: the smallest of these.
        pooled_min_cosine: the smallest cosine of two texts' pooled outputs.
    """

    texts: int
    reference: str
    tokens: str
    max_abs: float | None
    mean_cosine: float | None
    min_cosine: float | None
    pooled_min_cosine: float | None

    def complaint(self, min_cosine: float | None) -> tuple[str, str] | None:
        """Return what is wrong and what to do, if drift is more than ``min_cosine`` allows."""
        if min_cosine is None:
            return None
        if self.min_cosine is None:
            return (
                "There is no cosine to the reference: some outputs are infinite or NaN.",
                "Look into the weights, or use a dtype of greater range (bf16, fp32).",
            )
        if self.min_cosine >= min_cosine:
            return None
        found = f"The smallest cosine to the reference is {self.min_cosine}"
        return (
            f"{found}, less than drift.min_cosine={min_cosine}.",
            "Choose a more exact dtype or engine, or lower drift.min_cosine.",
        )


def is_reference(prepared: Prepared) -> bool:
    """Tell whether a run computes exactly what the reference does, except for padding."""
    parts = (prepared.runner.engine, prepared.dtype, prepared.graph, type(prepared.device))
    return parts == (Transformers(), Fp32(), Eager(), Cpu)


def spread(lengths: NDArray[np.int64], count: int) -> list[int]:
    """Return the indices of some texts: the shortest, the longest, and evenly between them.

    Args:
        lengths: ``int64 [texts]``, real tokens of each.
        count: how many texts at most.
    """
    order = np.argsort(lengths, kind="stable")
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return sorted(order[places].tolist())


class TextOutputs(NamedTuple):
    """Outputs of a few texts: hidden states ``[tokens, hidden]``, pooled ``[texts, hidden]``."""

    hidden_states: list[torch.Tensor]
    pooled: torch.Tensor


class Sample:
    """A few of a run's texts: collects their outputs, and provides the reference's."""

    def __init__(
        self, tokens: Tokens, chosen: list[int], pooling: Pooling, kept: Kept = Kept.all
    ) -> None:
        """Take the texts ``chosen``, and of each the tokens that are ``kept``."""
        self._tokens, self._chosen, self._pooling, self.kept = tokens, chosen, pooling, kept
        self._hidden_states = HiddenStates(tokens, chosen)
        self._pooled = Pooled(tokens, pooling, chosen)

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """The sinks that must be given the run's outputs."""
        return self._hidden_states, self._pooled

    def outputs(self) -> TextOutputs:
        """Return what was kept."""
        return TextOutputs(self._hidden_states.in_order, self._pooled.stacked())

    def reference(self, architecture: Architecture, weights: Weights) -> TextOutputs:
        """Return the reference's outputs for what is kept, from the cache if it has them."""
        path = self._cached_at(architecture, weights)
        found = _read(path)
        if found is None:
            found = self._computed(architecture, weights)
            _store(found, path)
        return found._replace(hidden_states=[self.kept.of(text) for text in found.hidden_states])

    def _computed(self, architecture: Architecture, weights: Weights) -> TextOutputs:
        device, engine = Cpu(), Transformers()
        theirs = Sample(self._tokens, self._chosen, self._pooling)
        # Not device.active(), whose end would undo the malloc settings of the run's own device.
        with Fp32().active(device):
            encode = engine.load(architecture, weights, Fp32(), device)
            for sequence in self._chosen:
                ids = self._tokens[sequence]
                alone = PaddedBatch(np.array([sequence]), np.array([len(ids)]), ids[None])
                outputs = forward(encode, engine.inputs(alone, keep_mask=False), device)
                for sink in theirs.sinks:
                    sink.collect(alone, outputs)
        return theirs.outputs()

    def _cached_at(self, architecture: Architecture, weights: Weights) -> Path:
        """Return the cache path of the reference's outputs, by a hash of all they depend on."""
        depends_on = {
            "weights": {k: v for k, v in weights.provenance.items() if k != "path"},
            "architecture": dict(architecture.config),
            "texts": [self._tokens[sequence].tolist() for sequence in self._chosen],
            "pooling": self._pooling.value,
            "fpmath": [os.environ.get(name) for name in FPMATH],
            "versions": {name: version(name) for name in ("numpy", "torch", "transformers")},
        }
        name = f"{digest(depends_on)}.safetensors"
        return caches.path_of("references", name)


def sample(prepared: Prepared) -> Sample | None:
    """Return the texts to compare; None where none are asked for, or the run is the reference.

    With ``drift.min_cosine`` set, even the reference is compared, as its batches are padded.
    """
    runner, tokens = prepared.runner, prepared.tokens
    asked = runner.drift
    if not asked.texts or (asked.min_cosine is None and is_reference(prepared)):
        return None
    chosen = spread(tokens.lengths[: tokens.texts], asked.texts)
    return Sample(tokens, chosen, runner.output.pooling, runner.engine.layout.kept)


def compare(ours: TextOutputs, theirs: TextOutputs, kept: Kept = Kept.all) -> Drift:
    """Return how far ``ours``, of the tokens that are ``kept``, are from the reference's."""
    import torch

    def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)

    states, expected = torch.cat(ours.hidden_states), torch.cat(theirs.hidden_states)
    by_token = cosines(states, expected)
    return Drift(
        texts=len(ours.hidden_states),
        reference=REFERENCE,
        tokens=kept.value,
        max_abs=_finite((states.double() - expected.double()).abs().max()),
        mean_cosine=_finite(by_token.mean()),
        min_cosine=_finite(by_token.min()),
        pooled_min_cosine=_finite(cosines(ours.pooled, theirs.pooled).min()),
    )


def _finite(value: torch.Tensor) -> float | None:
    return float(value) if value.isfinite() else None


def _read(path: Path) -> TextOutputs | None:
    """Return the cached outputs; None where there are none, or the file is broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        pooled = tensors.pop("pooled")
    except (OSError, SafetensorError, KeyError):
        return None
    _LOG.info("reference outputs from %s", path)
    with suppress(OSError):
        path.touch()  # the latest used are kept
    return TextOutputs([tensors[name] for name in sorted(tensors, key=int)], pooled)


def _store(outputs: TextOutputs, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {str(index): states for index, states in enumerate(outputs.hidden_states)}

    def write(beside: Path) -> None:
        try:
            save_file({**tensors, "pooled": outputs.pooled}, beside)
        except SafetensorError as error:  # a full disk, most of all
            raise OSError(error) from None

    caches.keep(path, write)

"""The fused engine for outputs of each text's first token, [CLS], alone: pooled, or as it is.

In the last layer that token needs the keys and values of all tokens, and all else of itself only.
Two things are computed for all tokens nevertheless: queries, which share a matrix with keys and
values, and attention, where a device's kernel cannot skip them. Outputs are those of ``fused``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from bert_infer.batching.layouts import Batch, Kept, PackedBatch
from bert_infer.engines.fused import Encoder, Fused, Layer, firsts
from bert_infer.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bert_infer.devices import Device
    from bert_infer.dtypes import Dtype
    from bert_infer.engines import Encode
    from bert_infer.models.architecture import Architecture
    from bert_infer.outputs import Output
    from bert_infer.records import Weights


@dataclass(frozen=True, eq=False)
class PackedFirsts(PackedBatch):
    """Sequences end to end; only their first tokens have final states."""

    kept: ClassVar[Kept] = Kept.first

    def states(self, hidden_states: torch.Tensor, index: int) -> torch.Tensor:
        """Return a view of a sequence's row of ``hidden_states [sequences, hidden]``."""
        return hidden_states[index : index + 1]


@dataclass(frozen=True)
class FusedCls(Fused):
    """The encoder of ``fused``, whose last layer is finished for first tokens alone."""

    name = "fused_cls"
    layout: ClassVar[type[Batch]] = PackedFirsts

    def check_output(self, output: Output) -> None:
        """Refuse outputs that need the states of all tokens."""
        asked = " and ".join(output.of_all_tokens)
        if asked:
            others = " and ".join(output.of_all_tokens.values())
            raise RefusedError(
                f"{asked}: that takes every token's state, and engine={self.name} computes those "
                "of first tokens alone.",
                f"Use engine=fused, or {others}.",
            )

    def load(
        self, architecture: Architecture, weights: Weights, dtype: Dtype, device: Device
    ) -> Encode:
        """Pack the weights, a part of the model at a time."""
        encoder = self.encoder(architecture, weights, dtype, device)
        return FirstTokens(encoder, device.region(Layer.transformed)).forward

    def unneeded_flop(self, architecture: Architecture, lengths: NDArray[np.int64]) -> int:
        """Return the last layer's FLOP for all tokens but the first, without keys and values.

        For each sequence of n tokens: ``2(n - 1)(2H^2 + 2HI)`` in queries and after attention, and
        ``4n(n - 1)H`` in attention.
        """
        hidden, intermediate = architecture.hidden, architecture.intermediate
        others, pairs = int((lengths - 1).sum()), int((lengths * (lengths - 1)).sum())
        return 2 * others * (2 * hidden**2 + 2 * hidden * intermediate) + 4 * pairs * hidden


class FirstTokens(NamedTuple):
    """An encoder, and how its last layer ends."""

    encoder: Encoder
    finish: Callable[[Layer, torch.Tensor, torch.Tensor], torch.Tensor]
    """``Layer.transformed``, as the device runs it."""

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, cu_seqlens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return first tokens' hidden states and the pooled, both ``[sequences, hidden]``."""
        encoder, (*before, last) = self.encoder, self.encoder.layers
        x, operand, bounds = encoder.through(before, token_ids, positions, cu_seqlens)
        rows, qkv = firsts(cu_seqlens, len(x)), last.projected(operand, encoder.heads)
        states = self.finish(last, x[rows], encoder.attend.of_firsts(qkv, bounds, rows))
        return states, encoder.pooled(states)

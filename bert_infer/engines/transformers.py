"""Hugging Face transformers' BertModel: the reference engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bert_infer.batching.layouts import Batch, PaddedBatch
from bert_infer.engines import Encode, Engine
from bert_infer.errors import RefusedError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bert_infer.devices import Device
    from bert_infer.dtypes import Dtype
    from bert_infer.models.architecture import Architecture
    from bert_infer.records import Weights


@dataclass(frozen=True)
class Transformers(Engine):
    """BertModel with scaled_dot_product_attention."""

    name = "transformers"
    imports: ClassVar[tuple[str, ...]] = ("torch", "transformers.models.bert.modeling_bert")
    layout: ClassVar[type[Batch]] = PaddedBatch

    def check(self, architecture: Architecture, dtype: Dtype) -> None:
        """Refuse formats that linear layers of our own compute: BertModel has PyTorch's."""
        del architecture
        if dtype.has_own_linears:
            raise RefusedError(
                f"engine={self.name} does not take dtype={dtype.name}: linear layers of our own "
                "compute it.",
                "Use engine=fused.",
            )

    def load(
        self, architecture: Architecture, weights: Weights, dtype: Dtype, device: Device
    ) -> Encode:
        """Build the model around the weights, without a second copy of them."""
        import torch
        from transformers.models.bert.configuration_bert import BertConfig
        from transformers.models.bert.modeling_bert import BertModel
        from transformers.utils import logging

        tensors = {
            name: tensor.to(dtype.weights())
            for part in architecture.parts
            for name, tensor in weights.read(part).items()
        }
        logging.disable_progress_bar()  # the console is the Runner's
        bert = BertModel.from_pretrained(
            None,
            config=BertConfig(**architecture.encoder_config),
            state_dict=tensors,
            dtype=dtype.weights(),
            attn_implementation=device.attention_of_rows(),
        )
        bert.to(device.torch_device())
        bert.eval()
        encoder = dtype.converted(bert, device)
        device.finish(encoder, scales_only=dtype.has_scales)

        def encode(
            token_ids: torch.Tensor, mask: torch.Tensor | None = None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            # A mask of 4 dimensions is used as it is. Of one of 2, transformers reads the values,
            # which waits for the device and goes wrong in a recorded graph.
            if mask is not None:
                mask = device.mask(mask, dtype.matmuls())
            # Token types left out are gathered from a buffer of 64-bit integers, which Gaudi's
            # compiler does not do.
            types = torch.zeros_like(token_ids)
            outputs = encoder(input_ids=token_ids, attention_mask=mask, token_type_ids=types)
            return outputs.last_hidden_state, outputs.pooler_output

        return encode

    def inputs(self, batch: PaddedBatch, *, keep_mask: bool) -> tuple[NDArray[np.generic], ...]:
        """Return ``token_ids [rows, width]`` and, if needed, ``mask [rows, 1, 1, width]``."""
        if keep_mask or batch.has_padding:
            return batch.token_ids, batch.mask[:, None, None, :]
        return (batch.token_ids,)

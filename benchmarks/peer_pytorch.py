"""Peers that are transformers' BertModel, called in several ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peer_engines import (
    BATCH,
    PAD,
    THREADS,
    VENDOR_BATCH,
    VENDOR_WIDTH,
    Encode,
    Files,
    Forward,
    Peer,
    States,
    by_batches,
    in_order,
    vendor_batches,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from bert_infer.batching.layouts import PaddedBatch
    from bert_infer.records import Tokens


def bert(files: Files, dtype: str, attention: str = "sdpa") -> Any:  # noqa: ANN401  untyped
    """Return transformers' BertModel."""
    import torch
    from transformers import BertModel

    torch.set_num_threads(THREADS)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    return BertModel.from_pretrained(files.model, dtype=kind, attn_implementation=attention).eval()


def torch_forward(model: Callable[..., Any]) -> Forward:
    """Return a forward of transformers' BertModel."""
    import torch

    @torch.inference_mode()
    def forward(batch: PaddedBatch) -> Any:  # noqa: ANN401  transformers says no more
        ids, mask = torch.from_numpy(batch.token_ids).long(), torch.from_numpy(batch.mask).long()
        return model(input_ids=ids, attention_mask=mask).last_hidden_state

    return forward


class _OfPyTorch(Peer):
    dtypes: ClassVar[tuple[str, ...]] = ("fp32", "bf16")
    lacks: ClassVar[str] = "no int8 of its own"


@dataclass(frozen=True)
class VendorsWay(_OfPyTorch):
    """Every batch padded to a fixed width, as the vendor's script has it."""

    label: str = f"transformers, padded to {VENDOR_WIDTH}, batch {VENDOR_BATCH} (vendor's way)"

    def encoder(self, files: Files, dtype: str) -> Encode:
        """Load it."""
        forward = torch_forward(bert(files, dtype))
        return lambda tokens: in_order(vendor_batches(tokens), forward, len(tokens))


@dataclass(frozen=True)
class Transformers(_OfPyTorch):
    """Eager, with scaled_dot_product_attention."""

    label: str = f"transformers, eager SDPA, sorted, batch {BATCH}"

    def encoder(self, files: Files, dtype: str) -> Encode:
        """Load it."""
        return by_batches(torch_forward(bert(files, dtype)), BATCH)


@dataclass(frozen=True)
class Compiled(_OfPyTorch):
    """By inductor, with the weights frozen into the code."""

    label: str = f"transformers, torch.compile, freezing, sorted, batch {BATCH}"

    def encoder(self, files: Files, dtype: str) -> Encode:
        """Load it."""
        import torch
        from torch._inductor import config

        config.freezing = True
        config.compile_threads = 1  # a pool of processes would outlive the compilation
        return by_batches(torch_forward(torch.compile(bert(files, dtype), dynamic=True)), BATCH)


@dataclass(frozen=True)
class SentenceTransformers(_OfPyTorch):
    """Its own batching and sorting; it returns embeddings alone."""

    label: str = "sentence-transformers encode (embeddings alone)"

    def encoder(self, files: Files, dtype: str) -> Encode:
        """Load it, and let it take token ids for texts: tokenising is not measured."""
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling
        from sentence_transformers.sentence_transformer.modules import Transformer as Module

        torch.set_num_threads(THREADS)
        kind = {"fp32": "float32", "bf16": "bfloat16"}[dtype]
        module = Module(str(files.model), model_kwargs={"dtype": kind})
        model = SentenceTransformer(
            modules=[module, Pooling(module.get_embedding_dimension(), "mean")], device="cpu"
        )

        def preprocess(inputs: list[torch.Tensor], **_: object) -> dict[str, torch.Tensor]:
            ids = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True, padding_value=PAD)
            lengths = torch.tensor([len(of_one) for of_one in inputs])
            mask = torch.arange(ids.shape[1]) < lengths[:, None]
            return {"input_ids": ids, "attention_mask": mask.long()}

        model.preprocess = preprocess

        def encode(tokens: Tokens) -> States:
            texts = [torch.from_numpy(tokens[i]).long() for i in range(len(tokens))]
            embeddings: torch.Tensor = model.encode(
                texts, convert_to_numpy=False, convert_to_tensor=True, show_progress_bar=False
            )
            return list(embeddings)

        return encode

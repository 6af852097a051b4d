"""Our own BERT encoder, on packed tokens: no padding is computed, and nothing is multiplied twice.

Devlin et al., 2018 (arXiv:1810.04805), as transformers' BertModel computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from bert_infer.batching.layouts import Batch, PackedBatch
from bert_infer.engines import Encode, Engine
from bert_infer.errors import RefusedError
from bert_infer.memory import give_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bert_infer.devices import Device
    from bert_infer.dtypes import Dtype
    from bert_infer.models.architecture import Architecture
    from bert_infer.operators.attention import Attention
    from bert_infer.operators.linears import Linear, MakeLinear, Operand
    from bert_infer.records import Weights


@dataclass(frozen=True)
class Fused(Engine):
    """The encoder in a screenful, around the device's best matmul and attention."""

    name = "fused"
    imports: ClassVar[tuple[str, ...]] = ("torch",)
    layout: ClassVar[type[Batch]] = PackedBatch

    def check(self, architecture: Architecture, dtype: Dtype) -> None:
        """Refuse what this engine lacks: other activations, autocast, some sizes and formats."""
        if architecture.activation != "gelu":
            raise RefusedError(
                f"engine={self.name} computes hidden_act=gelu alone, and the model's config.json "
                f"says {architecture.activation}.",
                "Use engine=transformers.",
            )
        if dtype.autocast_to:
            raise RefusedError(
                f"engine={self.name} does not take dtype={dtype.name}: it converts weights once.",
                f"Use dtype={dtype.autocast_to}, or engine=transformers.",
            )
        uneven = [
            f"{key}={size}"
            for key, size in (
                ("hidden_size", architecture.hidden),
                ("intermediate_size", architecture.intermediate),
            )
            if size % dtype.multiple
        ]
        if uneven:
            raise RefusedError(
                f"engine={self.name} does not take dtype={dtype.name} for this model: it "
                f"multiplies matrices of multiples of {dtype.multiple}, and config.json says "
                f"{' and '.join(uneven)}.",
                "Use dtype=bf16.",
            )
        if dtype.has_scales:
            raise RefusedError(
                f"engine={self.name} does not take dtype={dtype.name}: PyTorch's modules are "
                "converted.",
                "Use engine=transformers.",
            )

    def load(
        self, architecture: Architecture, weights: Weights, dtype: Dtype, device: Device
    ) -> Encode:
        """Pack the weights, a part of the model at a time."""
        return self.encoder(architecture, weights, dtype, device).forward

    def encoder(
        self, architecture: Architecture, weights: Weights, dtype: Dtype, device: Device
    ) -> Encoder:
        """Return the encoder with packed weights, its parts compiled where ``device`` does that."""
        place, number = device.torch_device(), dtype.weights()

        def read(names: list[str]) -> dict[str, torch.Tensor]:
            give_back()
            tensors = weights.read(names).items()
            # Files hold transposed weights too, which some kernels refuse and others misread.
            return {name: tensor.to(place, number).contiguous() for name, tensor in tensors}

        embeddings, *layers, pooler = architecture.parts
        linear, epsilon = dtype.linear(device), architecture.layer_norm_eps
        encoder = Encoder(
            Embeddings.of(read(embeddings), epsilon),
            tuple(
                Layer.of(read(names), f"encoder.layer.{index}.", linear, epsilon)
                for index, names in enumerate(layers)
            ),
            _linear(read(pooler), "pooler.dense", linear),
            architecture.heads,
            dtype.attention(device, architecture),
            device.region(_embedded),
            device.region(Layer.__call__),
        )
        give_back()
        return encoder

    def first_forwards(self, device: Device) -> int:
        """Return 1 where the device compiles layers: which shapes need it is not known."""
        return int(device.compiles_regions)

    def inputs(self, batch: PackedBatch, *, keep_mask: bool) -> tuple[NDArray[np.generic], ...]:
        """Return ``token_ids [tokens]``, ``positions [tokens]`` and ``cu_seqlens``."""
        del keep_mask
        return batch.token_ids, batch.positions, batch.cu_seqlens


class LayerNorm(NamedTuple):
    """Over the last dimension (Ba et al., 2016)."""

    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` normalised."""
        from torch.nn import functional

        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.epsilon)


class Embeddings(NamedTuple):
    """Word embeddings, and position embeddings with that of token type 0, the only one, added."""

    words: torch.Tensor  # [vocabulary, hidden]
    positions: torch.Tensor  # [longest, hidden]
    norm: LayerNorm

    @classmethod
    def of(cls, read: dict[str, torch.Tensor], epsilon: float) -> Embeddings:
        """Return the embeddings with the parameters ``read``."""
        prefix = "embeddings."
        types = read[f"{prefix}token_type_embeddings.weight"]
        return cls(
            # A copy: a mapped tensor would keep all of its file mapped.
            read[f"{prefix}word_embeddings.weight"].clone(),
            read[f"{prefix}position_embeddings.weight"] + types[0],
            _norm(read, "embeddings", epsilon),
        )

    def __call__(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return ``[tokens, hidden]``."""
        from torch.nn import functional

        words = functional.embedding(token_ids, self.words)
        return self.norm(words + functional.embedding(positions, self.positions))


class Layer(NamedTuple):
    """Self-attention and a feed-forward network, each added to its input and normalised."""

    qkv: Linear
    attended: Linear
    attended_norm: LayerNorm
    up: Linear
    down: Linear
    norm: LayerNorm

    @classmethod
    def of(
        cls, read: dict[str, torch.Tensor], prefix: str, linear: MakeLinear, epsilon: float
    ) -> Layer:
        """Return the layer with the parameters ``read``; queries, keys, values share a matrix."""
        import torch

        def together(kind: str) -> torch.Tensor:
            names = (f"{prefix}attention.self.{part}.{kind}" for part in ("query", "key", "value"))
            return torch.cat([read.pop(name) for name in names])

        return cls(
            qkv=linear(together("weight"), together("bias")),
            attended=_linear(read, f"{prefix}attention.output.dense", linear),
            attended_norm=_norm(read, f"{prefix}attention.output", epsilon),
            up=_linear(read, f"{prefix}intermediate.dense", linear),
            down=_linear(read, f"{prefix}output.dense", linear),
            norm=_norm(read, f"{prefix}output", epsilon),
        )

    def __call__(
        self, x: torch.Tensor, operand: Operand, bounds: torch.Tensor, heads: int, attend: Attention
    ) -> tuple[torch.Tensor, Operand]:
        """Return the new states ``[tokens, hidden]``, and them as the next layer's operand.

        Made here, the operand can come out of the same kernel as the states.
        """
        x = self.transformed(x, attend(self.projected(operand, heads), bounds))
        return x, self.qkv.operand(x)

    def projected(self, operand: Operand, heads: int) -> torch.Tensor:
        """Return queries, keys and values, ``[tokens, 3, heads, head_dim]``."""
        qkv = self.qkv(operand)
        tokens, width = qkv.shape
        return qkv.view(tokens, 3, heads, width // (3 * heads))

    def transformed(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Return ``[rows, hidden]``, all that follows attention; each row depends on no other."""
        x = self.attended_norm(self.attended.plus(self.attended.operand(attended), x))
        return self.norm(self.down.plus(self.up.gelu(self.up.operand(x)), x))


class Encoder(NamedTuple):
    """Embeddings, layers, and the pooler on each sequence's first token."""

    embeddings: Embeddings
    layers: tuple[Layer, ...]
    pooler: Linear
    heads: int
    attend: Attention
    embed: Callable[..., tuple[torch.Tensor, Operand]]
    """``_embedded``, as the device runs it."""
    apply: Callable[..., tuple[torch.Tensor, Operand]]
    """``Layer.__call__``, as the device runs it."""

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, cu_seqlens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden states ``[tokens, hidden]`` and pooled ``[sequences, hidden]``."""
        x, _, _ = self.through(self.layers, token_ids, positions, cu_seqlens)
        return x, self.pooled(x[firsts(cu_seqlens, len(x))])

    def through(
        self,
        layers: Iterable[Layer],
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        cu_seqlens: torch.Tensor,
    ) -> tuple[torch.Tensor, Operand, torch.Tensor]:
        """Return the states after ``layers``, the next layer's operand, and attention's bounds."""
        x, operand = self.embed(self.embeddings, self.layers[0].qkv, token_ids, positions)
        bounds = self.attend.bounds(x, cu_seqlens)
        for layer in layers:
            x, operand = self.apply(layer, x, operand, bounds, self.heads, self.attend)
        return x, operand, bounds

    def pooled(self, states: torch.Tensor) -> torch.Tensor:
        """Return the pooler's output for ``states [sequences, hidden]`` of first tokens."""
        return self.pooler(self.pooler.operand(states)).tanh()


def firsts(cu_seqlens: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return where each sequence's first token lies, ``[sequences]``.

    An empty sequence may begin past the last of ``tokens``: it gets that one.
    """
    return cu_seqlens[:-1].clamp(max=tokens - 1)


def _embedded(
    embeddings: Embeddings, linear: Linear, token_ids: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, Operand]:
    x = embeddings(token_ids, positions)
    return x, linear.operand(x)


def _linear(read: dict[str, torch.Tensor], name: str, linear: MakeLinear) -> Linear:
    # Popped, so that no weight is kept beside its packed form. The bias is copied: a mapped tensor
    # would keep all of its file mapped.
    return linear(read.pop(f"{name}.weight"), read.pop(f"{name}.bias").clone())


def _norm(read: dict[str, torch.Tensor], name: str, epsilon: float) -> LayerNorm:
    weight, bias = (read[f"{name}.LayerNorm.{kind}"].clone() for kind in ("weight", "bias"))
    return LayerNorm(weight, bias, epsilon)

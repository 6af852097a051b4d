"""Attention among packed sequences, each to itself: block-diagonal, without a mask.

The mechanism is the device's choice; benchmarks/notes.md has what the others reached.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from bert_infer.opaque import Opaque

if TYPE_CHECKING:
    import torch

Attend = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""Queries, keys and values, ``[tokens, 3, heads, head_dim]``, and where sequences begin and end,
``[sequences + 1]``, to ``[tokens, hidden]``."""


class BySequence(Opaque):
    """A sequence at a time."""

    def kernel(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Take ``qkv`` and ``cu_seqlens``; see ``Attend``."""
        qkv, cu_seqlens = tensors
        tokens, _, heads, head_dim = qkv.shape
        attended = qkv.new_empty(tokens, heads, head_dim)
        by_head = qkv.permute(1, 2, 0, 3)  # [3, heads, tokens, head_dim]
        for start, end in pairwise(cu_seqlens.tolist()):
            of_one = self.of_one(*by_head[:, :, start:end].unbind())
            attended[start:end].transpose(0, 1).copy_(of_one)
        return attended.view(tokens, heads * head_dim)

    def empty(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return what ``kernel`` does, but for its values."""
        tokens, _, heads, head_dim = tensors[0].shape
        return tensors[0].new_empty(tokens, heads * head_dim)

    @abstractmethod
    def of_one(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return ``softmax(q k^T / sqrt(head_dim)) v``, all ``[heads, length, head_dim]``."""


class ByMatmul(BySequence):
    """Multiply, softmax, multiply: one sequence's scores fit a processor's cache."""

    def of_one(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return the attended values."""
        import torch

        scale = q.shape[-1] ** -0.5
        nothing = q.new_empty(1)
        scores = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=scale)
        # Softmax takes longer in bfloat16 than both conversions and float32.
        return torch.bmm(torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype), v)


class BySdpa(BySequence):
    """PyTorch's scaled_dot_product_attention."""

    def of_one(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return the attended values."""
        from torch.nn import functional

        attended = functional.scaled_dot_product_attention(q[None], k[None], v[None])
        return attended[0]


class Narrowed:
    """Another mechanism in a narrower format than the rest of a layer."""

    def __init__(self, attend: Attend, dtype: torch.dtype) -> None:
        self._attend, self._dtype = attend, dtype

    def __call__(self, qkv: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """Convert, attend, and convert back; see ``Attend``."""
        return self._attend(qkv.to(self._dtype), cu_seqlens).to(qkv.dtype)

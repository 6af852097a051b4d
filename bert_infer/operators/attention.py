"""Block-diagonal attention among packed sequences: each attends to itself alone.

The mechanism is the device's choice; benchmarks/notes.md says how fast the others were.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from bert_infer.operators.opaque import Opaque

if TYPE_CHECKING:
    import torch

Sdpa = Callable[..., "torch.Tensor"]
"""Takes queries, keys and values ``[batch, heads, length, head_dim]``, and a mask to be added to
scores, ``[batch, 1, 1 or length, length]``; returns attended values, shaped like the queries."""


_FEW = 32  # tokens; benchmarks/notes.md


class Attention(ABC):
    """A mechanism by which packed sequences attend, each to itself."""

    def bounds(self, x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """Return what a call needs to know of the sequences, computed once for all layers.

        Args:
            x: ``[tokens, hidden]``; only its shape, dtype and device are used.
            cu_seqlens: ``[sequences + 1]``, where sequences begin and end.
        """
        del x
        return cu_seqlens

    @abstractmethod
    def __call__(self, qkv: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        """Return ``[tokens, hidden]`` for ``qkv [tokens, 3, heads, head_dim]``."""

    def of_firsts(
        self, qkv: torch.Tensor, bounds: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """Return ``[sequences, hidden]``: attended values of first tokens, at ``rows``.

        Args:
            qkv: ``[tokens, 3, heads, head_dim]``.
            bounds: what ``bounds`` returned.
            rows: ``[sequences]``.
        """
        return self(qkv, bounds)[rows]


class ByMask(Attention):
    """All tokens at once, with a mask between sequences: shapes depend on no value.

    Scores between different sequences are computed in vain: for a forward of n tokens that adds
    n / (6 hidden) to its other work.
    """

    def __init__(self, sdpa: Sdpa) -> None:
        self._sdpa = sdpa

    def bounds(self, x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """Return the mask to be added, ``[1, 1, tokens, tokens]``."""
        import torch

        tokens = torch.arange(len(x), dtype=torch.int32, device=x.device)
        sequence = (tokens[:, None] >= cu_seqlens[None, 1:]).sum(1)  # [tokens]
        apart = sequence[:, None] != sequence[None, :]
        mask = torch.zeros(apart.shape, dtype=x.dtype, device=x.device)
        return mask.masked_fill(apart, torch.finfo(x.dtype).min)[None, None]

    def __call__(self, qkv: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        """Return the attended values."""
        q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(1)  # [1, heads, tokens, head_dim] each
        return self._sdpa(q, k, v, bounds)[0].transpose(0, 1).flatten(1)


class BySequence(Opaque, Attention):
    """One sequence at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._firsts = FirstsBySequence(self)

    def of_firsts(
        self, qkv: torch.Tensor, bounds: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """Return the attended values of first tokens; nothing is computed for others."""
        return self._firsts(qkv, bounds, rows)

    def kernel(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Take ``qkv`` and ``cu_seqlens``; see ``Attention``."""
        qkv, cu_seqlens = tensors
        tokens, _, heads, head_dim = qkv.shape
        attended = qkv.new_empty(tokens, heads, head_dim)
        for start, end in pairwise(cu_seqlens.tolist()):
            of_one = self.of_one(*self.by_head(qkv[start:end]))
            attended[start:end].copy_(of_one.transpose(0, 1))
        return attended.view(tokens, heads * head_dim)

    def empty(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return an uninitialised tensor of the shape and dtype of ``kernel``'s."""
        tokens, _, heads, head_dim = tensors[0].shape
        return tensors[0].new_empty(tokens, heads * head_dim)

    def by_head(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ``rows [length, parts, heads, head_dim]`` of a sequence as ``of_one`` takes them.

        That is ``[parts, heads, length, head_dim]``, queries, keys and values being the parts.
        """
        return rows.permute(1, 2, 0, 3)

    @abstractmethod
    def of_one(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return ``softmax(q k^T / sqrt(head_dim)) v``.

        Args:
            q: ``[heads, queries, head_dim]``, as is the result.
            k: ``[heads, length, head_dim]``.
            v: ``[heads, length, head_dim]``.
        """


class FirstsBySequence(Opaque):
    """The first token of one sequence at a time, by the mechanism of ``attend``."""

    def __init__(self, attend: BySequence) -> None:
        super().__init__()
        self._attend = attend

    def kernel(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Take ``qkv``, ``cu_seqlens`` and ``rows``; see ``Attention.of_firsts``."""
        qkv, cu_seqlens, rows = tensors
        attended = self.empty(*tensors)
        queries = qkv[rows, 0].unsqueeze(2)  # [sequences, heads, 1, head_dim]
        for row, q, (start, end) in zip(
            attended, queries, pairwise(cu_seqlens.tolist()), strict=True
        ):
            k, v = self._attend.by_head(qkv[start:end, 1:])
            row.copy_(self._attend.of_one(q.to(k.dtype), k, v).flatten())
        return attended

    def empty(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return an uninitialised tensor of the shape and dtype of ``kernel``'s."""
        qkv, _, rows = tensors
        return qkv.new_empty(rows.shape[0], qkv.shape[2] * qkv.shape[3])


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


class ByCopyAndMatmul(ByMatmul):
    """The same on copies: oneDNN's batched matmuls would copy strided inputs themselves, slower.

    The copies are in ``dtype``, whatever the rest of a layer is in. A few tokens take less time in
    float32, without oneDNN.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def by_head(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the copies; those of a few tokens are in float32."""
        by_head = super().by_head(_narrowed(rows, self._dtype))
        return by_head if len(rows) <= _FEW else by_head.contiguous()


class BySdpa(BySequence):
    """PyTorch's scaled_dot_product_attention."""

    def of_one(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return the attended values."""
        from torch.nn import functional

        attended = functional.scaled_dot_product_attention(q[None], k[None], v[None])
        return attended[0]


class BySdpaIn(BySdpa):
    """The same in ``dtype``, whatever the rest of a layer is in; a few tokens are in float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def by_head(self, rows: torch.Tensor) -> torch.Tensor:
        """Return them converted."""
        return super().by_head(_narrowed(rows, self._dtype))


def _narrowed(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return ``rows`` in ``dtype``; a few, which take less time so, in float32."""
    return rows.float() if len(rows) <= _FEW else rows.to(dtype)

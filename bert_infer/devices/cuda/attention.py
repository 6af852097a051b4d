"""Attention among packed sequences on a GPU: one kernel for all of them, whatever their lengths.

Nothing reads a tensor's values on the host, so that CUDA graphs can record it and inductor can
compile what lies around it.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any

from bert_infer.operators.attention import Attention

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_MOST_PER_HEAD = 256  # flash attention takes no larger heads
_HAS_CUDNN = "2.14"  # the first torch whose varlen_attn takes cuDNN's kernel by itself


class Varlen(Attention):
    """A kernel that is told where sequences begin and how long the longest may be.

    That is the model's limit, not the batch's longest, so that one recording or compilation serves
    all batches; blocks past the end of a sequence return at once. Tokens of a sequence past the
    limit are not attended to.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest

    def __call__(self, qkv: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        """Return the attended values."""
        q, k, v = qkv.unbind(1)
        return self.kernel(q, k, v, bounds).flatten(1)

    @abstractmethod
    def kernel(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor
    ) -> torch.Tensor:
        """Return attended values; all are ``[tokens, heads, head_dim]``, inputs views of one."""


class Flash(Varlen):
    """PyTorch's flash attention, in half precision only.

    The arguments given mean the same in torch 2.10 to 2.14. Others came and went (``is_causal``,
    ``window_size``, ``scale``); their defaults mean full attention over one's own sequence in every
    version. So does ``num_splits=1``, which rules out cuDNN's kernel, as torch 2.14 takes it on
    newer cards: it makes a plan for each number of tokens, in more time than a forward takes. Not
    before: torch 2.12 has the argument, and refuses it for this kernel ("num_splits requires FA3").
    """

    def __init__(self, longest: int) -> None:
        import torch
        from torch.nn.attention.varlen import varlen_attn

        super().__init__(longest)
        self._attend: Callable[..., Any] = varlen_attn
        has_splits = "num_splits" in inspect.signature(varlen_attn).parameters
        if has_splits and torch.__version__ >= _HAS_CUDNN:
            self._attend = partial(varlen_attn, num_splits=1)

    def kernel(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor
    ) -> torch.Tensor:
        """Call ``varlen_attn``."""
        longest = self._longest
        return self._attend(q, k, v, cu_seqlens, cu_seqlens, longest, longest)  # type: ignore[no-any-return]


class Blocked(Attention):
    """Our own kernel, for half precision, in blocks of fewer rows than flash attention's.

    Those hold 128 queries and 128 keys, and texts are seldom much longer: much of what they compute
    is thrown away. A sequence's bits are the same whatever its neighbours.
    """

    @staticmethod
    def takes(head_dim: int) -> bool:
        """Tell whether tensor cores load heads of this size in one piece."""
        return head_dim in {16, 32, 64, 128}

    def bounds(self, x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """Return where each block of queries lies, ``int32 [blocks, 3]``."""
        from bert_infer.devices.cuda import kernels

        return kernels.blocks(cu_seqlens, x.shape[0])

    def __call__(self, qkv: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        """Return the attended values."""
        from bert_infer.devices.cuda import kernels

        return kernels.attention(qkv, bounds)


class Efficient(Varlen):
    """Memory-efficient attention, which takes single precision and older cards.

    The operator is private to PyTorch: the only public way to it, nested tensors, costs more than
    the kernel itself.
    """

    def kernel(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor
    ) -> torch.Tensor:
        """Call the operator with all sequences end to end in one row."""
        import torch

        of_all = (part.unsqueeze(0) for part in (q, k, v))  # [1, tokens, heads, head_dim] each
        lengths = (cu_seqlens, cu_seqlens, self._longest, self._longest)
        dropout, mask_type = 0.0, 0
        apply = torch.ops.aten._efficient_attention_forward  # noqa: SLF001
        return apply(*of_all, None, *lengths, dropout, mask_type)[0].squeeze(0)  # type: ignore[no-any-return]


class PaddedHeads(Attention):
    """Heads padded with zeros to a size that another mechanism can load.

    The zeros change nothing but the scale of scores, which follows from the head size.
    """

    def __init__(self, attend: Attention, width: int) -> None:
        self._attend, self._width = attend, width

    def bounds(self, x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """Return the other mechanism's bounds."""
        return self._attend.bounds(x, cu_seqlens)

    def __call__(self, qkv: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        """Pad, correct the scale, attend, and cut the padding off."""
        from torch.nn import functional

        tokens, _, heads, head_dim = qkv.shape
        filled = functional.pad(qkv, (0, self._width - head_dim))
        filled[:, 0] *= (self._width / head_dim) ** 0.5
        attended = self._attend(filled, bounds).view(tokens, heads, self._width)
        return attended[..., :head_dim].flatten(1)


def has_flash(capability: tuple[int, int], dtype: torch.dtype, head_dim: int) -> bool:
    """Tell whether ``Flash`` computes this on a card of this compute capability."""
    import torch

    is_half = dtype in {torch.float16, torch.bfloat16}
    return is_half and capability >= (8, 0) and head_dim <= _MOST_PER_HEAD


def width_of(head_dim: int) -> int:
    """Return the head size that all kernels can load: ``head_dim`` up to a multiple of 8."""
    return -(-head_dim // 8) * 8

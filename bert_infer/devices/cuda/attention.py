"""Attention among packed sequences on a GPU: one kernel for all of them, whatever their lengths.

Nothing reads a tensor's values on the host, so that CUDA graphs can hold it and inductor can
compile what lies around it.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any

from bert_infer.attention import Attention

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_MOST_PER_HEAD = 256  # more numbers a head, and there is no flash attention


class ByLength(Attention):
    """A kernel that is told where sequences begin and how long the longest may be.

    That is what the model allows, not what a batch holds, so that one recording or compilation
    serves all batches; the blocks of a sequence that are not there end at once. A sequence that is
    longer is not attended to beyond it.
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
        """Return attended values; all are ``[tokens, heads, head_dim]``, parts of one tensor."""


class Flash(ByLength):
    """PyTorch's flash attention: half precision alone.

    Of its arguments those given mean the same in torch 2.10 to 2.14. Others came and went
    (``is_causal``, ``window_size``, ``scale``); what they are by default is full attention over
    one's own sequence, in every version. ``num_splits=1``, where there is one, is that, with the
    same bits whatever the neighbours; and it says that cuDNN's kernel is not to be chosen, which
    on newer cards makes a plan for each number of tokens, in more time than a forward takes.
    """

    def __init__(self, longest: int) -> None:
        from torch.nn.attention.varlen import varlen_attn

        super().__init__(longest)
        self._attend: Callable[..., Any] = varlen_attn
        if "num_splits" in inspect.signature(varlen_attn).parameters:
            self._attend = partial(varlen_attn, num_splits=1)

    def kernel(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor
    ) -> torch.Tensor:
        """Call ``varlen_attn``."""
        longest = self._longest
        return self._attend(q, k, v, cu_seqlens, cu_seqlens, longest, longest)  # type: ignore[no-any-return]


class Blocked(Attention):
    """Our own kernel, for half precision, in blocks of fewer rows than flash attention's.

    Those hold 128, of queries and of keys, and texts are seldom much longer: much of what is
    computed for them is thrown away. A sequence's bits are the same whatever its neighbours.
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


class Efficient(ByLength):
    """Memory-efficient attention, which takes single precision and older cards.

    Private to PyTorch, whose nested tensors are its only public way in, and cost more than it.
    """

    def kernel(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor
    ) -> torch.Tensor:
        """Call it with sequences one after the other in one row."""
        import torch

        of_all = (part.unsqueeze(0) for part in (q, k, v))  # [1, tokens, heads, head_dim] each
        lengths = (cu_seqlens, cu_seqlens, self._longest, self._longest)
        dropout, mask_type = 0.0, 0
        apply = torch.ops.aten._efficient_attention_forward  # noqa: SLF001
        return apply(*of_all, None, *lengths, dropout, mask_type)[0].squeeze(0)  # type: ignore[no-any-return]


class Padded(Attention):
    """Heads of odd sizes filled up with zeros to what another mechanism loads.

    Nothing but the scale of scores sees them, which is by the size of a head.
    """

    def __init__(self, attend: Attention, width: int) -> None:
        self._attend, self._width = attend, width

    def bounds(self, x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """Return what the other needs to know."""
        return self._attend.bounds(x, cu_seqlens)

    def __call__(self, qkv: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        """Fill up, attend, and cut off."""
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
    """Return how many numbers a head needs for all kernels to load it: a multiple of 8."""
    return -(-head_dim // 8) * 8

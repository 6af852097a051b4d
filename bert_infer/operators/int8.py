"""8-bit integer matrix multiplication: a scale for each token, and for each output channel.

A token's scale is computed as it comes: codes 0 to 255 divide the range from its least value to its
largest, as FBGEMM's row-wise quantisation does (Khudia et al., 2021, arXiv:2101.05615). Sums are
exact, in 32 bits; the only loss is the rounding to codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bert_infer.operators.linears import Linear, OneDnnInt8
from bert_infer.operators.opaque import Opaque

if TYPE_CHECKING:
    import torch

_STEPS = 127  # a weight's codes on each side of zero
_ROWS_AT_ONCE = 1024  # more, and what is written between two steps no longer stays in a cache
_SCALE_AND_LEAST = 8  # bytes: two floats at the end of a row


class Int8Linear(Opaque, Linear):
    """A Linear for float32 activations that multiplies codes."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        import torch

        super().__init__()
        integers, scale = codes(weight.float())
        self._matmul = OneDnnInt8(integers, scale)
        # By how much each output grows if every input of a row grows by 1.
        self._sums = scale * integers.sum(1, dtype=torch.int64)
        self._bias = torch.zeros(len(weight)) if bias is None else bias.float()

    def kernel(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return the product, in float32."""
        import torch

        (x,) = tensors
        if len(x) <= _ROWS_AT_ONCE:
            return self._multiply(x)
        return torch.cat([self._multiply(block) for block in torch.split(x, _ROWS_AT_ONCE)])

    def empty(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return an uninitialised ``[rows, outputs]``."""
        return tensors[0].new_empty(tensors[0].shape[0], len(self._bias))

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        codes_of_x, scale, least = codes_of_rows(x)
        y = self._matmul(codes_of_x)
        return torch.addcmul(self._bias, y, scale[:, None], out=y).addr_(least, self._sums)


def codes_of_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``x [rows, inputs]`` as ``uint8`` codes, and what turns them back into numbers.

    That is each row's scale ``[rows]``, and its least value ``[rows]``, which code 0 stands for.

    Raises:
        AttributeError: PyTorch lacks the operator, which was written for embeddings.
    """
    import torch

    rows = torch.ops.quantized.embedding_bag_byte_prepack(x)
    # A copy always: a single row is contiguous as it is, and starts at no multiple of 4 bytes.
    floats = rows[:, -_SCALE_AND_LEAST:].clone(memory_format=torch.contiguous_format)
    scale, least = floats.view(torch.float32).unbind(1)
    return rows[:, :-_SCALE_AND_LEAST].contiguous(), scale, least


def codes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``weight [outputs, inputs]`` as ``int8`` codes and a scale ``[outputs]``.

    Without VNNI or AMX, a processor adds pairs of products in 16 bits, which full codes overflow:
    x86's ``vpmaddubsw`` holds 255 times a pair whose absolute codes add up to 128 at most. There
    the largest pair, not the largest weight, sets a channel's scale, which costs less precision
    than 7-bit codes.
    """
    import torch

    largest = weight.abs().amax(1)
    if not _adds_in_32_bits():
        even = torch.nn.functional.pad(weight.abs(), (0, weight.shape[1] % 2))
        largest = torch.maximum(largest, even.view(len(weight), -1, 2).sum(2).amax(1))
    scale = largest.clamp(min=torch.finfo(torch.float32).tiny * _STEPS) / _STEPS
    return (weight / scale[:, None]).round_().to(torch.int8), scale


def _adds_in_32_bits() -> bool:
    import torch

    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_vnni") or features.get("amx_int8"))

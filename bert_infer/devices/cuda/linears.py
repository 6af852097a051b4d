"""Matrix multiplication by weights on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bert_infer.operators.fp8 import LEAST, MOST, Codes, Fp8Linear
from bert_infer.operators.linears import Plain

if TYPE_CHECKING:
    import torch


class GeluInside(Plain):
    """cuBLAS computes GELU while it writes the product, which saves reading and writing it again.

    GELU is by tanh, not by erf (Hendrycks and Gimpel, 2016, have both): the difference is small
    beside the rounding of bfloat16 (benchmarks/notes.md).
    """

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Return GELU of the product."""
        import torch

        if self._bias is None:
            return super().gelu(x)
        apply = torch.ops.aten._addmm_activation  # noqa: SLF001
        return apply(self._bias, x, self._weight.t(), use_gelu=True)  # type: ignore[no-any-return]


class Fp8Gelu(Fp8Linear):
    """GELU of the product, and its codes, by one kernel that reads each row once.

    GELU is by tanh too: the difference vanishes beside three bits of mantissa.
    """

    def gelu(self, x: Codes) -> Codes:
        """Return the codes of GELU of the product."""
        from bert_infer.devices.cuda import kernels

        return Codes(*kernels.gelu_codes(self(x)))


class Fp8GeluInside(Fp8Linear):
    """GELU, by tanh, and its codes are computed while the product is written.

    The codes' scale must be known by then, so it comes from an upper bound: for any row x and
    weights w the product is at most |x| |w|, by Cauchy and Schwarz, plus the largest bias, and GELU
    of it no more. Where the bound is too large, codes lose the small end of their range, which is
    2^15 wide without a number's mantissa being cut (benchmarks/notes.md).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        import torch

        super().__init__(weight, bias)
        self._added = torch.zeros_like(weight[:, 0]) if self._bias is None else self._bias
        self._longest_weight = _lengths(self._weight).max()
        self._largest_added = self._added.float().abs().max()

    def gelu(self, x: Codes) -> Codes:
        """Return the codes of GELU of the product."""
        from bert_infer.devices.cuda import kernels

        scale = (_lengths(x) * self._longest_weight + self._largest_added).clamp(min=LEAST) / MOST
        return Codes(kernels.product_gelu_codes(*x, *self._weight, self._added, scale), scale)


def _lengths(x: Codes) -> torch.Tensor:
    """Return the Euclidean length of each row, ``float32 [rows, 1]``."""
    return x.values.float().square().sum(1, keepdim=True).sqrt() * x.scale

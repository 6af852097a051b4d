"""Matrix multiplication by weights on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bert_infer.linears import OutOfPlace

if TYPE_CHECKING:
    import torch


class GeluInside(OutOfPlace):
    """cuBLAS computes GELU while it writes the product, which saves reading and writing it again.

    By tanh, not by erf (Hendrycks and Gimpel, 2016, have both): what that costs is little beside
    the rounding of bfloat16 (benchmarks/notes.md).
    """

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Return GELU of the product."""
        import torch

        if self._bias is None:
            return super().gelu(x)
        apply = torch.ops.aten._addmm_activation  # noqa: SLF001
        return apply(self._bias, x, self._weight.t(), use_gelu=True)  # type: ignore[no-any-return]

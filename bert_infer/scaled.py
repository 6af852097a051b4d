"""8-bit floating-point matrix multiplication: a scale for each token, and for each output channel.

Codes are E4M3: 4 bits of exponent, 3 of mantissa, 448 at the most (Micikevicius et al., 2022,
arXiv:2209.05433). A token's scale is found when it comes; nothing is measured beforehand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bert_infer.linears import Linear

if TYPE_CHECKING:
    import torch

_LEAST = 1e-12  # stands for the largest value of a row of zeros


class ScaledMatmul(Linear):
    """PyTorch's matmul of E4M3 codes, with fast accumulation; the result is bfloat16.

    ``scale [1, outputs]`` is multiplied in with one of ``x``'s rows, ``bias``, bfloat16, added
    after it. Without scales the codes are multiplied as they are.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None = None
    ) -> None:
        import torch

        self._weight, self._bias = weight.t(), bias  # a view: the kernels want columns together
        self._one = torch.ones((), device=weight.device)
        self._scale = self._one if scale is None else scale

    def __call__(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Return the product of codes ``x``, whose rows have the scales ``scale [rows, 1]``."""
        import torch

        # Private; its public form, younger, is not yet known to inductor in every version.
        multiply = torch._scaled_mm  # noqa: SLF001
        return multiply(
            x,
            self._weight,
            self._one if scale is None else scale,
            self._scale,
            bias=self._bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )


class Scaled(Linear):
    """A Linear for bfloat16 activations that multiplies codes."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        import torch

        of_weight, scale = codes(weight)
        bias = None if bias is None else bias.to(torch.bfloat16)
        self._matmul = ScaledMatmul(of_weight, bias, scale.t())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product."""
        return self._matmul(*codes(x))

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Return GELU (by erf) of the product; it is computed in float32."""
        from torch.nn import functional

        return functional.gelu(self(x))

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return the product plus ``residual``."""
        return self(x) + residual


def codes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``x [rows, columns]`` as E4M3 codes and a scale ``float32 [rows, 1]``."""
    import torch

    largest = x.abs().amax(1, keepdim=True).float().clamp(min=_LEAST)
    most = torch.finfo(torch.float8_e4m3fn).max
    return (x.float() * (most / largest)).to(torch.float8_e4m3fn), largest / most

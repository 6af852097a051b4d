"""8-bit floating-point matrix multiplication: a scale for each token, and for each output channel.

Codes are E4M3: 4 bits of exponent, 3 of mantissa, 448 at the most (Micikevicius et al., 2022,
arXiv:2209.05433). A token's scale is computed as it comes; nothing is measured beforehand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bert_infer.operators.linears import Linear

if TYPE_CHECKING:
    import torch

MOST = 448.0  # E4M3's largest number
LEAST = 1e-12  # stands for the largest value of a row of zeros
_SCALES = 16


class ScaledMatmul(Linear):
    """PyTorch's matmul of E4M3 codes, with fast accumulation; the result is bfloat16.

    The product is multiplied by ``scale [1, outputs]`` and by the scales of ``x``'s rows; then
    ``bias``, in bfloat16, is added. Without scales the codes are multiplied as they are.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None = None
    ) -> None:
        import torch

        self._weight, self._bias = weight.t(), bias  # a view: the kernels want contiguous columns
        self._one = torch.ones((), device=weight.device)
        self._scale = self._one if scale is None else scale

    def __call__(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Return the product of codes ``x``, whose rows have the scales ``scale [rows, 1]``."""
        import torch

        # Private: inductor does not know the newer, public form in every version.
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


class Codes(NamedTuple):
    """Rows in 8 bits.

    Attributes:
        values: E4M3 ``[rows, columns]``.
        scale: ``float32 [rows, 1]``, what a row's values are to be multiplied by.
    """

    values: torch.Tensor
    scale: torch.Tensor


class Fp8Linear(Linear):
    """A Linear for bfloat16 activations that multiplies codes."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        import torch

        self._weight = codes_of_weight(weight)
        self._bias = None if bias is None else bias.to(torch.bfloat16)
        self._matmul = ScaledMatmul(self._weight.values, self._bias, self._weight.scale.t())

    def operand(self, x: torch.Tensor) -> Codes:
        """Return the codes of ``x``."""
        return codes(x)

    def __call__(self, x: Codes) -> torch.Tensor:
        """Return the product."""
        return self._matmul(*x)

    def gelu(self, x: Codes) -> Codes:
        """Return the codes of GELU (by erf) of the product; it is computed in float32."""
        from torch.nn import functional

        return codes(functional.gelu(self(x)))

    def plus(self, x: Codes, residual: torch.Tensor) -> torch.Tensor:
        """Return the product plus ``residual``."""
        return self(x) + residual


def codes(x: torch.Tensor, room: float | torch.Tensor = 1.0) -> Codes:
    """Return ``x [rows, columns]`` as codes that fill their range.

    Args:
        x: the rows.
        room: a row's range is this many times its largest value, at least 1; ``[rows, 1]``, or
            one number for all.
    """
    import torch

    largest = x.abs().amax(1, keepdim=True).float().clamp(min=LEAST) * room
    return Codes((x.float() * (MOST / largest)).to(torch.float8_e4m3fn), largest / MOST)


def codes_of_weight(weight: torch.Tensor) -> Codes:
    """Return ``weight [outputs, inputs]`` as codes, each row with the scale of the least error.

    Scales within a factor of 2 are tried: steps between codes double with each power of two, so
    that scales further apart err alike.
    """
    import torch

    tried = (codes(weight, 2 ** (step / _SCALES)) for step in range(_SCALES))
    errors = [(c.values.float() * c.scale - weight).square().sum(1, keepdim=True) for c in tried]
    best = torch.stack(errors).argmin(0)
    return codes(weight, torch.exp2(best / _SCALES))

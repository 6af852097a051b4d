"""How rows are multiplied by a weight matrix: PyTorch's choice, oneDNN's, or in 8-bit integers.

A Linear packs its weight once, in a layout that its kernel reads best, and keeps no other copy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from bert_infer.operators.opaque import Opaque

if TYPE_CHECKING:
    import torch


Operand = Any
"""Rows as a Linear multiplies them: the tensor itself, or its codes in an 8-bit format."""


class Linear(ABC):
    """``x @ weight.T + bias`` for a weight ``[outputs, inputs]`` and a bias ``[outputs]`` or none.

    The weight is contiguous: some kernels read what lies in memory, whatever the strides say.
    ``x`` is ``[rows, inputs]``, the result ``[rows, outputs]``. All Linears of a model take the
    same kind of operand.
    """

    def operand(self, x: torch.Tensor) -> Operand:
        """Return ``x`` as it is multiplied; several Linears can share it."""
        return x

    @abstractmethod
    def __call__(self, x: Operand) -> torch.Tensor:
        """Return the product."""

    def gelu(self, x: Operand) -> Operand:
        """Return GELU (by erf) of the product, the operand of another Linear."""
        import torch

        return torch.ops.aten.gelu_(self(x))

    def plus(self, x: Operand, residual: torch.Tensor) -> torch.Tensor:
        """Return the product plus ``residual [rows, outputs]``."""
        return self(x).add_(residual)


MakeLinear = Callable[["torch.Tensor", "torch.Tensor | None"], Linear]
"""Takes a weight and a bias, and returns a Linear."""


class Plain(Linear):
    """``F.linear``, and nothing in place.

    Gaudi's plugin may lack the in-place operators, and compilers of whole graphs save the memory
    themselves.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product."""
        from torch.nn import functional

        return functional.linear(x, self._weight, self._bias)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Return GELU (by erf) of the product."""
        from torch.nn import functional

        return functional.gelu(self(x))

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return the product plus ``residual``."""
        return self(x) + residual


class OneDnnPacked(Opaque, Linear):
    """oneDNN's matmul with the weight laid out for it once, by the operators that inductor uses.

    oneDNN could fuse GELU as well, but its erf takes longer than PyTorch's on the result
    (benchmarks/notes.md).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        import torch

        super().__init__()
        self._outputs, self._bias = len(weight), bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)  # noqa: SLF001

    def kernel(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return the product of the first tensor, plus the second if there is one."""
        import torch

        apply = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
        if len(tensors) == 1:
            return apply(*tensors, self._packed, self._bias, "none", [], "")  # type: ignore[no-any-return]
        return apply.binary(*tensors, self._packed, self._bias, "add")  # type: ignore[no-any-return]

    def empty(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return an uninitialised ``[rows, outputs]``."""
        return tensors[0].new_empty(tensors[0].shape[0], self._outputs)

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return the product plus ``residual``, added as the product is written."""
        return self(x, residual)


class OneDnnInt8(Linear):
    """oneDNN's 8-bit integer matmul: ``x`` is unsigned, ``weight`` signed, the result float32.

    What the integers stand for is the caller's concern (``operators.int8``); ``scale [outputs]`` is
    multiplied in.
    """

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor | None) -> None:
        import torch

        self._packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self._scale = torch.ones(len(weight)) if scale is None else scale
        self._zero_points = torch.zeros(len(weight), dtype=torch.int32)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product."""
        import torch

        codes = (x.view(torch.uint8), 1.0, 0)
        weight = (self._packed, self._scale, self._zero_points, None)
        output = (1.0, 0, torch.float32)
        multiply = torch.ops.onednn.qlinear_pointwise
        return multiply(*codes, *weight, *output, "none", [], "")  # type: ignore[no-any-return]


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Tell whether ``OneDnnPacked`` works here.

    Its operators are private to PyTorch, and refuse a format that the processor lacks.
    """
    import torch

    one = torch.ones(1, 1, dtype=dtype)
    try:
        OneDnnPacked(one, None).plus(one, one)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return True


@cache
def multiplies_int8_exactly() -> bool:
    """Tell whether ``OneDnnInt8`` is there and adds up the largest products without overflow.

    The weights are made by ``int8.codes``, for this processor, the rows by
    ``int8.codes_of_rows``.
    """
    import torch

    from bert_infer.operators import int8

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(33, 65, generator=generator).sign()
    weight[::2, ::3] *= 0.1
    either = torch.randint(0, 2, (17, 65), generator=generator)
    codes, _ = int8.codes(weight)
    try:
        x, _, _ = int8.codes_of_rows(either.float())
        found = OneDnnInt8(codes, None)(x)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    are_exact = torch.equal(found.double(), x.double() @ codes.double().T)
    return are_exact and torch.equal(x, either.mul(255).to(torch.uint8))

"""How rows are multiplied by a weight matrix: PyTorch's choice, or oneDNN with packed weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Linear = Callable[["torch.Tensor"], "torch.Tensor"]
"""Rows ``[rows, inputs]`` to ``[rows, outputs]``."""

MakeLinear = Callable[["torch.Tensor", int], Linear]
"""A weight ``[outputs, inputs]`` and the rows to expect, to a Linear."""


def plain(weight: torch.Tensor, rows: int) -> Linear:
    """Return ``F.linear``."""
    del rows
    from torch.nn import functional

    return lambda x: functional.linear(x, weight)


def onednn_prepacked(weight: torch.Tensor, rows: int) -> Linear:
    """Return oneDNN's matmul with the weight laid out for it once, as inductor has it."""
    import torch

    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)  # noqa: SLF001
    apply = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
    return lambda x: apply(x, packed, None, "none", [], "")


@cache
def can_prepack(dtype: torch.dtype) -> bool:
    """Tell whether ``onednn_prepacked`` works here.

    Its operators are private to PyTorch, and refuse a format that the processor lacks.
    """
    import torch

    try:
        onednn_prepacked(torch.ones(1, 1, dtype=dtype), 1)(torch.ones(1, 1, dtype=dtype))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True

"""The ``engine`` group: what computes the encoder. One engine a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bert_infer.architecture import Architecture
    from bert_infer.devices import Device
    from bert_infer.dtypes import Dtype
    from bert_infer.records import PaddedBatch, Weights

Encode = Callable[..., "tuple[torch.Tensor, torch.Tensor]"]
"""Input tensors to ``(hidden_states [rows, width, hidden], pooled [rows, hidden])``."""


class Engine(ABC):
    """An implementation of the encoder.

    Attributes:
        imports: the modules it needs, imported in a phase of their own.
        layouts: the batch records it takes.
    """

    name: str
    imports: ClassVar[tuple[str, ...]]
    layouts: ClassVar[tuple[type, ...]]

    @abstractmethod
    def load(
        self, architecture: Architecture, weights: Weights, dtype: Dtype, device: Device
    ) -> Encode:
        """Return the encoder with its weights on ``device``."""

    @abstractmethod
    def inputs(self, batch: PaddedBatch, *, keep_mask: bool) -> tuple[NDArray[np.generic], ...]:
        """Return what ``Encode`` takes for ``batch``, in host memory."""

"""The ``engine`` group: what computes the encoder. One engine a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from bert_infer.batching.layouts import Batch  # noqa: TC001  omegaconf reads the fields' types

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bert_infer.devices import Device
    from bert_infer.dtypes import Dtype
    from bert_infer.models.architecture import Architecture
    from bert_infer.outputs import Output
    from bert_infer.records import Weights

Encode = Callable[..., "tuple[torch.Tensor, torch.Tensor]"]
"""Takes input tensors; returns hidden states, as the batch is laid out, and pooled
``[sequences, hidden]``."""


class Engine(ABC):
    """An implementation of the encoder.

    Attributes:
        imports: the modules it needs, imported in a phase of their own.
        layout: how it lays out the sequences of a batch.
    """

    name: str
    imports: ClassVar[tuple[str, ...]]
    layout: ClassVar[type[Batch]]

    def check(self, architecture: Architecture, dtype: Dtype) -> None:
        """Refuse a model or a number format that it does not compute.

        Raises:
            RefusedError: naming another engine.
        """

    def check_output(self, output: Output) -> None:
        """Refuse a request for an output that it does not compute.

        Raises:
            RefusedError: naming ``output`` and another engine.
        """

    @abstractmethod
    def load(
        self, architecture: Architecture, weights: Weights, dtype: Dtype, device: Device
    ) -> Encode:
        """Return the encoder with its weights on ``device``."""

    def first_forwards(self, device: Device) -> int:
        """Return how many forwards of a shape also compile, whatever the graph mode."""
        del device
        return 0

    def unneeded_flop(self, architecture: Architecture, lengths: NDArray[np.int64]) -> int:
        """Return how many of the useful FLOP none of this engine's outputs needs.

        Args:
            architecture: the model's.
            lengths: ``int64 [sequences]``, real tokens of each.
        """
        del architecture, lengths
        return 0

    @abstractmethod
    def inputs(
        self,
        batch: Any,  # noqa: ANN401  each engine's own layout
        *,
        keep_mask: bool,
    ) -> tuple[NDArray[np.generic], ...]:
        """Return the arrays, in host memory, that ``Encode`` takes for ``batch``, of its layout."""

"""The ``device`` group: where forwards are computed. One device a file.

The only place that knows one device from another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bert_infer import attention, linears
from bert_infer.graphs import Eager, Graph
from bert_infer.records import Outputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bert_infer.attention import Attend
    from bert_infer.linears import MakeLinear


class Device(ABC):
    """Copies, synchronisation, memory figures, number formats, the preferred graph mode."""

    name: str
    has_tf32: bool = False

    @abstractmethod
    def torch_device(self) -> torch.device:
        """Return PyTorch's name for it."""

    def resolve(self) -> Device:
        """Return the device that will really be used."""
        return self

    def check(self) -> None:
        """Refuse a device that is not there.

        Raises:
            RefusedError: naming ``device``.
        """

    def variables(self, graph: Graph) -> Mapping[str, str]:
        """Return the environment variables that ``graph`` needs before torch is imported."""
        del graph
        return {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Set what belongs to the whole process, and put it back afterwards."""
        yield

    def copy_in(self, arrays: tuple[NDArray[np.generic], ...]) -> tuple[torch.Tensor, ...]:
        """Return ``arrays`` on the device."""
        import torch

        return tuple(torch.from_numpy(a).to(self.torch_device(), non_blocking=True) for a in arrays)

    def copy_out(self, outputs: Outputs) -> Outputs:
        """Return ``outputs`` in host memory."""
        return Outputs(outputs.hidden_states.cpu(), outputs.pooled.cpu())

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything asked of the device is done."""

    def preferred_graph(self) -> Graph:
        """Return the graph mode that ``graph=auto`` means here."""
        return Eager()

    def autocast(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Return the context in which matrix multiplications run in ``dtype``."""
        import torch

        return torch.autocast(self.torch_device().type, dtype)

    @abstractmethod
    def fp32_precision(self, precision: str) -> AbstractContextManager[None]:
        """Return the context in which fp32 matrix multiplications run in ``precision``.

        Args:
            precision: "ieee" or "tf32", PyTorch's own names.
        """

    def reset_peak_memory(self) -> None:
        """Start counting ``peak_memory`` anew."""

    def peak_memory(self) -> int | None:
        """Return the most device memory in use since the reset, in bytes; unknown is None."""
        return None

    def describe(self) -> dict[str, Any]:
        """Return what identifies the device."""
        return {"name": None, "driver": None}

    def linears(self, dtype: torch.dtype) -> tuple[MakeLinear, ...]:
        """Return the ways there are here to multiply matrices in ``dtype``, the best first."""
        del dtype
        return (linears.Plain,)

    def has_int8(self) -> bool:
        """Tell whether it multiplies matrices of 8-bit integers."""
        return False

    def attention(self, dtype: torch.dtype) -> Attend:
        """Return how packed sequences of ``dtype`` attend each to itself here."""
        del dtype
        return attention.BySdpa()

    def emulates(self, dtype: torch.dtype) -> bool:
        """Tell whether ``dtype`` is computed by way of another, which is slow."""
        del dtype
        return False

    def readings(self) -> dict[str, float]:
        """Return the accelerator's clock, temperature and the like, units in the names."""
        return {}

    def other_processes(self) -> tuple[int, ...]:
        """Return the ids of other processes that use the accelerator."""
        return ()

    def throttle_reasons(self) -> tuple[str, ...]:
        """Return why the accelerator holds its clock down now."""
        return ()


@contextmanager
def precision_of(backend: Any, precision: str) -> Iterator[None]:  # noqa: ANN401  torch has no type for it
    """Set PyTorch's ``fp32_precision`` of ``backend``, and put it back afterwards."""
    before = backend.fp32_precision
    backend.fp32_precision = precision
    try:
        yield
    finally:
        backend.fp32_precision = before

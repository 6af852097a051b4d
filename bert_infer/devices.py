"""The ``device`` group: where forwards are computed.

The only place that knows one device from another.
"""

from __future__ import annotations

import ctypes
import os
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bert_infer.errors import OptionError, RefusedError
from bert_infer.graphs import Eager, Graph
from bert_infer.records import Outputs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    import numpy as np
    import torch
    from numpy.typing import NDArray


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


@contextmanager
def _precision(backend: Any, precision: str) -> Iterator[None]:  # noqa: ANN401  torch has no type for it
    before = backend.fp32_precision
    backend.fp32_precision = precision
    try:
        yield
    finally:
        backend.fp32_precision = before


@dataclass(frozen=True)
class Cpu(Device):
    """The processor."""

    threads: int | None = None

    name = "cpu"

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise OptionError("threads", self.threads, "null or a whole number from 1")

    def torch_device(self) -> torch.device:
        """Return PyTorch's name for it."""
        import torch

        return torch.device("cpu")

    @contextmanager
    def active(self) -> Iterator[None]:
        """Set the number of threads, and put it back afterwards."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def synchronize(self) -> None:
        """Do nothing: the processor has finished when a call returns."""

    def fp32_precision(self, precision: str) -> AbstractContextManager[None]:
        """Return the context for oneDNN's matrix multiplications."""
        import torch

        return _precision(torch.backends.mkldnn.matmul, precision)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Cuda(Device):
    """An NVIDIA GPU."""

    index: int = 0

    name = "cuda"
    has_tf32 = True

    def __post_init__(self) -> None:
        if self.index < 0:
            raise OptionError("index", self.index, "a whole number from 0")

    def torch_device(self) -> torch.device:
        """Return PyTorch's name for it."""
        import torch

        return torch.device("cuda", self.index)

    def check(self) -> None:
        """Refuse a machine without a driver, a build without CUDA, and an index without a card."""
        if not _has_cuda_driver():
            raise RefusedError(
                "device=cuda is refused: this machine has no NVIDIA driver.",
                "Use device=cpu or device=auto.",
            )
        import torch

        if not torch.cuda.is_available():
            raise RefusedError(
                f"device=cuda is refused: torch {torch.__version__} finds no GPU it can use.",
                "Install a CUDA build of torch that fits the driver, or use device=cpu.",
            )
        if self.index >= torch.cuda.device_count():
            last = torch.cuda.device_count() - 1
            raise OptionError("device.index", self.index, f"0 to {last} on this machine")

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make it the current device."""
        import torch

        with torch.cuda.device(self.index):
            yield

    def synchronize(self) -> None:
        """Wait for every stream of the card."""
        import torch

        torch.cuda.synchronize(self.index)

    def fp32_precision(self, precision: str) -> AbstractContextManager[None]:
        """Return the context for cuBLAS' matrix multiplications."""
        import torch

        return _precision(torch.backends.cuda.matmul, precision)

    def reset_peak_memory(self) -> None:
        """Start counting ``peak_memory`` anew."""
        import torch

        torch.cuda.reset_peak_memory_stats(self.index)

    def peak_memory(self) -> int | None:
        """Return the most memory that tensors took."""
        import torch

        return torch.cuda.max_memory_allocated(self.index)

    def describe(self) -> dict[str, Any]:
        """Return the card's name, its capability, and CUDA's version."""
        import torch

        properties = torch.cuda.get_device_properties(self.index)
        return {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "driver": _cuda_driver_version(),
        }


@dataclass(frozen=True)
class Auto(Device):
    """The best device that is there."""

    name = "auto"

    def torch_device(self) -> torch.device:
        """Return the resolved device's name."""
        return self.resolve().torch_device()

    def resolve(self) -> Device:
        """Return the first GPU if PyTorch can use one, else the processor."""
        if not _has_cuda_driver():
            return Cpu()
        import torch

        return Cuda() if torch.cuda.is_available() else Cpu()

    def synchronize(self) -> None:
        """Wait for the resolved device."""
        self.resolve().synchronize()

    def fp32_precision(self, precision: str) -> AbstractContextManager[None]:
        """Return the resolved device's context."""
        return self.resolve().fp32_precision(precision)


def _has_cuda_driver() -> bool:
    """Tell without importing torch whether CUDA is out of the question."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _cuda_driver_version() -> str | None:
    """Read the kernel module's version, as in "NVRM version: ... Kernel Module  550.54  ..."."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:  # noqa: PTH123
            words = file.readline().split()
    except OSError:
        return None
    return next((w for w in words if w[0].isdigit() and "." in w), None)

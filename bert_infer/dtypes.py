"""The ``dtype`` group: the number format of weights and arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bert_infer.errors import RefusedError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

    from bert_infer.devices import Device


class Dtype(ABC):
    """A number format."""

    name: str

    def check(self, device: Device) -> None:
        """Refuse a device without this format.

        Raises:
            RefusedError: naming ``dtype``.
        """

    @abstractmethod
    def weights(self) -> torch.dtype:
        """Return the format that the weights are held in."""

    def matmuls(self) -> torch.dtype:
        """Return the format that matrix multiplications take."""
        return self.weights()

    def active(self, device: Device) -> AbstractContextManager[None]:
        """Return the context that forwards run in."""
        return device.fp32_precision("ieee")


@dataclass(frozen=True)
class Fp32(Dtype):
    """IEEE single precision throughout."""

    name = "fp32"

    def weights(self) -> torch.dtype:
        """Return float32."""
        import torch

        return torch.float32


@dataclass(frozen=True)
class Tf32(Fp32):
    """Single precision weights, multiplied with 10 bits of mantissa by NVIDIA's tensor cores."""

    name = "tf32"

    def check(self, device: Device) -> None:
        """Refuse a device without TensorFloat-32."""
        if not device.has_tf32:
            raise RefusedError(
                f"dtype=tf32 is refused on device={device.name}: TensorFloat-32 is a mode of "
                "NVIDIA's tensor cores.",
                "Use dtype=fp32 or dtype=bf16.",
            )

    def active(self, device: Device) -> AbstractContextManager[None]:
        """Allow TensorFloat-32."""
        return device.fp32_precision("tf32")


@dataclass(frozen=True)
class Bf16(Dtype):
    """Bfloat16 throughout."""

    name = "bf16"

    def weights(self) -> torch.dtype:
        """Return bfloat16."""
        import torch

        return torch.bfloat16


@dataclass(frozen=True)
class Fp16(Dtype):
    """Half precision throughout."""

    name = "fp16"

    def weights(self) -> torch.dtype:
        """Return float16."""
        import torch

        return torch.float16


@dataclass(frozen=True)
class Bf16Autocast(Fp32):
    """Single precision weights; autocast chooses the operators that run in bfloat16."""

    name = "bf16_autocast"

    def matmuls(self) -> torch.dtype:
        """Return bfloat16, what matrix multiplications are autocast to."""
        import torch

        return torch.bfloat16

    def active(self, device: Device) -> AbstractContextManager[None]:
        """Enter PyTorch's autocast."""
        import torch

        return device.autocast(torch.bfloat16)

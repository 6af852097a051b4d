"""The ``dtype`` group: the number format of weights and arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bert_infer.errors import RefusedError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

    from bert_infer.devices import Device
    from bert_infer.models.architecture import Architecture
    from bert_infer.operators.attention import Attention
    from bert_infer.operators.linears import MakeLinear


class Dtype(ABC):
    """A number format.

    Attributes:
        autocast_to: the dtype that PyTorch's modules convert weights and activations to for each
            operator; None where weights are converted once.
        is_measuring: a run only measures what the format needs to know of the model.
        has_ceiling: its matrix multiplication can be timed by itself.
        has_scales: PyTorch's modules are converted, and hold scales beside their weights.
        multiple: the sizes of the matrices that it multiplies are multiples of this.
        format: what of a device's ``formats`` it needs.
        lacking: which devices have that, as the refusal says.
        instead: what to choose on others.
    """

    name: str
    autocast_to: ClassVar[str | None] = None
    is_measuring: bool = False
    has_ceiling: ClassVar[bool] = True
    has_scales: ClassVar[bool] = False
    multiple: ClassVar[int] = 1
    format: ClassVar[str] = "fp32"
    lacking: ClassVar[str] = ""
    instead: ClassVar[str] = ""

    def resolve(self, device: Device) -> Dtype:
        """Return the format as ``device`` implements it."""
        del device
        return self

    def check(self, device: Device) -> None:
        """Refuse a device without this format.

        Raises:
            RefusedError: naming ``dtype``.
        """
        if self.format not in device.formats():
            raise RefusedError(
                f"dtype={self.name} is refused on this {device.name}: {self.lacking}", self.instead
            )

    @property
    def has_own_linears(self) -> bool:
        """Whether ``linear`` alone computes it, which PyTorch's own modules do not call."""
        own = type(self)
        return own.linear is not Dtype.linear and own.converted is Dtype.converted

    @abstractmethod
    def weights(self) -> torch.dtype:
        """Return the format that the weights are held in."""

    def matmuls(self) -> torch.dtype:
        """Return the format that matrix multiplications take."""
        return self.weights()

    def operand(self, values: torch.Tensor) -> torch.Tensor:
        """Return ``values``, normally distributed, in the format that multiplications take."""
        return values.to(self.matmuls())

    def linear(self, device: Device) -> MakeLinear:
        """Return how an engine of our own multiplies by a weight matrix on ``device``."""
        return device.linears(self.matmuls())[0]

    def attention(self, device: Device, architecture: Architecture) -> Attention:
        """Return how an engine of our own attends on ``device``."""
        return device.attention(self.weights(), architecture)

    def converted(self, module: torch.nn.Module, device: Device) -> torch.nn.Module:
        """Return ``module``, which is on ``device``, converted to this format."""
        del device
        return module

    def active(self, device: Device) -> AbstractContextManager[None]:
        """Return the context that forwards run in."""
        return device.fp32_precision("highest")


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
    format: ClassVar[str] = "tf32"
    lacking: ClassVar[str] = (
        "TensorFloat-32 is a mode of the tensor cores of NVIDIA GPUs of compute capability 8.0 "
        "(Ampere) and later."
    )
    instead: ClassVar[str] = "Use dtype=fp32 or dtype=bf16."

    def active(self, device: Device) -> AbstractContextManager[None]:
        """Allow TensorFloat-32."""
        return device.fp32_precision("high")


@dataclass(frozen=True)
class Bf16(Dtype):
    """Bfloat16 throughout."""

    name = "bf16"
    format: ClassVar[str] = "bf16"
    lacking: ClassVar[str] = (
        "bfloat16 came to NVIDIA GPUs with compute capability 8.0 (Ampere), and to emulate it is "
        "slower than float32."
    )
    instead: ClassVar[str] = "Use dtype=fp16 or dtype=fp32."

    def weights(self) -> torch.dtype:
        """Return bfloat16."""
        import torch

        return torch.bfloat16


@dataclass(frozen=True)
class Fp16(Dtype):
    """Half precision throughout."""

    name = "fp16"
    format: ClassVar[str] = "fp16"
    lacking: ClassVar[str] = (
        "a Gaudi card of the first generation computes in float32 and bfloat16."
    )
    instead: ClassVar[str] = "Use dtype=bf16."

    def weights(self) -> torch.dtype:
        """Return float16."""
        import torch

        return torch.float16


@dataclass(frozen=True)
class Bf16Autocast(Fp32):
    """Single precision weights; autocast chooses the operators that run in bfloat16."""

    name = "bf16_autocast"
    autocast_to: ClassVar[str | None] = "bf16"
    format: ClassVar[str] = Bf16.format
    lacking: ClassVar[str] = Bf16.lacking
    instead: ClassVar[str] = Bf16.instead

    def matmuls(self) -> torch.dtype:
        """Return bfloat16, what matrix multiplications are autocast to."""
        import torch

        return torch.bfloat16

    def active(self, device: Device) -> AbstractContextManager[None]:
        """Enter PyTorch's autocast."""
        import torch

        return device.autocast(torch.bfloat16)


@dataclass(frozen=True)
class Int8(Fp32):
    """Single precision, except for multiplications by weight matrices: 8-bit integers."""

    name = "int8"
    format: ClassVar[str] = "int8"
    lacking: ClassVar[str] = (
        "it has no fast 8-bit integer matrix multiplication here (processors need AVX2)."
    )
    instead: ClassVar[str] = "Use dtype=bf16 or dtype=fp32."

    def matmuls(self) -> torch.dtype:
        """Return int8."""
        import torch

        return torch.int8

    def operand(self, values: torch.Tensor) -> torch.Tensor:
        """Return codes that fill a good part of their range, but whose sums never overflow."""
        return super().operand(values.mul(16).clamp(-64, 64))

    def attention(self, device: Device, architecture: Architecture) -> Attention:
        """Return attention in bfloat16 where the device computes in it; softmax is in float32."""
        import torch

        narrower = self.weights() if device.emulates(torch.bfloat16) else torch.bfloat16
        return device.attention(narrower, architecture)

    def linear(self, device: Device) -> MakeLinear:
        """Return the Linear that quantises activations, and scales the product back.

        Raises:
            RefusedError: a trial shows that sums are wrong here, or that PyTorch lacks the kernel.
        """
        from bert_infer.operators.int8 import Int8Linear
        from bert_infer.operators.linears import multiplies_int8_exactly

        if not multiplies_int8_exactly():
            raise RefusedError(
                f"dtype=int8 is refused: a trial of PyTorch's 8-bit integer matrix multiplication "
                f"on this {device.name} failed or gave wrong sums.",
                "Use dtype=bf16 or dtype=fp32, or another version of torch.",
            )
        return Int8Linear

"""8-bit floating point on an NVIDIA GPU: nothing is measured, scales are found as tokens come."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, cast

from bert_infer.dtypes.fp8 import Fp8
from bert_infer.errors import RefusedError

if TYPE_CHECKING:
    import torch

    from bert_infer.devices import Device
    from bert_infer.devices.cuda import Cuda
    from bert_infer.operators.linears import MakeLinear


@dataclass(frozen=True)
class ByRow(Fp8):
    """A scale for each token, computed as it comes, and one for each output channel."""

    multiple: ClassVar[int] = 16

    def check(self, device: Device) -> None:
        """Refuse a device without the format, and fields that only Gaudi uses."""
        super().check(device)
        without = Fp8()
        for key in (part.name for part in fields(Fp8)):
            if getattr(self, key) != getattr(without, key):
                raise RefusedError(
                    f"dtype.{key} is refused on device={device.name}: nothing is measured there, "
                    "scales are found as tokens come.",
                    f"Leave dtype.{key} out.",
                )

    def matmuls(self) -> torch.dtype:
        """Return E4M3."""
        import torch

        return torch.float8_e4m3fn

    def linear(self, device: Device) -> MakeLinear:
        """Return the Linear that multiplies codes."""
        return cast("Cuda", device).fp8_linear()

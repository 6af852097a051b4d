"""The fp8 option of ``dtype``: linear layers in 8-bit floating point, as the device does it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Self

from bert_infer.dtypes import Bf16

if TYPE_CHECKING:
    from bert_infer.devices import Device


class Step(Enum):
    """Which of Gaudi's two runs this is; the values are neural_compressor's."""

    measure = "MEASURE"
    convert = "QUANTIZE"


@dataclass(frozen=True)
class Fp8(Bf16):
    """Linear layers multiply in E4M3, everything else is bfloat16.

    The fields are Gaudi's (``devices.hpu.fp8``); GPUs have ``devices.cuda.fp8``.

    Attributes:
        step: measure first, then convert.
        measurements: the directory of the measurements; None: the user's cache directory.
        scale_method: how scales are made, by neural_compressor's names.
        blocklist: layers that stay bfloat16, by parts of their names.
    """

    step: Step = Step.convert
    measurements: str | None = None
    scale_method: str = "maxabs_hw"
    blocklist: tuple[str, ...] = ()

    name = "fp8"
    format: ClassVar[str] = "fp8"
    lacking: ClassVar[str] = (
        "Gaudi 2 and 3 have it, and NVIDIA GPUs of compute capability 8.9 (Ada, Hopper) and later."
    )
    instead: ClassVar[str] = "Use dtype=bf16."

    @classmethod
    def of(cls, asked: Fp8) -> Self:
        """Return this variant, with the fields of ``asked``."""
        return cls(**{part.name: getattr(asked, part.name) for part in fields(Fp8)})

    def resolve(self, device: Device) -> Fp8:
        """Return the device's own variant."""
        return device.fp8(self)

"""8-bit floating point on Gaudi: Intel's neural_compressor measures a model, then converts it.

Two runs: the first notes the largest values in every layer on the user's own texts, the second
multiplies in 8 bits with scales made from them. Measurements hold for one generation of cards and
one model, and are stored under both.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bert_infer.dtypes.fp8 import Fp8, Step
from bert_infer.errors import RefusedError
from bert_infer.files import caches

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from bert_infer.devices import Device

_MEASURED: list[torch.nn.Module] = []
"""The models that this process is measuring; measurements are written when the run ends."""

_SAMPLED = 16


@dataclass(frozen=True)
class Converted(Fp8):
    """Linear layers of PyTorch's modules are replaced by the plugin's."""

    has_ceiling: ClassVar[bool] = False  # PyTorch has no such matmul of its own on Gaudi
    has_scales: ClassVar[bool] = True

    @property
    def name(self) -> str:  # type: ignore[override]
        """Its name, which marks a run that only measures."""
        return "fp8_measuring" if self.is_measuring else "fp8"

    @property
    def is_measuring(self) -> bool:  # type: ignore[override]
        """Whether the step is the first of the two."""
        return self.step is not Step.convert

    def check(self, device: Device) -> None:
        """Refuse a card without the format, and a machine without neural_compressor."""
        Fp8().check(device)  # by the option's name
        if find_spec("neural_compressor") is None:
            raise RefusedError(
                "dtype=fp8 is refused: neural_compressor, which converts models, is not installed.",
                "pip install neural_compressor_pt (docs/gaudi.md has both steps), or dtype=bf16.",
            )

    def converted(self, module: torch.nn.Module, device: Device) -> torch.nn.Module:
        """Return ``module`` with its linear layers replaced, as the step says.

        Raises:
            RefusedError: it is to be converted, and has not been measured on such a card.
        """
        from neural_compressor.torch.quantization import FP8Config, convert, prepare

        place = self._place(module, device)
        if self.step is Step.convert and not any(place.glob("measure_hooks_*")):
            raise RefusedError(
                f"dtype=fp8 has no measurements of this model on this card: none are in {place}.",
                "Run once with dtype=fp8 dtype.step=measure, on texts such as yours.",
            )
        place.mkdir(parents=True, exist_ok=True)
        config = FP8Config(
            dump_stats_path=str(place / "measure"),
            fp8_config="E4M3",
            hp_dtype="bf16",
            mode=self.step.value,
            observer="maxabs",
            scale_method=self.scale_method,
            blocklist={"names": list(self.blocklist), "types": ()},
        )
        changed: torch.nn.Module
        if self.step is Step.convert:
            changed = convert(module, config)
        else:
            changed = prepare(module, config)
            _MEASURED.append(changed)
        return changed

    @contextmanager
    def active(self, device: Device) -> Iterator[None]:
        """Write the measurements when the forwards are over."""
        _MEASURED.clear()
        with super().active(device):
            yield
        if _MEASURED:
            from neural_compressor.torch.quantization import finalize_calibration

            finalize_calibration(_MEASURED.pop())

    def _place(self, module: torch.nn.Module, device: Device) -> Path:
        if self.measurements is not None:
            return Path(self.measurements)
        card = str(device.describe()["name"]).lower()
        return caches.path_of("fp8", card) / _fingerprint(module)


def _fingerprint(module: torch.nn.Module) -> str:
    """Return a name for a model: its parameters' names, shapes and first values."""
    content = hashlib.sha256()
    for name, parameter in module.state_dict().items():
        first = parameter.flatten()[:_SAMPLED].float().cpu().tolist()
        content.update(f"{name}{tuple(parameter.shape)}{first}".encode())
    return content.hexdigest()[:16]

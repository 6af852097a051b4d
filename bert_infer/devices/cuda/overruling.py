"""Environment variables by which CUDA does otherwise than a run asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bert_infer.dtypes import Tf32
from bert_infer.records import Caveat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bert_infer.dtypes import Dtype


def warnings(dtype: Dtype, variables: Mapping[str, str]) -> Iterator[Caveat]:
    """Yield a warning of each of the ``variables`` that overrules a run in ``dtype``."""
    if variables.get("CUDA_LAUNCH_BLOCKING", "") not in {"", "0"}:
        yield Caveat(
            "launch_blocking",
            "CUDA_LAUNCH_BLOCKING is set: each kernel was waited for before the next was launched.",
            "Unset it to measure.",
        )
    if isinstance(dtype, Tf32) and variables.get("NVIDIA_TF32_OVERRIDE") == "0":
        yield Caveat(
            "tf32_overruled",
            "NVIDIA_TF32_OVERRIDE=0 is set: NVIDIA's libraries multiplied without TensorFloat-32.",
            "Unset it, or choose dtype=fp32, which this was.",
        )

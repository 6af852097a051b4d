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
    import torch

    if variables.get("CUDA_LAUNCH_BLOCKING", "0") != "0":
        yield Caveat(
            "launch_blocking",
            "CUDA_LAUNCH_BLOCKING is set: each kernel was waited for before the next was launched.",
            "Unset it to measure.",
        )
    if dtype.matmuls() is not torch.float32:
        return
    tf32 = isinstance(dtype, Tf32)
    if variables.get("NVIDIA_TF32_OVERRIDE") == ("0" if tf32 else "1"):
        yield Caveat(
            "tf32_overruled",
            f"NVIDIA_TF32_OVERRIDE={'0' if tf32 else '1'} is set: this was no dtype={dtype.name}, "
            f"since the libraries multiplied {'without' if tf32 else 'in'} TensorFloat-32.",
            "Unset it; dtype=fp32 and dtype=tf32 choose.",
        )

"""The processor."""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bert_infer import cgroup
from bert_infer.devices import Device
from bert_infer.errors import OptionError
from bert_infer.machine import cpu_flags
from bert_infer.memory import freed_is_kept
from bert_infer.operators import attention, linears
from bert_infer.records import Caveat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from bert_infer.dtypes import Dtype
    from bert_infer.models.architecture import Architecture
    from bert_infer.operators.attention import Attention
    from bert_infer.operators.linears import MakeLinear

FPMATH = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
"""Variables by which oneDNN may multiply float32 in a shorter format; it takes both names."""
_MOST_THREADS = 1024  # where the system grants no more, PyTorch ends the process


@dataclass(frozen=True)
class Cpu(Device):
    """The processor.

    Attributes:
        threads: how many compute; None: PyTorch's choice, or as many as a quota has cores.
        keep_memory: freed memory stays with the process (``memory.freed_is_kept``).
    """

    threads: int | None = None
    keep_memory: bool = True

    name = "cpu"
    computes_on_cores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= _MOST_THREADS:
            raise OptionError(
                "threads", self.threads, f"null or a whole number from 1 to {_MOST_THREADS}"
            )

    def torch_device(self) -> torch.device:
        """Return PyTorch's name for it."""
        import torch

        return torch.device("cpu")

    @contextmanager
    def active(self) -> Iterator[None]:
        """Set the number of threads and how malloc keeps memory, and restore them afterwards."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or _without_waiting(before))
        try:
            with freed_is_kept() if self.keep_memory else nullcontext():
                yield
        finally:
            torch.set_num_threads(before)

    def synchronize(self) -> None:
        """Do nothing: the processor has finished when a call returns."""

    def linears(self, dtype: torch.dtype) -> tuple[MakeLinear, ...]:
        """Return oneDNN with packed weights where it takes ``dtype``, then PyTorch's own choice."""
        import torch

        if dtype is torch.int8:
            return (linears.OneDnnInt8,)
        packed = (linears.OneDnnPacked,) if linears.can_pack(dtype) else ()
        return (*packed, *super().linears(dtype))

    def formats(self) -> frozenset[str]:
        """Return int8 with AVX2: without, oneDNN multiplies integers a thousand times slower."""
        return super().formats() | ({"int8"} if "avx2" in cpu_flags() else set())

    def attention(self, dtype: torch.dtype, architecture: Architecture) -> Attention:
        """Return plain matrix multiplications, faster at these lengths than SDPA's own kernel.

        Not for an emulated format: batched matmuls convert one number at a time. In float32 they
        are MKL's, which take strided tensors as they are; in others oneDNN's. With AMX, SDPA's
        kernel multiplies bfloat16 in tiles, and overtakes them.
        """
        import torch

        del architecture
        if self.emulates(dtype):
            return attention.BySdpa()
        if dtype is torch.bfloat16 and "amx_bf16" in cpu_flags():
            return attention.BySdpaIn(dtype)
        return attention.ByMatmul() if dtype is torch.float32 else attention.ByCopyAndMatmul(dtype)

    def emulates(self, dtype: torch.dtype) -> bool:
        """Look the format up among the processor's features."""
        import torch

        needs = {torch.float16: _HAS_FP16, torch.bfloat16: _HAS_BF16}.get(dtype, frozenset())
        features = cpu_flags()
        return bool(needs and features) and not needs & features

    def overruled(self, dtype: Dtype, variables: Mapping[str, str]) -> Iterator[Caveat]:
        """Warn of what lets oneDNN multiply float32 in a shorter format: its fpmath mode."""
        import torch

        for name in FPMATH if dtype.matmuls() is torch.float32 else ():
            mode = variables.get(name, "STRICT")
            if mode.upper() not in {"", "STRICT"}:
                yield Caveat(
                    "fpmath_overruled",
                    f"{name}={mode} is set: oneDNN may have multiplied fp32 in a shorter format.",
                    "Unset it, or choose dtype=bf16.",
                )


def _without_waiting(threads: int) -> int:
    """Return how many of the threads that PyTorch would start can compute all the time.

    PyTorch counts the cores, not what a container's quota leaves of their time. What its user has
    asked OpenMP for stays.
    """
    is_asked = "OMP_NUM_THREADS" in os.environ
    return threads if is_asked else min(threads, cgroup.whole_cores() or threads)


_HAS_FP16 = frozenset({"avx512_fp16", "amx_fp16", "asimdhp", "fphp"})
_HAS_BF16 = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})
"""Features, as Linux names those of x86 and Arm, with which a processor computes in a format."""

"""An NVIDIA GPU."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from bert_infer.devices import Device
from bert_infer.devices.cuda import driver, fusing, nvml
from bert_infer.devices.cuda.attention import (
    Blocked,
    Efficient,
    Flash,
    PaddedHeads,
    has_flash,
    width_of,
)
from bert_infer.devices.cuda.linears import Fp8Gelu, Fp8GeluInside, GeluInside
from bert_infer.devices.overlap import Overlap
from bert_infer.dtypes import Tf32
from bert_infer.errors import OptionError, RefusedError
from bert_infer.graphs import Compile
from bert_infer.graphs.cuda_graphs import CudaGraphs, CudaGraphsIfFaster
from bert_infer.operators import linears
from bert_infer.operators.fp8 import Fp8Linear, ScaledMatmul
from bert_infer.records import Caveat, Outputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bert_infer.batching.layouts import Batch
    from bert_infer.devices import Function
    from bert_infer.devices.readings import Reading
    from bert_infer.dtypes import Dtype
    from bert_infer.dtypes.fp8 import Fp8
    from bert_infer.engines import Encode
    from bert_infer.graphs import CompileMode, Graph
    from bert_infer.models.architecture import Architecture
    from bert_infer.operators.attention import Attention
    from bert_infer.operators.linears import MakeLinear

_AMPERE, _ADA, _CLEARS_IN_ORDER = (8, 0), (8, 9), "2.12"
_SINCE = {"fp32": (0, 0), "fp16": (0, 0), "tf32": _AMPERE, "bf16": _AMPERE, "fp8": _ADA}
_LACKS = (
    "this machine lacks Triton, a C compiler (CC, gcc or clang) or Python's headers, or its card "
    "is older than Volta"
)
"""Why inductor cannot compile for the card."""


@dataclass(frozen=True)
class Cuda(Device):
    """An NVIDIA GPU.

    Attributes:
        index: which one, as CUDA counts them.
        in_flight: forwards submitted before the first is waited for; with 2 and more, copies go on
            while another forward is computed.
        fuses: Triton's kernels are used, in every graph mode: inductor's for what lies between a
            layer's matmuls, and our own. None: where they can be compiled, which takes Triton, a C
            compiler, Python's headers and a card that inductor supports.
    """

    index: int = 0
    in_flight: int = 2
    fuses: bool | None = None

    name = "cuda"
    graphs = (CudaGraphs,)
    profiles: ClassVar[tuple[str, ...]] = ("CPU", "CUDA")
    # 16,384 rows take 0.1 to 0.2 ms on an H200, and a launch 10 us.
    ceiling_rows: ClassVar[tuple[int, ...]] = (65_536, 131_072)

    def __post_init__(self) -> None:
        if self.index < 0:
            raise OptionError("index", self.index, "a whole number from 0")
        if self.in_flight < 1:
            raise OptionError("in_flight", self.in_flight, "a whole number from 1")

    def torch_device(self) -> torch.device:
        """Return PyTorch's name for it."""
        import torch

        return torch.device("cuda", self.index)

    def check(self) -> None:
        """Refuse a card that is missing or that torch cannot use, and ``fuses`` if it cannot be."""
        driver.check()
        import torch

        if self.index >= torch.cuda.device_count():
            last = torch.cuda.device_count() - 1
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            among = f"with CUDA_VISIBLE_DEVICES={visible}" if visible else "on this machine"
            raise OptionError("device.index", self.index, f"0 to {last} {among}")
        if complaint := driver.without_kernels(self.index):
            raise complaint.as_error()
        if self.fuses and not self._can_fuse():
            raise OptionError(
                "device.fuses",
                "true",
                f"null or false: {_LACKS}",
            )

    @property
    def compiles_regions(self) -> bool:  # type: ignore[override]
        """``fuses``, or, where that is None, whether this machine can."""
        return self._can_fuse() if self.fuses is None else self.fuses

    def _can_fuse(self) -> bool:
        return fusing.is_possible() and self.capability() >= fusing.OLDEST

    def capability(self) -> tuple[int, int]:
        """Return the card's compute capability, as (8, 9)."""
        import torch

        return torch.cuda.get_device_capability(self.index)

    def formats(self) -> frozenset[str]:
        """Return those of the card's generation."""
        return frozenset(name for name, since in _SINCE.items() if self.capability() >= since)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make it the current device."""
        import torch

        with torch.cuda.device(self.index):
            yield

    def copy_in(self, arrays: tuple[NDArray[np.generic], ...]) -> tuple[torch.Tensor, ...]:
        """Copy ``arrays`` to the card, asynchronously, from pinned memory."""
        import torch

        pinned = (torch.from_numpy(array).pin_memory() for array in arrays)
        return tuple(host.to(self.torch_device(), non_blocking=True) for host in pinned)

    def copy_out(self, outputs: Outputs) -> Outputs:
        """Copy ``outputs`` to pinned memory, asynchronously."""
        return Outputs(_to_host(outputs.hidden_states), _to_host(outputs.pooled))

    def overlap(self) -> Overlap:
        """Return the card's streams, cached: the allocator keeps memory for every stream used."""
        return _overlap(self.index)

    def synchronize(self) -> None:
        """Wait for every stream of the card."""
        import torch

        torch.cuda.synchronize(self.index)

    def check_graph(self, graph: Graph) -> None:
        """Refuse torch.compile where inductor would."""
        if isinstance(graph, Compile) and not self._can_fuse():
            raise RefusedError(
                f"graph=compile is refused: {_LACKS}.",
                "Use graph=cuda_graphs or graph=eager.",
            )

    def preferred_graph(self) -> Graph:
        """Return CUDA graphs where they pay, eager elsewhere."""
        return CudaGraphsIfFaster()

    def compile(self, encode: Encode, shapes: int, mode: CompileMode) -> Encode:
        """Return ``encode`` compiled; in every mode, no later forward overwrites its results."""
        import torch

        from bert_infer.devices.cuda import recording

        if mode.records:
            encode = recording.Holding(encode)
        # With True all sizes become symbols, the model's too, and reductions over those slower;
        # with None only sizes that differ from the first shape to the second do.
        dynamic = None if shapes > 1 else False
        compiled: Encode = torch.compile(encode, dynamic=dynamic, mode=mode.value)
        return recording.stepped(compiled) if mode.records else compiled

    def capture(self, encode: Encode, *, asynchronous: bool, most: int) -> Encode:
        """Return ``encode`` recorded as CUDA graphs; no later forward overwrites its results."""
        from bert_infer.devices.cuda import recording

        del asynchronous  # a replay never waits
        return recording.recorded(encode, recording.Recorder(), most)

    def linears(self, dtype: torch.dtype) -> tuple[MakeLinear, ...]:
        """Return cuBLAS: in bfloat16 with GELU fused, in 8 bits the matmul of codes."""
        import torch

        if dtype is torch.float8_e4m3fn:
            return (ScaledMatmul,)
        # Its GELU is by tanh: the error is below bfloat16's rounding, and above float16's.
        return (GeluInside if dtype is torch.bfloat16 else linears.Plain,)

    def fp8(self, asked: Fp8) -> Fp8:
        """Return scales for each token and output channel.

        Raises:
            RefusedError: this torch cannot multiply codes on other streams of an Ada card than the
                default one. It clears there what the kernel's blocks count in, unordered with the
                kernel (https://github.com/pytorch/pytorch/pull/177651).
        """
        import torch

        from bert_infer.devices.cuda.fp8 import ByRow

        if self.capability() == _ADA and torch.__version__ < _CLEARS_IN_ORDER:
            raise RefusedError(
                f"dtype=fp8 is refused: on Ada cards, as this one, torch {torch.__version__} can "
                "hang or err in 8-bit matrix multiplications.",
                "Install torch 2.12 or later, or use dtype=bf16.",
            )
        return ByRow.of(asked)

    def attention(self, dtype: torch.dtype, architecture: Architecture) -> Attention:
        """Return flash attention where there is one: our own kernel if Triton can compile it.

        Otherwise memory-efficient attention, which only needs head sizes that are multiples of 8.
        All of them can be recorded in a graph, and take no more memory than their inputs.
        """
        head_dim = architecture.hidden // architecture.heads
        width = width_of(head_dim)
        attend: Attention
        if not has_flash(self.capability(), dtype, width):
            attend = Efficient(architecture.max_length)
        elif self.compiles_regions and Blocked.takes(width):
            attend = Blocked()
        else:
            attend = Flash(architecture.max_length)
        return attend if width == head_dim else PaddedHeads(attend, width)

    def tokens_at_once(self, layout: type[Batch]) -> int:
        """Return 256 for each of an H200's 132 multiprocessors (benchmarks/notes.md)."""
        del layout
        return 33_792

    def fp8_linear(self) -> MakeLinear:
        """Return a Linear whose kernels fuse GELU and quantising, if Triton can compile them."""
        if not self.compiles_regions:
            return Fp8Linear
        is_hopper = (9, 0) <= self.capability() < (10, 0)
        return Fp8GeluInside if is_hopper else Fp8Gelu

    def region(self, function: Function) -> Function:
        """Return ``function`` compiled by inductor, if ``compiles_regions``."""
        return fusing.compiled(function) if self.compiles_regions else function

    def give_memory_back(self) -> None:
        """Free what PyTorch keeps of freed memory."""
        import torch

        torch.cuda.empty_cache()

    def reset_peak_memory(self) -> None:
        """Start counting ``peak_memory`` anew."""
        import torch

        torch.cuda.reset_peak_memory_stats(self.index)

    def peak_memory(self) -> int | None:
        """Return the most memory that tensors took, in bytes."""
        import torch

        return torch.cuda.max_memory_allocated(self.index)

    def describe(self) -> dict[str, Any]:
        """Return the card's name, capability and power limit, and the software under it."""
        import torch

        properties = torch.cuda.get_device_properties(self.index)
        return {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "fuses": self.compiles_regions,
            "driver": driver.version(),
            "power_limit_w": nvml.power_limit_w(str(properties.uuid)),
        }

    def overruled(self, dtype: Dtype, variables: Mapping[str, str]) -> Iterator[Caveat]:
        """Yield warnings of CUDA's own variables."""
        if variables.get("CUDA_LAUNCH_BLOCKING", "") not in {"", "0"}:
            yield Caveat(
                "launch_blocking",
                "CUDA_LAUNCH_BLOCKING is set: each kernel was waited for before the next was "
                "launched.",
                "Unset it to measure.",
            )
        if isinstance(dtype, Tf32) and variables.get("NVIDIA_TF32_OVERRIDE") == "0":
            yield Caveat(
                "tf32_overruled",
                "NVIDIA_TF32_OVERRIDE=0 is set: NVIDIA's libraries multiplied without "
                "TensorFloat-32.",
                "Unset it, or choose dtype=fp32, which this was.",
            )

    def reading(self) -> Reading:
        """Return what NVML tells of the card."""
        import torch

        return nvml.reading(str(torch.cuda.get_device_properties(self.index).uuid))

    def memory_bytes(self) -> int | None:
        """Return the memory of the machine's largest card: only CUDA knows which card this is."""
        return nvml.largest_memory_bytes()


@cache
def _overlap(index: int) -> Overlap:
    import torch

    with torch.cuda.device(index):
        return Overlap(torch.cuda)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)

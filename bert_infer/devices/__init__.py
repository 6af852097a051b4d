"""The ``device`` group: where forwards are computed. One device a file.

Whatever differs between devices is asked of one here. Elsewhere only three things go by a device's
kind: graph modes of one kind alone, fp8's fields for Gaudi, and drift's reference, on the CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from bert_infer.devices.readings import Reading
from bert_infer.graphs import Eager, Graph
from bert_infer.operators import attention, linears
from bert_infer.records import Computed, Outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bert_infer.batching.layouts import Batch
    from bert_infer.devices.overlap import Overlap
    from bert_infer.dtypes import Dtype
    from bert_infer.dtypes.fp8 import Fp8
    from bert_infer.engines import Encode
    from bert_infer.graphs import CompileMode
    from bert_infer.models.architecture import Architecture
    from bert_infer.operators.attention import Attention
    from bert_infer.operators.linears import MakeLinear
    from bert_infer.records import Caveat

Function = TypeVar("Function", bound="Callable[..., Any]")


class DeviceChoice(ABC):
    """What can be asked for: a device, or that one is picked."""

    name: str

    @abstractmethod
    def resolve(self) -> Device:
        """Return the device that will really be used."""


class Device(DeviceChoice):
    """Copies, synchronisation, memory figures, number formats, the preferred graph mode.

    Attributes:
        imports: the modules it needs, imported after its ``variables`` are set.
        graphs: the graph modes that it has besides eager and compile.
        has_inductor: torch.compile's backend here is inductor, which builds C++.
        keeps_mask: its attention takes a mask in every graph mode, also where nothing is masked.
        computes_on_cores: its work is done by threads on the cores that all programs share.
        profiles: what PyTorch's profiler is to watch, by the names of its activities.
        ceiling_rows: further numbers of rows to try for the ceiling, so large that launching the
            matmul takes no time beside computing it.
        in_flight: forwards that are submitted before the first of them is waited for.
        compiles_regions: what ``region`` returns is compiled when it is called.
    """

    imports: ClassVar[tuple[str, ...]] = ()
    graphs: ClassVar[tuple[type[Graph], ...]] = ()
    has_inductor: ClassVar[bool] = True
    keeps_mask: ClassVar[bool] = False
    computes_on_cores: ClassVar[bool] = False
    profiles: ClassVar[tuple[str, ...]] = ("CPU",)
    ceiling_rows: ClassVar[tuple[int, ...]] = ()
    in_flight: int = 1
    compiles_regions: bool = False

    @abstractmethod
    def torch_device(self) -> torch.device:
        """Return PyTorch's name for it."""

    def resolve(self) -> Device:
        """Return itself."""
        return self

    def check(self) -> None:
        """Refuse a device that is not there.

        Raises:
            RefusedError: naming ``device``.
        """

    def formats(self) -> frozenset[str]:
        """Return the number formats that it computes in, or multiplies matrices in."""
        return frozenset({"fp32", "bf16", "fp16"})

    def check_beside(self, other: Device) -> None:
        """Refuse to serve one process while ``other`` serves another.

        Raises:
            RefusedError: naming the key to change.
        """

    def variables(self, graph: Graph) -> Mapping[str, str]:
        """Return the environment variables that ``graph`` needs before torch is imported."""
        del graph
        return {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Apply settings of the whole process inside, and restore them afterwards."""
        yield

    def copy_in(self, arrays: tuple[NDArray[np.generic], ...]) -> tuple[Any, ...]:
        """Return ``arrays`` on the device, in the form that an encoder from ``fed`` takes."""
        import torch

        return tuple(torch.from_numpy(a).to(self.torch_device(), non_blocking=True) for a in arrays)

    def copy_out(self, outputs: Outputs) -> Outputs:
        """Return ``outputs`` in host memory, where they are complete after ``synchronize``."""
        return Outputs(outputs.hidden_states.cpu(), outputs.pooled.cpu())

    def submit(
        self,
        encode: Encode,
        inputs: tuple[NDArray[np.generic], ...],
        clock: Callable[[], float],
    ) -> Callable[[], Computed]:
        """Submit a forward from and to host memory; return a function that waits for its outputs.

        With one in flight, the wait is here, and ``clock`` times the parts. The device is
        synchronised before each time stamp, since a call may return before its work is done.
        """
        if self.in_flight > 1:
            return self.overlap().submit(encode, lambda: self.copy_in(inputs), self.copy_out)
        start = clock()
        on_device = self.copy_in(inputs)
        self.synchronize()
        copied_in = clock()
        results = Outputs(*encode(*on_device))
        self.synchronize()
        computed = clock()
        outputs = self.copy_out(results)
        self.synchronize()
        copied_out = clock()
        done = Computed(outputs, copied_in - start, computed - copied_in, copied_out - computed)
        return lambda: done

    def overlap(self) -> Overlap:
        """Return the streams on which forwards overlap, the same each time."""
        raise NotImplementedError

    def fed(self, encode: Encode) -> Encode:
        """Return ``encode``, taking inputs in the form that ``copy_in`` returns."""
        return encode

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has done all submitted work."""

    def check_graph(self, graph: Graph) -> None:
        """Refuse a graph mode that this device's own settings rule out.

        Raises:
            RefusedError: naming the key to change.
        """

    def preferred_graph(self) -> Graph:
        """Return the graph mode that ``graph=auto`` means here."""
        return Eager()

    def compile(self, encode: Encode, shapes: int, mode: CompileMode) -> Encode:
        """Return ``encode`` compiled for ``shapes`` distinct shapes, in a mode of torch.compile."""
        import torch

        compiled: Encode = torch.compile(encode, dynamic=shapes > 1, mode=mode.value)
        return compiled

    def capture(self, encode: Encode, *, asynchronous: bool, most: int) -> Encode:
        """Return ``encode`` recorded for each shape when it first comes, and replayed after that.

        Copy its results out before the next forward, which may overwrite them.

        Args:
            encode: takes tensors on the device, and other values that identify a shape.
            asynchronous: a replay returns before the device has finished.
            most: shapes to record, at most; further ones run without a recording.
        """
        raise NotImplementedError

    def finish(self, module: torch.nn.Module, *, scales_only: bool) -> None:
        """Tell the device that weights of ``module``, which is on it, will not change.

        Args:
            module: the model.
            scales_only: only the scales of its quantised weights are meant.
        """

    def autocast(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Return the context in which matrix multiplications run in ``dtype``."""
        import torch

        return torch.autocast(self.torch_device().type, dtype)

    def fp32_precision(self, precision: str) -> AbstractContextManager[None]:
        """Return the context in which fp32 matrix multiplications run in ``precision``.

        Args:
            precision: "highest", or "high" for TensorFloat-32, PyTorch's own names.
        """
        return _fp32_precision(precision)

    def give_memory_back(self) -> None:
        """Give memory that is no longer used back to the device, for other programs."""

    def reset_peak_memory(self) -> None:
        """Start counting ``peak_memory`` anew."""

    def peak_memory(self) -> int | None:
        """Return the most device memory in use since the reset, in bytes; unknown is None."""
        return None

    def reading(self) -> Reading:
        """Return what it tells of its state now."""
        return Reading()

    def describe(self) -> dict[str, Any]:
        """Return what identifies the device."""
        return {"name": None, "driver": None}

    def linears(self, dtype: torch.dtype) -> tuple[MakeLinear, ...]:
        """Return the available ways to multiply matrices in ``dtype``, the best first."""
        del dtype
        return (linears.Plain,)

    def fp8(self, asked: Fp8) -> Fp8:
        """Return how this device multiplies 8-bit floating point; its check says if it cannot."""
        return asked

    def attention(self, dtype: torch.dtype, architecture: Architecture) -> Attention:
        """Return the mechanism by which packed sequences in ``dtype`` attend, each to itself."""
        del dtype, architecture
        return attention.BySdpa()

    def region(self, function: Function) -> Function:
        """Return ``function``, of tensors, with its steps fused into few kernels, where that pays.

        It is called in every graph mode, once for each layer.
        """
        return function

    def attention_of_rows(self) -> str:
        """Return transformers' name for the attention that padded rows use here."""
        return "sdpa"

    def mask(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return ``mask``, true at real tokens, as attention in ``dtype`` takes it here."""
        del dtype
        return mask

    def tokens_at_once(self, layout: type[Batch]) -> int:
        """Return how many tokens, real or not, a forward should hold, where no option says so.

        On a processor their states should stay in a cache (benchmarks/notes.md).
        """
        del layout
        return 1024

    def emulates(self, dtype: torch.dtype) -> bool:
        """Tell whether ``dtype`` is emulated by another format, which is slow."""
        del dtype
        return False

    def overruled(self, dtype: Dtype, variables: Mapping[str, str]) -> Iterator[Caveat]:
        """Yield a warning of each environment variable that overrules a run in ``dtype`` here."""
        del dtype, variables
        yield from ()

    def memory_bytes(self) -> int | None:
        """Return the most memory of its own that it may have, in bytes; None if unknown.

        Read without using the device: planning a run must not occupy it.
        """
        return None


@contextmanager
def _fp32_precision(precision: str) -> Iterator[None]:
    """Set the precision of cuBLAS' and oneDNN's fp32 matmuls inside, and restore it afterwards.

    By the older of PyTorch's interfaces, which sets the newer one too. Inductor asks the older when
    it tries kernels, and gets an error where the two disagree.
    """
    import torch

    matmuls = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    newer = [matmul.fp32_precision for matmul in matmuls]
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # they disagree already: whoever calls us has set the newer one alone
        older = "highest"
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older)
        for matmul, before in zip(matmuls, newer, strict=True):
            matmul.fp32_precision = before

"""An Intel Gaudi card, through its plugin ``habana_frameworks.torch``.

Written from the plugin's sources and documents, and tried on a simulated card; it has not met a
real one yet. docs/gaudi.md says what that leaves open.
"""

from __future__ import annotations

import math
import os
import sys
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from bert_infer.batching.layouts import PackedBatch
from bert_infer.devices import Device, variables
from bert_infer.devices.hpu import hlml, host, modes, plugin
from bert_infer.devices.overlap import kept
from bert_infer.errors import OptionError, RefusedError
from bert_infer.graphs.hpu_graphs import HpuGraphs
from bert_infer.machine import package_version
from bert_infer.operators import attention

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bert_infer.batching.layouts import Batch
    from bert_infer.devices.overlap import Overlap
    from bert_infer.devices.readings import Reading
    from bert_infer.dtypes.fp8 import Fp8
    from bert_infer.engines import Encode
    from bert_infer.graphs import CompileMode, Graph
    from bert_infer.models.architecture import Architecture
    from bert_infer.operators.attention import Attention

    Layout = tuple[tuple[bool, tuple[int, ...]], ...]

_MODULES = "HABANA_VISIBLE_MODULES"
_KERNELS = "GC_KERNEL_PATH"
_OP_LISTS = {
    "lower_precision_ops": "PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST",
    "fp32_ops": "PT_HPU_AUTOCAST_FP32_OPS_LIST",
}
_PREFERRED = {
    "PT_HPU_ENABLE_CACHE_METRICS": "1",  # or recipe-cache hits are not counted
    "PT_HPU_WEIGHT_SHARING": "0",  # or quantised weights take memory twice, which it prints
}


@dataclass(frozen=True)
class Hpu(Device):
    """An Intel Gaudi card.

    Attributes:
        module: the card's module id; None takes one that is free.
        lazy: operators are gathered into graphs before they run; None: as the graph mode needs.
        fused_attention: attention is Gaudi's own kernel rather than PyTorch's.
        lower_precision_ops: a file with the operators that autocast runs in bfloat16.
        fp32_ops: a file with those that it runs in float32.
        in_flight: forwards submitted before the first is waited for.
    """

    module: int | None = None
    lazy: bool | None = None
    fused_attention: bool = True
    lower_precision_ops: str | None = None
    fp32_ops: str | None = None
    in_flight: int = 1

    name = "hpu"
    imports: ClassVar[tuple[str, ...]] = plugin.IMPORTS
    graphs = (HpuGraphs,)
    has_inductor: ClassVar[bool] = False
    keeps_mask: ClassVar[bool] = True
    profiles: ClassVar[tuple[str, ...]] = ("CPU", "HPU")

    def __post_init__(self) -> None:
        if self.module is not None and self.module < 0:
            raise OptionError("module", self.module, "null or a whole number from 0")
        if self.in_flight < 1:
            raise OptionError("in_flight", self.in_flight, "a whole number from 1")

    def formats(self) -> frozenset[str]:
        """Return fp16 and fp8 from the second generation on."""
        later = {"fp16", "fp8"} if host.generation() != 1 else set()
        return frozenset({"fp32", "bf16"} | later)

    def torch_device(self) -> torch.device:
        """Return PyTorch's name for the one card that a process sees."""
        import torch

        return torch.device("hpu")

    def check(self) -> None:
        """Refuse what ``host.check`` does, missing files, and a card that is taken."""
        host.check()
        for field in _OP_LISTS:
            path = getattr(self, field)
            if path is not None and not os.path.isfile(path):  # noqa: PTH113  as the plugin reads
                raise OptionError(f"device.{field}", path, "null or a file that is there")
        if others := self._holders():
            raise RefusedError(
                "device=hpu is refused: a Gaudi card serves one process at a time, and "
                f"{' and '.join(map(str, others))} has it.",
                self._when_taken(),
            )

    def check_beside(self, other: Device) -> None:
        """Refuse if the two could only share one card."""
        if isinstance(other, Hpu) and (
            len(host.cards()) == 1 or (self.module is not None and self.module == other.module)
        ):
            raise RefusedError(
                "Both ask for one Gaudi card at once, and a card serves one process at a time.",
                "Make a sweep of the two (--multirun), or give each a card of its own: "
                "device.module.",
            )

    def check_graph(self, graph: Graph) -> None:
        """Refuse a mode that contradicts ``lazy``, the environment, or the torch installed."""
        modes.check(graph, asked=self.lazy)
        variables.check(self.variables(graph))

    def variables(self, graph: Graph) -> Mapping[str, str]:
        """Return variables for the mode, the card, autocast's lists, and the plugin's own needs."""
        wanted = {modes.VARIABLE: str(int(modes.is_lazy(graph, asked=self.lazy)))}
        if self.module is not None:
            wanted[_MODULES] = str(self.module)
        for field, name in _OP_LISTS.items():
            path = getattr(self, field)
            if path is not None:
                wanted[name] = os.path.abspath(path)  # noqa: PTH100  as the plugin reads
        if plugin.NAME not in sys.modules:
            preferred = dict(_PREFERRED)
            if host.KERNELS.is_file():
                preferred[_KERNELS] = str(host.KERNELS)  # without it no graph compiles
            wanted |= {name: os.environ.get(name, value) for name, value in preferred.items()}
        return wanted

    @contextmanager
    def active(self) -> Iterator[None]:
        """Take the card, and prepare it for inference."""
        with ExitStack() as stack:
            try:
                stack.enter_context(plugin.inference())
            except RuntimeError as error:
                others = " and ".join(map(str, self._holders()))
                raise RefusedError(
                    f"device=hpu is refused: the card cannot be had ({error}).",
                    f"{others} has it. {self._when_taken()}"
                    if others
                    else "Look at hl-smi and dmesg.",
                ) from error
            yield

    def copy_in(self, arrays: tuple[NDArray[np.generic], ...]) -> tuple[Any, ...]:
        """Copy ``arrays`` to the card as one int32 tensor; return it, and how ``fed`` splits it."""
        import numpy as np
        import torch

        flat = np.concatenate([array.ravel().astype(np.int32, copy=False) for array in arrays])
        layout = tuple((array.dtype.kind == "b", array.shape) for array in arrays)
        return torch.from_numpy(flat).to(self.torch_device(), non_blocking=True), layout

    def fed(self, encode: Encode) -> Encode:
        """Return ``encode`` for what ``copy_in`` returns; splitting it becomes part of a graph."""
        import torch

        def parted(packed: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
            sizes = [math.prod(shape) for _, shape in layout]
            parts = zip(torch.split(packed, sizes), layout, strict=True)
            tensors = (
                part.view(shape).bool() if is_mask else part.view(shape)
                for part, (is_mask, shape) in parts
            )
            return encode(*tensors)

        return parted

    def overlap(self) -> Overlap:
        """Return the card's streams."""
        return plugin.overlap()

    def synchronize(self) -> None:
        """Send off what lazy mode has gathered, and wait for the card."""
        plugin.synchronize()

    def preferred_graph(self) -> Graph:
        """Return HPU graphs."""
        return HpuGraphs()

    def compile(self, encode: Encode, shapes: int, mode: CompileMode) -> Encode:
        """Return ``encode`` compiled by the plugin's backend, for each shape separately."""
        del mode
        return plugin.compiled(encode, shapes)

    def capture(self, encode: Encode, *, asynchronous: bool, most: int) -> Encode:
        """Return ``encode`` wrapped in HPU graphs; results are cloned where two are in flight."""
        recorded = plugin.recorded(encode, asynchronous=asynchronous, most=most)
        return kept(recorded) if self.in_flight > 1 else recorded

    def finish(self, module: torch.nn.Module, *, scales_only: bool) -> None:
        """Mark weights as constants, which lazy mode's compiler makes use of."""
        if modes.is_lazy_now():
            plugin.mark_constant(module, scales_only=scales_only)

    def fp32_precision(self, precision: str) -> AbstractContextManager[None]:
        """Return a context that does nothing: float32 is float32 here."""
        del precision
        return nullcontext()

    def reset_peak_memory(self) -> None:
        """Start counting ``peak_memory`` anew."""
        plugin.reset_peak_memory()

    def peak_memory(self) -> int | None:
        """Return the most memory that tensors took, in bytes; None if unknown."""
        return plugin.memory("MaxInUse")

    def reading(self) -> Reading:
        """Return the power and the like of this process' card, and the plugin's metrics."""
        of_card = hlml.reading(host.own_card())
        return replace(of_card, counters=plugin.counters(of_card.gauges.get("energy_j")))

    def describe(self) -> dict[str, Any]:
        """Return the card's name and generation, versions, mode, and its variables."""
        seen = ("PT_", "HABANA_", "HLS_", "ENABLE_", _KERNELS)
        return {
            "name": plugin.device_name(),
            "generation": host.generation(),
            "cards": len(host.cards()),
            "memory_bytes": plugin.memory("Limit"),
            "driver": hlml.driver_version(),
            "plugin": package_version("habana-torch-plugin"),
            "neural_compressor": package_version("neural_compressor_pt"),
            "lazy": modes.is_lazy_now(),
            "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(seen)},
        }

    def fp8(self, asked: Fp8) -> Fp8:
        """Return neural_compressor's two steps."""
        from bert_infer.devices.hpu.fp8 import Converted

        return Converted.of(asked)

    def attention(self, dtype: torch.dtype, architecture: Architecture) -> Attention:
        """Return attention by a mask: nothing there depends on a value, so graphs can hold it."""
        del dtype, architecture
        return attention.ByMask(plugin.fused_sdpa if self.fused_attention else plugin.sdpa)

    def tokens_at_once(self, layout: type[Batch]) -> int:
        """Return few where one mask spans all tokens of a forward; not tried on a card."""
        return super().tokens_at_once(layout) if issubclass(layout, PackedBatch) else 16_384

    def attention_of_rows(self) -> str:
        """Return the name under which Gaudi's kernel is made known to transformers, or "sdpa"."""
        if self.fused_attention:
            return plugin.name_for_transformers()
        return super().attention_of_rows()

    def mask(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return a mask to add: 0 at real tokens, the format's lowest number elsewhere."""
        import torch

        zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        return zeros.masked_fill(~mask, torch.finfo(dtype).min)

    def _holders(self) -> tuple[host.Holder, ...]:
        """Return the other processes because of which no card is left, or not the one asked for."""
        others = host.holders()
        if len({node for other in others for node in other.nodes}) >= len(host.cards()):
            return others
        if self.module is None:
            return ()
        return tuple(o for o in others if self.module in map(host.module_of, o.nodes))

    def _when_taken(self) -> str:
        return "Wait until it ends" + (
            ", or choose another card: device.module." if len(host.cards()) > 1 else "."
        )

"""CUDA graphs: each bucket's forward is recorded once on an NVIDIA GPU, and replayed after that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bert_infer.errors import RefusedError
from bert_infer.graphs import Eager, Graph
from bert_infer.graphs.recorded import Recorded

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from bert_infer.architecture import Architecture
    from bert_infer.batching import Batching
    from bert_infer.devices import Device
    from bert_infer.engines import Encode
    from bert_infer.layouts import Batch, Group, Shape

LAUNCHES_PER_LAYER = 12
"""Kernels of a layer: six matmuls, attention, GELU, two sums, two LayerNorms. Counted in BertModel;
the fused engine has fewer."""
LAUNCH_S = 5e-6
"""What the host takes for one: PyTorch's dispatch and the launch itself. An order of magnitude that
is often stated; not measured here."""
FLOP_PER_S = 989e12
"""NVIDIA's data sheet, H100 and H200 SXM, dense bf16. No card reaches it, and slower ones compute
longer: so graphs are taken rather too often, which costs their recording, than too seldom."""


@dataclass(frozen=True)
class CudaGraphs(Recorded):
    """Forwards recorded by the CUDA runtime, all in one pool of memory."""

    name = "cuda_graphs"
    home: ClassVar[tuple[str, str]] = ("NVIDIA GPUs have CUDA graphs", "device=cuda")

    @property
    def first_forwards(self) -> int:
        """One, which warms up, records and replays."""
        return 1

    def wrap(self, encode: Encode, shapes: Collection[Shape], device: Device) -> Encode:
        """Record each shape when it first comes; a replay never waits for the card."""
        return device.capture(encode, asynchronous=True, most=self.most(shapes))


@dataclass(frozen=True)
class ByShape(Graph):
    """CUDA graphs where launching a pass' kernels takes the host longer than the card computes."""

    name = "auto"

    def settled(
        self,
        groups: Sequence[Group],
        lengths: NDArray[np.int64],
        batching: Batching,
        layout: type[Batch],
        architecture: Architecture,
    ) -> Graph:
        """Compare the two for these groups; eager too where they are too many shapes to record."""
        launches = len(groups) * architecture.layers * LAUNCHES_PER_LAYER
        if launches * LAUNCH_S < architecture.useful_flop(lengths) / FLOP_PER_S:
            return Eager()
        graphs = CudaGraphs()
        try:
            graphs.buckets(groups, lengths, batching, layout, architecture.max_length)
        except RefusedError:
            return Eager()
        return graphs

    def wrap(self, encode: Encode, shapes: Collection[Shape], device: Device) -> Encode:
        """Never called: the Runner settles first."""
        raise NotImplementedError

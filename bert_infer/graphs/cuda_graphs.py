"""CUDA graphs: each bucket's forward is recorded once on an NVIDIA GPU, and replayed after that."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bert_infer.errors import RefusedError
from bert_infer.graphs import Eager, Graph, Work
from bert_infer.graphs.recorded import Recorded

if TYPE_CHECKING:
    from collections.abc import Collection

    from bert_infer.batching.groups import Shape
    from bert_infer.devices import Device
    from bert_infer.engines import Encode
    from bert_infer.graphs.buckets import Buckets

LAYER_S = 680e-6
"""Host time to launch a layer of the fused engine in fp8, on an H200's noisy machine: a prompt's
forward, of 24 layers, took 16.3 ms (benchmarks/results/2026-11-26-nvidia-h200.json). It is the
longest measured there: bf16 took 235 to 320 us, transformers' engine 360 to 394."""
FLOP_PER_S = 783e12
"""The highest rate of useful FLOP measured there, in fp8 as well. Other formats take the host less
time and the card more, so the comparison errs towards graphs: one too many costs its recording."""


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
class CudaGraphsIfFaster(CudaGraphs):
    """CUDA graphs where the host takes longer to launch a pass than the card to compute it."""

    def settled(self, work: Work) -> tuple[Graph, Buckets]:
        """Compare the two times for ``work``; eager also where it has too many shapes."""
        host_s = len(work.groups) * work.architecture.layers * LAYER_S
        if host_s >= work.architecture.useful_flop(work.lengths) / FLOP_PER_S:
            with suppress(RefusedError):
                return super().settled(work)
        return Eager().settled(work)

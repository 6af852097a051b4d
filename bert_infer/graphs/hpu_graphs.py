"""HPU graphs: each bucket's forward is recorded once on a Gaudi card, and replayed after that."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from bert_infer import buckets
from bert_infer.errors import OptionError, RefusedError
from bert_infer.graphs import Graph, distinct

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from bert_infer.batching import Batching
    from bert_infer.buckets import Buckets
    from bert_infer.devices import Device
    from bert_infer.engines import Encode
    from bert_infer.layouts import Batch, Group, Shape


@dataclass(frozen=True)
class HpuGraphs(Graph):
    """Recorded forwards, one a bucket.

    Attributes:
        edges: what widths are rounded up to; none leaves them as batching makes them.
        max_buckets: the warm-up's budget: as many buckets are recorded at most.
        max_graphs: as many recordings are kept, further buckets run without; None keeps all.
        asynchronous: a replay returns before the card has finished.
    """

    edges: list[int] = field(default_factory=list)
    max_buckets: int = 16
    max_graphs: int | None = None
    asynchronous: bool = False

    name = "hpu_graphs"
    # The first records; the second replays, which costs more the first time than later.
    first_forwards: ClassVar[int] = 2
    keeps_mask: ClassVar[bool] = True

    def __post_init__(self) -> None:
        edges = tuple(self.edges)
        if any(edge < 1 for edge in edges) or any(a >= b for a, b in pairwise(edges)):
            raise OptionError("edges", list(edges), "increasing whole numbers from 1, or none: []")
        object.__setattr__(self, "edges", edges)
        if self.max_buckets < 1:
            raise OptionError("max_buckets", self.max_buckets, "a whole number from 1")
        if self.max_graphs is not None and self.max_graphs < 1:
            raise OptionError("max_graphs", self.max_graphs, "null or a whole number from 1")

    def check(self, device: Device) -> None:
        """Refuse a device that does not record graphs of this kind."""
        if self.name not in device.graphs:
            raise RefusedError(
                f"graph={self.name} is refused on device={device.name}: only Gaudi cards have HPU "
                "graphs.",
                "Use graph=auto, graph=eager or graph=compile, or device=hpu.",
            )

    def buckets(
        self,
        groups: Sequence[Group],
        lengths: NDArray[np.int64],
        batching: Batching,
        layout: type[Batch],
        limit: int,
    ) -> Buckets:
        """Return a bucket for each width, if these are not too many to be recorded."""
        edges = sorted({min(edge, limit) for edge in self.edges})
        found = buckets.of(groups, lengths, layout, edges)
        if len(found) > self.max_buckets:
            fitting = ",".join(map(str, buckets.fitting_edges(lengths, self.max_buckets, limit)))
            raise RefusedError(
                f"graph={self.name} is refused: batching={batching.name} makes {len(found)} widths "
                f"of this input, and each has to be recorded; graph.max_buckets="
                f"{self.max_buckets} is the warm-up's budget.",
                f"Set graph={self.name} graph.edges=[{fitting}], to which widths are rounded up, "
                "or raise graph.max_buckets (a large model takes many seconds a bucket).",
            )
        return found

    def without_graph(self, shapes: Collection[Shape]) -> int:
        """Return how many shapes ``max_graphs`` leaves out."""
        return max(0, distinct(shapes) - (self.max_graphs or distinct(shapes)))

    def wrap(self, encode: Encode, shapes: Collection[Shape], device: Device) -> Encode:
        """Record each shape when it first comes."""
        return device.capture(
            encode,
            asynchronous=self.asynchronous,
            most=self.max_graphs or distinct(shapes),
        )

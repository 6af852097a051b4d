"""The base of graph modes that record a shape's forward once, and replay it after that."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from bert_infer.errors import OptionError, RefusedError
from bert_infer.graphs import Graph, distinct
from bert_infer.graphs.buckets import Buckets

if TYPE_CHECKING:
    from collections.abc import Collection

    from bert_infer.batching.groups import Shape
    from bert_infer.devices import Device
    from bert_infer.graphs import Work


@dataclass(frozen=True)
class Recorded(Graph):
    """Recorded forwards, one a bucket.

    Attributes:
        edges: what widths, or token counts where nothing is padded, are rounded up to. Without
            any, widths stay as batching makes them, and token counts get evenly spaced edges.
        max_buckets: the warm-up's budget: buckets that may be recorded, at most.
        max_graphs: recordings kept; further buckets run without one. None keeps all.
        home: the devices that have this mode, in words, and how they are asked for.
    """

    edges: tuple[int, ...] = ()
    max_buckets: int = 16
    max_graphs: int | None = None

    keeps_mask: ClassVar[bool] = True
    home: ClassVar[tuple[str, str]]

    def __post_init__(self) -> None:
        edges = self.edges
        if any(edge < 1 for edge in edges) or any(a >= b for a, b in pairwise(edges)):
            raise OptionError("edges", list(edges), "increasing whole numbers from 1, or none: []")
        if self.max_buckets < 1:
            raise OptionError("max_buckets", self.max_buckets, "a whole number from 1")
        if self.max_graphs is not None and self.max_graphs < 1:
            raise OptionError("max_graphs", self.max_graphs, "null or a whole number from 1")

    def check(self, device: Device) -> None:
        """Refuse a device that does not record graphs of this kind."""
        if isinstance(self, device.graphs):
            return
        who, elsewhere = self.home
        names = (*(graph.name for graph in device.graphs), "auto", "eager", "compile")
        here = [f"graph={name}" for name in names]
        raise RefusedError(
            f"graph={self.name} is refused on device={device.name}: only {who}.",
            f"Use {', '.join(here[:-1])} or {here[-1]}, or {elsewhere}.",
        )

    def settled(self, work: Work) -> tuple[Graph, Buckets]:
        """Return a bucket for each extent, if there are not too many to record."""
        groups, lengths, layout = work.groups, work.lengths, work.layout
        limit = work.architecture.max_length
        fitting = layout.fitting_edges(groups, lengths, self.max_buckets, limit)
        found = Buckets.of(groups, lengths, layout, layout.edges(self.edges, fitting, limit))
        if len(found) > self.max_buckets:
            raise RefusedError(
                f"graph={self.name} is refused: batching={work.batching.name} makes {len(found)} "
                f"{layout.extents} of this input, and each has to be recorded; graph.max_buckets="
                f"{self.max_buckets} is the warm-up's budget.",
                f"Set graph={self.name} graph.edges=[{','.join(map(str, fitting))}], to which "
                f"{layout.extents} are rounded up, or raise graph.max_buckets (a large model takes "
                "many seconds a bucket).",
            )
        return self, found

    def without_graph(self, shapes: Collection[Shape]) -> int:
        """Return how many shapes ``max_graphs`` leaves out."""
        return distinct(shapes) - self.most(shapes)

    def most(self, shapes: Collection[Shape]) -> int:
        """Return how many recordings of ``shapes`` are kept."""
        return min(self.max_graphs or distinct(shapes), distinct(shapes))

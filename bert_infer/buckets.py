"""Few shapes for devices that compile each: groups are filled up to the largest of their bucket.

A bucket is a width. Its batches all get as many rows as the fullest of them, and widths are
rounded up to edges where batching makes too many of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping  # noqa: TC003  a dataclass's field
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bert_infer.layouts import Group, PackedBatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from bert_infer.layouts import Batch

_EDGE_MULTIPLE = 32


@dataclass(frozen=True)
class Buckets:
    """What groups are filled up to; without any bucket they stay as they are.

    Attributes:
        edges: what widths are rounded up to; none leaves them.
        sizes: for each width the rows, and the slots in a layout without padding.
    """

    edges: tuple[int, ...] = ()
    sizes: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sizes)

    def fill(self, group: Group) -> Group:
        """Return ``group`` with the size of its bucket."""
        if not self.sizes:
            return group
        width = rounded_up(group.width, self.edges)
        return Group(group.sequences, width, *self.sizes[width])


def of(
    groups: Iterable[Group],
    lengths: NDArray[np.int64],
    layout: type[Batch],
    edges: Iterable[int] = (),
) -> Buckets:
    """Return the buckets that hold ``groups``, those of one pass.

    Args:
        groups: as batching made them.
        lengths: ``int64 [sequences]``, real tokens of each.
        layout: how the engine lays them out.
        edges: what widths are rounded up to, ascending; none leaves them.
    """
    edges = tuple(edges)
    packs = issubclass(layout, PackedBatch)
    sizes: dict[int, tuple[int, int]] = {}
    for group in groups:
        width = rounded_up(group.width, edges)
        rows, slots = sizes.get(width, (0, 0))
        tokens = int(lengths[group.sequences].sum()) if packs else 0
        sizes[width] = max(rows, len(group.sequences)), max(slots, tokens)
    return Buckets(edges, sizes)


def rounded_up(width: int, edges: Sequence[int]) -> int:
    """Return the first of ``edges`` that holds ``width``; one beyond all of them stays."""
    place = bisect_left(edges, width)
    return edges[place] if place < len(edges) else width


def fitting_edges(lengths: NDArray[np.int64], most: int, limit: int) -> list[int]:
    """Return ``most`` edges at most, none above ``limit``, that hold ``lengths``: quantiles."""
    quantiles = np.quantile(lengths, np.linspace(0, 1, most + 1)[1:], method="higher")
    edges = -(-quantiles.astype(np.int64) // _EDGE_MULTIPLE) * _EDGE_MULTIPLE
    return [int(edge) for edge in np.unique(np.minimum(edges, limit))]

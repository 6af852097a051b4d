"""Few shapes for devices that compile or record each: groups are filled up to their bucket's size.

A bucket holds groups of one extent: a width or, in a layout without padding, a number of tokens.
Extents are rounded up to edges where there would be too many of them. All batches of a bucket get
as many rows, and tokens, as the fullest of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence  # noqa: TC003  a dataclass's fields
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from bert_infer.batching.groups import Group

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from bert_infer.batching.groups import Size
    from bert_infer.batching.layouts import Batch


@dataclass(frozen=True)
class Buckets:
    """What groups are filled up to; without any bucket they stay as they are.

    Attributes:
        layout: of the batches, whose extents are rounded up.
        edges: what extents are rounded up to; without any they stay as they are.
        sizes: what the groups of each rounded extent are filled up to.
    """

    layout: type[Batch]
    edges: Sequence[int] = ()
    sizes: Mapping[int, Size] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        groups: Iterable[Group],
        lengths: NDArray[np.int64],
        layout: type[Batch],
        edges: Sequence[int] = (),
    ) -> Self:
        """Return the buckets that hold ``groups``, those of one pass.

        Args:
            groups: as batching made them.
            lengths: ``int64 [sequences]``, real tokens of each.
            layout: as above.
            edges: ascending.
        """
        members: dict[int, list[Group]] = defaultdict(list)
        for group in groups:
            members[_rounded_up(layout.extent_of(group, lengths), edges)].append(group)
        sizes = {
            extent: layout.size_of(extent, found, lengths) for extent, found in members.items()
        }
        return cls(layout, edges, sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def fill(self, group: Group, lengths: NDArray[np.int64]) -> Group:
        """Return ``group`` with the size of its bucket, given ``lengths`` of all sequences."""
        if not self.sizes:
            return group
        extent = _rounded_up(self.layout.extent_of(group, lengths), self.edges)
        return Group(group.sequences, *self.sizes[extent])


def _rounded_up(extent: int, edges: Sequence[int]) -> int:
    """Return the first of ``edges`` that holds ``extent``, or ``extent`` where none does."""
    place = bisect_left(edges, extent)
    return edges[place] if place < len(edges) else extent

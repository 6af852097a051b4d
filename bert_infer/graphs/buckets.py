"""Few shapes for devices that compile or record each: groups are filled up to their bucket's size.

A bucket holds groups of one extent: a width or, in a layout without padding, a number of tokens.
Extents are rounded up to edges where there would be too many of them. All batches of a bucket get
as many rows, and tokens, as the fullest of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping  # noqa: TC003  a dataclass's field
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bert_infer.batching.groups import Group

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from bert_infer.batching.extents import Extents
    from bert_infer.batching.groups import Size


@dataclass(frozen=True)
class Buckets:
    """What groups are filled up to; without any bucket they stay as they are.

    Attributes:
        extents: what of a group is rounded up.
        edges: what extents are rounded up to; without any they stay as they are.
        sizes: what the groups of each rounded extent are filled up to.
    """

    extents: type[Extents]
    edges: tuple[int, ...] = ()
    sizes: Mapping[int, Size] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sizes)

    def fill(self, group: Group, lengths: NDArray[np.int64]) -> Group:
        """Return ``group`` with the size of its bucket, given ``lengths`` of all sequences."""
        if not self.sizes:
            return group
        extent = rounded_up(self.extents.of(group, lengths), self.edges)
        return Group(group.sequences, *self.sizes[extent])


def of(
    groups: Iterable[Group],
    lengths: NDArray[np.int64],
    extents: type[Extents],
    edges: Iterable[int] = (),
) -> Buckets:
    """Return the buckets that hold ``groups``, those of one pass.

    Args:
        groups: as batching made them.
        lengths: ``int64 [sequences]``, real tokens of each.
        extents: what of them is rounded up.
        edges: what extents are rounded up to, ascending; without any they stay as they are.
    """
    edges = tuple(edges)
    members: dict[int, list[Group]] = defaultdict(list)
    for group in groups:
        members[rounded_up(extents.of(group, lengths), edges)].append(group)
    sizes = {extent: extents.size(extent, found, lengths) for extent, found in members.items()}
    return Buckets(extents, edges, sizes)


def rounded_up(extent: int, edges: Sequence[int]) -> int:
    """Return the first of ``edges`` that holds ``extent``, or ``extent`` where none does."""
    place = bisect_left(edges, extent)
    return edges[place] if place < len(edges) else extent

"""What of a group's batch can be rounded up so that there are few shapes: its extent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bert_infer.batching.groups import Size

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from numpy.typing import NDArray

    from bert_infer.batching.groups import Group

_EDGE_MULTIPLE = 32


class Extents(ABC):
    """The extents of a layout's groups, and the edges to which they are rounded up.

    Attributes:
        name: what they are, in words.
    """

    name: ClassVar[str]

    @staticmethod
    @abstractmethod
    def of(group: Group, lengths: NDArray[np.int64]) -> int:
        """Return ``group``'s extent, given ``lengths`` of all sequences."""

    @staticmethod
    @abstractmethod
    def size(extent: int, groups: Iterable[Group], lengths: NDArray[np.int64]) -> Size:
        """Return the size to which all ``groups`` with this rounded ``extent`` are filled up."""

    @staticmethod
    @abstractmethod
    def fitting_edges(
        groups: Iterable[Group], lengths: NDArray[np.int64], most: int, limit: int
    ) -> list[int]:
        """Return edges that suit ``groups``, ascending.

        Args:
            groups: those of one pass.
            lengths: ``int64 [sequences]``, real tokens of each.
            most: how many edges, at most.
            limit: the widest that the model takes.
        """

    @staticmethod
    @abstractmethod
    def edges(asked: Collection[int], fitting: list[int], limit: int) -> list[int]:
        """Return the edges to use, given those that a user ``asked`` for, perhaps none."""


class Widths(Extents):
    """Of sequences padded to one width."""

    name = "widths"

    @staticmethod
    def of(group: Group, lengths: NDArray[np.int64]) -> int:
        """Return the width."""
        del lengths
        return group.width

    @staticmethod
    def size(extent: int, groups: Iterable[Group], lengths: NDArray[np.int64]) -> Size:
        """Return as many rows as the fullest group has."""
        del lengths
        return Size(extent, max(len(group.sequences) for group in groups))

    @staticmethod
    def fitting_edges(
        groups: Iterable[Group], lengths: NDArray[np.int64], most: int, limit: int
    ) -> list[int]:
        """Return quantiles of the rows' widths, rounded up to a multiple that suits devices."""
        del lengths
        widths = [group.width for group in groups for _ in group.sequences]
        quantiles = np.quantile(widths, np.linspace(0, 1, most + 1)[1:], method="higher")
        multiples = -(-quantiles.astype(np.int64) // _EDGE_MULTIPLE) * _EDGE_MULTIPLE
        return [int(edge) for edge in np.unique(np.minimum(multiples, limit))]

    @staticmethod
    def edges(asked: Collection[int], fitting: list[int], limit: int) -> list[int]:
        """Return only those asked for: wider means more padding, which is batching's choice."""
        del fitting
        return sorted({min(edge, limit) for edge in asked})


class TokenCounts(Extents):
    """Of sequences end to end: their tokens, all together."""

    name = "token counts"

    @staticmethod
    def of(group: Group, lengths: NDArray[np.int64]) -> int:
        """Return the number of tokens."""
        return int(lengths[group.sequences].sum())

    @staticmethod
    def size(extent: int, groups: Iterable[Group], lengths: NDArray[np.int64]) -> Size:
        """Return the fullest group's tokens, and rows for the sequences that fill up the others.

        No filling sequence is longer than the longest real one: if all filling tokens were one
        sequence, its attention would take longest of all.
        """
        del extent
        all_of_one = [lengths[group.sequences] for group in groups]
        longest = max(int(of_one.max()) for of_one in all_of_one)
        slots = max(int(of_one.sum()) for of_one in all_of_one)
        rows = max(
            len(of_one) + -(-(slots - int(of_one.sum())) // longest) for of_one in all_of_one
        )
        return Size(longest, rows, slots)

    @staticmethod
    def fitting_edges(
        groups: Iterable[Group], lengths: NDArray[np.int64], most: int, limit: int
    ) -> list[int]:
        """Return evenly spaced token counts, up to the largest.

        Groups have similar token counts, except for the last one.
        """
        del limit
        largest = max(TokenCounts.of(group, lengths) for group in groups)
        step = -(-largest // most)
        return [*range(step, largest, step), largest]

    @staticmethod
    def edges(asked: Collection[int], fitting: list[int], limit: int) -> list[int]:
        """Return ``fitting`` where none are asked for: nearly every group has its own count."""
        del limit
        return sorted(asked) or fitting

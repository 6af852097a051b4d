"""How the sequences of a batch lie in memory: as rows of a rectangle, or end to end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from bert_infer.batching.groups import Group, Shape, Size

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    import torch
    from numpy.typing import NDArray

    from bert_infer.records import Tokens


_EDGE_MULTIPLE = 32


class Kept(Enum):
    """Which of a sequence's tokens have final states."""

    all = "all"
    first = "first"

    def of(self, states: torch.Tensor) -> torch.Tensor:
        """Return those of a sequence's ``states [tokens, hidden]`` that are kept."""
        return states if self is Kept.all else states[:1]


@dataclass(frozen=True, eq=False)
class Batch(ABC):
    """What one forward pass takes.

    So that there are few shapes, one extent of a batch can be rounded up to edges.

    Attributes:
        sequences: ``int64 [sequences]``, which sequences of the pass these are.
        lengths: ``int64 [sequences]``, real tokens of each.
        token_ids: ``int32``, laid out as the class says.
        extents: what the extents are, in words.
        kept: which of a sequence's tokens have final states.
    """

    extents: ClassVar[str]
    kept: ClassVar[Kept] = Kept.all

    sequences: NDArray[np.int64]
    lengths: NDArray[np.int64]
    token_ids: NDArray[np.int32]

    @classmethod
    @abstractmethod
    def of(cls, group: Group, tokens: Tokens, pad_token_id: int) -> Self:
        """Return the batch that ``group`` describes."""

    @staticmethod
    @abstractmethod
    def shape_of(group: Group, lengths: NDArray[np.int64]) -> Shape:
        """Return the shape of ``group``'s batch, given ``lengths`` of all sequences."""

    @staticmethod
    @abstractmethod
    def extent_of(group: Group, lengths: NDArray[np.int64]) -> int:
        """Return the extent of ``group``'s batch, given ``lengths`` of all sequences."""

    @staticmethod
    @abstractmethod
    def size_of(extent: int, groups: Iterable[Group], lengths: NDArray[np.int64]) -> Size:
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
        """Return the edges to use, given those ``asked`` for, ascending, perhaps none."""

    @abstractmethod
    def states(self, hidden_states: torch.Tensor, index: int) -> torch.Tensor:
        """Return a view of the ``index``-th sequence's states: ``[length, hidden]``, or as kept."""

    @property
    def real_tokens(self) -> int:
        """Tokens that belong to a text."""
        return int(self.lengths.sum())

    @property
    def padded_tokens(self) -> int:
        """Slots computed, real or not."""
        return self.token_ids.size


@dataclass(frozen=True, eq=False)
class PaddedBatch(Batch):
    """Sequences as the rows of a rectangle, padded on the right: ``token_ids [rows, width]``."""

    extents: ClassVar[str] = "widths"

    @classmethod
    def of(cls, group: Group, tokens: Tokens, pad_token_id: int) -> Self:
        """Return the batch that ``group`` describes."""
        count = len(group.sequences)
        rows = np.full((max(count, group.rows), group.width), pad_token_id, np.int32)
        batch = cls(group.sequences, tokens.lengths[group.sequences], rows)
        rows[:count][batch.mask[:count]] = np.concatenate([tokens[s] for s in group.sequences])
        return batch

    @staticmethod
    def shape_of(group: Group, lengths: NDArray[np.int64]) -> Shape:
        """Return the rectangle's shape."""
        rows = max(len(group.sequences), group.rows)
        slots = rows * group.width
        return Shape(rows, slots, slots > int(lengths[group.sequences].sum()))

    @staticmethod
    def extent_of(group: Group, lengths: NDArray[np.int64]) -> int:
        """Return the width."""
        del lengths
        return group.width

    @staticmethod
    def size_of(extent: int, groups: Iterable[Group], lengths: NDArray[np.int64]) -> Size:
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

    def states(self, hidden_states: torch.Tensor, index: int) -> torch.Tensor:
        """Return a view of a row's real part; ``hidden_states [rows, width, hidden]``."""
        return hidden_states[index, : int(self.lengths[index])]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """``bool [rows, width]``, true at real tokens, and at the first slot of a filling row.

        A row that attends to nothing would be NaN, which some devices compute slowly.
        """
        rows, width = self.token_ids.shape
        lengths = np.ones(rows, np.int64)
        lengths[: len(self.lengths)] = self.lengths
        is_real: NDArray[np.bool_] = np.arange(width) < lengths[:, None]
        return is_real

    @property
    def has_padding(self) -> bool:
        """Whether any slot holds no real token."""
        return self.padded_tokens > self.real_tokens


@dataclass(frozen=True, eq=False)
class PackedBatch(Batch):
    """Sequences end to end, without padding: ``token_ids [tokens]``.

    Attributes:
        rows: how many sequences ``cu_seqlens`` has room for, at least; 0: only the real ones.
        width: tokens of a filling sequence.
    """

    extents: ClassVar[str] = "token counts"

    rows: int = 0
    width: int = 0

    @classmethod
    def of(cls, group: Group, tokens: Tokens, pad_token_id: int) -> Self:
        """Return the batch that ``group`` describes."""
        ids = np.concatenate([tokens[s] for s in group.sequences])
        if group.slots > len(ids):
            ids = np.pad(ids, (0, group.slots - len(ids)), constant_values=pad_token_id)
        return cls(group.sequences, tokens.lengths[group.sequences], ids, group.rows, group.width)

    @staticmethod
    def shape_of(group: Group, lengths: NDArray[np.int64]) -> Shape:
        """Return a slot for each token, filling ones included."""
        tokens = int(lengths[group.sequences].sum())
        rows, slots = max(len(group.sequences), group.rows), max(tokens, group.slots)
        return Shape(rows, slots, has_padding=slots > tokens)

    @staticmethod
    def extent_of(group: Group, lengths: NDArray[np.int64]) -> int:
        """Return the number of tokens."""
        return int(lengths[group.sequences].sum())

    @staticmethod
    def size_of(extent: int, groups: Iterable[Group], lengths: NDArray[np.int64]) -> Size:
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
        largest = max(PackedBatch.extent_of(group, lengths) for group in groups)
        step = -(-largest // most)
        return [*range(step, largest, step), largest]

    @staticmethod
    def edges(asked: Collection[int], fitting: list[int], limit: int) -> list[int]:
        """Return ``fitting`` where none are asked for: nearly every group has its own count."""
        del limit
        return list(asked) or fitting

    def states(self, hidden_states: torch.Tensor, index: int) -> torch.Tensor:
        """Return a view of a sequence's part of ``hidden_states [tokens, hidden]``."""
        start, end = self.cu_seqlens[index : index + 2].tolist()
        return hidden_states[start:end]

    @cached_property
    def cu_seqlens(self) -> NDArray[np.int32]:
        """``int32 [sequences + 1]``: sequence i is ``token_ids[cu_seqlens[i]:cu_seqlens[i + 1]]``.

        Cumulative sequence lengths, by the name that variable-length attention gives them. Where
        ``rows`` is larger than the batch, filling sequences of ``width`` tokens follow until all
        filling tokens belong to one, and then empty sequences.
        """
        ends = np.cumsum(self.lengths)
        filling = np.arange(1, max(0, self.rows - len(ends)) + 1) * self.width
        filled = np.minimum(ends[-1] + filling, len(self.token_ids))
        return np.concatenate([[0], ends, filled]).astype(np.int32)

    @property
    def positions(self) -> NDArray[np.int32]:
        """``int32 [tokens]``, each token's place in its sequence; 0 for filling tokens."""
        positions = np.zeros(len(self.token_ids), np.int32)
        starts = np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)
        positions[: len(starts)] = np.arange(len(starts)) - starts
        return positions

"""What one pass computes: texts, lengths, forwards, padding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from bert_infer.batching.groups import Group, Shape
    from bert_infer.records import Forward, Tokens


class WorkDone(NamedTuple):
    """What runs must have in common where their speed is compared.

    Attributes:
        input_sha256: a hash of the input's tokens.
        flop_per_sequence: useful FLOP of a sequence, on average.
    """

    input_sha256: str
    flop_per_sequence: float

    def is_same(self, other: WorkDone) -> bool:
        """Tell whether both did as much work a sequence, on the same input."""
        return self.input_sha256 == other.input_sha256 and math.isclose(
            self.flop_per_sequence, other.flop_per_sequence
        )

    def difference(self, other: WorkDone) -> str:
        """Return what the two differ in, to end a sentence with."""
        if math.isclose(self.flop_per_sequence, other.flop_per_sequence):
            return "their input differs"
        is_input = self.input_sha256 != other.input_sha256
        what = "input" if is_input else "model or max_length"
        mine, theirs = (work.flop_per_sequence / 1e9 for work in (self, other))
        return f"their {what} differs ({mine:.4g} and {theirs:.4g} useful GFLOP a sequence)"


@dataclass(frozen=True, eq=False)
class Workload:
    """What one pass computes.

    Attributes:
        lengths: ``int64 [sequences]``, real tokens of each.
        largest: the most sequences in one forward.
        padded_tokens: slots computed, real or not.
        unfilled_tokens: what they would be if the graph mode filled no batch up.
        has_one_shape: whether all its batches have the same.
        tokenize_s: seconds; None where token ids were drawn.
    """

    texts: int
    lengths: NDArray[np.int64]
    forwards: int
    largest: int
    padded_tokens: int
    unfilled_tokens: int
    truncated: int
    skipped: int
    has_one_shape: bool
    tokenize_s: float | None

    @classmethod
    def of(
        cls,
        tokens: Tokens,
        groups: Sequence[Group],
        shapes: Sequence[Shape],
        unfilled_tokens: int,
        tokenize_s: float | None,
    ) -> Workload:
        """Return what ``groups`` of ``tokens``, whose batches have ``shapes``, compute."""
        return cls(
            texts=tokens.texts,
            lengths=tokens.lengths,
            forwards=len(groups),
            largest=max(len(group.sequences) for group in groups),
            padded_tokens=sum(shape.slots for shape in shapes),
            unfilled_tokens=unfilled_tokens,
            truncated=tokens.truncated,
            skipped=tokens.skipped,
            has_one_shape=len(set(shapes)) == 1,
            tokenize_s=tokenize_s,
        )

    def of_complete_passes(self, forwards: list[Forward]) -> list[Forward]:
        """Return those of ``forwards`` that belong to complete passes.

        Batches of a pass differ: one that broke off would tell of its first ones alone.
        """
        return forwards[: len(forwards) // self.forwards * self.forwards]

    @property
    def real_tokens(self) -> int:
        """Tokens that belong to a text."""
        return int(self.lengths.sum())

    @property
    def padding_waste(self) -> float:
        """The part of the computed slots that is padding."""
        return 1 - self.real_tokens / self.padded_tokens

    @property
    def filling_waste(self) -> float:
        """The part of them that fills batches up to a size which the graph mode has recorded."""
        return 1 - self.unfilled_tokens / self.padded_tokens

"""What one pass computes: texts, lengths, forwards, padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bert_infer.groups import Shape


@dataclass(frozen=True, eq=False)
class Workload:
    """What one pass computes.

    Attributes:
        lengths: ``int64 [sequences]``, real tokens of each.
        largest: the most sequences in one forward.
        shapes: the distinct shapes of its batches.
        tokenize_s: seconds; None where token ids were drawn.
    """

    texts: int
    lengths: NDArray[np.int64]
    forwards: int
    largest: int
    padded_tokens: int
    truncated: int
    skipped: int
    shapes: tuple[Shape, ...]
    tokenize_s: float | None

    @property
    def real_tokens(self) -> int:
        """Tokens that belong to a text."""
        return int(self.lengths.sum())

    @property
    def padding_waste(self) -> float:
        """The part of the computed slots that is padding."""
        return 1 - self.real_tokens / self.padded_tokens

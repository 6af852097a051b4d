"""Random token ids whose lengths follow a stated distribution."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from bert_infer.configuration.settings import MOST
from bert_infer.errors import OptionError
from bert_infer.inputs import Input
from bert_infer.records import Tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bert_infer.tokens import Tokenizer


class Lengths(Enum):
    """How the lengths of synthetic sequences are distributed."""

    fixed = "fixed"
    uniform = "uniform"
    lognormal = "lognormal"


@dataclass(frozen=True)
class Synthetic(Input):
    """Random token ids, for a workload of which only the lengths matter."""

    texts: int
    lengths: Lengths
    mu: float
    sigma: float
    min: int
    max: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.texts <= MOST:
            raise OptionError("texts", self.texts, f"a whole number from 1 to {MOST}")
        if not 1 <= self.min <= self.max:
            raise OptionError("min", self.min, f"a whole number from 1 to input.max, {self.max}")
        if not 0 <= self.sigma < np.inf:
            raise OptionError("sigma", self.sigma, "a number from 0")
        if not np.isfinite(self.mu):
            raise OptionError("mu", self.mu, "a finite number")
        if self.seed < 0:
            raise OptionError("seed", self.seed, "a whole number from 0")

    def tokens(self, tokenizer: Tokenizer) -> Tokens:
        """Draw the sequences: the lengths first, then the ids.

        Raises:
            OptionError: sequences longer than the model takes.
        """
        if self.max > tokenizer.max_length:
            raise OptionError(
                "input.max", self.max, f"at most max_length, {tokenizer.max_length} tokens here"
            )
        generator = np.random.default_rng(self.seed)
        drawn: NDArray[np.number]
        match self.lengths:
            case Lengths.fixed:
                drawn = np.full(self.texts, self.max)
            case Lengths.uniform:
                drawn = generator.integers(self.min, self.max, self.texts, endpoint=True)
            case Lengths.lognormal:
                drawn = generator.lognormal(self.mu, self.sigma, self.texts).round()
        lengths = drawn.clip(self.min, self.max).astype(np.int64)
        # Ids from 1: id 0 is padding in every BERT vocabulary.
        ids = generator.integers(1, tokenizer.vocab_size, lengths.sum(), dtype=np.int32)
        return Tokens.of(ids, lengths)

"""The values at the top of the configuration, which belong to no group."""

from __future__ import annotations

from dataclasses import dataclass

from bert_infer.errors import OptionError


@dataclass(frozen=True)
class Settings:
    """How much is run, and how often."""

    batch: int
    iterations: int
    warmup: int | str
    max_length: int | None
    seed: int

    def __post_init__(self) -> None:
        for key in ("batch", "iterations"):
            if getattr(self, key) < 1:
                raise OptionError(key, getattr(self, key), "a whole number from 1")
        if self.warmup != "auto" and not (isinstance(self.warmup, int) and self.warmup >= 0):
            raise OptionError("warmup", self.warmup, "auto or a whole number from 0")
        if self.max_length is not None and (self.max_length < 0 or self.max_length in {1, 2}):
            raise OptionError(
                "max_length",
                self.max_length,
                "0 or null (the model's own), or a whole number from 3: two are special tokens",
            )
        if self.seed < 0:
            raise OptionError("seed", self.seed, "a whole number from 0")

    def longest(self, limit: int, model: str) -> int:
        """Return the tokens at which a text is truncated, for a ``model`` that takes ``limit``.

        Raises:
            OptionError: ``max_length`` is more than that.
        """
        if self.max_length and self.max_length > limit:
            raise OptionError(
                "max_length",
                self.max_length,
                f"at most {limit}, the longest sequence that {model} takes",
            )
        return self.max_length or limit

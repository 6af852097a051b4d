"""The values at the top of the configuration, which belong to no group."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bert_infer.errors import OptionError, RefusedError

MOST = 2**31 - 1
"""The largest number of sequences or passes: tensors and arrays count with 32 bits in places."""
MOST_TIMEOUT_S = 2_000_000
"""23 days: a single wait for a process counts milliseconds in 32 bits."""


@dataclass(frozen=True)
class Until:
    """When to stop measuring, past the first ``iterations`` passes.

    Attributes:
        relative_ci: half the 95 % confidence interval of throughput, over the throughput; None
            stops after ``iterations``.
        max_s: seconds of measured passes after which to stop all the same.
    """

    relative_ci: float | None = None
    max_s: float = 60

    def __post_init__(self) -> None:
        if self.relative_ci is not None and not 0 < self.relative_ci < 1:
            raise OptionError("relative_ci", self.relative_ci, "null or a number in (0, 1)")
        if not self.max_s > 0:
            raise OptionError("max_s", self.max_s, "seconds, more than 0")

    @property
    def imports(self) -> tuple[str, ...]:
        """The modules that computing the interval takes, imported in a phase of their own."""
        return () if self.relative_ci is None else ("scipy.stats",)


@dataclass(frozen=True)
class DriftSettings:
    """How outputs are compared with the reference's.

    Attributes:
        texts: how many texts at most; 0 leaves the comparison out.
        min_cosine: a smaller cosine, of any token, fails the run; None only reports.
    """

    texts: int
    min_cosine: float | None

    def __post_init__(self) -> None:
        if self.texts < 0:
            raise OptionError("texts", self.texts, "a whole number from 0")
        if self.min_cosine is not None and not -1 <= self.min_cosine <= 1:
            raise OptionError("min_cosine", self.min_cosine, "null or a number from -1 to 1")
        if self.min_cosine is not None and not self.texts:
            raise OptionError("texts", 0, "at least 1 where drift.min_cosine asks for a comparison")


@dataclass(frozen=True)
class Settings:
    """How much is run, and how often."""

    batch: int
    iterations: int
    warmup: int | str
    max_length: int | None
    seed: int
    profile: bool = False

    def __post_init__(self) -> None:
        for key in ("batch", "iterations"):
            if not 1 <= getattr(self, key) <= MOST:
                raise OptionError(key, getattr(self, key), f"a whole number from 1 to {MOST}")
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

    def longest(self, limit: int, preferred: int, model: str) -> int:
        """Return how many tokens a text is truncated to, for a ``model`` that takes ``limit``.

        Args:
            limit: the most that the model takes.
            preferred: the most that its tokenizer is set to, which may be more.
            model: its name.

        Raises:
            OptionError: ``max_length`` is more than ``limit``.
        """
        if self.max_length and self.max_length > limit:
            raise OptionError(
                "max_length",
                self.max_length,
                f"at most {limit}, the longest sequence that {model} takes",
            )
        return self.max_length or min(limit, preferred)


class Isolation(Enum):
    """Where a run executes."""

    auto = "auto"
    process = "process"
    inline = "inline"


class Order(Enum):
    """In which order a sweep's runs are made."""

    as_given = "as_given"
    random = "random"
    interleaved = "interleaved"


class IfChanged(Enum):
    """What a resumed sweep does with runs of other versions, another machine or another text."""

    refuse = "refuse"
    rerun = "rerun"
    keep = "keep"


OF_SWEEPS = ("fail_fast", "order", "repeats", "resume", "if_changed", "baseline")
"""Keys that only a sweep takes: its runs' own overrides are without them."""


@dataclass(frozen=True)
class SweepSettings:
    """How runs are carried out; none of it changes what a run computes.

    Attributes:
        isolation: auto is a process of its own for each run of a sweep, and none for a single run.
        timeout_s: seconds after which a run is ended; None: never.
        fail_fast: no run is started after one that failed.
        repeats: how many runs each configuration gets.
        resume: directory of the sweep to be completed.
        baseline: what the summary's speed-ups are relative to, as ``dtype=fp32 batch=1``.
    """

    isolation: Isolation
    timeout_s: float | None
    fail_fast: bool = False
    order: Order = Order.as_given
    repeats: int = 1
    resume: str | None = None
    if_changed: IfChanged = IfChanged.refuse
    baseline: str | None = None

    def __post_init__(self) -> None:
        if self.timeout_s is not None and not 0 < self.timeout_s <= MOST_TIMEOUT_S:
            allowed = f"null, which is never, or seconds, more than 0 and up to {MOST_TIMEOUT_S}"
            raise OptionError("timeout_s", self.timeout_s, allowed)
        if self.timeout_s is not None and self.isolation is Isolation.inline:
            raise OptionError(
                "isolation",
                "inline",
                "process or auto where timeout_s is set: a process can be ended",
            )
        if not 1 <= self.repeats <= MOST:
            raise OptionError("repeats", self.repeats, f"a whole number from 1 to {MOST}")

    def wants_process(self, *, has_variables: bool) -> bool:
        """Tell whether a single run gets a process of its own.

        Args:
            has_variables: it has variables of the environment, to be set before torch is imported:
                checking a run may have done that here.
        """
        needs_one = has_variables and self.isolation is not Isolation.inline
        return self.isolation is Isolation.process or self.timeout_s is not None or needs_one

    def check_single(self) -> None:
        """Refuse, for a single run, keys that only a sweep takes.

        Raises:
            RefusedError: naming the key.
        """
        for key in OF_SWEEPS:
            if getattr(self, key) != getattr(SweepSettings, key):  # the field's default
                raise RefusedError(
                    f"{key} belongs to a sweep, and this is a single run.", "Add --multirun."
                )

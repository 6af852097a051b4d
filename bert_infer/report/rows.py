"""The rows of a summary: repeats joined, and the best first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bert_infer.measuring import intervals
from bert_infer.measuring.intervals import Interval
from bert_infer.report.entries import asked

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bert_infer.report.entries import Entry

_THROUGHPUT = "throughput.sequences_per_s"
NOT_FINITE = "not_finite"
"""The warning of outputs that are infinite or no numbers."""
_OUTCOMES = ("iterations", "max_length", "weights")
"""Keys of ``choice`` that follow from other options, and so do not tell rows apart."""


@dataclass(frozen=True, eq=False)
class Row:
    """A configuration, and what its run or its repeats found.

    Attributes:
        entries: the repeats; one where it was run once.
        baseline: the row it is compared with, if there is one.
        speedup: its throughput over the baseline's.
        speedup_interval: 95 % interval of that; None for too few samples.
        same_work: whether both did the same work a sequence on the same input; None where that
            cannot be told.
    """

    entries: tuple[Entry, ...]
    baseline: Row | None = None
    speedup: float | None = None
    speedup_interval: Interval | None = None
    same_work: bool | None = None

    @property
    def entry(self) -> Entry:
        """The first of the repeats."""
        return self.entries[0]

    @property
    def drifts_by_first(self) -> bool:
        """Whether its drift is of each text's first token alone."""
        return self.entry.text("drift.tokens") == "first"

    @property
    def name(self) -> str:
        """The names of its directories."""
        return ", ".join(entry.name for entry in self.entries)

    @property
    def status(self) -> str:
        """The status of all its runs."""
        return self.entry.status

    @property
    def is_measured(self) -> bool:
        """Whether its runs were measured to their end and say how fast they were."""
        return self.entry.is_measured and self.sequences_per_s is not None

    @property
    def went_well(self) -> bool:
        """Whether they were, and their outputs are numbers, close enough to the reference's."""
        return self.is_measured and self.status == "ok" and NOT_FINITE not in self.warnings

    @property
    def rates(self) -> list[float]:
        """The throughput of each repeat, in sequences/s."""
        return [rate for rate in self._numbers(_THROUGHPUT) if rate > 0]

    @property
    def sequences_per_s(self) -> float | None:
        """Throughput, on average over the repeats."""
        return float(np.mean(self.rates)) if self.rates else None

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of throughput: between repeats, or within a run without repeats."""
        if len(self.entries) == 1:
            return self.entry.interval("throughput.sequences_per_s_ci95")
        return intervals.of_mean(np.array(self.rates))

    @property
    def spread(self) -> Interval | None:
        """Throughput of the slowest and the fastest repeat; None where it was run once."""
        return Interval(min(self.rates), max(self.rates)) if len(self.rates) > 1 else None

    @property
    def warnings(self) -> dict[str, list[Entry]]:
        """Which of its runs give each warning, by code."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            for code in dict.fromkeys(warning.code for warning in entry.warnings):
                found.setdefault(code, []).append(entry)
        return found

    def mean(self, key: str) -> float | None:
        """Return the mean over the repeats of a number of their records."""
        found = self._numbers(key)
        return float(np.mean(found)) if found else None

    def highest(self, key: str) -> float | None:
        """Return the highest over the repeats of a number of their records."""
        return max(self._numbers(key), default=None)

    def lowest(self, key: str) -> float | None:
        """Return the lowest over the repeats of a number of their records."""
        return min(self._numbers(key), default=None)

    def _numbers(self, key: str) -> list[float]:
        found = (entry.number(key) for entry in self.entries)
        return [number for number in found if number is not None]


def superseded(entries: Iterable[Entry]) -> list[Entry]:
    """Return the runs that came to nothing, and went well when they were made again.

    Args:
        entries: in the order in which they were made: one that went well before is a repeat.
    """
    found: list[Entry] = []
    content: set[str] = set()
    asked: set[tuple[str, ...]] = set()
    for entry in reversed(list(entries)):
        if entry.status == "ok":
            content.add(entry.content)
            asked.add(entry.overrides)
        elif (
            entry.problem
            and not entry.is_measured
            and (entry.content in content or (entry.is_buried and entry.overrides in asked))
        ):
            found.append(entry)
    return found


def joined(entries: Iterable[Entry]) -> list[Row]:
    """Return a row for each configuration, in the order of the runs.

    Runs that were measured to their end are repeats of one another if they computed the same with
    the same versions on the same machine; any other run is a row of its own.
    """
    found: dict[tuple[str | None, ...], list[Entry]] = {}
    for entry in entries:
        measured = (entry.status, entry.content, entry.text("run.environment_hash"))
        key = measured if entry.is_measured else (str(entry.directory),)
        found.setdefault(key, []).append(entry)
    return [Row(tuple(repeats)) for repeats in found.values()]


def best_first(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that went well by falling throughput, other measured ones, then the rest."""
    return sorted(
        rows,
        key=lambda row: (
            not row.is_measured,
            not row.went_well,
            -(row.sequences_per_s or 0) if row.is_measured else 0,
        ),
    )


def varied(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the options that tell rows apart, those that were asked for first."""
    resolved = [row.entry.options for row in rows]
    first = axes(rows)
    chosen = dict.fromkeys(
        k for row in rows for k in row.entry.section("choice") if k not in _OUTCOMES
    )
    return (*first, *(key for key in chosen if key not in first and _differs(key, resolved)))


def axes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the options whose overrides differ; without any, those whose resolved values do."""
    given = [found for row in rows if (found := asked(row.entry.overrides))]
    keys = dict.fromkeys(key for overrides in given for key in overrides)
    varying = tuple(key for key in keys if len({found.get(key) for found in given}) > 1)
    if varying:
        return varying
    chosen = dict.fromkeys(key for row in rows for key in row.entry.section("choice"))
    return tuple(key for key in chosen if _differs(key, [row.entry.options for row in rows]))


def _differs(key: str, options: Sequence[dict[str, str]]) -> bool:
    return len({found[key] for found in options if key in found}) > 1

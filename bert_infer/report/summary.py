"""What a sweep showed: its rows, and the answer to "which one, and why"."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bert_infer.report import directories, environments, figures, rows, speedups

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bert_infer.measuring.intervals import Interval
    from bert_infer.report.baseline import Baseline
    from bert_infer.report.entries import Entry
    from bert_infer.report.rows import Row


@dataclass(frozen=True, eq=False)
class Summary:
    """A sweep, or a single run.

    Attributes:
        directory: where it lies.
        rows: the best first; what went wrong, or is still going, last.
        varied: the options that tell the rows apart.
        baseline: what the rows are compared with, in words.
        superseded: how many runs did not end well, and did when they were made again.
    """

    directory: Path
    rows: tuple[Row, ...]
    varied: tuple[str, ...]
    baseline: str
    superseded: int

    @property
    def common(self) -> dict[str, str]:
        """The options that all rows share."""
        everything = [row.entry.options for row in self.rows if row.entry.options]
        return {
            key: value
            for key, value in (everything[0].items() if everything else ())
            if key not in self.varied and all(options.get(key) == value for options in everything)
        }

    @property
    def ranked(self) -> list[Row]:
        """The rows that went well and say how fast they were, the fastest first."""
        return [row for row in self.rows if row.went_well]

    @property
    def measured(self) -> list[Row]:
        """The rows that were measured to their end, those that drifted too far among them."""
        return [row for row in self.rows if row.is_measured]

    @property
    def best(self) -> Row | None:
        """The fastest that went well."""
        return next(iter(self.ranked), None)

    @property
    def problems(self) -> list[Row]:
        """The rows that something is wrong with."""
        return [row for row in self.rows if row.entry.problem]

    @property
    def elsewhere(self) -> str:
        """In what the environments of runs differ that computed the same; empty if they do not."""
        by_content: dict[str, list[Entry]] = {}
        for row in self.rows:
            if row.is_measured:
                by_content.setdefault(row.entry.content, []).append(row.entry)
        facts: dict[str, dict[str, list[str]]] = {}
        for same in by_content.values():
            for key, values in environments.differences(same):
                for value, names in values.items():
                    facts.setdefault(key, {}).setdefault(value, []).extend(names)
        found = [
            f"{key} is "
            + " and ".join(f"{value} in run {', '.join(names)}" for value, names in values.items())
            for key, values in facts.items()
        ]
        return f"No repeats, though the same was computed: {'; '.join(found)}." if found else ""

    @property
    def counts(self) -> Counter[str]:
        """How many runs have each status; every repeat counts."""
        return Counter(entry.status for row in self.rows for entry in row.entries)

    @property
    def warnings(self) -> list[Warned]:
        """Every warning, with the runs that give it."""
        found: dict[str, list[Entry]] = {}
        for row in self.rows:
            for code, entries in row.warnings.items():
                found.setdefault(code, []).extend(entries)
        return [Warned(code, tuple(entries)) for code, entries in found.items()]

    def label(self, row: Row) -> str:
        """Return what tells ``row`` apart: its varied options, or its name where none is."""
        return labelled(row.entry.options, self.varied) or f"run {row.name}"

    @property
    def headline(self) -> str:
        """Which is the fastest, in a line."""
        if not self.best:
            return "No run was measured to its end yet." if self.unfinished else "No run went well."
        rate = figures.number(self.best.sequences_per_s)
        interval = figures.between(self.best.interval)
        sure = f" (95 %: {interval})" if interval else ""
        if len(self.rows) == 1:
            return f"{rate} sequences/s{sure}"
        return f"Fastest: {self.label(self.best)}, {rate} sequences/s{sure}"

    @property
    def unfinished(self) -> list[Row]:
        """The rows that are still going."""
        return [row for row in self.rows if row.status == directories.RUNNING]

    @property
    def reasons(self) -> list[str]:
        """Why it is the fastest, and how far to trust that, a sentence each."""
        best = self.best
        if not best:
            return []
        found = [self._gain(best), self._lead(best), drift_sentence(best)]
        if len(best.entries) > 1:
            paired = best.baseline and speedups.are_paired(best, best.baseline)
            found.append(
                f"The mean of {len(best.entries)} repeats, which reached "
                f"{figures.between(best.spread)}"
                + ("; ratios are geometric means over the rounds." if paired else ".")
            )
        return [sentence for sentence in found if sentence]

    @property
    def doubts(self) -> str:
        """The warnings of the best run and its baseline; empty if there are none."""
        best = self.best
        base = best.baseline if best else None
        found = [f"Its warnings: {_codes(best)}." if best and best.warnings else ""]
        if best and base and base.warnings and base.entry is not best.entry:
            found.append(f"Its baseline's: {_codes(base)}.")
        return " ".join(found).strip()

    def _gain(self, best: Row) -> str:
        if best.baseline is None or best.speedup is None:
            return "It has no baseline." if len(self.rows) > 1 else ""
        if best.entry is best.baseline.entry:
            return "It is the baseline itself." if len(self.rows) > 1 else ""
        base = best.baseline
        gain = (
            f"{figures.ratio(best.speedup)} times the baseline, run {base.name}, {self.label(base)}"
        )
        other = " The two did different work." if best.same_work is False else ""
        return _doubted(gain, best.speedup_interval) + other

    def _lead(self, best: Row) -> str:
        if len(self.ranked) < 2:  # noqa: PLR2004
            return ""
        second = self.ranked[1]
        ratio, interval = speedups.of(best, second)
        lead = (
            f"{figures.ratio(ratio)} times the next, {self.label(second)}, which reaches "
            f"{figures.number(second.sequences_per_s)}"
        )
        other = " The two did different work." if speedups.same_work(best, second) is False else ""
        return _doubted(lead, interval) + other


def _doubted(gain: str, interval: Interval | None) -> str:
    """Return a sentence on a ratio, which says whether it shows a difference."""
    if interval is None:
        return f"{gain}; too few samples to tell whether that is a difference."
    sure = f"{gain} (95 %: {figures.ratio_between(interval)})"
    return f"{sure}: no difference shown." if interval.includes(1) else f"{sure}."


@dataclass(frozen=True, eq=False)
class Warned:
    """A warning, and the runs that give it."""

    code: str
    entries: tuple[Entry, ...]

    @property
    def said(self) -> dict[tuple[str, str], list[str]]:
        """Each message and remedy, which may have figures in it, with the runs' names."""
        found: dict[tuple[str, str], list[str]] = {}
        for entry in self.entries:
            for warning in entry.warnings:
                if warning.code == self.code:
                    found.setdefault((warning.message, warning.remedy), []).append(entry.name)
        return found

    @property
    def sentence(self) -> str:
        """The first message and its remedy, and how many others there are."""
        (message, remedy), *others = self.said
        return f"{message} {remedy}" + (f" ({len(others)} more like it.)" if others else "")

    def where(self, summary: Summary) -> str:
        """Return the names of the runs, or that it is all of them."""
        if len(self.entries) == summary.counts.total() > 1:
            return "every run"
        names = [entry.name for entry in self.entries]
        return f"run{'s' if len(names) > 1 else ''} {', '.join(names)}"


def of(directory: Path, baseline: Baseline | None) -> Summary:
    """Return the summary of the sweep or run in ``directory``.

    Raises:
        RefusedError: there is none, or ``baseline`` matches no run.
    """
    found = directories.below(directory)
    passed_over = rows.superseded(found)
    kept = rows.joined(entry for entry in found if entry not in passed_over)
    held = speedups.against(kept, baseline)
    ordered = rows.best_first(held)
    first = next((row.baseline for row in held if row.baseline), None)
    named = str(baseline) if baseline else f"run {first.name}" if first else "none yet"
    return Summary(directory, tuple(ordered), rows.varied(kept), named, len(passed_over))


def _codes(row: Row) -> str:
    repeats = len(row.entries)
    return ", ".join(
        code.replace("_", " ")
        + (f" ({len(entries)} of {repeats} repeats)" if len(entries) < repeats else "")
        for code, entries in row.warnings.items()
    )


def labelled(options: Mapping[str, str], keys: Sequence[str]) -> str:
    """Return the options of ``keys``, as they are typed."""
    return " ".join(f"{key}={options[key]}" for key in keys if key in options)


def drift_sentence(row: Row) -> str:
    """Return a sentence on the accuracy that a row costs."""
    lowest = row.lowest("drift.min_cosine")
    token = "first token" if row.drifts_by_first else "token"
    if lowest is not None:
        texts = int(row.lowest("drift.texts") or 0)
        compared = f"{texts} texts" if texts > 1 else "one text"
        return (
            f"Drift: the smallest cosine to the fp32 reference of any {token} of the {compared} "
            f"compared is {figures.cosine(lowest)}."
        )
    if rows.NOT_FINITE in row.warnings:
        return "Drift: outputs are infinite or no numbers."
    if row.entry.is_reference:
        return "Drift: none, it computes as the fp32 reference does."
    return "Drift: unknown (drift.texts says how many texts to compare)."

"""Rows compared with their baselines."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bert_infer.errors import NoBaselineError, nearest
from bert_infer.measuring import intervals
from bert_infer.report.baseline import Baseline
from bert_infer.report.rows import Row, axes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bert_infer.measuring.intervals import Interval


def against(rows: Sequence[Row], baseline: Baseline | None) -> list[Row]:
    """Return every row, compared with its baseline.

    A row's baseline has the options that ``baseline`` names, and shares all others with the row; of
    several, it is the first that did the same work. Without ``baseline``, it is the first run that
    went well.

    Raises:
        NoBaselineError: no run has what ``baseline`` names.
    """
    if baseline:
        _check_there(rows, baseline)
    named = baseline or Baseline({})
    same = [key for key in axes(rows) if baseline and key not in baseline.values]
    candidates = [
        row
        for row in sorted(rows, key=lambda row: not row.went_well)
        if row.is_measured and _can_be(named, row)
    ]
    bases: dict[tuple[str | None, ...], list[Row]] = {}
    for row in candidates if baseline else candidates[:1]:
        bases.setdefault(tuple(map(row.entry.options.get, same)), []).append(row)

    def held(row: Row) -> Row:
        found = bases.get(tuple(map(row.entry.options.get, same)), [])
        alike = (base for base in found if same_work(row, base))
        base = next(alike, found[0] if found else None)
        return _held(row, base) if base and row.is_measured else row

    return [held(row) for row in rows]


def _can_be(baseline: Baseline, row: Row) -> bool:
    """Return whether a row has the baseline's options, as resolved or as asked for."""
    return baseline.matches(row.entry.options) or baseline.matches(row.entry.names)


def _held(row: Row, baseline: Row) -> Row:
    """Return ``row`` with what it gains over ``baseline``."""
    if row.sequences_per_s is None or not baseline.sequences_per_s:
        return row
    speedup, interval = (1.0, None) if row is baseline else of(row, baseline)
    return replace(
        row,
        baseline=baseline,
        speedup=speedup,
        speedup_interval=interval,
        same_work=same_work(row, baseline),
    )


def are_paired(row: Row, baseline: Row) -> bool:
    """Tell whether the two are compared round by round: one repeat of each was made in every round.

    In the order in which all these were made, each two that follow one another are then one of
    each. So it is with order=interleaved, but for repeats that were made again later.
    """
    if not len(row.rates) == len(baseline.rates) == len(row.entries) == len(baseline.entries) > 1:
        return False
    made = [(entry.started_at, True) for entry in row.entries]
    made += [(entry.started_at, False) for entry in baseline.entries]
    is_row = [flag for _, flag in sorted(made)]
    return all(one is not other for one, other in zip(is_row[::2], is_row[1::2], strict=True))


def of(row: Row, baseline: Row) -> tuple[float, Interval | None]:
    """Return how many times as fast as ``baseline`` a row is, with the 95 % interval of that.

    Where both have a repeat in every round, these are paired: a change of the machine affects both.
    """
    ours, theirs = np.array(row.rates), np.array(baseline.rates)
    if are_paired(row, baseline):
        ratios = ours / theirs
        enough = len(ratios) >= intervals.FEWEST_PAIRS
        interval = intervals.of_paired_ratio(ratios, 0.95) if enough else None
        return intervals.geometric_mean(ratios), interval
    ratio = float(ours.mean() / theirs.mean())
    if len(ours) > 1 or len(theirs) > 1:
        return ratio, intervals.of_ratio(ours, theirs)
    return ratio, intervals.of_ratio(baseline.entry.samples, row.entry.samples)


def same_work(row: Row, other: Row) -> bool | None:
    """Tell whether the two did as much work, on the same texts; None where that is unknown."""
    mine, theirs = row.entry.work, other.entry.work
    return mine.is_same(theirs) if mine and theirs else None


def _check_there(rows: Sequence[Row], baseline: Baseline) -> None:
    """Refuse a baseline that no run has.

    Raises:
        NoBaselineError: naming the values there are.
    """
    everything = [row.entry.options for row in rows]
    if any(_can_be(baseline, row) for row in rows):
        return
    known = sorted({key for options in everything for key in options})
    unknown = [key for key in baseline.values if key not in known]
    told = (unknown and known) or [*baseline.values]
    there = "; ".join(
        f"{key}={', '.join(dict.fromkeys(o[key] for o in everything if key in o))}"
        for key in (axes(rows) if unknown else told)
    )
    raise NoBaselineError(
        f"baseline={baseline} matches no run. There are: {there}.",
        nearest(unknown[0], known) if unknown else "Name values that a run has together.",
    )

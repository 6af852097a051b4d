"""``compare``: what finished runs differ in, and whether one was faster than another.

It reads run directories and measures nothing. A verdict is given only where the confidence
interval of the ratio excludes 1.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bert_infer.errors import RefusedError
from bert_infer.measuring import intervals
from bert_infer.measuring.environment import different_leaves, lasting
from bert_infer.report import directories, speedups
from bert_infer.report.entries import Problem
from bert_infer.report.rows import Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bert_infer.measuring.intervals import Interval
    from bert_infer.report.entries import Entry

_DAMAGED = Problem(
    "Damaged",
    "metrics.json, forwards.csv and environment.json contradict each other or cannot be read.",
    "Run it again.",
)
_NOT_DONE = Problem(
    "NotDone", "It was not measured to its end.", "Wait until it is done, or run it again."
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """A run compared with the first.

    Attributes:
        baseline: the first.
        run: the one compared.
        ratio: its sequences/s over the baseline's.
        interval: 95 % interval of that; None where either has too few samples.
        differences: a line for each thing that differs besides what was measured.
    """

    baseline: Entry
    run: Entry
    ratio: float
    interval: Interval | None
    differences: list[str]

    @property
    def verdict(self) -> str:
        """What the interval supports saying."""
        return intervals.verdict(self.interval)


class Report(NamedTuple):
    """Runs compared, and those of a sweep that could not be: ``DIRECTORY (reason)``."""

    comparisons: list[Comparison]
    left_out: list[str]


def compare(names: Sequence[str], *, force: bool = False) -> Report:
    """Return each run compared with the first.

    Args:
        names: directories of runs or sweeps. Several sweeps are compared run by run, where they
            share a configuration; otherwise a sweep stands for its runs that were measured to their
            end.
        force: compare runs that did different work, too.

    Raises:
        RefusedError: a directory cannot be read, the work differs, or they are a duel's sides.
    """
    found: list[list[Entry]] = []
    left_out: list[str] = []
    sweeps = 0
    if len(parents := {Path(name).resolve().parent for name in names}) == 1:
        directories.check_is_no_duel(*parents)
    for directory in map(Path, names):
        entries = directories.below(directory)
        if entries[0].directory == directory:
            _check_comparable(entries[0])
        else:
            left_out += [f"{e.directory} ({_status(e)})" for e in entries if not _is_comparable(e)]
            sweeps += 1
        found.append([entry for entry in entries if _is_comparable(entry)])
    if len(found) == sweeps > 1:
        pairs = _matched(found)
        matched = {run.directory for pair in pairs for run in pair}
        others = [run.directory for sweep in found for run in sweep]
        left_out += [f"{path} (no counterpart)" for path in others if path not in matched]
    else:
        everything = [run for sweep in found for run in sweep]
        pairs = [(everything[0], other) for other in everything[1:]]
    if not pairs:
        raise RefusedError(
            "There is nothing to compare: fewer than two runs were measured to their end.",
            "Name two run directories or more, or a sweep.",
        )
    if not force:
        for baseline, run in pairs:
            _check_same_work(baseline, run)
    return Report([compared(baseline, run) for baseline, run in pairs], left_out)


def _is_comparable(entry: Entry) -> bool:
    return bool(
        entry.is_measured
        and len(entry.samples)
        and entry.work
        and entry.environment
        and entry.section("choice")
        and entry.text("run.config_hash")
    )


def _status(entry: Entry) -> str:
    """Return the status of what cannot be compared."""
    return directories.UNREADABLE if entry.is_measured else entry.status


def _check_comparable(entry: Entry) -> None:
    """Refuse what cannot be compared.

    Raises:
        RefusedError: it was not measured to its end, or its files are damaged.
    """
    if not _is_comparable(entry):
        problem = _DAMAGED if entry.is_measured else entry.problem or _NOT_DONE
        raise RefusedError(
            f"{entry.directory} cannot be compared ({_status(entry)}): {problem.message}",
            problem.remedy,
        )


def compared(baseline: Entry, run: Entry) -> Comparison:
    """Return ``run`` compared with ``baseline``; both can be."""
    ratio, interval = speedups.of(Row((run,)), Row((baseline,)))
    return Comparison(baseline, run, ratio, interval, differences(baseline, run))


def differences(baseline: Entry, run: Entry) -> list[str]:
    """List what differs in choice, weights, input, software and machine."""
    return [
        line
        for first, second in (
            (baseline.section("choice"), run.section("choice")),
            (baseline.section("provenance"), run.section("provenance")),
            (lasting(baseline.environment), lasting(run.environment)),
        )
        for line in different_leaves(first, second)
    ]


def _matched(sweeps: list[list[Entry]]) -> list[tuple[Entry, Entry]]:
    """Pair the runs of the first sweep with those of the others that have their configuration.

    Of repeats, the first is paired with the first, the second with the second, and so on.

    Raises:
        RefusedError: there is no such pair.
    """
    first, *others = map(_by_configuration, sweeps)
    pairs = [
        (baseline, run)
        for sweep in others
        for config, repeats in sweep.items()
        for baseline, run in zip(first.get(config, []), repeats, strict=False)
    ]
    if not pairs:
        raise RefusedError(
            "The sweeps have no configuration in common.",
            "Name runs rather than sweeps, to compare different configurations.",
        )
    return pairs


def _by_configuration(sweep: Iterable[Entry]) -> dict[str | None, list[Entry]]:
    repeats: dict[str | None, list[Entry]] = defaultdict(list)
    for run in sweep:
        repeats[run.text("run.config_hash")].append(run)
    return repeats


def _check_same_work(baseline: Entry, run: Entry) -> None:
    work, other = run.work, baseline.work
    if work and other and not work.is_same(other):
        raise RefusedError(
            f"{run.directory} did other work than {baseline.directory}: {other.difference(work)}.",
            "Compare runs of the same texts on the same model, or add --force.",
        )

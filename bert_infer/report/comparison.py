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
from bert_infer.files import runs
from bert_infer.measuring import intervals
from bert_infer.measuring.environment import different_leaves, lasting
from bert_infer.report import directories

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bert_infer.files.runs import Run
    from bert_infer.measuring.intervals import Interval
    from bert_infer.report.entries import Entry


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

    baseline: Run
    run: Run
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
    found: list[list[Run]] = []
    left_out: list[str] = []
    sweeps = 0
    if len(parents := {Path(name).resolve().parent for name in names}) == 1:
        directories.check_is_no_duel(*parents)
    for directory in map(Path, names):
        entries = directories.below(directory)
        if entries[0].directory == directory:
            found.append([_read(entries[0])])
            continue
        measured = [entry.directory for entry in entries if entry.is_measured]
        left_out += [f"{e.directory} ({e.status})" for e in entries if not e.is_measured]
        read = {path: runs.read_if_sound(path) for path in measured}
        left_out += [f"{path} (unreadable)" for path, run in read.items() if run is None]
        found.append([run for run in read.values() if run])
        sweeps += 1
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


def _read(entry: Entry) -> Run:
    """Return the run of ``entry``.

    Raises:
        RefusedError: it was not measured to its end, or its files are damaged.
    """
    if entry.status in {directories.RUNNING, directories.DIED, directories.NO_RECORD}:
        raise RefusedError(
            f"{entry.directory} has no metrics.json ({entry.status}).",
            entry.problem.remedy if entry.problem else "Wait until it is done.",
        )
    return runs.read(entry.directory)


def compared(baseline: Run, run: Run) -> Comparison:
    """Return ``run`` compared with ``baseline``."""
    interval = intervals.of_ratio(baseline.wall_s, run.wall_s)
    scale = run.sequences / baseline.sequences
    return Comparison(
        baseline,
        run,
        ratio=run.sequences_per_s / baseline.sequences_per_s,
        interval=interval.times(scale) if interval else None,
        differences=differences(baseline, run),
    )


def differences(baseline: Run, run: Run) -> list[str]:
    """List what differs in choice, weights, input, software and machine."""
    return [
        line
        for first, second in (
            (baseline.metrics["choice"], run.metrics["choice"]),
            (baseline.metrics["provenance"], run.metrics["provenance"]),
            (lasting(baseline.environment), lasting(run.environment)),
        )
        for line in different_leaves(first, second)
    ]


def _matched(sweeps: list[list[Run]]) -> list[tuple[Run, Run]]:
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


def _by_configuration(sweep: Iterable[Run]) -> dict[str, list[Run]]:
    repeats: dict[str, list[Run]] = defaultdict(list)
    for run in sweep:
        repeats[run.metrics["run"]["config_hash"]].append(run)
    return repeats


def _check_same_work(baseline: Run, run: Run) -> None:
    if not run.work.is_same(baseline.work):
        raise RefusedError(
            f"{run.directory} did other work than {baseline.directory}: "
            f"{baseline.work.difference(run.work)}.",
            "Compare runs of the same texts on the same model, or add --force.",
        )

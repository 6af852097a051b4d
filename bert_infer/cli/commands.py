"""The commands other than a run."""

from __future__ import annotations

import argparse
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bert_infer.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn


class _Parser(argparse.ArgumentParser):
    """Refuses wrong arguments with the package's own error."""

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint as a RefusedError."""
        raise RefusedError(f"{self.prog}: {message}.", f"Try {self.prog} --help.")


def compare(program: str, arguments: Sequence[str]) -> int:
    """Print a table that compares runs with the first of them."""
    parser = _Parser(
        prog=f"{program} compare",
        description="Compare finished runs with the first: ratios, intervals, and what differed.",
    )
    parser.add_argument("directories", nargs="+", help="run directories, or sweep directories")
    parser.add_argument("--force", action="store_true", help="compare runs of different work, too")
    asked = parser.parse_args(arguments)

    from bert_infer.report import comparison, terminal

    terminal.show_comparisons(*comparison.compare(asked.directories, force=asked.force))
    return 0


def duel(program: str, arguments: Sequence[str]) -> int:
    """Measure two configurations in turn, and print the paired ratio."""
    parser = _Parser(
        prog=f"{program} duel",
        description="Measure two configurations in turn, A B B A A B, and report the paired ratio.",
    )
    parser.add_argument(
        "sides",
        nargs="+",
        metavar="A B [KEY=VALUE ...]",
        help='overrides of each, as "dtype=bf16 batch=4", then overrides of both',
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each process (7)")
    parser.add_argument("--pairs", type=int, default=1, help="how often both are loaded anew (1)")
    parser.add_argument("--force", action="store_true", help="let them do different work")
    parser.add_argument("--config-dir", metavar="DIR", help="options of your own")
    asked = parser.parse_intermixed_args(arguments)
    if len(asked.sides) < 2:  # noqa: PLR2004  a duel has two sides
        parser.error("name two sides, A B")
    first, second, *common = asked.sides

    from bert_infer import console
    from bert_infer import duel as duels
    from bert_infer.duel import terminal
    from bert_infer.report import directories

    directory = _new_directory()
    a, b = (_latest([*common, *_split(side)]) for side in (first, second))
    with console.progress_bar("rounds") as bar:
        outcome, failures = duels.fight(
            *(a, b, asked.rounds, directory),
            pairs=asked.pairs,
            force=asked.force,
            config_dir=asked.config_dir,
            progress=bar.progress,
        )
    terminal.show(outcome, first, second)
    sides = {side: sorted(directory.glob(f"{side.lower()}*")) for side in ("A", "B")}
    terminal.show_warnings(
        {
            side: [w for one in of_pairs for w in directories.read(one).warnings]
            for side, of_pairs in sides.items()
        }
    )
    for failure in failures:
        sys.stderr.write(f"{failure}\n")
    console.show_directory(directory.resolve())
    return 1 if failures else 0


def rerun(program: str, arguments: Sequence[str]) -> int:
    """Make a run once more."""
    parser = _Parser(
        prog=f"{program} rerun",
        description="Make a run again, exactly, from what its directory says, and compare the two.",
    )
    parser.add_argument("directory", type=Path, help="a run's directory")
    asked = parser.parse_args(arguments)

    from bert_infer import console
    from bert_infer.processes.worker import Watch
    from bert_infer.report import comparison, directories
    from bert_infer.report.terminal import show_comparisons
    from bert_infer.running import terminal
    from bert_infer.sweeps import rerun as reruns

    directory = _new_directory()
    with console.progress_bar("start") as bar:
        watch = Watch(bar.progress, bar.phase)
        finished = reruns.rerun(asked.directory, directory, watch)
    terminal.show(finished, directory.resolve())
    if finished.metrics["error"]:
        return 1
    if directories.read(asked.directory).is_measured:  # a killed run was not
        both = [str(asked.directory), str(directory)]
        show_comparisons(*comparison.compare(both))
    return 0


def report(program: str, arguments: Sequence[str]) -> int:
    """Write what a sweep showed into its directory, and print it."""
    parser = _Parser(
        prog=f"{program} report",
        description="Sum up a sweep, be it finished or not: summary.csv, summary.md, report.html.",
    )
    parser.add_argument("directory", type=Path, help="of a sweep, or of a run")
    parser.add_argument(
        "--baseline",
        metavar="OPTIONS",
        help='what runs are compared with, as "dtype=fp32 batch=1" (the sweep\'s, or the first)',
    )
    asked = parser.parse_args(arguments)

    from bert_infer import console
    from bert_infer import report as reports
    from bert_infer.report import summary
    from bert_infer.sweeps.resumption import baseline_of

    if asked.baseline is None:
        found = reports.preferring(asked.directory, baseline_of(asked.directory))
    else:
        found = summary.of(asked.directory, reports.Baseline.parse(asked.baseline))
    if not reports.present(found):
        return 1
    console.show_directory((asked.directory / "report.html").resolve())
    return 0


def ls(program: str, arguments: Sequence[str]) -> int:
    """List runs, sweeps and duels."""
    parser = _Parser(
        prog=f"{program} ls",
        description="List runs, sweeps and duels, the newest first.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[DIRECTORY] [KEY=VALUE ...]",
        help="where to look (multirun_outputs), and what for: batch=12 status=failed",
    )
    words = parser.parse_args(arguments).words

    from bert_infer.report import listing

    names_directory = bool(words) and ("=" not in words[0] or Path(words[0]).is_dir())
    directory = Path(words.pop(0) if names_directory else "multirun_outputs")
    if names_directory and not directory.is_dir():
        raise RefusedError(f"{directory} is no directory.", "Name one that holds runs.")
    wanted = listing.parsed(words)
    listing.show(listing.below(directory, wanted), directory, is_filtered=bool(wanted))
    return 0


def _new_directory() -> Path:
    return Path("multirun_outputs") / f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"  # noqa: DTZ005  local, as the user's clock


def _latest(overrides: Sequence[str]) -> list[str]:
    """Return the last override of each key: a side's own go before those of both."""
    from bert_infer.configuration.overrides import expand_short_forms, key_of

    return list({key_of(override): override for override in expand_short_forms(overrides)}.values())


def _split(side: str) -> list[str]:
    """Return the overrides of a side, split as a shell would.

    Raises:
        RefusedError: a quote is not closed.
    """
    try:
        return shlex.split(side)
    except ValueError as error:
        raise RefusedError(
            f"{side} is not understood: {error}.",
            "A side is split as in a shell: put a text with spaces or an apostrophe in quotes "
            'inside it, or give it once for both, after the sides: "text=Don\'t panic!".',
        ) from None


COMMANDS: dict[str, Callable[[str, Sequence[str]], int]] = {
    "report": report,
    "ls": ls,
    "compare": compare,
    "duel": duel,
    "rerun": rerun,
}
"""Every command by its name."""

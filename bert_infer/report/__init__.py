"""``report`` and ``ls``: what runs and sweeps showed, from their directories; nothing is measured.

directories -> entries -> rows -> speedups -> summary -> tables, charts, page, terminal. An entry is
a run, a row a configuration with all its repeats, a summary what a reader wants to know first.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bert_infer.report.baseline import Baseline

if TYPE_CHECKING:
    from pathlib import Path

    from bert_infer.report.summary import Summary

__all__ = ["Baseline", "preferring", "present", "write"]


def preferring(directory: Path, baseline: Baseline | None) -> Summary:
    """Return the summary of ``directory`` against ``baseline``.

    While no run has its options, as that of a sweep's own may be yet to come, it is against the
    first that went well, and the console says so.

    Args:
        directory: of a sweep, finished or not, or of a single run.
        baseline: what the runs are compared with; None: the first that went well.

    Raises:
        RefusedError: there is no run in it.
    """
    from bert_infer import console
    from bert_infer.errors import NoBaselineError
    from bert_infer.report import summary

    try:
        return summary.of(directory, baseline)
    except NoBaselineError as error:
        console.show_text(
            f"{error.message} Until one does, the first run that went well is the baseline."
        )
        return summary.of(directory, None)


def present(found: Summary) -> bool:
    """Print a summary and write its files; tell whether they could be written, and say why not."""
    from bert_infer.errors import RunDirectoryError
    from bert_infer.report import terminal

    terminal.show(found)
    try:
        write(found)
    except RunDirectoryError as error:  # a full disk, or one that nobody may write
        sys.stderr.write(f"{error}\n")
        return False
    return True


def write(found: Summary) -> None:
    """Write the report of a sweep, or of a single run, into its directory.

    It leaves ``summary.csv``, ``summary.md``, ``report.html`` and each of the report's plots as
    ``report-NAME.svg``; every file is there whole or not at all.

    Raises:
        RunDirectoryError: the files cannot be written.
    """
    from bert_infer.errors import RunDirectoryError
    from bert_infer.files import whole
    from bert_infer.report import charts, page, tables

    plots = charts.of(found)
    content = {
        "summary.csv": tables.as_csv(found),
        "summary.md": tables.as_markdown(found),
        **{f"report-{name}.svg": plot.as_svg() for name, plot in plots.items()},
        "report.html": page.as_html(found, plots),
    }
    try:
        for name, text in content.items():
            with whole(found.directory / name) as beside:
                # File names, in options, may not be valid text.
                beside.write_text(text, "utf-8", "backslashreplace")
        for plot in found.directory.glob("report-option-*.svg"):
            if plot.name not in content:  # of an earlier report; the option no longer varies
                plot.unlink()
    except OSError as error:
        raise RunDirectoryError(
            f"The report cannot be written: {error}.",
            "Make room on the disk, or copy the directory to where you may write.",
        ) from None

"""A summary, and a comparison, on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from bert_infer import console
from bert_infer.report import tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bert_infer.report.comparison import Comparison
    from bert_infer.report.entries import Entry
    from bert_infer.report.summary import Summary

_COLOURS = {"ok": "green", "running": "cyan", "drift_exceeded": "yellow"}


def show(summary: Summary) -> None:
    """Print the table, the answer, then what went wrong and what is not to be trusted."""
    console.show_table(_table(summary))
    console.show(Text(summary.headline, "bold"))
    for sentence in summary.reasons:
        console.show(Text(f"  {sentence}"))
    if summary.doubts:
        console.show(Text(f"  {summary.doubts}", "yellow"))
    counts = ", ".join(f"{count} {status}" for status, count in summary.counts.items())
    console.show(Text(f"Runs: {counts}. Baseline: {summary.baseline}. {tables.brackets(summary)}"))
    if any(row.same_work is False for row in summary.rows):
        console.show(Text("* did other work than its baseline."))
    if summary.superseded:
        console.show(Text(tables.superseded_sentence(summary)))
    if summary.elsewhere:
        console.show(Text(summary.elsewhere, "yellow"))
    for row in summary.problems:
        if problem := row.entry.problem:
            line = f"Run {row.name}, {row.status}: {problem.message} {problem.remedy}"
            console.show(Text(line, "red"))
    for warned in summary.warnings:
        console.show(Text(f"Warning, {warned.where(summary)}: {warned.sentence}", "yellow"))


def _table(summary: Summary) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("run", overflow="fold")
    for key in summary.varied:
        table.add_column(Text(key), no_wrap=True)
    shown = [tables.cells(row) for row in summary.rows]
    for name in shown[0]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("!", justify="right")
    for row, cell in zip(summary.rows, shown, strict=True):
        options = row.entry.options
        table.add_row(
            Text(row.name),
            *(Text(options.get(key, "")) for key in summary.varied),
            *cell.values(),
            Text(row.status, _COLOURS.get(row.status, "red")),
            Text(str(len(row.warnings) or ""), "yellow"),
            style="bold" if row is summary.best and len(summary.rows) > 1 else "",
        )
    return table


def show_comparisons(comparisons: Sequence[Comparison], left_out: Sequence[str]) -> None:
    """Print a table of runs against their baseline, then what else differed between them."""
    pairs = [run for comparison in comparisons for run in (comparison.baseline, comparison.run)]
    numbers = {run: str(place) for place, run in enumerate(dict.fromkeys(pairs), start=1)}
    for run, place in numbers.items():
        console.show(Text(f"{place:>3}  {run.directory}"))
    table = Table(
        "run", "sequences/s", "95 %", "against", "ratio", "95 %", "verdict", box=box.SIMPLE
    )
    for baseline in dict.fromkeys(comparison.baseline for comparison in comparisons):
        table.add_row(numbers[baseline], *_throughput(baseline))
        for comparison in comparisons:
            if comparison.baseline is baseline:
                table.add_row(
                    numbers[comparison.run],
                    *_throughput(comparison.run),
                    numbers[baseline],
                    f"{comparison.ratio:.3f}",
                    console.between(comparison.interval).strip(" []"),
                    comparison.verdict,
                )
    console.show_table(table)
    for comparison in comparisons:
        if comparison.differences:
            pair = f"{numbers[comparison.baseline]} | {numbers[comparison.run]}"
            console.show(Text(f"What else differs, {pair}:", "bold"))
        for line in comparison.differences:
            console.show(Text(f"  {line}"))
    for run_left in left_out:
        console.show(Text(f"Left out: {run_left}", "yellow"))
    console.show(
        Text(
            "The intervals know the spread within each run, and not what changed on the machine "
            "between two runs; `duel` measures two configurations in turn."
        )
    )


def _throughput(run: Entry) -> tuple[str, str]:
    interval = run.interval("throughput.sequences_per_s_ci95")
    rate = console.number(run.number("throughput.sequences_per_s"))
    return rate, console.between(interval).strip(" []")

"""summary.csv for programs, summary.md for people without a browser."""

from __future__ import annotations

import csv
import io
import re
import shlex
from typing import TYPE_CHECKING, Any

from bert_infer.report import figures
from bert_infer.report.rows import NOT_FINITE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bert_infer.measuring.intervals import Interval
    from bert_infer.report.rows import Row
    from bert_infer.report.summary import Summary

_SPECIAL = re.compile(r"[\\`*<>|&~#]|](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")
"""What has a meaning in Markdown; an underscore has none inside a word."""


def command(row: Row) -> str:
    """Return the command that makes the row's run again."""
    return shlex.join(["python", "run.py", *row.entry.command])


def cells(row: Row) -> dict[str, str]:
    """Return the figures that a table for readers shows of a row."""
    other_work = " *" if row.same_work is False else ""
    repeats = f", {len(row.entries)} repeats" if len(row.entries) > 1 else ""
    rate = figures.number(row.sequences_per_s) + _in_brackets(row.interval or row.spread)
    gain = figures.ratio(row.speedup) + _in_brackets(row.speedup_interval, figures.ratio_between)
    return {
        "sequences/s": rate + repeats,
        "times baseline": gain + other_work,
        "min cosine": drift(row),
        "MiB": figures.mebibytes(memory(row)),
    }


def _in_brackets(
    interval: Interval | None, written: Callable[[Interval], str] = figures.between
) -> str:
    return f" [{written(interval)}]" if interval else ""


def brackets(summary: Summary) -> str:
    """Return the note on what the brackets behind figures hold."""
    is_spread = any(row.spread and not row.interval for row in summary.rows)
    few = ", of less than six repeats the slowest and the fastest" if is_spread else ""
    return f"In brackets: 95 %{few}.{of_first(summary)}"


def of_first(summary: Summary) -> str:
    """Return the note on drift that is marked as that of first tokens, if some is."""
    if not any(row.drifts_by_first for row in summary.rows):
        return ""
    return " (first): of each text's first token alone."


def drift(row: Row) -> str:
    """Return a row's smallest cosine to the reference, in a cell."""
    lowest = row.lowest("drift.min_cosine")
    if NOT_FINITE in row.warnings:
        return "not finite"
    if lowest is None and row.entry.is_reference:
        return "reference"
    return figures.cosine(lowest) + (" (first)" if row.drifts_by_first else "")


def memory(row: Row) -> float | None:
    """Return the peak of the device's own memory, where it has some, else the host's, in bytes."""
    device = row.highest("memory.peak_device_bytes")
    return row.highest("memory.peak_host_bytes") if device is None else device


def as_csv(summary: Summary) -> str:
    """Return a line a row, with every option and figure; unknown is empty."""
    keys = list(dict.fromkeys(key for row in summary.rows for key in row.entry.options))
    keys.sort(key=lambda key: key not in summary.varied)
    lines = [_line(row, keys) for row in summary.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _line(row: Row, keys: Sequence[str]) -> dict[str, Any]:
    problem, base = row.entry.problem, row.baseline
    return {
        "run": row.name,
        "status": row.status,
        **{key: row.entry.options.get(key) for key in keys},
        "repeats": len(row.entries),
        "sequences_per_s": row.sequences_per_s,
        **_ends("sequences_per_s_ci95", row.interval),
        **_ends("sequences_per_s_of_repeats", row.spread),
        "real_tokens_per_s": row.mean("throughput.real_tokens_per_s"),
        "baseline": base.name if base else None,
        "speedup": row.speedup,
        **_ends("speedup_ci95", row.speedup_interval),
        "same_work": row.same_work,
        **{f"latency_{p}_ms": row.mean(f"latency_ms.{p}") for p in ("p50", "p90", "p99")},
        "padding_waste": row.mean("workload.padding_waste"),
        "fraction_of_ceiling": row.mean("compute.fraction_of_ceiling"),
        "peak_host_bytes": row.highest("memory.peak_host_bytes"),
        "peak_device_bytes": row.highest("memory.peak_device_bytes"),
        "drift_min_cosine": row.lowest("drift.min_cosine"),
        "drift_pooled_min_cosine": row.lowest("drift.pooled_min_cosine"),
        "drift_max_abs": row.highest("drift.max_abs"),
        "warnings": " ".join(row.warnings),
        "error": problem.type if problem else None,
        "message": problem.message if problem else None,
        "remedy": problem.remedy if problem else None,
        "command": command(row),
    }


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def as_markdown(summary: Summary) -> str:
    """Return the answer, the table, and what went wrong."""
    shown = [cells(row) for row in summary.rows]
    parts = [
        f"# {_plain(summary.directory.name)}",
        f"**{_plain(summary.headline)}**",
        "\n".join(
            f"- {_plain(sentence)}" for sentence in (*summary.reasons, summary.doubts) if sentence
        ),
        _plain(" ".join(f"{key}={value}" for key, value in summary.common.items())),
        _table(
            ["run", *summary.varied, *shown[0], "status", "warnings"],
            (
                [
                    row.name,
                    *(row.entry.options.get(key, "") for key in summary.varied),
                    *cell.values(),
                    row.status,
                    ", ".join(row.warnings),
                ]
                for row, cell in zip(summary.rows, shown, strict=True)
            ),
        ),
        brackets(summary),
        f"Baseline: {_plain(summary.baseline)}.",
    ]
    if any(row.same_work is False for row in summary.rows):
        parts.append(r"\* did other work than its baseline.")
    if summary.superseded:
        parts.append(superseded_sentence(summary))
    if summary.elsewhere:
        parts.append(_plain(summary.elsewhere))
    if summary.problems:
        parts += [
            "## Failures",
            _table(
                ["run", "status", "what", "what to do"],
                (
                    [row.name, row.status, row.entry.problem.message, row.entry.problem.remedy]
                    for row in summary.problems
                    if row.entry.problem
                ),
            ),
        ]
    if summary.warnings:
        parts += [
            "## Warnings",
            _table(
                ["runs", "code", "what", "what to do"],
                (
                    [", ".join(names), warned.code, message, remedy]
                    for warned in summary.warnings
                    for (message, remedy), names in warned.said.items()
                ),
            ),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def superseded_sentence(summary: Summary) -> str:
    """Return how many runs failed or were interrupted, and went well when they were made again."""
    count = summary.superseded
    runs = "run" if count == 1 else "runs"
    return f"{count} earlier {runs} did not end well, but did when made again; not listed."


def _table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    header = [*header]
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in (header, rule, *lines))


def _plain(text: str) -> str:
    """Return ``text`` on one line, with all escaped that Markdown or HTML would interpret."""
    text = " ".join(text.split())
    return _SPECIAL.sub(r"\\\g<0>", text) if text != "---" else text

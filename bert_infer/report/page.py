"""report.html: one file that needs nothing but a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from bert_infer.report import environments, figures, tables
from bert_infer.report.charts import plot as drawing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bert_infer.report.charts.plot import Plot
    from bert_infer.report.rows import Row
    from bert_infer.report.summary import Summary

_TEMPLATES = Path(__file__).parent / "templates"
_MACHINE = {
    "processor": "cpu.model",
    "cores": "cpu.cores_allowed",
    "memory": "cpu.memory_bytes",
    "device": "device.kind",
    "threads": "threads.intra_op",
    "system": "os",
    "Python": "software.python",
    "torch": "software.torch",
    "transformers": "software.transformers",
    "bert-infer": "software.bert-infer",
    "commit": "git_commit",
}
"""The facts of an environment that are shown first."""


def as_html(summary: Summary, plots: Mapping[str, Plot]) -> str:
    """Return the page, with all that it needs inside it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "number": figures.number,
        "between": figures.between,
        "ratio": figures.ratio,
        "ratio_between": figures.ratio_between,
        "mebibytes": figures.mebibytes,
        "percent": figures.percent,
        "drift": tables.drift,
        "memory": tables.memory,
        "command": tables.command,
    }
    runs = [entry for row in summary.rows for entry in row.entries]
    shared = environments.shared(runs)
    return environment.get_template("report.html").render(
        summary=summary,
        best=summary.best,
        knows_ceiling=any(row.mean("compute.fraction_of_ceiling") for row in summary.rows),
        tiles=_tiles(summary),
        plots=plots,
        options=[name for name in plots if name.startswith("option-")],
        drawn={
            "plots": {name: plot.for_page for name, plot in plots.items()},
            "themes": {name: drawing.theme(name) for name in drawing.THEMES},
        },
        themes=drawing.THEMES,
        machine=_machine(shared),
        shared=shared,
        differences=environments.differences(runs),
        superseded=tables.superseded_sentence(summary) if summary.superseded else "",
        of_first=tables.of_first(summary),
        style=(_TEMPLATES / "report.css").read_text("utf-8"),
        script=(_TEMPLATES / "report.js").read_text("utf-8"),
        bundle=drawing.javascript() if plots else "",
    )


def _tiles(summary: Summary) -> list[tuple[str, str, str]]:
    """Return the best run's figures: the name, the value and how certain it is of each."""
    best: Row | None = summary.best
    if not best:
        return []
    return [
        (
            "sequences/s",
            figures.number(best.sequences_per_s),
            _sure(figures.between(best.interval)),
        ),
        (f"times {summary.baseline}", *_against_baseline(best)),
        (
            "ms a forward, median",
            figures.number(best.mean("latency_ms.p50")),
            _sure(figures.between(best.entry.interval("latency_ms.p50_ci95")))
            if len(best.entries) == 1
            else "",
        ),
        ("smallest cosine to fp32", tables.drift(best), ""),
        ("MiB at the peak", figures.mebibytes(tables.memory(best)), ""),
    ]


def _against_baseline(row: Row) -> tuple[str, str]:
    if row.baseline is None:
        return figures.UNKNOWN, "it has no baseline"
    if row.entry is row.baseline.entry:
        return figures.UNKNOWN, "it is the baseline"
    interval = row.speedup_interval
    sure = _sure(figures.ratio_between(interval))
    unclear = ": no difference shown" if interval and interval.includes(1) else ""
    return figures.ratio(row.speedup), sure + unclear


def _sure(interval: str) -> str:
    return f"95 %: {interval}" if interval else "too few samples for an interval"


def _machine(shared: Mapping[str, str]) -> dict[str, Any]:
    """Return the facts that a reader asks for first."""
    found = {name: shared[key] for name, key in _MACHINE.items() if key in shared}
    if found.get("memory", "").isdigit():
        found["memory"] = f"{int(found['memory']) / 2**30:,.1f} GiB"
    return found

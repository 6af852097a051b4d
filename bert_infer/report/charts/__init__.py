"""The plots of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bert_infer.report.charts.bars import lengths, option, padding
from bert_infer.report.charts.scatter import drift, latency
from bert_infer.report.charts.timeline import timeline

if TYPE_CHECKING:
    from bert_infer.report.charts.plot import Plot
    from bert_infer.report.summary import Summary

_BARS = 6  # options; with more, each says little


def of(summary: Summary) -> dict[str, Plot]:
    """Return the plots that there are figures for, by name."""
    rows = summary.measured
    found = {
        "latency": latency(summary),
        "drift": drift(summary),
        **{
            f"option-{number}": option(key, rows)
            for number, key in enumerate(summary.varied[:_BARS], start=1)
        },
        "lengths": lengths(rows),
        "padding": padding(rows),
        "time": timeline(summary, rows),
    }
    return {name: plot for name, plot in found.items() if plot}

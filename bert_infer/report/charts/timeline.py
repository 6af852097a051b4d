"""Latency over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import numpy as np

from bert_infer.report.charts.axes import vertical
from bert_infer.report.charts.plot import SERIES, Plot, data, spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bert_infer.report.rows import Row
    from bert_infer.report.summary import Summary

_POINTS = 150  # of a line


def timeline(summary: Summary, rows: Sequence[Row]) -> Plot | None:
    """Return the latency of each forward over time, for the first of ``rows``."""
    shown = rows[:SERIES]
    lines = [(summary.label(row), thinned(row.entry.forwards())) for row in shown]
    values = [
        {"label": label, "at": at, "ms": ms, "most": most}
        for label, line in lines
        for at, ms, most in line
    ]
    if not values:
        return None
    typical = [ms for _, line in lines for _, ms, _ in line]
    chosen = alt.selection_point(fields=["label"], bind="legend")
    points = alt.OverlayMarkDef(size=14) if len(values) < _POINTS else False
    chart = (
        alt.Chart(data(values))
        .mark_line(strokeWidth=1.5, point=points)
        .encode(
            x=alt.X(
                "at:Q",
                title="seconds since the first measured forward",
                axis=alt.Axis(tickCount=8),
            ),
            y=vertical("ms:Q", "latency of a forward, ms", typical),
            color=alt.Color(
                "label:N",
                title=None,
                sort=None,
                legend=alt.Legend(
                    columns=1, orient="bottom", symbolType="stroke", symbolStrokeWidth=2
                ),
            ),
            opacity=alt.when(chosen).then(alt.value(0.95)).otherwise(alt.value(0.12)),
            tooltip=[
                alt.Tooltip("label:N", title="run"),
                alt.Tooltip("at:Q", title="s", format=".3~f"),
                alt.Tooltip("ms:Q", title="median, ms", format=",.4~g"),
                alt.Tooltip("most:Q", title="longest, ms", format=",.4~g"),
            ],
        )
        .add_params(chosen)
    )
    left_out = f" The {SERIES} fastest of {len(rows)} are drawn." if len(rows) > SERIES else ""
    return Plot(
        "Latency over time",
        f"Level is good: a slope or a step is a machine that changed. A point is the median of "
        f"neighbouring forwards, each scaled by its own batch's median to the run's.{left_out} "
        "Click a name to single it out.",
        spec(chart),
    )


def thinned(forwards: NDArray[np.void]) -> list[tuple[float, float, float]]:
    """Return start in s, median and longest in ms of blocks of neighbouring forwards.

    There are at most ``_POINTS`` blocks. Longer batches take longer, which is no change over time:
    each forward is scaled from its own batch's median to the median of the run.

    Args:
        forwards: ``[forwards]``, as an entry has them.
    """
    rows = forwards[["batch_index", "start_s", "duration_ms"]].tolist()
    of_batch: dict[float, list[float]] = {}
    for batch, _, ms in rows:
        of_batch.setdefault(batch, []).append(ms)
    medians = {batch: float(np.median(found)) for batch, found in of_batch.items()}
    typical = float(np.median(forwards["duration_ms"])) if rows else 0.0
    scaled = [
        (start, ms * typical / medians[batch] if medians[batch] else ms)
        for batch, start, ms in rows
    ]
    size = max(1, -(-len(scaled) // _POINTS))
    blocks = (scaled[i : i + size] for i in range(0, len(scaled), size))
    return [
        (block[0][0], float(np.median([ms for _, ms in block])), max(ms for _, ms in block))
        for block in blocks
    ]

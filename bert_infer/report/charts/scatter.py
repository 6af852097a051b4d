"""Throughput against what it costs, with the Pareto front."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from bert_infer.report import tables
from bert_infer.report.charts.axes import logarithmic, suited, vertical
from bert_infer.report.charts.plot import SERIES, Plot, data, spec
from bert_infer.report.pareto import front

if TYPE_CHECKING:
    from bert_infer.report.rows import Row
    from bert_infer.report.summary import Summary

_LEAST_DRIFT = 1e-7  # the least that float32 can tell from 0


def _points(summary: Summary, cost: str) -> list[dict[str, Any]]:
    """Return a point for each row whose ``cost`` is known."""
    points = (_point(summary, row) for row in summary.measured)
    return [point for point in points if (point[cost] or 0) > 0]


def _point(summary: Summary, row: Row) -> dict[str, Any]:
    low, high = row.interval or (None, None)
    lowest = row.lowest("drift.min_cosine")
    cosine = 1.0 if lowest is None and row.entry.is_reference else lowest
    return {
        "label": summary.label(row),
        "name": f"run {row.name}",
        "rate": row.sequences_per_s,
        "low": low,
        "high": high,
        "p50": row.mean("latency_ms.p50"),
        "drift": None if cosine is None else max(1 - cosine, _LEAST_DRIFT),
        "cosine": tables.drift(row),
        "colour": row.entry.options.get(summary.varied[0], "") if summary.varied else "",
        "status": row.status,
        "is_best": row is summary.best,
    }


def latency(summary: Summary) -> Plot | None:
    """Return throughput against the median latency of a forward."""
    points = _points(summary, "p50")
    if not points:
        return None
    ruler = suited([point["p50"] for point in points], grid=False)
    return Plot(
        "Throughput against latency",
        "Up and to the left is better. What lies on the dashed line is beaten in both by nothing "
        "else; the bars are 95 % intervals.",
        _scatter(
            summary,
            points,
            "p50",
            alt.X("p50:Q", title="median latency of a forward, ms", **ruler),
        ),
    )


def drift(summary: Summary) -> Plot | None:
    """Return throughput against the drift of the token that drifted most."""
    points = _points(summary, "drift")
    if not points:
        return None
    ruler = logarithmic([point["drift"] for point in points], "~e", grid=False)
    return Plot(
        "Throughput against drift",
        "Up and to the left is better. Drift is 1 less the smallest cosine to the fp32 reference; "
        f"the reference itself is drawn at {_LEAST_DRIFT:.0e}.",
        _scatter(
            summary,
            points,
            "drift",
            alt.X("drift:Q", title="drift, 1 - smallest cosine (log scale)", **ruler),
        ),
    )


def _scatter(summary: Summary, points: list[dict[str, Any]], cost: str, x: alt.X) -> dict[str, Any]:
    """Return points of cost and throughput with intervals, their front, and the best one's name.

    Args:
        summary: tells the points' colours apart.
        points: as ``_point`` makes them.
        cost: the key of what throughput is drawn against.
        x: the axis of that.
    """
    costs, rates = ([point[key] for point in points] for key in (cost, "rate"))
    on_front = front(list(zip(costs, rates, strict=True)))
    y = vertical("rate:Q", "sequences/s", rates)
    tooltip = [
        alt.Tooltip("name:N", title="which"),
        alt.Tooltip("label:N", title="options"),
        alt.Tooltip("rate:Q", title="sequences/s", format=",.4~g"),
        alt.Tooltip("p50:Q", title="p50, ms", format=",.4~g"),
        alt.Tooltip("cosine:N", title="min cosine"),
        alt.Tooltip("status:N", title="status"),
    ]
    everything = alt.Chart(data(points)).encode(x=x, tooltip=tooltip)
    colour = (
        alt.Color("colour:N", title=summary.varied[0], sort=None)
        if _few(points, "colour")
        else alt.Undefined
    )
    ordered = [points[index] for index in on_front]
    best = alt.Chart(data(ordered)).encode(x=x, y=y)
    layers = [
        best.mark_line(style="front", interpolate="step-after"),
        everything.mark_rule(strokeWidth=1.5, opacity=0.55)
        .encode(y=alt.Y("low:Q", title="sequences/s"), y2="high:Q", color=colour)
        .transform_filter("isValid(datum.low)"),
        everything.mark_point(filled=True, size=110, opacity=0.95).encode(y=y, color=colour),
        everything.mark_point(filled=False, size=260, style="best")
        .encode(y=y)
        .transform_filter("datum.is_best"),
        best.mark_text(style="name", dy=-16).encode(text="name:N"),
    ]
    return spec(alt.layer(*layers))


def _few(points: list[dict[str, Any]], key: str) -> bool:
    return 1 < len({point[key] for point in points}) <= SERIES

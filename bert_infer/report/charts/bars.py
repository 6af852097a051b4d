"""Bars: what each option is worth, what is padded, and how long the sequences are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np

from bert_infer.measuring.intervals import geometric_mean
from bert_infer.report import speedups
from bert_infer.report.charts.plot import Plot, data, spec
from bert_infer.report.rows import axes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bert_infer.report.rows import Row

_MOST_VALUES = 16  # of one option


def option(key: str, rows: Sequence[Row]) -> Plot | None:
    """Return the throughput by an option's value: a dot a run, and a bar where values compare.

    A value's bar is the mean over those settings of the other options that all values have: where
    runs failed, or a value was tried in the best setting alone, others would compare unlike things.
    """
    others = [axis for axis in axes(rows) if axis != key]
    rates: dict[str, dict[tuple[str | None, ...], list[float]]] = {}
    for row in rows:
        if key in row.entry.options and row.sequences_per_s:
            setting = tuple(map(row.entry.names.get, others))
            of_value = rates.setdefault(row.entry.options[key], {})
            of_value.setdefault(setting, []).append(row.sequences_per_s)
    if len(rates) < 2:  # noqa: PLR2004  nothing to compare
        return None
    shared = set.intersection(*map(set, rates.values()))
    typical = {value: _geometric_mean(found, shared or {*found}) for value, found in rates.items()}
    shown = sorted(typical, key=lambda value: -typical[value])[:_MOST_VALUES]
    if all(value.isdigit() for value in shown):
        shown.sort(key=int)
    means = [{"value": value, "rate": typical[value]} for value in shown] if shared else []
    each = [
        {"value": value, "rate": rate}
        for value in shown
        for found in rates[value].values()
        for rate in found
    ]
    if not shared:
        note = "A dot is a run. No bars: the values share no setting of the other options."
    elif all(shared == {*found} for found in rates.values()):
        note = "Geometric mean over the other options; a dot is a run."
    else:
        note = (
            f"Geometric mean over the {len(shared)} settings of the other options that all values "
            "have; a dot is a run."
        )
    if len(shown) < len(rates):
        note += f" The {len(shown)} fastest of {len(rates)}."
    if any(speedups.same_work(row, rows[0]) is False for row in rows):
        note += " Not all runs did the same work."
    return Plot(key, note, _bars(means, each, "rate", "sequences/s"))


def _geometric_mean(
    rates: Mapping[tuple[str | None, ...], Sequence[float]],
    settings: Iterable[tuple[str | None, ...]],
) -> float:
    """Return the mean over ``settings`` of the mean in each."""
    return geometric_mean(np.array([geometric_mean(np.array(rates[s])) for s in settings]))


def padding(rows: Sequence[Row]) -> Plot | None:
    """Return bars of the padding waste by batching policy."""
    waste: dict[str, list[float]] = {}
    for row in rows:
        policy, found = row.entry.options.get("batching"), row.mean("workload.padding_waste")
        if policy and found is not None:
            waste.setdefault(policy, []).append(found)
    if not waste:
        return None
    means = [{"value": value, "waste": float(np.mean(found))} for value, found in waste.items()]
    each = [{"value": value, "waste": part} for value, found in waste.items() for part in found]
    return Plot(
        "Padding by batching policy",
        "The part of the computed tokens that is padding, on average; a dot is a run.",
        _bars(means, each, "waste", "padding", form=".0%"),
    )


def _bars(
    means: list[dict[str, Any]],
    each: list[dict[str, Any]],
    field: str,
    title: str,
    form: str = ",.3~g",
) -> dict[str, Any]:
    """Return a bar for each mean, and a dot for each figure, by values in the order of these."""
    values = list(dict.fromkeys(one["value"] for one in each))
    y = alt.Y("value:N", title=None, sort=values)
    x = alt.X(f"{field}:Q", title=title, axis=alt.Axis(format=form, tickCount=5))
    tooltip = [
        alt.Tooltip("value:N", title="value"),
        alt.Tooltip(f"{field}:Q", title=title, format=form),
    ]
    bars = alt.Chart(data(means)).mark_bar(cornerRadiusEnd=2, opacity=0.85, height={"band": 0.62})
    dots = alt.Chart(data(each)).mark_point(filled=True, size=26, opacity=0.75, style="each")
    shown = [bars, dots] if means else [dots]  # of an empty layer Vega complains
    layers = (layer.encode(x=x, y=y, tooltip=tooltip) for layer in shown)
    return spec(alt.layer(*layers), height=44 * len(values))


def lengths(rows: Sequence[Row]) -> Plot | None:
    """Return the histogram of the sequences' lengths, from the first row that has one."""
    found = {row.name: bins for row in rows if (bins := row.entry.length_histogram)}
    if not found:
        return None
    run, bins = next(iter(found.items()))
    others_differ = any(other != bins for other in found.values())
    gap = 0.04 * (bins[0][1] - bins[0][0])
    values = [
        {"low": low, "high": high, "count": count, "left": low + gap, "right": high - gap}
        for low, high, count in bins
    ]
    chart = (
        alt.Chart(data(values))
        .mark_rect(opacity=0.85)
        .encode(
            x=alt.X("left:Q", title="real tokens", scale=alt.Scale(zero=False)),
            x2="right:Q",
            y2=alt.Y2Datum(0),
            y=alt.Y("count:Q", title="sequences", axis=alt.Axis(tickMinStep=1, tickCount=5)),
            tooltip=[
                alt.Tooltip("low:Q", title="from"),
                alt.Tooltip("high:Q", title="to below"),
                alt.Tooltip("count:Q", title="sequences"),
            ],
        )
    )
    return Plot(
        "Lengths of the sequences",
        "What a batching policy has to work with: the more they differ, the more is padded."
        + (f" Of run {run}; others have other sequences." if others_differ else ""),
        spec(chart, height=180),
    )

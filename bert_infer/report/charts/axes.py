"""Axes: linear, or logarithmic where values are far apart.

A ruler is how a value becomes a place on a chart, ``scale``, and what is drawn beside it, ``axis``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import altair as alt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_WIDE = 20  # largest over smallest, from where on an axis is logarithmic
_DECADES = 3  # from so many on, there is no room for ticks between powers of ten


def logarithmic(values: Iterable[float], form: str = "~r", *, grid: bool = True) -> dict[str, Any]:
    """Return a logarithmic ruler: ticks at powers of ten, and between them if these are few."""
    known = [value for value in values if value > 0]
    low, high = (math.floor(math.log10(end)) for end in (min(known), max(known)))
    steps = (1, 2, 5) if high - low < _DECADES else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 2) for step in steps]
    return {
        "scale": alt.Scale(type="log", nice=False, padding=20),
        "axis": alt.Axis(values=ticks, format=form, grid=grid),
    }


def suited(values: Sequence[float], *, grid: bool = True) -> dict[str, Any]:
    """Return a ruler on which the small ones of ``values`` can be told apart, too.

    It is as long as its values, with a little room for marks.
    """
    known = [value for value in values if value > 0]
    if known and max(known) > _WIDE * min(known):
        return logarithmic(known, grid=grid)
    return {
        "scale": alt.Scale(zero=False, padding=20),
        "axis": alt.Axis(tickCount=6, grid=grid),
    }


def vertical(field: str, title: str, values: Sequence[float]) -> alt.Y:
    """Return a vertical axis that suits its values."""
    return alt.Y(field, title=title, **suited(values))

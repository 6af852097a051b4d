"""Axes: linear, or logarithmic where values are far apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import altair as alt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_WIDE = 20  # largest over smallest, from where on an axis is logarithmic
_DECADES = 3  # from so many on, there is no room for ticks between powers of ten


class Ruler(NamedTuple):
    """How a value becomes a place on a chart, and what is drawn beside it."""

    scale: alt.Scale
    axis: alt.Axis


def linear(*, grid: bool = True) -> Ruler:
    """Return a ruler as long as its values, with a little room for marks."""
    return Ruler(alt.Scale(zero=False, padding=20), alt.Axis(tickCount=6, grid=grid))


def logarithmic(values: Iterable[float], form: str = "~r", *, grid: bool = True) -> Ruler:
    """Return the same with ticks at powers of ten, and between them if few."""
    known = [value for value in values if value > 0]
    low, high = (math.floor(math.log10(end)) for end in (min(known), max(known)))
    steps = (1, 2, 5) if high - low < _DECADES else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 2) for step in steps]
    return Ruler(
        alt.Scale(type="log", nice=False, padding=20),
        alt.Axis(values=ticks, format=form, grid=grid),
    )


def suited(values: Sequence[float], *, grid: bool = True) -> Ruler:
    """Return a ruler on which the small ones of ``values`` can be told apart, too."""
    known = [value for value in values if value > 0]
    is_wide = bool(known) and max(known) > _WIDE * min(known)
    return logarithmic(known, grid=grid) if is_wide else linear(grid=grid)


def vertical(field: str, title: str, values: Sequence[float]) -> alt.Y:
    """Return a vertical axis that suits its values."""
    return alt.Y(field, title=title, **suited(values)._asdict())

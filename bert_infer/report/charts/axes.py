"""Axes: linear, or logarithmic where values are far apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import altair as alt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_WIDE = 20  # largest over smallest, from where on an axis is logarithmic
_DECADES = 3  # from so many on, there is no room for ticks between powers of ten


def is_wide(values: Iterable[float]) -> bool:
    """Return whether values are so far apart that only a logarithmic axis shows the small ones."""
    known = [value for value in values if value > 0]
    return bool(known) and max(known) > _WIDE * min(known)


def scale(is_log: bool) -> alt.Scale:  # noqa: FBT001  one of two kinds
    """Return a scale as wide as its values, with a little room for marks."""
    if is_log:
        return alt.Scale(type="log", nice=False, padding=20)
    return alt.Scale(zero=False, padding=20)


def vertical(field: str, title: str, values: Sequence[float]) -> alt.Y:
    """Return a vertical axis that suits its values."""
    is_log = is_wide(values)
    return alt.Y(field, title=title, scale=scale(is_log), axis=axis(values, is_log))


def axis(
    values: Sequence[float],
    is_log: bool,  # noqa: FBT001  one of two kinds
    form: str = "~r",
    *,
    grid: bool = True,
) -> alt.Axis:
    """Return an axis; a logarithmic one has ticks at powers of ten, and between them if few."""
    if not is_log:
        return alt.Axis(tickCount=6, grid=grid)
    known = [value for value in values if value > 0]
    low, high = (math.floor(math.log10(end)) for end in (min(known), max(known)))
    steps = (1, 2, 5) if high - low < _DECADES else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 2) for step in steps]
    return alt.Axis(values=ticks, format=form, grid=grid)

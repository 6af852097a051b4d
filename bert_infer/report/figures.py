"""Figures as a reader wants them written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bert_infer.measuring.intervals import Interval

UNKNOWN = "–"  # noqa: RUF001  the typographer's dash in an empty cell
_THREE_DIGITS = 99.95  # from here on, rounded, no digit is left after the point


def number(value: float | None) -> str:
    """Return three significant digits, or whole thousands: 0.123, 98.2, 12,345."""
    if value is None:
        return UNKNOWN
    if value and abs(value) < _THREE_DIGITS:
        digits = f"{value:#.3g}"
        return f"{value:.1e}" if "e" in digits else digits
    return f"{value:,.0f}"


def between(interval: Interval | None) -> str:
    """Return the ends of an interval: 9.1 to 9.9."""
    return f"{number(interval.low)} to {number(interval.high)}" if interval else ""


def ratio(value: float | None) -> str:
    """Return how many times: 2.95."""
    return UNKNOWN if value is None else f"{value:.2f}"


def ratio_between(interval: Interval | None) -> str:
    """Return the ends of an interval of a ratio."""
    return f"{interval.low:.2f} to {interval.high:.2f}" if interval else ""


def mebibytes(value: float | None) -> str:
    """Return bytes in MiB."""
    return UNKNOWN if value is None else f"{value / 2**20:,.0f}"


def cosine(value: float | None) -> str:
    """Return a cosine, with enough digits to tell it from 1."""
    return UNKNOWN if value is None else f"{value:.6f}"


def percent(value: float | None) -> str:
    """Return a fraction in percent."""
    return UNKNOWN if value is None else f"{value:.1%}"

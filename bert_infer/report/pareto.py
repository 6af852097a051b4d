"""The Pareto front: the points that no other beats in both of two figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which points are on the front, by rising cost.

    Args:
        points: cost (less is better) and worth (more is better) of each.
    """
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not found or points[index][1] > points[found[-1]][1]:
            found.append(index)
    return found

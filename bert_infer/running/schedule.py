"""Which passes of a run on its own are measured: as many as the settings ask."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bert_infer.records import wall_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bert_infer.configuration.settings import Until
    from bert_infer.records import Forward


def as_long_as_asked(
    iterations: int,
    until: Until,
    forwards: list[Forward],
    relative_ci: Callable[[], float | None],
) -> Iterator[int]:
    """Yield the index of each pass to measure.

    Past ``iterations``, passes go on until the interval is as narrow as ``until`` asks or its time
    is up. An interval takes time to compute: it is looked at again after a tenth more passes.

    Args:
        iterations: passes to measure in any case.
        until: when to stop after them.
        forwards: what has been measured so far; the caller adds to it.
        relative_ci: returns half of throughput's confidence interval over the throughput.
    """
    yield from range(iterations)
    if until.relative_ci is None:
        return
    index = look_again_at = iterations
    counted, measured_s = 0, 0.0
    while True:
        measured_s += wall_s(forwards[counted:])
        counted = len(forwards)
        if measured_s >= until.max_s:
            return
        if index == look_again_at:
            reached = relative_ci()
            if reached is not None and reached <= until.relative_ci:
                return
            look_again_at = math.ceil(index * 1.1)
        yield index
        index += 1

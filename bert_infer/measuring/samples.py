"""The timings of a run as statistics take them: samples to resample, durations to compare."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bert_infer.measuring import changes, intervals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bert_infer.measuring.changes import Outliers
    from bert_infer.measuring.intervals import Interval
    from bert_infer.records import Forward
    from bert_infer.running.workload import Workload


@dataclass(frozen=True, eq=False)
class Samples:
    """The timings of complete passes, divided into samples that can be resampled.

    If all forwards have the same shape and number of sequences, each forward is a sample; otherwise
    each pass is. (A batch that is filled up to a shape has fewer of the input's sequences.)

    Attributes:
        unit: "forward" or "pass".
        sequences: how many a sample holds.
        wall_s: ``[samples]``, wall time of each.
        durations_ms: ``[samples, forwards]``, of each forward in a sample.
        relative: ``[forwards]``, each duration over the median of the same batch's others; None
            where a batch was measured once.
    """

    unit: str
    sequences: int
    wall_s: NDArray[np.float64]
    durations_ms: NDArray[np.float64]
    relative: NDArray[np.float64] | None

    @classmethod
    def of(cls, forwards: list[Forward], workload: Workload) -> Samples:
        """Return the complete passes among ``forwards``, one at the least."""
        complete = workload.of_complete_passes(forwards)
        passes = len(complete) // workload.forwards
        wall = np.array([f.wall_s for f in complete])
        durations = np.array([f.duration_s * 1e3 for f in complete])
        if workload.has_one_shape and len({f.sequences for f in complete}) == 1:
            relative = durations / np.median(durations)
            return cls("forward", complete[0].sequences, wall, durations[:, None], relative)
        wall, durations = (a.reshape(passes, workload.forwards) for a in (wall, durations))
        return cls(
            unit="pass",
            sequences=len(workload.lengths),
            wall_s=wall.sum(axis=1),
            durations_ms=durations,
            relative=changes.over_others(durations).ravel() if passes > 1 else None,
        )

    @cached_property
    def sequences_per_s(self) -> Interval | None:
        """Return the 95 % interval of throughput."""
        wall = intervals.of_mean(self.wall_s)
        return wall.over(self.sequences) if wall else None

    @property
    def relative_ci(self) -> float | None:
        """Half of throughput's interval over the throughput."""
        interval = self.sequences_per_s
        return (interval.high - interval.low) / (interval.high + interval.low) if interval else None

    @cached_property
    def median_ms(self) -> Interval | None:
        """Return the 95 % interval of the median latency."""
        return intervals.of_median(self.durations_ms)

    def outliers(self) -> Outliers | None:
        """Return how many forwards lie far from the others of their batch."""
        return None if self.relative is None else changes.outliers(self.relative)

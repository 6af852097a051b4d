"""Warming up: forwards and passes that are not measured, until they take no less time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bert_infer.measuring.measure import forward, measured_pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from bert_infer.devices import Device
    from bert_infer.engines import Encode
    from bert_infer.measuring.measure import Batches, Clock

STEADY_WITHIN = 0.02
LIMIT_S = 10.0
_PASSES_WITHOUT_GAIN = 2


@dataclass(frozen=True)
class WarmUp:
    """The passes that were run before measuring.

    Attributes:
        passes: how many, not counting the first forward of each shape.
        steady: whether their times had settled before the limit; None where that was not checked.
        shapes_left: batch shapes that had not run when the time was up.
    """

    passes: int
    steady: bool | None
    shapes_left: int = 0


def run_once(batches: Batches, encode: Encode, device: Device) -> None:
    """Run every batch."""
    for _, inputs in batches:
        forward(encode, inputs, device)


def run_once_in_time(
    batches: Batches, encode: Encode, device: Device, clock: Clock = time.perf_counter
) -> int:
    """Run batches, one at least, until ``LIMIT_S`` have passed; return their number.

    Ragged text makes nearly as many shapes as batches, and the last of them warm up little more.
    """
    end, done = clock() + LIMIT_S, 0
    for _, inputs in batches:
        forward(encode, inputs, device)
        done += 1
        if clock() > end:  # here, so that nothing is laid out and never computed
            break
    return done


def run_for(
    seconds: float,
    batches: Callable[[], Batches],
    encode: Encode,
    device: Device,
    clock: Clock = time.perf_counter,
) -> None:
    """Run forwards, one at least, until ``seconds`` have passed."""
    end = clock() + seconds
    while True:
        for _, inputs in batches():
            forward(encode, inputs, device)
            if clock() >= end:
                return


def warm_up_passes(
    passes: int, batches: Callable[[], Batches], encode: Encode, device: Device
) -> WarmUp:
    """Run ``passes`` passes, whatever their times."""
    for index in range(passes):
        for _ in measured_pass(index, batches(), encode, device):
            pass
    return WarmUp(passes, steady=None)


def warm_up_until_steady(
    batches: Callable[[], Batches],
    encode: Encode,
    device: Device,
    clock: Clock = time.perf_counter,
) -> WarmUp:
    """Run passes until they are steady, or for ``LIMIT_S``.

    Passes are steady once two in succession are at most ``STEADY_WITHIN`` faster than the fastest
    before them. The pass under way when the time is up is broken off; where fewer were complete
    than could have been steady, nothing is said of that.
    """
    end = clock() + LIMIT_S
    fastest, without_gain, passes = math.inf, 0, 0
    while without_gain < _PASSES_WITHOUT_GAIN:
        start = clock()
        for _ in measured_pass(passes, batches(), encode, device):
            if clock() > end:
                return WarmUp(passes, steady=False if passes > _PASSES_WITHOUT_GAIN else None)
        seconds = clock() - start
        passes += 1
        without_gain = without_gain + 1 if seconds > fastest * (1 - STEADY_WITHIN) else 0
        fastest = min(fastest, seconds)
    return WarmUp(passes, steady=True)

"""The clock: phases, warm-up and the measured passes. Nothing else in the package reads one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from bert_infer.records import Forward, Outputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from bert_infer.devices import Device
    from bert_infer.engines import Encode
    from bert_infer.records import PaddedBatch

T = TypeVar("T")

Clock = Callable[[], float]
"""Seconds since some fixed moment, never going back."""

_LOG = logging.getLogger(__name__)

PHASES = ("import", "load", "ceiling", "drift", "compile", "warmup", "measure", "write")


class Phases:
    """How long each phase of a run took, in seconds; None for one that did not take place.

    ``current`` is the phase under way, or the one that an exception ended.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self.seconds: dict[str, float | None] = dict.fromkeys(PHASES)
        self.current: str | None = None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time spent inside to phase ``name``."""
        self.current = name
        _LOG.info("phase: %s", name)
        start = self._clock()
        try:
            yield
        finally:
            self.seconds[name] = (self.seconds[name] or 0.0) + self._clock() - start
        self.current = None


def timed(work: Callable[[], T], clock: Clock = time.perf_counter) -> tuple[T, float]:
    """Return what ``work`` returns, and the seconds it took."""
    start = clock()
    result = work()
    return result, clock() - start


def forward(encode: Encode, inputs: tuple[NDArray[np.generic], ...], device: Device) -> Outputs:
    """Run one unmeasured forward pass from and to host memory."""
    outputs = device.copy_out(Outputs(*encode(*device.copy_in(inputs))))
    device.synchronize()
    return outputs


def measured_pass(
    pass_index: int,
    batches: Iterable[tuple[PaddedBatch, tuple[NDArray[np.generic], ...]]],
    encode: Encode,
    device: Device,
    clock: Clock = time.perf_counter,
) -> Iterator[tuple[Forward, PaddedBatch, Outputs]]:
    """Yield every forward of one pass as it is measured, with its batch and its host outputs.

    ``batches`` are laid out inside the measured time, as they are in use. What the caller does
    between two forwards is not measured. Every time stamp but the first follows a synchronisation:
    an asynchronous device has only been asked for the work when a call returns.
    """
    remaining = iter(batches)
    batch_index = 0
    while True:
        start = clock()
        item = next(remaining, None)
        if item is None:
            return
        batch, inputs = item
        on_device = device.copy_in(inputs)
        device.synchronize()
        forward_start = clock()
        computed = Outputs(*encode(*on_device))
        device.synchronize()
        forward_end = clock()
        outputs = device.copy_out(computed)
        device.synchronize()
        end = clock()
        yield (
            Forward(
                pass_index=pass_index,
                batch_index=batch_index,
                sequences=len(batch.sequences),
                real_tokens=batch.real_tokens,
                padded_tokens=batch.padded_tokens,
                start_s=start,
                forward_start_s=forward_start,
                forward_end_s=forward_end,
                end_s=end,
            ),
            batch,
            outputs,
        )
        batch_index += 1

"""The clock: phases, and the forwards of a pass. Warming up aside, nothing else measures."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from itertools import count, repeat
from typing import TYPE_CHECKING, Any, TypeVar

from bert_infer.records import Computed, Forward, Outputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from bert_infer.batching.layouts import Batch
    from bert_infer.devices import Device
    from bert_infer.engines import Encode

    Batches = Iterable[tuple[Batch, tuple[NDArray[np.generic], ...]]]

T = TypeVar("T")

Clock = Callable[[], float]
"""Seconds since some fixed moment, never going back."""

_LOG = logging.getLogger(__name__)

PHASES = ("import", "load", "ceiling", "drift", "compile", "warmup", "measure", "write")

_MOST_CALLS = 300  # more calls hardly find a shorter one
_HELD_BYTES = 5 << 28
_HELD_S = 5.0
_PACE = 20
_OBJECTS_WORTH_COLLECTING = 10_000  # a collection takes longer than a tiny model's forward


def describe_clock() -> dict[str, Any]:
    """Return what a reader needs to know of the clock, and when garbage is collected."""
    clock = time.get_clock_info("perf_counter")
    return {
        "clock": f"time.perf_counter ({clock.implementation})",
        "clock_resolution_s": clock.resolution,
        "garbage_collection": "between measured passes only",
    }


class Phases:
    """How long each phase of a run took, in seconds; None for one that did not take place.

    ``current`` is the phase under way, or the one that an exception ended; ``entered`` is called
    with the name of each phase that begins.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self.seconds: dict[str, float | None] = dict.fromkeys(PHASES)
        self.current: str | None = None
        self.entered: Callable[[str], None] = lambda _name: None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time spent inside to phase ``name``."""
        self.current = name
        _LOG.info("phase: %s", name)
        self.entered(name)
        start = self._clock()
        try:
            yield
        finally:
            self.seconds[name] = (self.seconds[name] or 0.0) + self._clock() - start
        self.current = None


class Pace:
    """Does something every few seconds, or less often if it takes long; at once to begin with."""

    def __init__(self, every_s: float, clock: Clock = time.monotonic) -> None:
        self._every_s, self._clock = every_s, clock
        self._due = -math.inf

    def put_off(self, seconds: float) -> None:
        """Let ``do`` do nothing for so many seconds."""
        self._due = self._clock() + seconds

    def do(self, work: Callable[[], object]) -> None:
        """Call ``work`` if ``every_s``, and 20 times its duration, have passed since last time."""
        begin = self._clock()
        if begin < self._due:
            return
        work()
        end = self._clock()
        self._due = max(begin + self._every_s, end + _PACE * (end - begin))


def timed(work: Callable[[], T], clock: Clock = time.perf_counter) -> tuple[T, float]:
    """Return what ``work`` returns, and the seconds it took."""
    start = clock()
    result = work()
    return result, clock() - start


def fastest_s(
    work: Callable[[], object],
    device: Device,
    budget_s: float,
    clock: Clock = time.perf_counter,
) -> float:
    """Return the seconds of the fastest synchronised call of ``work`` within ``budget_s``.

    At least one call is timed, after one that is not, and at most 300. A result is held until the
    device has finished: some devices do not compute what nobody holds.
    """
    kept = work()
    device.synchronize()
    best, end = math.inf, clock() + budget_s
    for _ in range(_MOST_CALLS):
        start = clock()
        kept = work()
        device.synchronize()
        now = clock()
        del kept
        best = min(best, now - start)
        if now + best > end:
            break
    return best


def forward(encode: Encode, inputs: tuple[NDArray[np.generic], ...], device: Device) -> Outputs:
    """Run one unmeasured forward pass; its inputs and outputs are in host memory."""
    return device.submit(encode, inputs, time.perf_counter)().outputs


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Turn automatic garbage collection off inside: it would land in some forward's time."""
    gc.collect()
    with collector_off():
        yield


@contextmanager
def collector_off() -> Iterator[None]:
    """Turn automatic garbage collection off inside, without collecting first."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def measured_pass(
    pass_index: int,
    batches: Batches,
    encode: Encode,
    device: Device,
    clock: Clock = time.perf_counter,
) -> Iterator[tuple[Forward, Batch, Outputs]]:
    """Yield every forward of one pass as it is measured, with its batch and its host outputs.

    Laying out ``batches`` is part of the measured time, as it is in real use. What the caller does
    between two forwards is not measured, and the device is idle meanwhile: forwards that overlap
    are yielded when all of them are done.
    """
    if gc.get_count()[0] > _OBJECTS_WORTH_COLLECTING:
        gc.collect(0)  # what has come since the last: going through all objects takes long
    places, remaining = zip(repeat(pass_index), count()), iter(batches)
    while True:
        done: list[tuple[Forward, Batch, Outputs]] = []
        try:
            done.extend(_at_once(places, remaining, encode, device, clock))
        except BaseException:
            yield from done  # what was measured before it broke off
            raise
        if not done:
            return
        yield from done


def allocated_pinned(size: int) -> int:
    """Return the bytes that pinned memory of ``size`` takes: PyTorch rounds to a power of two."""
    return 1 << (size - 1).bit_length()


def _at_once(
    places: Iterator[tuple[int, int]],
    batches: Iterator[tuple[Batch, tuple[NDArray[np.generic], ...]]],
    encode: Encode,
    device: Device,
    clock: Clock,
) -> Iterator[tuple[Forward, Batch, Outputs]]:
    """Yield forwards that overlap; the device is idle before the first and after the last.

    With one in flight that is one forward. With more, they follow each other until ``_HELD_BYTES``
    of outputs lie in host memory or ``_HELD_S`` have passed: until then the caller keeps none of
    them, and all would be lost with the process. ``places`` numbers them: the pass, and the batch
    in it.
    """
    most = _HELD_BYTES if device.in_flight > 1 else 0
    submitted: deque[tuple[Batch, float, Callable[[], Computed]]] = deque()
    held, begun = 0, clock()
    start = begun
    while True:
        while len(submitted) < device.in_flight and held <= most and start - begun < _HELD_S:
            begin = clock()
            item = next(batches, None)
            if item is None:
                break
            batch, inputs = item
            submitted.append((batch, clock() - begin, device.submit(encode, inputs, clock)))
        if not submitted:
            return
        batch, lay_out_s, wait = submitted.popleft()
        computed = wait()
        end = clock()
        held += sum(allocated_pinned(tensor.nbytes) for tensor in vars(computed.outputs).values())
        forward = Forward(
            *next(places),
            sequences=len(batch.sequences),
            real_tokens=batch.real_tokens,
            padded_tokens=batch.padded_tokens,
            start_s=start,
            lay_out_s=lay_out_s,
            copy_in_s=computed.copy_in_s,
            duration_s=computed.duration_s,
            copy_out_s=computed.copy_out_s,
            wall_s=end - start,  # from when the forward before it was done
        )
        yield forward, batch, computed.outputs
        start = end

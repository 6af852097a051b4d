"""Memory: the most that a run held, what is given back, and what is said when it runs out."""

from __future__ import annotations

import ctypes
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bert_infer.devices import Device

_SAID_OF_MEMORY = (
    "out of memory",
    "allocate ",  # and not "allocated", which tensors without data are not
    "Allocation failed",  # Gaudi
    "_ALLOC_FAILED",  # cuBLAS and cuDNN
)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_NEVER = -1
_MMAPS_BY_DEFAULT = 1 << 16
_MOST_BY_DEFAULT = 1 << 26  # the most that glibc raises it to by itself


class PeakMemory:
    """Peaks since it was made, in bytes; what cannot be read is None.

    What earlier runs of the process have freed is given back first: it would be part of the peak.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._host_bytes: int | None = None
        self._device_bytes: int | None = None
        self._can_reset = True
        give_back()
        self._reset()

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave out what goes on inside, which is no part of the run's own work."""
        self._host_bytes, self._device_bytes = self.host_bytes(), self.device_bytes()
        try:
            yield
        finally:
            give_back()
            self._device.give_memory_back()
            self._reset()

    def bytes(self) -> tuple[int | None, int | None]:
        """Return the host's peak and the device's."""
        return self.host_bytes(), self.device_bytes()

    def host_bytes(self) -> int | None:
        """Return the host's peak: the largest resident set of this process."""
        if not self._can_reset:
            return None
        return _larger(self._host_bytes, _high_water_bytes())

    def device_bytes(self) -> int | None:
        """Return the device's peak."""
        return _larger(self._device_bytes, self._device.peak_memory())

    def _reset(self) -> None:
        self._device.reset_peak_memory()
        try:
            Path("/proc/self/clear_refs").write_text("5", "ascii")  # proc(5)
        except OSError:
            self._can_reset = False


def give_back() -> None:
    """Return freed memory that glibc's malloc keeps to the system; elsewhere nothing happens.

    While weights are converted a part at a time, what they leave behind would add up.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


@contextmanager
def freed_is_kept() -> Iterator[None]:
    """Have glibc's malloc keep freed memory for later allocations; other mallocs may do so anyway.

    By default it returns large blocks to the system at once, or trims the top of its heap,
    depending on what the process did before. Each page allocated again, for the activations of a
    forward above all, then costs a page fault. ``give_back`` works all the same.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        mallopt(_M_MMAP_MAX, _MMAPS_BY_DEFAULT)
        mallopt(_M_TRIM_THRESHOLD, _MOST_BY_DEFAULT)
        give_back()


def less(sized_by: str = "batch (or batching's own limit)") -> str:
    """Return what to do when memory runs out, ``sized_by`` being the key that limits a group."""
    return f"Lower {sized_by} or max_length, or choose a smaller dtype or model."


def ran_out(error: BaseException) -> bool:
    """Tell whether ``error`` means a lack of memory; devices say so only in the message."""
    if isinstance(error, MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(words in said for words in _SAID_OF_MEMORY)


def forget(error: BaseException) -> None:
    """Drop the local variables, tensors above all, of the functions that ``error`` ended."""
    cause: BaseException | None = error
    while cause:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__context__


def _larger(a: int | None, b: int | None) -> int | None:
    return max((value for value in (a, b) if value is not None), default=None)


def _high_water_bytes() -> int | None:
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None

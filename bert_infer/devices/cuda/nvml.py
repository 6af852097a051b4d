"""What NVIDIA's management library says of a card: clocks, temperature, power, who uses it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

import pynvml

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def of(uuid: str, read: Callable[[Any], T], unknown: T) -> T:
    """Return what ``read`` finds with the card's handle, else ``unknown``.

    Args:
        uuid: the card's, without "GPU-": CUDA's numbers are others where CUDA_VISIBLE_DEVICES is
            set.
        read: takes NVML's handle.
        unknown: returned where the library or the driver is missing, or the card has no such thing.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return unknown
    try:
        return read(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except pynvml.NVMLError:
        return unknown
    finally:
        pynvml.nvmlShutdown()


def readings(card: Any) -> dict[str, float]:  # noqa: ANN401  an untyped module's
    """Return clocks, temperature and power, units in the names."""
    return {
        "sm_clock_mhz": float(pynvml.nvmlDeviceGetClockInfo(card, pynvml.NVML_CLOCK_SM)),
        "memory_clock_mhz": float(pynvml.nvmlDeviceGetClockInfo(card, pynvml.NVML_CLOCK_MEM)),
        "temperature_c": float(pynvml.nvmlDeviceGetTemperature(card, pynvml.NVML_TEMPERATURE_GPU)),
        "power_w": pynvml.nvmlDeviceGetPowerUsage(card) / 1e3,
    }


def other_processes(card: Any) -> tuple[int, ...]:  # noqa: ANN401  likewise
    """Return the ids of other processes that compute on the card."""
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(card)
    return tuple(sorted({process.pid for process in processes} - {os.getpid()}))


def throttle_reasons(card: Any) -> tuple[str, ...]:  # noqa: ANN401  likewise
    """Return the reasons for a clock below what was asked."""
    active = pynvml.nvmlDeviceGetCurrentClocksEventReasons(card)
    reasons = {
        "power cap": pynvml.nvmlClocksEventReasonSwPowerCap,
        "temperature": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
        "hardware slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
    }
    return tuple(name for name, bit in reasons.items() if active & bit)

"""What NVIDIA's management library says of a card: clocks, temperature, power, who uses it."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pynvml

from bert_infer.devices.counters import Counters
from bert_infer.devices.readings import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_SILENT = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)  # the second is no kind of the first
_LARGEST_PID = 2**31 - 1


def reading(uuid: str) -> Reading:
    """Return what a card tells now; nothing where the library or the driver is missing.

    Args:
        uuid: the card's, from CUDA, whose indices differ from NVML's where CUDA_VISIBLE_DEVICES is
            set.
    """
    with suppress(*_SILENT), _library():
        card = _handle(uuid)
        clock = partial(pynvml.nvmlDeviceGetClockInfo, card)
        gauges: dict[str, Callable[[], float]] = {
            "sm_clock_mhz": lambda: clock(pynvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: clock(pynvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(
                card, pynvml.NVML_TEMPERATURE_GPU
            ),
            "power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(card) / 1e3,
        }
        return Reading(
            _told(gauges),
            _other_processes(card),
            _throttled(card),
            _told({name: partial(_held_down_s, card, limit) for name, limit in _LIMITS.items()}),
            _counters(card),
        )
    return Reading()


def power_limit_w(uuid: str) -> float | None:
    """Return the watts that a card is held to, by its maker or its owner.

    Not the enforced limit, which moves on boards that share power with others.
    """
    with suppress(*_SILENT), _library():
        return float(pynvml.nvmlDeviceGetPowerManagementLimit(_handle(uuid)) / 1e3)
    return None


def largest_memory_bytes() -> int | None:
    """Return the memory of this machine's largest card, in bytes; None if unknown."""
    with suppress(pynvml.NVMLError), _library():
        cards = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return max((int(pynvml.nvmlDeviceGetMemoryInfo(c).total) for c in cards), default=None)
    return None


def cards() -> int:
    """Return how many cards the driver has, whatever CUDA is shown of them; 0 if unknown."""
    with suppress(pynvml.NVMLError), _library():
        return int(pynvml.nvmlDeviceGetCount())
    return 0


def cuda_version() -> str | None:
    """Return the latest CUDA version that the driver serves; None if unknown."""
    with suppress(pynvml.NVMLError), _library():
        version = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        return f"{version // 1000}.{version % 1000 // 10}"
    return None


def driver_version() -> str | None:
    """Return the driver's version, as in "550.54"; None if unknown."""
    with suppress(pynvml.NVMLError), _library():
        return str(pynvml.nvmlSystemGetDriverVersion())
    return None


def _handle(uuid: str) -> Any:  # noqa: ANN401  an untyped handle
    """Return NVML's handle of a card, or of a MIG part of one, which CUDA treats as a card."""
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:  # not found; or of the whole card nothing may be known
        return pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")


def _told(figures: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Return those that the card tells: a MIG part of one has no power of its own."""
    found = {}
    for name, figure in figures.items():
        with suppress(*_SILENT):
            found[name] = float(figure())
    return found


def _other_processes(card: Any) -> tuple[int, ...]:  # noqa: ANN401  an untyped handle
    """Return the ids of other processes that compute on the card.

    In a container they may be the host's ids, among which this process does not know its own.
    As it is on the card itself, a single process that does not exist here is this one. Drivers
    before 535.154 fill a list of several with numbers that are no ids (NVIDIA/go-nvml issue 75).
    """
    listed = set()
    with suppress(*_SILENT):
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(card)
        listed = {process.pid for process in running if 0 < process.pid <= _LARGEST_PID}
    strange = {pid for pid in listed if not psutil.pid_exists(pid)}
    ourselves = {os.getpid()}
    if not listed & ourselves and len(strange) == 1:
        ourselves = strange
    return tuple(sorted(listed - ourselves))


def _throttled(card: Any) -> tuple[str, ...]:  # noqa: ANN401  an untyped handle
    """Return the reasons for which the clock is lower than the load calls for."""
    with suppress(*_SILENT):
        try:
            active = int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(card))
        except pynvml.NVMLError_FunctionNotFound:  # its name before driver 535
            active = int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(card))
        return tuple(name for name, bit in _REASONS.items() if active & bit)
    return ()


def _held_down_s(card: Any, limit: int) -> float:  # noqa: ANN401  an untyped handle
    """Return for how many seconds so far a limit has held the clocks down."""
    return float(pynvml.nvmlDeviceGetViolationStatus(card, limit).violationTime / 1e9)


def _counters(card: Any) -> Counters | None:  # noqa: ANN401  an untyped handle
    """Return the energy that the card has taken since its driver was loaded."""
    with suppress(*_SILENT):
        return Counters(energy_j=pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3)
    return None


@contextmanager
def _library() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


_REASONS = {
    "power cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "temperature": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hardware slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
    "hardware temperature": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "power brake": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
    "boost with other cards": pynvml.nvmlClocksEventReasonSyncBoost,
}
_LIMITS = {
    "power cap": pynvml.NVML_PERF_POLICY_POWER,
    "temperature": pynvml.NVML_PERF_POLICY_THERMAL,
    "boost with other cards": pynvml.NVML_PERF_POLICY_SYNC_BOOST,
    "board limit": pynvml.NVML_PERF_POLICY_BOARD_LIMIT,
}
"""What is counted, by NVML's policies. Its newer counters, one for each reason, are not used: their
numbers changed from one release of the library to the next. "Reliability" is left out: a card at
its highest clock may give it as the reason that it goes no higher."""

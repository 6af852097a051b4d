"""Power, temperature, energy and clock of a Gaudi card, from Intel's pyhlml where it works."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

from bert_infer.devices.readings import Reading

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# A sensor and bits of a mask, unnamed in older releases.
_ON_CHIP, _REASONS = 0, {"power cap": 1, "temperature": 2}


def reading(card: str | None) -> Reading:
    """Return the figures that a card reports, and why it holds its clock down.

    Args:
        card: its PCI address; None gives nothing.
    """

    def read(hlml: Any) -> Reading:  # noqa: ANN401  an untyped module
        handle = hlml.hlmlDeviceGetHandleByPCIBusID(card)
        figures: dict[str, Callable[[], float]] = {
            "power_w": lambda: hlml.hlmlDeviceGetPowerUsage(handle) / 1e3,
            "temperature_c": lambda: float(hlml.hlmlDeviceGetTemperature(handle, _ON_CHIP)),
            "energy_j": lambda: hlml.hlmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
            "clock_mhz": lambda: float(hlml.hlmlDeviceGetClockInfo(handle)),
            "utilisation": lambda: hlml.hlmlDeviceGetUtilizationRates(handle).aip / 100,
        }
        found, active = {}, 0
        for name, figure in figures.items():
            with contextlib.suppress(hlml.hlml_error.HLMLError):  # this card lacks it
                found[name] = figure()
        with contextlib.suppress(hlml.hlml_error.HLMLError):
            active = hlml.hlmlDeviceGetCurrentClocksThrottleReasons(handle)
        return Reading(found, throttled=tuple(why for why, bit in _REASONS.items() if active & bit))

    return _asked(read, Reading()) if card else Reading()


def driver_version() -> str | None:
    """Return the driver's version; unknown is None."""

    def read(hlml: Any) -> str | None:  # noqa: ANN401  an untyped module
        return str(hlml.hlmlGetDriverVersion().decode(errors="replace"))

    return _asked(read, None)


def _asked(read: Callable[[Any], T], unknown: T) -> T:
    """Return what ``read`` finds with pyhlml, or ``unknown`` without it or its library."""
    # It prints that its library is missing, and warns of its own module names.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            import pyhlml
            from pyhlml.hlml_error import HLMLError
        except ImportError:
            return unknown
        try:
            pyhlml.hlmlInit()
        except HLMLError:
            return unknown
        try:
            return read(pyhlml)
        except HLMLError:
            return unknown
        finally:
            with contextlib.suppress(HLMLError):
                pyhlml.hlmlShutdown()

"""Power, temperature, energy and clock of a Gaudi card, from Intel's pyhlml where it works."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_ON_CHIP, _POWER, _HEAT = 0, 1, 2  # a sensor and two bits of a mask, unnamed in older releases


def readings(card: str | None) -> dict[str, float]:
    """Return the figures that a card reports, units in the names.

    Args:
        card: its PCI address; None gives no figures.
    """

    def read(hlml: Any) -> dict[str, float]:  # noqa: ANN401  an untyped module
        handle = hlml.hlmlDeviceGetHandleByPCIBusID(card)
        figures: dict[str, Callable[[], float]] = {
            "power_w": lambda: hlml.hlmlDeviceGetPowerUsage(handle) / 1e3,
            "temperature_c": lambda: float(hlml.hlmlDeviceGetTemperature(handle, _ON_CHIP)),
            "energy_j": lambda: hlml.hlmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
            "clock_mhz": lambda: float(hlml.hlmlDeviceGetClockInfo(handle)),
            "utilisation": lambda: hlml.hlmlDeviceGetUtilizationRates(handle).aip / 100,
        }
        found = {}
        for name, figure in figures.items():
            with contextlib.suppress(hlml.hlml_error.HLMLError):  # this card lacks it
                found[name] = figure()
        return found

    return _asked(read, {}) if card else {}


def throttle_reasons(card: str | None) -> tuple[str, ...]:
    """Return why the card of that PCI address holds its clock down now."""

    def read(hlml: Any) -> tuple[str, ...]:  # noqa: ANN401  an untyped module
        handle = hlml.hlmlDeviceGetHandleByPCIBusID(card)
        active = hlml.hlmlDeviceGetCurrentClocksThrottleReasons(handle)
        reasons = {"power cap": _POWER, "temperature": _HEAT}
        return tuple(name for name, bit in reasons.items() if active & bit)

    return _asked(read, ()) if card else ()


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

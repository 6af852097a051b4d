"""Power, temperature, energy and clock of a Gaudi card, from Intel's pyhlml where it works."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_ON_CHIP, _POWER, _HEAT = 0, 1, 2  # a sensor, and two bits of a mask: no names in older releases


def readings(module: int | None) -> dict[str, float]:
    """Return the card's figures, units in the names; none without pyhlml or its library.

    Args:
        module: the card's module id; None takes the first card.
    """

    def read(hlml: Any, card: Any) -> dict[str, float]:  # noqa: ANN401  an untyped module
        return {
            "power_w": hlml.hlmlDeviceGetPowerUsage(card) / 1e3,
            "temperature_c": float(hlml.hlmlDeviceGetTemperature(card, _ON_CHIP)),
            "energy_j": hlml.hlmlDeviceGetTotalEnergyConsumption(card) / 1e3,
            "clock_mhz": float(hlml.hlmlDeviceGetClockInfo(card)),
            "utilisation": hlml.hlmlDeviceGetUtilizationRates(card).aip / 100,
        }

    return _with_card(module, read, {})


def throttle_reasons(module: int | None) -> tuple[str, ...]:
    """Return why the card holds its clock down now."""

    def read(hlml: Any, card: Any) -> tuple[str, ...]:  # noqa: ANN401  likewise
        active = hlml.hlmlDeviceGetCurrentClocksThrottleReasons(card)
        reasons = {"power cap": _POWER, "temperature": _HEAT}
        return tuple(name for name, bit in reasons.items() if active & bit)

    return _with_card(module, read, ())


def driver_version() -> str | None:
    """Return the driver's version; unknown is None."""

    def read(hlml: Any, _card: Any) -> str | None:  # noqa: ANN401  likewise
        return str(hlml.hlmlGetDriverVersion().decode(errors="replace"))

    return _with_card(None, read, None)


def _with_card(module: int | None, read: Callable[[Any, Any], T], unknown: T) -> T:
    """Return what ``read`` finds with pyhlml and its handle of the card, else ``unknown``."""
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
            card = _handle(pyhlml, module)
            return read(pyhlml, card) if card else unknown
        except HLMLError:
            return unknown
        finally:
            with contextlib.suppress(HLMLError):
                pyhlml.hlmlShutdown()


def _handle(hlml: Any, module: int | None) -> Any:  # noqa: ANN401  likewise
    handles = [hlml.hlmlDeviceGetHandleByIndex(index) for index in range(hlml.hlmlDeviceGetCount())]
    if module is None:
        return next(iter(handles), None)
    return next((card for card in handles if hlml.hlmlDeviceGetModuleID(card) == module), None)

"""What a device tells of its own state. Reading it does not use the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bert_infer.devices.counters import Counters


class Gauges:
    """A device without any: nothing is known."""

    def readings(self) -> dict[str, float]:
        """Return the accelerator's clock, temperature and the like, units in the names."""
        return {}

    def other_processes(self) -> tuple[int, ...]:
        """Return the ids of other processes that use the accelerator."""
        return ()

    def throttle_reasons(self) -> tuple[str, ...]:
        """Return why the accelerator holds its clock down now."""
        return ()

    def throttled_s(self) -> dict[str, float]:
        """Return for how many seconds its clock was held down, by each reason that is counted."""
        return {}

    def counters(self) -> Counters | None:
        """Return what the device has counted since the process began; None if it counts nothing."""
        return None

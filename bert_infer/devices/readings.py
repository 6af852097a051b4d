"""What a device tells of its own state. Reading it does not use the device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bert_infer.devices.counters import Counters


@dataclass(frozen=True)
class Reading:
    """One moment's; what the device does not tell is empty.

    Attributes:
        gauges: clock, temperature and the like, units in the names.
        processes: ids of other processes that use it.
        throttled: why it holds its clock down.
        throttled_s: for how many seconds it has so far, by each reason that is counted.
        counters: what it has counted since the process began; None if it counts nothing.
    """

    gauges: dict[str, float] = field(default_factory=dict)
    processes: tuple[int, ...] = ()
    throttled: tuple[str, ...] = ()
    throttled_s: dict[str, float] = field(default_factory=dict)
    counters: Counters | None = None

"""What an accelerator has counted: compilations, cache hits, fallbacks to the CPU, energy."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  a dataclass's field
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Counters:
    """Totals since the process began, of energy since the driver was loaded; None: not counted.

    Attributes:
        compilations: graphs that the device's compiler has compiled.
        compilation_s: seconds that this took.
        recipe_cache_hits: graphs that were found compiled in the cache.
        recipe_cache_misses: graphs that were not.
        cpu_fallbacks: how often each operator ran on the CPU because the device lacks it.
        energy_j: joules that the device took.
    """

    compilations: int | None = None
    compilation_s: float | None = None
    recipe_cache_hits: int | None = None
    recipe_cache_misses: int | None = None
    cpu_fallbacks: Mapping[str, int] | None = None
    energy_j: float | None = None


@dataclass(frozen=True)
class Counted:
    """Three readings: when the run began, and before and after its measured passes."""

    begun: Counters | None
    before: Counters | None
    after: Counters | None

    def beside_others(self) -> Counted:
        """Return the readings without energy, for a device that others used between passes."""
        return replace(self, after=self.after and replace(self.after, energy_j=None))

    def as_json(self) -> dict[str, Any] | None:
        """Return totals of the whole run, or, in keys called measured, of the measured passes."""
        begun, before, after = self.begun, self.before, self.after
        if not (begun and before and after):
            return None
        return {
            "compilations": _grown(begun.compilations, after.compilations),
            "compilation_s": _grown(begun.compilation_s, after.compilation_s),
            "measured_compilations": _grown(before.compilations, after.compilations),
            "recipe_cache_hits": _grown(begun.recipe_cache_hits, after.recipe_cache_hits),
            "recipe_cache_misses": _grown(begun.recipe_cache_misses, after.recipe_cache_misses),
            "cpu_fallbacks": _grown_by_name(begun.cpu_fallbacks, after.cpu_fallbacks),
            "measured_energy_j": _grown(before.energy_j, after.energy_j),
        }


def _grown(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _grown_by_name(
    before: Mapping[str, int] | None, after: Mapping[str, int] | None
) -> dict[str, int] | None:
    if before is None or after is None:
        return None
    grown = {name: count - before.get(name, 0) for name, count in after.items()}
    return {name: count for name, count in grown.items() if count}

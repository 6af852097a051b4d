"""What a Gaudi card tells: power and the like by HLML, what was compiled by the plugin."""

from __future__ import annotations

from bert_infer.devices.counters import Counters
from bert_infer.devices.gauges import Gauges
from bert_infer.devices.hpu import hlml, host, plugin


class CardGauges(Gauges):
    """Those of the card that this process has open; nothing before it has one."""

    def readings(self) -> dict[str, float]:
        """Return the card's power, temperature, energy, clock and utilisation."""
        return hlml.readings(host.own_card())

    def throttle_reasons(self) -> tuple[str, ...]:
        """Return the reasons that HLML gives for a clock below the one requested."""
        return hlml.throttle_reasons(host.own_card())

    def counters(self) -> Counters:
        """Return the plugin's metrics, and the card's energy."""
        compilations = plugin.metric("graph_compilation")
        cache, fallbacks = plugin.metric("recipe_cache"), plugin.metric("cpu_fallback")
        microseconds = compilations.get("TotalTime")
        return Counters(
            compilations=compilations.get("TotalNumber"),
            compilation_s=None if microseconds is None else microseconds / 1e6,
            recipe_cache_hits=cache.get("TotalHit"),
            recipe_cache_misses=cache.get("TotalMiss"),
            cpu_fallbacks=fallbacks.get("FallbackOps"),
            energy_j=self.readings().get("energy_j"),
        )

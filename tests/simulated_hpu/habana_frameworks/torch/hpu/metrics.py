import os
from contextlib import contextmanager

from card import CARD, COMPILATION_US


class MetricNotFound(Exception):  # noqa: N818  its name
    pass


class _Metric:
    def __init__(self, name, stats):
        self.name, self.stats = name, stats


def _compilations():
    total = CARD.compilations * COMPILATION_US
    average = total / CARD.compilations if CARD.compilations else 0
    return [("TotalNumber", CARD.compilations), ("TotalTime", total), ("AvgTime", average)]


def _fallbacks():
    return [("TotalNumber", sum(CARD.fallbacks.values())), ("FallbackOps", CARD.fallbacks)]


def _cache():
    return [("TotalHit", CARD.hits), ("RecipeHit", {}), ("TotalMiss", CARD.compilations)]


_METRICS = {
    "graph_compilation": _Metric("graph_compilation", _compilations),
    "cpu_fallback": _Metric("cpu_fallback", _fallbacks),
    "memory_defragmentation": _Metric("memory_defragmentation", lambda: [("TotalNumber", 0)]),
}
if os.environ.get("PT_HPU_ENABLE_CACHE_METRICS") == "1":
    _METRICS["recipe_cache"] = _Metric("recipe_cache", _cache)


def metric_global(name):
    return _METRICS.get(name)


@contextmanager
def metric_localcontext(name):
    if name not in _METRICS:
        raise MetricNotFound(name)
    yield _METRICS[name]

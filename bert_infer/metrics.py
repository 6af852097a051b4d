"""metrics.json: every name, unit and formula in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_infer import caveats
from bert_infer.measuring import changes, intervals
from bert_infer.measuring.environment import digest
from bert_infer.records import wall_s

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bert_infer.measuring.samples import Samples
    from bert_infer.records import Forward
    from bert_infer.running.preparation import Prepared
    from bert_infer.running.run_record import Record
    from bert_infer.running.workload import Workload

SCHEMA_VERSION = 1
_PERCENTILES = (50, 90, 95, 99)
_LENGTH_BINS = 20
_LEAST_ENERGY_S = 1.0
"""A card's power is sampled at intervals (Yang et al., 2023, arXiv:2312.02741): what it has counted
of a short run is a step of the counter, or nothing."""


def of(record: Record) -> dict[str, Any]:
    """Return the content of metrics.json, schema version 1."""
    figures = _figures(record, record.samples)
    return figures | {"warnings": [asdict(c) for c in caveats.of(record, figures)]}


def so_far(record: Record) -> dict[str, Any]:
    """Return the same without intervals and warnings, which take time and memory."""
    figures = _figures(record, None)
    figures["measurement"]["samples"] = None  # unknown here, which is not 0
    return figures | {"warnings": []}


def _figures(record: Record, samples: Samples | None) -> dict[str, Any]:
    prepared = record.prepared
    workload = prepared.workload if prepared else None
    return {
        "schema_version": SCHEMA_VERSION,
        "status": record.status,
        "error": record.error,
        "run": {key: record.run.get(key) for key in _RUN}
        | {"environment_hash": digest(record.environment) if record.environment else None},
        "choice": choice(prepared) | ({"iterations": record.passes} if record.passes else {}),
        "workload": _read(_WORKLOAD, workload),
        "phases_s": record.phases.seconds,
        "latency_ms": latency_ms(record.forwards, samples),
        "throughput": _throughput(record.forwards, workload, samples),
        "compute": _compute(record),
        "memory": {
            "peak_host_bytes": record.peak_host_bytes,
            "peak_device_bytes": record.peak_device_bytes,
            "device_bytes": _device_bytes(record.environment),
        },
        "accelerator": _accelerator(record),
        "drift": asdict(record.drift) if record.drift else None,
        "measurement": _measurement(record, samples),
        "provenance": {
            "weights": record.weights,
            "tokenizer": prepared.tokenizer_provenance if prepared else None,
            "input": {"sha256": prepared.tokens.sha256} if prepared else None,
        },
    }


_RUN = (
    "id",
    "started_at",
    "config_hash",
    "content_hash",
    "environment_hash",
    "overrides",
    "isolation",
)
Keys = Mapping[str, "Callable[[Any], Any] | Keys"]
"""How each value of a section is read from what it describes; sections can lie in one another."""

_CHOICE: Mapping[str, Callable[[Prepared], Any]] = {
    "device": lambda prepared: prepared.device.name,
    "dtype": lambda prepared: prepared.dtype.name,
    "graph": lambda prepared: prepared.graph.name,
    "batching": lambda prepared: prepared.batching.name,
    "engine": lambda prepared: prepared.runner.engine.name,
    "model": lambda prepared: prepared.runner.model.name,
    "weights": lambda prepared: prepared.source.kind,
    "batch": lambda prepared: (
        prepared.runner.settings.batch if prepared.batching.sized_by == "batch" else None
    ),
    "batching.max_tokens": lambda prepared: prepared.batching.budget,
    "iterations": lambda prepared: prepared.runner.settings.iterations,
    "max_length": lambda prepared: prepared.max_length,
}
_WORKLOAD: Keys = {
    "texts": lambda workload: workload.texts,
    "sequences": lambda workload: len(workload.lengths),
    "forwards_per_pass": lambda workload: workload.forwards,
    "real_tokens": lambda workload: workload.real_tokens,
    "padded_tokens": lambda workload: workload.padded_tokens,
    "padding_waste": lambda workload: workload.padding_waste,
    "truncated_texts": lambda workload: workload.truncated,
    "length": {
        "min": lambda workload: int(workload.lengths.min()),
        "mean": lambda workload: float(workload.lengths.mean()),
        "p50": lambda workload: float(np.median(workload.lengths)),
        "p90": lambda workload: float(np.percentile(workload.lengths, 90)),
        "max": lambda workload: int(workload.lengths.max()),
    },
    "length_histogram": {
        "edges": lambda workload: length_histogram(workload.lengths)[0],
        "sequences": lambda workload: length_histogram(workload.lengths)[1],
    },
}


def choice(prepared: Prepared | None) -> dict[str, Any]:
    """Return what was chosen, as resolved."""
    return _read(_CHOICE, prepared)


def _read(keys: Keys, described: Any) -> dict[str, Any]:  # noqa: ANN401  what the section describes
    """Return the values of ``keys``; all are None where nothing is there to be described."""
    return {
        key: _read(read, described)
        if isinstance(read, Mapping)
        else None
        if described is None
        else read(described)
        for key, read in keys.items()
    }


def percentile(samples: NDArray[np.float64], q: int) -> float | None:
    """Return the q-th percentile, or None where fewer than one sample would lie above it."""
    return float(np.percentile(samples, q)) if len(samples) * (100 - q) >= 100 else None  # noqa: PLR2004


def latency_ms(forwards: list[Forward], samples: Samples | None) -> dict[str, Any]:
    """Return the statistics of the forwards' synchronised durations, in milliseconds."""
    values = np.array([forward.duration_s * 1e3 for forward in forwards])
    count = len(values)
    return {
        "scope": "forward",
        "samples": count,
        "mean": float(values.mean()) if count else None,
        "std": float(values.std(ddof=1)) if count > 1 else None,
        "min": float(values.min()) if count else None,
        # The middle of a few samples is still their best summary.
        "p50": float(np.median(values)) if count else None,
        **{f"p{q}": percentile(values, q) for q in _PERCENTILES[1:]},
        "max": float(values.max()) if count else None,
        "p50_ci95": samples.median_ms if samples else None,
    }


def length_histogram(lengths: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Return edges, and how many lengths lie between them: in at most 20 bins of one whole width.

    A bin includes its lower edge but not its upper one.

    Args:
        lengths: ``int64 [sequences]``, real tokens of each; one at the least.
    """
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // _LENGTH_BINS)
    edges = np.arange(low, high + width + 1, width)
    sequences, _ = np.histogram(lengths, edges)
    return edges.tolist(), sequences.tolist()


def _throughput(
    forwards: list[Forward], workload: Workload | None, samples: Samples | None
) -> dict[str, Any]:
    forwards = (workload.of_complete_passes(forwards) if workload else []) or forwards
    measured_s = wall_s(forwards)
    tokenize_s = workload.tokenize_s if workload else None
    return {
        "sequences_per_s": _rate(sum(f.sequences for f in forwards), measured_s),
        "real_tokens_per_s": _rate(sum(f.real_tokens for f in forwards), measured_s),
        "padded_tokens_per_s": _rate(sum(f.padded_tokens for f in forwards), measured_s),
        "sequences_per_s_ci95": samples.sequences_per_s if samples else None,
        "tokenize_texts_per_s": _rate(workload.texts, tokenize_s) if workload else None,
    }


def _compute(record: Record) -> dict[str, Any]:
    ceiling = record.ceiling.flop_per_s if record.ceiling else None
    flop = unneeded = flop_per_s = None
    if record.prepared:
        workload, architecture = record.prepared.workload, record.prepared.architecture
        flop = architecture.useful_flop(workload.lengths)
        unneeded = record.prepared.runner.engine.unneeded_flop(architecture, workload.lengths)
        forwards = workload.of_complete_passes(record.forwards)
        done = (flop - (unneeded or 0)) * (len(forwards) // workload.forwards)
        flop_per_s = _rate(done, wall_s(forwards))
    return {
        "useful_flop": flop,
        "unneeded_flop": unneeded,
        "useful_flop_per_s": flop_per_s,
        "ceiling_flop_per_s": ceiling,
        "fraction_of_ceiling": flop_per_s / ceiling if ceiling and flop_per_s else None,
    }


def _accelerator(record: Record) -> dict[str, Any] | None:
    counted = record.counted.as_json() if record.counted else None
    if counted and (record.phases.seconds["measure"] or 0.0) < _LEAST_ENERGY_S:
        counted["measured_energy_j"] = None
    return counted


def _measurement(record: Record, samples: Samples | None) -> dict[str, Any]:
    """Return how the figures came about: what a reviewer asks next."""
    prepared = record.prepared
    reached = samples.relative_ci if samples else None
    matmul = record.ceiling.matmul if record.ceiling else None

    def mean_ms(seconds: Callable[[Forward], float]) -> float | None:
        values = [seconds(forward) * 1e3 for forward in record.forwards]
        return float(np.mean(values)) if values else None

    outliers = samples.outliers() if samples else None
    trend = changes.trend(samples.wall_s) if samples else None
    step = changes.step(samples.wall_s) if samples else None
    return {
        "warmup_passes": record.warm_up.passes if record.warm_up else None,
        "warmup_steady": record.warm_up.steady if record.warm_up else None,
        "warmup_shapes_left": record.warm_up.shapes_left if record.warm_up else None,
        "in_flight": prepared.device.in_flight if prepared else None,
        "sample": samples.unit if samples else None,
        "samples": len(samples.wall_s) if samples else 0,
        "relative_ci": reached,
        "relative_ci_asked": prepared.runner.until.relative_ci if prepared else None,
        "lay_out_ms": mean_ms(lambda forward: forward.lay_out_s),
        "copy_in_ms": mean_ms(lambda forward: forward.copy_in_s),
        "copy_out_ms": mean_ms(lambda forward: forward.copy_out_s),
        "autocorrelation": intervals.autocorrelation(samples.wall_s) if samples else None,
        "outliers": outliers._asdict() if outliers else None,
        "trend": trend,
        "step": step._asdict() if step else None,
        "ceiling_matmul": {
            "rows": matmul.rows,
            "inputs": matmul.inputs,
            "outputs": matmul.outputs,
            "kernel": matmul.make.__name__,
        }
        if matmul
        else None,
        "ceiling_before_flop_per_s": record.ceiling.before_flop_per_s if record.ceiling else None,
        "ceiling_after_flop_per_s": record.ceiling.after_flop_per_s if record.ceiling else None,
    }


def _device_bytes(environment: dict[str, Any] | None) -> int | None:
    found: int | None = environment["device"].get("memory_bytes") if environment else None
    return found


def _rate(amount: float, seconds: float | None) -> float | None:
    return amount / seconds if seconds else None

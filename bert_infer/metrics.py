"""What a run found out, and metrics.json: every name, unit and formula in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_infer import caveats, statistics
from bert_infer.attempts import Attempts
from bert_infer.environment import digest
from bert_infer.measure import Phases
from bert_infer.samples import Samples

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bert_infer.architecture import Architecture
    from bert_infer.ceiling import Ceiling
    from bert_infer.conditions import Conditions
    from bert_infer.counters import Counted
    from bert_infer.drift import Drift
    from bert_infer.dtypes import Dtype
    from bert_infer.measure import WarmUp
    from bert_infer.records import Forward
    from bert_infer.settings import Until
    from bert_infer.workload import Workload

SCHEMA_VERSION = 1
_PERCENTILES = (50, 90, 95, 99)
_LENGTH_BINS = 20


@dataclass
class Record:
    """What is known of a run so far; a figure that is not known yet is None.

    The one mutable record: it is filled as the run goes on, so that a run that breaks off still
    leaves what it found out.
    """

    run: dict[str, Any] = field(default_factory=dict)
    until: Until | None = None
    choice: dict[str, Any] = field(default_factory=dict)
    status: str = "interrupted"
    error: dict[str, str] | None = None
    phases: Phases = field(default_factory=Phases)
    attempts: Attempts = field(default_factory=Attempts)
    architecture: Architecture | None = None
    workload: Workload | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] | None = None
    dtype: Dtype | None = None
    emulated: bool = False
    warm_up: WarmUp | None = None
    forwards: list[Forward] = field(default_factory=list)
    ceiling: Ceiling | None = None
    is_finite: bool = True
    in_flight: int = 1
    drift: Drift | None = None
    conditions: Conditions | None = None
    peak_host_bytes: int | None = None
    peak_device_bytes: int | None = None
    counted: Counted | None = None
    shapes_without_graph: int = 0
    unneeded_flop: int | None = None

    def broke_off(self, status: str, kind: str, message: str, remedy: str) -> None:
        """Note why the run ended early, and in which phase."""
        where = f" (phase: {self.phases.current})" if self.phases.current else ""
        self.status = status
        self.error = {"type": kind, "message": message + where, "remedy": remedy}

    def finish(self, min_cosine: float | None) -> None:
        """Note that the run came to its end, and whether its drift is more than was allowed."""
        self.status = "ok"
        if self.drift and (complaint := self.drift.complaint(min_cosine)):
            self.status = "drift_exceeded"
            message, remedy = complaint
            self.error = {"type": "DriftExceeded", "message": message, "remedy": remedy}

    @property
    def samples(self) -> Samples | None:
        """The timings as statistics take them; None before the first complete pass."""
        if self.workload is None or len(self.forwards) < self.workload.forwards:
            return None
        return Samples.of(self.forwards, self.workload)

    def relative_ci(self) -> float | None:
        """Return half the 95 % interval of throughput over the throughput; None for few samples.

        To stop at the first narrow interval of few samples is to pick one that is too narrow.
        """
        samples = self.samples
        enough = samples is not None and len(samples.wall_s) >= statistics.FEWEST_TO_STOP
        return samples.relative_ci if samples and enough else None

    def metrics(self) -> dict[str, Any]:
        """Return the content of metrics.json, schema version 1."""
        figures = self._figures(self.samples)
        return figures | {"warnings": [asdict(c) for c in caveats.of(self, figures)]}

    def so_far(self) -> dict[str, Any]:
        """Return the same without intervals and warnings, which take time and memory."""
        figures = self._figures(None)
        figures["measurement"]["samples"] = None  # unknown here, which is not 0
        return figures | {"warnings": []}

    def _figures(self, samples: Samples | None) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "status": self.status,
            "error": self.error,
            "run": {key: self.run.get(key) for key in _RUN}
            | {"environment_hash": digest(self.environment) if self.environment else None},
            "choice": {key: self.choice.get(key) for key in _CHOICE},
            "workload": _workload(self.workload),
            "phases_s": self.phases.seconds,
            "latency_ms": latency_ms(self.forwards, samples),
            "throughput": _throughput(self.forwards, self.workload, samples),
            "compute": _compute(self),
            "memory": {
                "peak_host_bytes": self.peak_host_bytes,
                "peak_device_bytes": self.peak_device_bytes,
                "device_bytes": _device_bytes(self.environment),
            },
            "accelerator": self.counted.as_json() if self.counted else None,
            "drift": asdict(self.drift) if self.drift else None,
            "measurement": _measurement(self, samples),
            "provenance": {
                key: self.provenance.get(key) for key in ("weights", "tokenizer", "input")
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
_CHOICE = (
    "device",
    "dtype",
    "graph",
    "batching",
    "engine",
    "model",
    "weights",
    "batch",
    "batching.max_tokens",
    "iterations",
    "max_length",
)


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


def _workload(workload: Workload | None) -> dict[str, Any]:
    if workload is None:
        return dict.fromkeys(
            (
                "texts",
                "sequences",
                "forwards_per_pass",
                "real_tokens",
                "padded_tokens",
                "padding_waste",
                "truncated_texts",
            ),
        ) | {
            "length": dict.fromkeys(("min", "mean", "p50", "p90", "max")),
            "length_histogram": dict.fromkeys(("edges", "sequences")),
        }
    lengths = workload.lengths
    return {
        "texts": workload.texts,
        "sequences": len(lengths),
        "forwards_per_pass": workload.forwards,
        "real_tokens": workload.real_tokens,
        "padded_tokens": workload.padded_tokens,
        "padding_waste": workload.padding_waste,
        "truncated_texts": workload.truncated,
        "length": {
            "min": int(lengths.min()),
            "mean": float(lengths.mean()),
            "p50": float(np.median(lengths)),
            "p90": float(np.percentile(lengths, 90)),
            "max": int(lengths.max()),
        },
        "length_histogram": length_histogram(lengths),
    }


def length_histogram(lengths: NDArray[np.int64]) -> dict[str, list[int]]:
    """Return the histogram of the lengths, in at most 20 bins of one width, a whole number.

    A bin includes its lower edge but not its upper one.

    Args:
        lengths: ``int64 [sequences]``, real tokens of each; one at the least.
    """
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // _LENGTH_BINS)
    edges = np.arange(low, high + width + 1, width)
    sequences, _ = np.histogram(lengths, edges)
    return {"edges": edges.tolist(), "sequences": sequences.tolist()}


def _throughput(
    forwards: list[Forward], workload: Workload | None, samples: Samples | None
) -> dict[str, Any]:
    wall_s = sum(forward.wall_s for forward in forwards)
    tokenize_s = workload.tokenize_s if workload else None
    return {
        "sequences_per_s": _rate(sum(f.sequences for f in forwards), wall_s),
        "real_tokens_per_s": _rate(sum(f.real_tokens for f in forwards), wall_s),
        "padded_tokens_per_s": _rate(sum(f.padded_tokens for f in forwards), wall_s),
        "sequences_per_s_ci95": samples.sequences_per_s if samples else None,
        "tokenize_texts_per_s": _rate(workload.texts, tokenize_s) if workload else None,
    }


def _compute(record: Record) -> dict[str, Any]:
    workload, architecture, ceiling = record.workload, record.architecture, record.ceiling
    flop = architecture.useful_flop(workload.lengths) if workload and architecture else None
    complete = workload is not None and len(record.forwards) % workload.forwards == 0
    passes = len(record.forwards) // workload.forwards if workload else 0
    wall_s = sum(forward.wall_s for forward in record.forwards)
    done = flop - (record.unneeded_flop or 0) if flop else None
    flop_per_s = _rate(done * passes, wall_s) if done and complete else None
    return {
        "useful_flop": flop,
        "unneeded_flop": record.unneeded_flop,
        "useful_flop_per_s": flop_per_s,
        "ceiling_flop_per_s": ceiling.flop_per_s if ceiling else None,
        "fraction_of_ceiling": flop_per_s / ceiling.flop_per_s if ceiling and flop_per_s else None,
    }


def _measurement(record: Record, samples: Samples | None) -> dict[str, Any]:
    """Return how the figures came about: what a reviewer asks next."""
    reached = samples.relative_ci if samples else None
    matmul = record.ceiling.matmul if record.ceiling else None

    def mean_ms(seconds: Callable[[Forward], float]) -> float | None:
        values = [seconds(forward) * 1e3 for forward in record.forwards]
        return float(np.mean(values)) if values else None

    outliers = samples.outliers() if samples else None
    trend = statistics.trend(samples.wall_s) if samples else None
    step = statistics.step(samples.wall_s) if samples else None
    return {
        "warmup_passes": record.warm_up.passes if record.warm_up else None,
        "warmup_steady": record.warm_up.steady if record.warm_up else None,
        "warmup_shapes_left": record.warm_up.shapes_left if record.warm_up else None,
        "in_flight": record.in_flight,
        "sample": samples.unit if samples else None,
        "samples": len(samples.wall_s) if samples else 0,
        "relative_ci": reached,
        "relative_ci_asked": record.until.relative_ci if record.until else None,
        "lay_out_ms": mean_ms(lambda forward: forward.lay_out_s),
        "copy_in_ms": mean_ms(lambda forward: forward.copy_in_s),
        "copy_out_ms": mean_ms(lambda forward: forward.copy_out_s),
        "autocorrelation": statistics.autocorrelation(samples.wall_s) if samples else None,
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

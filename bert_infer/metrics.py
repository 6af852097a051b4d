"""What a run found out, and metrics.json: every name, unit and formula in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_infer.measure import Phases

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from bert_infer.models import Architecture
    from bert_infer.records import Caveat, Forward, Shape

SCHEMA_VERSION = 1
_PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, eq=False)
class Workload:
    """What one pass computes.

    Attributes:
        lengths: ``int64 [sequences]``, real tokens of each.
        batch: sequences that a forward was asked to hold.
        uses_batch: whether the batching policy heeds that.
        less_padding: what the policy advises against padding.
        shapes: the distinct shapes of its batches.
    """

    texts: int
    lengths: NDArray[np.int64]
    forwards: int
    padded_tokens: int
    truncated: int
    skipped: int
    batch: int
    uses_batch: bool
    less_padding: str
    shapes: tuple[Shape, ...]
    tokenize_s: float | None

    @property
    def real_tokens(self) -> int:
        """Tokens that belong to a text."""
        return int(self.lengths.sum())

    @property
    def padding_waste(self) -> float:
        """The part of the computed slots that is padding."""
        return 1 - self.real_tokens / self.padded_tokens


@dataclass
class Record:
    """What is known of a run so far; a figure that is not known yet is None.

    The one mutable record: it is filled as the run goes on, so that a run that breaks off still
    leaves what it found out.
    """

    run: dict[str, Any] = field(default_factory=dict)
    choice: dict[str, Any] = field(default_factory=dict)
    status: str = "interrupted"
    error: dict[str, str] | None = None
    phases: Phases = field(default_factory=Phases)
    architecture: Architecture | None = None
    workload: Workload | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    forwards: list[Forward] = field(default_factory=list)
    peak_host_bytes: int | None = None
    peak_device_bytes: int | None = None
    warnings: list[Caveat] = field(default_factory=list)

    def broke_off(self, status: str, kind: str, message: str, remedy: str) -> None:
        """Note why the run ended early, and in which phase."""
        where = f" (phase: {self.phases.current})" if self.phases.current else ""
        self.status = status
        self.error = {"type": kind, "message": message + where, "remedy": remedy}

    def metrics(self) -> dict[str, Any]:
        """Return the content of metrics.json, schema version 1."""
        return {
            "schema_version": SCHEMA_VERSION,
            "status": self.status,
            "error": self.error,
            "run": {key: self.run.get(key) for key in _RUN},
            "choice": {key: self.choice.get(key) for key in _CHOICE},
            "workload": _workload(self.workload),
            "phases_s": self.phases.seconds,
            "latency_ms": latency_ms(self.forwards),
            "throughput": _throughput(self.forwards, self.workload),
            "compute": _compute(self.forwards, self.workload, self.architecture),
            "memory": {
                "peak_host_bytes": self.peak_host_bytes,
                "peak_device_bytes": self.peak_device_bytes,
            },
            "drift": None,
            "provenance": {
                key: self.provenance.get(key) for key in ("weights", "tokenizer", "input")
            },
            "warnings": [asdict(warning) for warning in self.warnings],
        }


_RUN = ("id", "started_at", "config_hash", "environment_hash", "overrides", "isolation")
_CHOICE = (
    "device",
    "dtype",
    "graph",
    "batching",
    "engine",
    "model",
    "weights",
    "batch",
    "iterations",
    "max_length",
)


def useful_flop(lengths: NDArray[np.int64], architecture: Architecture) -> int:
    """Return the matrix-multiply work on real tokens, in FLOP.

    For each sequence of n tokens and each layer: ``2n(4H^2 + 2HI)`` in the projections and the
    feed-forward network, ``4n^2 H`` in attention. A multiplication and an addition are two.

    Args:
        lengths: ``int64 [sequences]``, real tokens of each.
        architecture: gives the layers, H (hidden) and I (intermediate).
    """
    hidden, intermediate = architecture.hidden, architecture.intermediate
    tokens, squares = int(lengths.sum()), int((lengths**2).sum())
    per_layer = 2 * tokens * (4 * hidden**2 + 2 * hidden * intermediate) + 4 * squares * hidden
    return architecture.layers * per_layer


def percentile(samples: NDArray[np.float64], q: int) -> float | None:
    """Return the q-th percentile, or None where fewer than one sample would lie above it."""
    return float(np.percentile(samples, q)) if len(samples) * (100 - q) >= 100 else None  # noqa: PLR2004


def latency_ms(forwards: Iterable[Forward]) -> dict[str, Any]:
    """Return the statistics of the forwards' synchronised durations, in milliseconds."""
    samples = np.array([forward.duration_s * 1e3 for forward in forwards])
    count = len(samples)
    return {
        "scope": "forward",
        "samples": count,
        "mean": float(samples.mean()) if count else None,
        "std": float(samples.std(ddof=1)) if count > 1 else None,
        "min": float(samples.min()) if count else None,
        # The middle of a few samples is still their best summary.
        "p50": float(np.median(samples)) if count else None,
        **{f"p{q}": percentile(samples, q) for q in _PERCENTILES[1:]},
        "max": float(samples.max()) if count else None,
        "p50_ci95": None,
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
        ) | {"length": dict.fromkeys(("min", "mean", "p50", "p90", "max"))}
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
    }


def _throughput(forwards: list[Forward], workload: Workload | None) -> dict[str, Any]:
    wall_s = sum(forward.wall_s for forward in forwards)
    tokenize_s = workload.tokenize_s if workload else None
    return {
        "sequences_per_s": _rate(sum(f.sequences for f in forwards), wall_s),
        "real_tokens_per_s": _rate(sum(f.real_tokens for f in forwards), wall_s),
        "padded_tokens_per_s": _rate(sum(f.padded_tokens for f in forwards), wall_s),
        "sequences_per_s_ci95": None,
        "tokenize_texts_per_s": _rate(workload.texts, tokenize_s) if workload else None,
    }


def _compute(
    forwards: list[Forward], workload: Workload | None, architecture: Architecture | None
) -> dict[str, Any]:
    flop = useful_flop(workload.lengths, architecture) if workload and architecture else None
    complete = workload is not None and len(forwards) % workload.forwards == 0
    passes = len(forwards) // workload.forwards if workload else 0
    wall_s = sum(forward.wall_s for forward in forwards)
    return {
        "useful_flop": flop,
        "useful_flop_per_s": _rate(flop * passes, wall_s) if flop and complete else None,
        "ceiling_flop_per_s": None,
        "fraction_of_ceiling": None,
    }


def _rate(amount: float, seconds: float | None) -> float | None:
    return amount / seconds if seconds else None

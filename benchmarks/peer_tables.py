"""Tables of what was measured, and of where."""

from __future__ import annotations

import math
import os
import platform
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from peer_engines import THREADS, VENDOR

from bert_infer.environment import cpu_flags

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from peer_engines import Workload

_PACKAGES = (
    *("bert-infer", "torch", "transformers", "onnxruntime", "onnx", "openvino", "nncf"),
    *("ctranslate2", "sentence-transformers", "numpy"),
)
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


@dataclass(eq=False)
class Row:
    """What one engine did with one workload.

    Attributes:
        turns: the seconds of each pass, by turn.
        overrides: ours has some.
        cosine: the smallest of its sequences' to the reference.
        rested: whether it left the processor to others between its turns.
    """

    name: str
    label: str
    is_ours: bool
    overrides: str | None
    turns: list[list[float]] = field(default_factory=list)
    cosine: float | None = None
    peak_bytes: int | None = None
    rested: bool = True
    failure: str | None = None

    @property
    def by_round(self) -> NDArray[np.float64]:
        """The mean seconds of a pass, by round."""
        return np.array([statistics.mean(turn) for turn in self.turns])

    @property
    def seconds(self) -> float:
        """The median seconds of a pass."""
        return float(np.median(self.by_round))


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What the machine was like, by round.

    Attributes:
        ceiling: the dense matmul rate, in FLOP/s.
        others: the part of the processor that other programs had.
    """

    ceiling: list[float]
    others: list[float]


@dataclass(frozen=True, eq=False)
class Table:
    """One workload in one dtype."""

    dtype: str
    workload: Workload
    flop: int
    rows: list[Row]
    around: Surroundings

    def ranked(self) -> list[Row]:
        """Return those that were measured, best first."""
        return sorted((row for row in self.rows if not row.failure), key=lambda row: row.seconds)

    def as_json(self) -> dict[str, Any]:
        """Return everything measured."""
        return {
            "dtype": self.dtype,
            "workload": self.workload.name,
            "lengths": self.workload.tokens.lengths.tolist(),
            "useful_flop": self.flop,
            "ceiling_flop_per_s": self.around.ceiling,
            "others_share_of_processor": self.around.others,
            "engines": [
                {
                    "name": row.name,
                    "engine": row.label,
                    "overrides": row.overrides,
                    "failure": row.failure,
                    "pass_s": row.turns,
                    "useful_flop_per_s": None if row.failure else self.flop / row.seconds,
                    "min_cosine": row.cosine if math.isfinite(row.cosine or 0.0) else None,
                    "peak_host_bytes": row.peak_bytes,
                    "rested_between_turns": row.rested,
                }
                for row in self.rows
            ],
        }

    def markdown(self) -> str:
        """Return it as a table, best first."""
        ranked = self.ranked()
        peers = [row for row in ranked if not row.is_ours]
        best = peers[0] if peers else None
        vendor = next((row for row in peers if row.name == VENDOR), None)
        unit = "latency, ms" if self.workload.is_latency else "useful GFLOP/s"
        columns = (
            *("engine", unit, "to the best peer", "to the vendor's way", "of the ceiling"),
            *("cosine", "peak MiB"),
        )
        lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in ranked:
            figure = (
                f"{row.seconds * 1e3:,.1f}"
                if self.workload.is_latency
                else f"{self.flop / row.seconds / 1e9:,.1f}"
            )
            cells = [
                row.label + ("" if row.rested else " (busy between turns)"),
                figure,
                _ratio(row, best),
                _ratio(row, vendor),
                self._of_ceiling(row),
                "-" if row.cosine is None else f"{row.cosine:.6f}",
                "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [
            f"| {row.label} | - | {row.failure} | | | | |" for row in self.rows if row.failure
        ]
        return "\n".join(lines)

    def _of_ceiling(self, row: Row) -> str:
        if len(self.around.ceiling) != len(row.turns):
            return "-"
        return f"{float(np.median(self.flop / row.by_round / np.array(self.around.ceiling))):.1%}"


def _ratio(row: Row, other: Row | None) -> str:
    """Return how many times as fast as ``other``, by rounds: geometric mean and extremes."""
    if other is None:
        return "-"
    if row is other:
        return "1"
    ratios = other.by_round / row.by_round
    mean = float(np.exp(np.log(ratios).mean()))
    return f"{mean:.3f} ({ratios.min():.3f} to {ratios.max():.3f})"


def caption(table: Table, alike: float | None, roofless: str | None) -> str:
    """Return what stands above a table."""
    lengths = table.workload.tokens.lengths
    rates = [rate / 1e9 for rate in table.around.ceiling]
    roof = (
        f"ceiling {statistics.median(rates):,.0f} GFLOP/s ({min(rates):,.0f} to {max(rates):,.0f})"
        if rates
        else f"no ceiling: {roofless}"
    )
    between = f"; two different sequences' cosine reaches {alike:.6f}" if alike else ""
    return (
        f"\n### {table.dtype}, {table.workload.name}\n\n"
        f"{len(lengths)} sequences, {lengths.min()} to {lengths.max()} tokens, "
        f"{lengths.sum():,} in all, {table.flop / 1e9:,.4g} useful GFLOP; {roof}; "
        f"other programs had {max(table.around.others):.0%} of the processor at most{between}.\n"
    )


def machine() -> dict[str, Any]:
    """Return what a reader needs to know of where this was measured."""
    flags = cpu_flags()
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "features": [name for name in _FEATURES if name in flags],
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
    }


def heading(about: dict[str, Any]) -> str:
    """Return it as prose."""
    versions = ", ".join(f"{p} {v or 'not installed'}" for p, v in about["versions"].items())
    return (
        f"{about['started_at'][:10]}, {about['model']}, {about['weights']} weights, "
        f"{about['threads']} threads on {about['cores']} cores of {about['cpu']} "
        f"({', '.join(about['features'])}; of {', '.join(_FEATURES)}), "
        f"Python {about['python']}; {versions}."
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""Tables of what was measured, and of where."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from peer_engines import THREADS, VENDOR

from bert_infer.files import at
from bert_infer.machine import cpu_flags, cpu_model, package_version

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from peer_engines import Workload
    from peer_inputs import Rate

_PACKAGES = (
    *("bert-infer", "torch", "transformers", "onnxruntime", "onnx", "openvino", "nncf"),
    *("ctranslate2", "sentence-transformers", "numpy"),
)
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")

Columns = Mapping[str, Callable[["Row"], str]]
"""What stands in a row's cells, by the heading of the column."""


@dataclass(frozen=True, eq=False)
class Row:
    """What one engine did with one workload.

    Attributes:
        overrides: ours has some.
        is_latency: of a turn's passes the median counts, not the mean.
        turns: the seconds of each pass, by turn.
        cosine: the smallest of its sequences' to the reference.
        peak_bytes: of host memory.
        rested: whether it left the processor to others between its turns.
        found: what it has to say itself, by metrics.json's names.
    """

    name: str
    label: str
    dtype: str
    is_ours: bool
    overrides: str | None
    is_latency: bool
    turns: list[list[float]]
    cosine: float | None
    peak_bytes: int | None
    rested: bool
    failure: str | None
    found: dict[str, Any] | None

    @property
    def by_round(self) -> NDArray[np.float64]:
        """The seconds of a pass, by round."""
        typical = statistics.median if self.is_latency else statistics.mean
        return np.array([typical(turn) for turn in self.turns])

    @property
    def seconds(self) -> float:
        """The median seconds of a pass."""
        return float(np.median(self.by_round))


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What the machine was like, by round.

    Attributes:
        ceilings: the dense matmul rate, by dtype.
        roofless: why there is none, by dtype.
        others: the part of the processor that other programs had.
    """

    ceilings: dict[str, list[Rate]]
    roofless: dict[str, str]
    others: list[float]

    def flop_per_s(self, dtype: str) -> NDArray[np.float64]:
        """Return the ceilings of a dtype, by round."""
        return np.array([rate.flop_per_s for rate in self.ceilings.get(dtype, ())])


@dataclass(frozen=True, eq=False)
class Table:
    """One workload."""

    workload: Workload
    flop: int
    rows: list[Row]
    around: Surroundings

    def flop_of(self, row: Row) -> int:
        """Return the useful FLOP that a row's engine computes of a pass."""
        return self.flop - int(at(row.found or {}, "compute.unneeded_flop") or 0)

    def ranked(self) -> list[Row]:
        """Return those that were measured, best first."""
        return sorted((row for row in self.rows if not row.failure), key=lambda row: row.seconds)

    def as_json(self) -> dict[str, Any]:
        """Return everything measured."""
        return {
            "workload": self.workload.name,
            "lengths": self.workload.tokens.lengths.tolist(),
            "useful_flop": self.flop,
            "ceilings": {
                dtype: [rate._asdict() for rate in rates]
                for dtype, rates in self.around.ceilings.items()
            },
            "without_ceiling": self.around.roofless,
            "others_share_of_processor": self.around.others,
            "engines": [
                {
                    "name": row.name,
                    "engine": row.label,
                    "dtype": row.dtype,
                    "overrides": row.overrides,
                    "failure": row.failure,
                    "pass_s": row.turns,
                    "useful_flop_per_s": None if row.failure else self.flop_of(row) / row.seconds,
                    "min_cosine": row.cosine if math.isfinite(row.cosine or 0.0) else None,
                    "peak_host_bytes": row.peak_bytes,
                    "rested_between_turns": row.rested,
                    "found": row.found,
                }
                for row in self.rows
            ],
        }

    def of(self, name: str) -> Row | None:
        """Return the row of an engine, if it was measured."""
        return next((row for row in self.rows if row.name == name and not row.failure), None)

    def markdown(self, columns: Columns) -> str:
        """Return it as a table, best first."""
        lines = [f"| engine | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
        for row in self.ranked():
            label = row.label + ("" if row.rested else " (busy between turns)")
            cells = [label, *(cell(row) for cell in columns.values())]
            lines.append(f"| {' | '.join(cells)} |")
        rest = " |" * (len(columns) - 1)
        lines += [f"| {row.label} | {row.failure}{rest} |" for row in self.rows if row.failure]
        return "\n".join(lines)


def peer_columns(table: Table) -> Columns:
    """Return the columns that hold ours against the best peer."""
    peers = [row for row in table.ranked() if not row.is_ours]
    best = peers[0] if peers else None
    figure = milliseconds if table.workload.is_latency else partial(useful_gflop_per_s, table)
    return {
        "latency, ms" if table.workload.is_latency else "useful GFLOP/s": figure,
        "to the best peer": lambda row: ratio(row, best),
        "to the vendor's way": lambda row: ratio(row, table.of(VENDOR)),
        "of the ceiling": partial(of_ceiling, table),
        "cosine": cosine,
        "peak MiB": lambda row: mebibytes(row.peak_bytes),
    }


def milliseconds(row: Row) -> str:
    """Return a pass' latency."""
    return f"{row.seconds * 1e3:,.1f}"


def useful_gflop_per_s(table: Table, row: Row) -> str:
    """Return the rate of matrix-multiply work on real tokens."""
    return f"{table.flop_of(row) / row.seconds / 1e9:,.1f}"


def of_ceiling(table: Table, row: Row) -> str:
    """Return the part of the ceiling that useful work reached, the median over rounds."""
    rates = table.around.flop_per_s(row.dtype)
    if len(rates) != len(row.turns):
        return "-"
    return f"{float(np.median(table.flop_of(row) / row.by_round / rates)):.1%}"


def cosine(row: Row) -> str:
    """Return the smallest cosine to the reference."""
    return "-" if row.cosine is None else f"{row.cosine:.6f}"


def mebibytes(count: int | None) -> str:
    """Return a number of bytes."""
    return "-" if count is None else f"{count / 2**20:,.0f}"


def ratio(row: Row, other: Row | None) -> str:
    """Return how many times as fast as ``other``, by rounds: geometric mean and extremes."""
    if other is None:
        return "-"
    if row is other:
        return "1"
    ratios = other.by_round / row.by_round
    mean = float(np.exp(np.log(ratios).mean()))
    return f"{mean:.3f} ({ratios.min():.3f} to {ratios.max():.3f})"


def caption(title: str, table: Table, alike: float | None) -> str:
    """Return what stands above a table.

    Args:
        title: its name.
        table: what was measured.
        alike: the largest cosine of two different sequences, where there are two.
    """
    lengths = table.workload.tokens.lengths
    between = f"; two different sequences' cosine reaches {alike:.6f}" if alike else ""
    return (
        f"\n### {title}\n\n"
        f"{len(lengths):,} sequences, {lengths.min()} to {lengths.max()} tokens, "
        f"{lengths.sum():,} in all, {table.flop / 1e9:,.4g} useful GFLOP; {_roofs(table.around)}; "
        f"other programs had {max(table.around.others):.0%} of the processor at most{between}.\n"
    )


def _roofs(around: Surroundings) -> str:
    """Return the ceilings as prose."""
    said = [f"no ceiling of {dtype}: {why}" for dtype, why in around.roofless.items()]
    for dtype, turns in around.ceilings.items():
        if turns:
            rates = around.flop_per_s(dtype) / 1e9
            middle, low, high = np.median(rates), rates.min(), rates.max()
            said.append(f"ceiling of {dtype} {middle:,.0f} GFLOP/s ({low:,.0f} to {high:,.0f})")
    return "; ".join(said)


def machine() -> dict[str, Any]:
    """Return what a reader needs to know of where this was measured."""
    flags = cpu_flags()
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "features": [name for name in _FEATURES if name in flags],
        "python": platform.python_version(),
        "versions": {package: package_version(package) for package in _PACKAGES},
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

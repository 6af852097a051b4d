"""Run directories read back: checked, and never measured again."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_infer.errors import RefusedError
from bert_infer.files import FORWARD_COLUMNS, read_json_object
from bert_infer.metrics import SCHEMA_VERSION
from bert_infer.running.workload import WorkDone

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

COMPLETE = ("ok", "drift_exceeded")
"""The statuses of runs that were measured to their end."""

_COUNTS = ("workload.sequences", "workload.forwards_per_pass")
_NUMBERS = (
    *_COUNTS,
    "throughput.sequences_per_s",
    "latency_ms.p50",
    "compute.useful_flop",
)
_WORDS: dict[str, tuple[str, ...]] = {
    "run.config_hash": (),
    "provenance.input.sha256": (),
    "measurement.sample": ("forward", "pass"),
}
"""Keys that must hold a string, and which strings; none listed: any."""
_OBJECTS = ("choice", "provenance", "throughput")
_INTERVAL = "throughput.sequences_per_s_ci95"
_AGREEMENT = 1e-9


@dataclass(frozen=True, eq=False)
class Run:
    """A run that was measured to its end.

    Attributes:
        directory: where it lies.
        metrics: the content of metrics.json.
        environment: the content of environment.json.
        wall_s: ``[samples]``, wall time of each sample (``measurement.sample``).
        sequences: how many sequences a sample holds.
    """

    directory: Path
    metrics: dict[str, Any]
    environment: dict[str, Any]
    wall_s: NDArray[np.float64]
    sequences: int

    @property
    def sequences_per_s(self) -> float:
        """The throughput that it recorded."""
        return float(self.metrics["throughput"]["sequences_per_s"])

    @property
    def work(self) -> WorkDone:
        """What it did."""
        flop, sequences = (
            at(self.metrics, "compute.useful_flop"),
            at(self.metrics, "workload.sequences"),
        )
        return WorkDone(str(at(self.metrics, "provenance.input.sha256")), flop / sequences)


def in_order(directories: Iterable[Path]) -> list[Path]:
    """Return the runs of a sweep in the order in which they were made: by number, then by name."""
    return sorted(
        directories, key=lambda path: (not path.name.isdigit(), len(path.name), path.name)
    )


def read(directory: Path) -> Run:
    """Return the run that ``directory`` holds.

    Raises:
        RefusedError: naming the file and key that is missing, wrong, or of another version.
    """
    path = directory / "metrics.json"
    metrics = read_json_object(path)
    if metrics.get("schema_version") != SCHEMA_VERSION:
        raise RefusedError(
            f"{path}: schema_version={metrics.get('schema_version')}; this version reads "
            f"{SCHEMA_VERSION}.",
            "Use the version of bert_infer that wrote it, or run it again.",
        )
    if metrics.get("status") not in COMPLETE:
        raise RefusedError(
            f"{path}: status={metrics.get('status')}; only runs that were measured to their end "
            "can be read.",
            "Run it again.",
        )
    _check_values(path, metrics)
    wall_s, sequences = _samples(directory / "forwards.csv", metrics)
    return Run(
        directory, metrics, read_json_object(directory / "environment.json"), wall_s, sequences
    )


def read_if_sound(directory: Path) -> Run | None:
    """Return the run that ``directory`` holds, or None where ``read`` refuses it."""
    try:
        return read(directory)
    except RefusedError:
        return None


def _check_values(path: Path, metrics: dict[str, Any]) -> None:
    """Refuse figures that no run writes.

    Raises:
        RefusedError: naming the key.
    """
    for key in _NUMBERS:
        value = at(metrics, key)
        if not _is_positive(value):
            raise _edited(path, key, value, "a number above 0")
        if key in _COUNTS and not isinstance(value, int):
            raise _edited(path, key, value, "a whole number")
    for key, allowed in _WORDS.items():
        value = at(metrics, key)
        if not isinstance(value, str) or (allowed and value not in allowed):
            raise _edited(path, key, value, " or ".join(allowed) or "a string")
    for key in _OBJECTS:
        if not isinstance(at(metrics, key), dict):
            raise _edited(path, key, at(metrics, key), "an object")
    interval = at(metrics, _INTERVAL)
    if interval is not None and not (
        isinstance(interval, list) and len(interval) == 2 and all(map(_is_positive, interval))  # noqa: PLR2004
    ):
        raise _edited(path, _INTERVAL, interval, "null or two numbers above 0")


def _samples(path: Path, metrics: dict[str, Any]) -> tuple[NDArray[np.float64], int]:
    """Return each sample's wall time, and its sequences, from forwards.csv."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)  # a DictReader takes twice as long
            if tuple(next(rows, ())) != FORWARD_COLUMNS:
                raise RefusedError(
                    f"{path}: its columns are not {', '.join(FORWARD_COLUMNS)}.", "Run it again."
                )
            count, wall = (FORWARD_COLUMNS.index(name) for name in ("sequences", "wall_ms"))
            pairs = [(int(row[count]), float(row[wall]) / 1e3) for row in rows]
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise RefusedError(f"{path} cannot be read: {error}.", "Run it again.") from None
    if not pairs or not all(n > 0 and 0 < s < math.inf for n, s in pairs):
        raise RefusedError(
            f"{path}: sequences and wall_ms take numbers above 0, in one row at least.",
            "Run it again.",
        )
    counts, wall_s = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    stated = metrics["throughput"]["sequences_per_s"]
    found = counts.sum() / wall_s.sum()
    if not math.isclose(found, stated, rel_tol=_AGREEMENT):
        raise RefusedError(
            f"{path.parent / 'metrics.json'}: throughput.sequences_per_s={stated}, but "
            f"forwards.csv makes it {found}.",
            "One of the two was changed after the run; run it again.",
        )
    per_pass = metrics["workload"]["forwards_per_pass"]
    if len(pairs) % per_pass:
        raise _edited(
            path.parent / "metrics.json",
            "workload.forwards_per_pass",
            per_pass,
            f"what divides the {len(pairs)} rows of forwards.csv",
        )
    size = per_pass if metrics["measurement"]["sample"] == "pass" else 1
    return wall_s.reshape(-1, size).sum(axis=1), int(counts[:size].sum())


def _is_positive(value: Any) -> bool:  # noqa: ANN401  whatever JSON holds
    try:
        return type(value) in {int, float} and 0 < float(value) < math.inf
    except OverflowError:  # a whole number beyond a float's range
        return False


def at(content: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401  whatever JSON holds
    """Return what stands at a dotted key; None where nothing does."""
    value: Any = content
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _edited(path: Path, key: str, value: object, allowed: str) -> RefusedError:
    return RefusedError(f"{path}: {key}={value}; it takes {allowed}.", "Run it again.")

"""What is known of a run. Nothing of it is certain: any key may be missing or hold anything."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from bert_infer.configuration.overrides import assigned
from bert_infer.errors import RefusedError
from bert_infer.files import at, read_json_object
from bert_infer.measuring.intervals import Interval
from bert_infer.records import Caveat
from bert_infer.running.status import moment
from bert_infer.running.workload import WorkDone

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


_COMPLETE = ("ok", "drift_exceeded")
"""The statuses of runs that were measured to their end."""
# The names of ``drift.is_reference``'s parts, whose modules would make reports begin later.
_REFERENCE = {"engine": "transformers", "dtype": "fp32", "graph": "eager", "device": "cpu"}
_COLUMNS = ("pass", "batch_index", "sequences", "start_s", "duration_ms", "wall_ms")
_MOST = 1e30
"""More than any figure of a run can be; what is made of less is finite, too."""
_AGREEMENT = 1e-9


@dataclass(frozen=True)
class Problem:
    """Why a run gave no figures to rely on."""

    type: str
    message: str
    remedy: str


@dataclass(frozen=True, eq=False)
class Entry:
    """A run directory.

    Attributes:
        directory: where it lies.
        status: what its record says, or one of those in ``directories``.
        metrics: the content of metrics.json, or what is known so far; nothing of it is certain.
        overrides: the run's own, without its sweep's.
        problem: what is wrong with it, if anything is.
    """

    directory: Path
    status: str
    metrics: Mapping[str, Any]
    overrides: tuple[str, ...]
    problem: Problem | None

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.directory.name

    @property
    def is_buried(self) -> bool:
        """Whether its process ended before anybody knew what it would compute."""
        return self.text("run.content_hash") is None

    @property
    def is_measured(self) -> bool:
        """Whether it was measured to its end."""
        return self.status in _COMPLETE

    def number(self, key: str) -> float | None:
        """Return the number at a dotted key of the record."""
        return _number(at(self.metrics, key))

    def text(self, key: str) -> str | None:
        """Return the string at a dotted key of the record."""
        value = at(self.metrics, key)
        return value if isinstance(value, str) else None

    def interval(self, key: str) -> Interval | None:
        """Return the interval at a dotted key of the record."""
        value = at(self.metrics, key)
        ends = [_number(end) for end in value] if isinstance(value, list) else []
        return Interval(ends[0], ends[1]) if len(ends) == 2 and None not in ends else None  # type: ignore[arg-type]  # noqa: PLR2004

    def section(self, key: str) -> dict[str, Any]:
        """Return the object at a dotted key of the record; empty where there is none."""
        return _object(at(self.metrics, key))

    @cached_property
    def samples(self) -> NDArray[np.float64]:
        """``[samples]``, wall time a sequence in each (``measurement.sample``), in seconds.

        Empty where it is unknown, or gives another throughput than the record.
        """
        forwards, unit = self.forwards(), self.text("measurement.sample")
        rate = self.number("throughput.sequences_per_s") or 0.0
        counts, wall_s = forwards["sequences"], forwards["wall_ms"] / 1e3
        is_sound = (
            len(forwards) > 0
            and unit in {"forward", "pass"}
            and ((counts > 0) & (wall_s > 0)).all()
            and math.isclose(float(counts.sum()), rate * float(wall_s.sum()), rel_tol=_AGREEMENT)
        )
        if not is_sound:
            return np.empty(0)
        sample = forwards["pass"] if unit == "pass" else np.arange(len(forwards))
        _, number = np.unique(sample, return_inverse=True)
        return np.bincount(number, wall_s) / np.bincount(number, counts)

    @cached_property
    def options(self) -> dict[str, str]:
        """What was chosen, resolved where that is known."""
        return options(self.section("choice"), self.overrides)

    @property
    def names(self) -> dict[str, str]:
        """The same by the names asked for: ``minilm``, where the choice has its hub name."""
        return self.options | asked(self.overrides)

    @property
    def is_reference(self) -> bool:
        """Whether it computes as the reference does, from which drift is measured."""
        return _REFERENCE.items() <= self.options.items()

    @property
    def started_at(self) -> datetime:
        """When it began; if it does not say, when its directory was last modified."""
        began = moment(self.text("run.started_at"))
        return began or datetime.fromtimestamp(self.directory.stat().st_mtime, UTC)

    @property
    def work(self) -> WorkDone | None:
        """What it did; None where that is unknown."""
        texts = self.text("provenance.input.sha256")
        flop, sequences = map(self.number, ("compute.useful_flop", "workload.sequences"))
        return WorkDone(texts, flop / sequences) if texts and flop and sequences else None

    @property
    def content(self) -> str:
        """What repeats share: the hash of what they compute, or else of what was asked for."""
        return self.text("run.content_hash") or self.text("run.config_hash") or repr(self.overrides)

    @cached_property
    def warnings(self) -> tuple[Caveat, ...]:
        """The record's warnings."""
        found = at(self.metrics, "warnings")
        return tuple(
            Caveat(*(str(warning.get(key, "")) for key in ("code", "message", "remedy")))
            for warning in (found if isinstance(found, list) else [])
            if isinstance(warning, dict)
        )

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The content of environment.json; empty where that cannot be read."""
        try:
            return read_json_object(self.directory / "environment.json")
        except RefusedError:
            return {}

    @cached_property
    def command(self) -> tuple[str, ...]:
        """What makes it again: its overrides, its directory of options and its own variables."""
        sources = at(self._hydra, "hydra.runtime.config_sources")
        variables = _object(at(self._hydra, "hydra.job.env_set"))
        own = [
            str(source.get("path"))
            for source in (sources if isinstance(sources, list) else [])
            if isinstance(source, dict) and "command-line" in str(source.get("provider"))
        ]
        return (
            *(f"--config-dir={directory}" for directory in own[-1:]),
            *self.overrides,
            *(
                assigned(f"+hydra.job.env_set.{name}", str(value))
                for name, value in variables.items()
            ),
        )

    @property
    def _hydra(self) -> dict[str, Any]:
        """What Hydra noted of itself; empty where that cannot be read."""
        try:
            with (self.directory / ".hydra" / "hydra.yaml").open("rb") as file:
                # omegaconf's own loader, written in Python, takes ten times as long.
                found = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
        except (OSError, yaml.YAMLError):
            return {}
        return _object(found)

    @cached_property
    def length_histogram(self) -> list[tuple[int, int, int]]:
        """Lower edge, upper edge and number of sequences of each bin of lengths."""
        edges, sequences = (
            value if isinstance(value, list) else []
            for value in (
                at(self.metrics, f"workload.length_histogram.{key}")
                for key in ("edges", "sequences")
            )
        )
        if len(edges) != len(sequences) + 1 or not all(
            _number(v) is not None for v in edges + sequences
        ):
            return []
        return list(zip(edges, edges[1:], sequences, strict=False))

    def forwards(self) -> NDArray[np.void]:
        """Return forwards.csv, ``[forwards]``, by column; empty where it cannot be read."""
        numbers, path = [(name, float) for name in _COLUMNS], self.directory / "forwards.csv"
        try:
            with path.open(encoding="utf-8") as file, warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # there are no rows
                places = [*map(file.readline().rstrip().split(",").index, _COLUMNS)]
                found = np.loadtxt(
                    file, numbers, comments=None, delimiter=",", usecols=places, ndmin=1
                )
        except (OSError, ValueError, UserWarning):
            found = np.empty(0, numbers)
        return found if (np.abs(found.view(float)) < _MOST).all() else found[:0]


def options(choice: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, str]:
    """Return what a run was made with, by key: its resolved choice, then its other overrides.

    Args:
        choice: of metrics.json.
        overrides: as on the command line.
    """
    found = {key: _written(value) for key, value in choice.items() if value is not None}
    for override in overrides:
        key, equals, value = override.lstrip("+").partition("=")
        if key.startswith("~"):  # as Hydra writes that a group has no option
            found.setdefault(key.removeprefix("~"), "null")
        elif equals and not key.startswith("hydra."):
            found.setdefault(key, _unquoted(value))
    return found


def alternatives(choice: Mapping[str, Any], overrides: Sequence[str]) -> list[dict[str, str]]:
    """Return a run's options as resolved, and the same by the names that were asked for."""
    resolved = options(choice, overrides)
    return [resolved, resolved | asked(overrides)]


def asked(overrides: Iterable[str]) -> dict[str, str]:
    """Return overrides by key."""
    return options({}, overrides)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < _MOST else None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unquoted(value: str) -> str:
    """Return a value without the quotes of Hydra's grammar."""
    for quote in ("'", '"'):
        if len(value) > 1 and value.startswith(quote) and value.endswith(quote):
            return value[1:-1].replace(f"\\{quote}", quote)
    return value

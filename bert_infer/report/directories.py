"""Run directories, read leniently: there is an entry for each, whatever lies in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bert_infer.configuration.overrides import of_run
from bert_infer.errors import RefusedError
from bert_infer.files import at, read_json_object
from bert_infer.metrics import SCHEMA_VERSION
from bert_infer.report.entries import Entry, Problem
from bert_infer.running import status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

RUNNING, DIED, NO_RECORD, UNREADABLE = "running", "died", "no record", "unreadable"
"""Statuses that are concluded: no record states them."""

_METRICS, _STATUS, _HYDRA, _DUEL = "metrics.json", "status.json", ".hydra", "duel.json"


def is_run(directory: Path) -> bool:
    """Return whether ``directory`` is a run's, complete or not, and can be read."""
    try:
        return any((directory / name).exists() for name in (_METRICS, _STATUS, _HYDRA))
    except OSError:
        return False


def below(directory: Path) -> list[Entry]:
    """Return the run that ``directory`` is, or the runs that it holds, in order.

    Raises:
        RefusedError: there is none, or they are a duel's sides.
    """
    check_is_no_duel(directory)
    if directory.is_dir() and is_run(directory):
        return [read(directory)]
    try:
        found = [path for path in directory.iterdir() if path.is_dir() and is_run(path)]
    except OSError as error:
        raise RefusedError(
            f"{directory} is no run or sweep directory: {error.strerror}.",
            "Name a directory below multirun_outputs/; `ls` lists them.",
        ) from None
    if not found:
        raise RefusedError(
            f"{directory} is no run or sweep directory: there is no run in it.",
            "Name a directory below multirun_outputs/; `ls` lists them.",
        )
    return [read(path) for path in in_order(found)]


def in_order(directories: Iterable[Path]) -> list[Path]:
    """Return the runs of a sweep in the order in which they were made: by number, then by name."""
    return sorted(
        directories, key=lambda path: (not path.name.isdigit(), len(path.name), path.name)
    )


def check_is_no_duel(directory: Path) -> None:
    """Refuse a duel's directory: its sides were measured in turn, and are no runs apart.

    Raises:
        RefusedError: with the duel's outcome.
    """
    path = directory / _DUEL
    try:
        verdict = read_json_object(path).get("verdict")
    except RefusedError:  # there is none
        return
    raise RefusedError(
        f"{directory} is a duel's, whose rounds tell more than its sides as runs apart: {verdict}",
        f"{path} has its rounds and their interval; a side alone is a run: {directory / 'a'}.",
    )


def read(directory: Path) -> Entry:
    """Return the entry of a run directory."""
    if (directory / _METRICS).exists():
        return _recorded(directory)
    if (directory / _STATUS).exists():
        return _under_way(directory)
    problem = Problem(
        "NoRecord",
        "It left no record: it was killed before it could, or is only beginning.",
        "Run it again.",
    )
    return Entry(directory, NO_RECORD, {}, _hydras_overrides(directory), problem)


def _recorded(directory: Path) -> Entry:
    try:
        metrics = read_json_object(directory / _METRICS)
    except RefusedError as error:
        return _unreadable(directory, error.message)
    version = metrics.get("schema_version")
    if version != SCHEMA_VERSION:
        return _unreadable(
            directory,
            f"{directory / _METRICS}: schema_version={version}; this version reads "
            f"{SCHEMA_VERSION}.",
        )
    noted, problem = metrics.get("error"), None
    if isinstance(noted, dict):
        problem = Problem(*(str(noted.get(key, "")) for key in ("type", "message", "remedy")))
    return Entry(
        directory,
        str(metrics.get("status")),
        metrics,
        _overrides(metrics) or _hydras_overrides(directory),
        problem,
    )


def _unreadable(directory: Path, message: str) -> Entry:
    problem = Problem(
        "Unreadable", message, "Use the version of bert_infer that wrote it, or run it again."
    )
    return Entry(directory, UNREADABLE, {}, _hydras_overrides(directory), problem)


def _under_way(directory: Path) -> Entry:
    """Return the entry of a run that has no metrics.json yet, and may never have one."""
    try:
        known = read_json_object(directory / _STATUS)
    except RefusedError as error:
        return _unreadable(directory, error.message)
    metrics = known.get("metrics")
    metrics = metrics if isinstance(metrics, dict) else {}
    overrides = _overrides(metrics) or _hydras_overrides(directory)
    if status.writer(directory):
        return Entry(directory, RUNNING, metrics, overrides, None)
    problem = Problem(
        "Died",
        f"Its process ended without a record (phase: {known.get('phase') or 'unknown'}).",
        "Look for a kill or a lack of memory in run.log and the system's log, and run it again.",
    )
    return Entry(directory, DIED, metrics, overrides, problem)


def _overrides(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    found = at(metrics, "run.overrides")
    return of_run(map(str, found)) if isinstance(found, list) else ()


def _hydras_overrides(directory: Path) -> tuple[str, ...]:
    """Return what Hydra noted before the run began."""
    from omegaconf import OmegaConf

    path = directory / _HYDRA / "overrides.yaml"
    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(path))
        return of_run(map(str, found)) if isinstance(found, list) else ()
    except Exception:  # noqa: BLE001  omegaconf and yaml have no common error, and none matters
        return ()

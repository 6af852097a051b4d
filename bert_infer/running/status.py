"""status.json: how far a run has come, for onlookers, and for whoever finds its process dead."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from bert_infer import files, metrics
from bert_infer.errors import MAKE_ROOM, RefusedError
from bert_infer.measuring.measure import Pace
from bert_infer.running.run_record import Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bert_infer.errors import BertInferError

EVERY_S = 5.0
"""Seconds between two notes of what was measured, or 20 times what the last note took if that is
longer: what was measured since the last note is lost if the process dies."""
_FIRST_AFTER_S = 1.0
BEFORE_PHASES = "prepare"
_STARTING_S = 60  # a process that began this much later than its run is another with the same id
_LOG = logging.getLogger(__name__)


class Cause(NamedTuple):
    """Why a run ended before it was done.

    Attributes:
        status: "failed" or "interrupted".
        kind: the error's type.
        message: what happened.
        remedy: what to do about it.
    """

    status: str
    kind: str
    message: str
    remedy: str

    @classmethod
    def of(cls, error: BertInferError) -> Cause:
        """Return that it failed with ``error``."""
        return cls("failed", type(error).__name__, error.message, error.remedy)


INTERRUPTED = Cause("interrupted", "KeyboardInterrupt", "Interrupted.", "Run it again.")


class Status:
    """Keeps status.json, and with it what was measured so far, until the run's record is written.

    Args:
        directory: the run's.
        entered: is called with the name of every phase.
    """

    def __init__(self, directory: Path, entered: Callable[[str], None]) -> None:
        self._directory = directory
        self._entered = entered
        self._pace = Pace(EVERY_S)
        self._record = Record()
        self._began = datetime.now(UTC).isoformat()
        self._enter(BEFORE_PHASES)

    def follow(self, record: Record) -> None:
        """Keep the status of the run that ``record`` is about."""
        self._record = record
        record.phases.entered = self._enter
        self._note(BEFORE_PHASES)

    def measured(self) -> None:
        """Note what was measured, if it is time to: never while a clock runs."""
        self._pace.do(lambda: self._note(self._record.phases.current or BEFORE_PHASES))

    def _enter(self, phase: str) -> None:
        self._note(phase)
        self._pace.put_off(_FIRST_AFTER_S)  # written just before it, files slow a forward down
        self._entered(phase)

    def _note(self, phase: str) -> None:
        try:
            _write_measured(self._directory, self._record)
            files.write_json(
                self._directory / "status.json",
                {
                    "pid": os.getpid(),
                    "phase": phase,
                    "started_at": self._began,
                    "metrics": _so_far(self._record),
                },
            )
        except OSError as error:  # a full disk; what matters is whether the record can be written
            _LOG.warning("status.json cannot be written: %s.", error)


def close(directory: Path, record: Record) -> dict[str, Any]:
    """Write what is known of a run, however it ended; return metrics.json's content.

    If something cannot be written, that becomes the run's error, unless it has one.
    """
    content = _metrics(record)
    try:
        _write_measured(directory, record)
    except OSError as error:
        content = _unwritten(content, error)
    return end(directory, content)


def _metrics(record: Record) -> dict[str, Any]:
    """Return metrics.json's content; what is known by then, if not all of it can be told."""
    try:
        return _checked(metrics.of(record))
    except Exception as error:  # noqa: BLE001  intervals take memory, a component raises anything
        _LOG.exception("The run cannot be described.")
        if not record.error:
            # ImportError: a library cannot be mapped
            is_memory = isinstance(error, MemoryError | ImportError)
            correct = "Correct the component; the traceback is in run.log."
            remedy = record.less if is_memory else correct
            record.broke_off("failed", type(error).__name__, str(error), remedy)
        return _so_far(record)


def _so_far(record: Record) -> dict[str, Any]:
    """Return what is known, without the choice if a component cannot tell what it is."""
    try:
        return _checked(metrics.so_far(record))
    except Exception:  # noqa: BLE001  as above
        _LOG.exception("A component cannot be described.")
        return metrics.so_far(replace(record, prepared=None))


def _checked(content: dict[str, Any]) -> dict[str, Any]:
    """Return ``content``, which can be written: a component's own values may be anything."""
    files.as_json(content)
    return content


def end(directory: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write metrics.json last, as a directory that has it is complete; return its content.

    If it cannot be written, that becomes the run's error, which then only the caller knows.
    """
    try:
        files.write_json(directory / "metrics.json", content)
    except OSError as error:
        return _unwritten(content, error)
    (directory / "status.json").unlink(missing_ok=True)
    return content


def bury(directory: Path, cause: Cause) -> dict[str, Any]:
    """Write the record of a run whose process can no longer do it; return metrics.json's content.

    Files that the process left half written are removed.

    Args:
        directory: the run's; its status.json has what was known.
        cause: why it ended.
    """
    for unfinished in files.unfinished(directory):
        unfinished.unlink(missing_ok=True)
    known = _known(directory)
    content: dict[str, Any] = known.get("metrics") or metrics.of(Record())
    where = f" (phase: {known['phase']})" if "phase" in known else ""
    content["status"] = cause.status
    content["error"] = {
        "type": cause.kind,
        "message": cause.message + where,
        "remedy": cause.remedy,
    }
    return end(directory, content)


def writer(directory: Path) -> int | None:
    """Return the id of another process that keeps status.json; None if there is none any more.

    A container's first process has the id of the one before it, and so would wait for itself.
    """
    known = _known(directory)
    pid = known.get("pid")
    if not isinstance(pid, int) or pid <= 0 or pid == os.getpid():
        return None
    began = moment(known.get("started_at"))
    try:
        process = psutil.Process(pid)
        is_gone = process.status() == psutil.STATUS_ZOMBIE
        is_other = began and process.create_time() > began.timestamp() + _STARTING_S
    except (psutil.NoSuchProcess, OverflowError):
        return None
    except psutil.AccessDenied:
        return pid
    return None if is_gone or is_other else pid


def moment(text: object) -> datetime | None:
    """Return the time that ``text`` states in ISO 8601; None if it states none."""
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC) if moment else None


def _known(directory: Path) -> dict[str, Any]:
    """Return what status.json said last; nothing if it never came to be."""
    try:
        return files.read_json_object(directory / "status.json")
    except RefusedError:
        return {}


def _write_measured(directory: Path, record: Record) -> None:
    if record.environment:  # a run that ended before has nothing to describe
        conditions = record.conditions.as_json() if record.conditions else None
        described = record.environment | {"conditions": conditions}
        files.write_json(directory / "environment.json", described)
    files.write_forwards(directory / "forwards.csv", record.forwards)


def _unwritten(content: dict[str, Any], error: OSError) -> dict[str, Any]:
    """Return ``content`` with ``error`` as the run's error, unless it has one already."""
    if content["error"]:
        return content
    message = f"The run's files cannot be written: {error}."
    what = {"type": type(error).__name__, "message": message, "remedy": MAKE_ROOM}
    return content | {"status": "failed", "error": what}

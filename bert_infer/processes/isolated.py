"""A run in a process of its own, where it can affect no other run.

The parent waits blocked. It imports torch only where a check needs it: of a GPU, or a PyTorch file.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from bert_infer import files
from bert_infer.errors import ProcessError, TimeLimitError
from bert_infer.inputs.lines import spooled
from bert_infer.measuring import environment
from bert_infer.processes import process, worker
from bert_infer.processes.worker import Finished, Watch
from bert_infer.running.status import Cause

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from multiprocessing.connection import Connection

    from omegaconf import DictConfig

    from bert_infer.devices import Device
    from bert_infer.processes.process import Child
    from bert_infer.runner import Runner
    from bert_infer.sweeps.plan import Place

GIVE_AGAIN = "Give its overrides again: they are in .hydra/overrides.yaml, and in metrics.json."
"""The remedy where a run's own description can no longer be used."""


class Assignment(NamedTuple):
    """What a process is told: its run's directory, its time, a file to read as standard input."""

    directory: Path
    timeout_s: float | None
    stdin: str


@dataclass(frozen=True)
class Isolated:
    """How runs are started and ended.

    Attributes:
        preload: modules that the fork server imports once, for all runs.
        timeout_s: seconds after which a run is ended; None never.
    """

    preload: tuple[str, ...]
    timeout_s: float | None

    def run(self, directory: Path, variables: Mapping[str, str], watch: Watch) -> Finished:
        """Make the run that ``.hydra`` in ``directory`` describes.

        Args:
            directory: where its files go.
            variables: of the environment, set before torch is imported.
            watch: ``phase`` is told how the run goes on.

        Raises:
            KeyboardInterrupt: passed on, after the run's record is written. A second one ends the
                process at once.
        """
        stdin = spooled()
        assignment = Assignment(directory, self.timeout_s, stdin.name if stdin else os.devnull)
        try:
            with (
                process.recorded(directory),
                process.started(_run, assignment, self.preload, variables) as child,
            ):
                return self._ended(child, directory, watch)
        except ProcessError as error:
            return Finished(process.record_if_missing(directory, Cause.of(error)), ())

    def _ended(self, child: Child, directory: Path, watch: Watch) -> Finished:
        """Wait for the run to end, or end it."""
        try:
            finished, cause = self._wait(child, watch), None
        except TimeoutError:
            finished, cause = None, Cause.of(_too_late(self.timeout_s))
            child.late()
        except KeyboardInterrupt:
            child.interrupted(directory)
            raise
        return child.ended(directory, finished, cause)

    def _wait(self, child: Child, watch: Watch) -> Finished | None:
        """Follow the run to its end; return None if its process died before.

        Raises:
            TimeoutError: it takes too long.
        """
        deadline = time.monotonic() + self.timeout_s if self.timeout_s else None
        while True:
            message = child.receive(max(0.0, deadline - time.monotonic()) if deadline else None)
            if message is None or isinstance(message, Finished):
                return message
            watch.phase(message)


def _too_late(timeout_s: float | None) -> TimeLimitError:
    return TimeLimitError(
        f"It was not done after timeout_s={timeout_s}, and was ended.",
        "Ask for less, or raise timeout_s; run.log tells how far it came.",
    )


def environment_at(place: Place, preload: Sequence[str]) -> dict[str, Any]:
    """Return what environment.json would say of a run at ``place`` now.

    Raises:
        ProcessError: the process that describes it cannot be started, or ended too early.
    """
    with process.started(_describe, place.device, preload, dict(place.variables)) as child:
        found: dict[str, Any] | None = child.receive()
    if found is None:
        raise ProcessError(
            f"A process on {place.device.name} ended before it could describe its environment.",
            "See what it printed. if_changed=keep resumes without comparing environments.",
        )
    return found


def _run(pipe: Connection, assignment: Assignment) -> None:
    """Make the assigned run, in its own process."""

    def end(*_: object) -> NoReturn:
        raise _too_late(assignment.timeout_s)

    if assignment.timeout_s:
        signal.signal(process.DEADLINE, end)  # it still has time to write its record
    sys.stdin = Path(assignment.stdin).open(encoding="utf-8")  # noqa: SIM115  as long as the process
    # Without its parent it ends at once: a sweep that is resumed records that, and makes it anew.
    with process.set_apart(assignment.directory, time_to_record_s=0.0):
        pipe.send(
            worker.carry_out(
                lambda: recorded_runner(assignment.directory),
                assignment.directory,
                Watch(phase=pipe.send),
                isolation="process",
            )
        )


def _describe(pipe: Connection, device: Device) -> None:
    with device.active():
        pipe.send(environment.describe(device))


def recorded_runner(directory: Path) -> Runner:
    """Return the Runner of the run that ``.hydra`` in ``directory`` describes.

    Raises:
        RefusedError: a file there is damaged.
    """
    from bert_infer.configuration.composition import runner_from
    from bert_infer.configuration.overrides import as_written

    overrides = files.read_yaml(directory / ".hydra" / "overrides.yaml", GIVE_AGAIN)
    return runner_from(recorded_config(directory), as_written(overrides))


def recorded_config(directory: Path) -> DictConfig:
    """Return the configuration of the run in ``directory``.

    Raises:
        RefusedError: its file is damaged.
    """
    from bert_infer.configuration.composition import COMPONENTS

    path = directory / ".hydra" / "config.yaml"
    config: DictConfig = files.read_yaml(path, GIVE_AGAIN, COMPONENTS)
    return config

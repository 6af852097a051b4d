"""A side of a duel: a run in a process of its own, which measures when it is told to."""

from __future__ import annotations

import signal
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bert_infer.errors import BertInferError
from bert_infer.processes import process, worker
from bert_infer.processes.isolated import recorded_runner
from bert_infer.records import wall_s

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection

    from omegaconf import DictConfig

    from bert_infer.measuring.conditions import Pauses
    from bert_infer.processes.process import Child
    from bert_infer.processes.worker import Finished
    from bert_infer.records import Forward

TURN_S = 0.5
"""A turn lasts at least so long, and at least ``iterations`` passes."""
_DEFAULT = "iterations=3"
"""What a side adds to overrides that give no ``iterations``."""
_READY, _MEASURE, _FINISH = "ready", "measure", "finish"


class Turn(NamedTuple):
    """What one side measured in one turn."""

    sequences: int
    wall_s: float

    @property
    def sequences_per_s(self) -> float:
        """The throughput."""
        return self.sequences / self.wall_s

    def followed_by(self, forwards: Sequence[Forward]) -> Turn:
        """Return the turn with ``forwards`` measured after it."""
        sequences = sum(forward.sequences for forward in forwards)
        return Turn(self.sequences + sequences, self.wall_s + wall_s(forwards))


@dataclass(frozen=True, eq=False)
class Side:
    """One run in a process of its own, which measures when it is told to.

    Attributes:
        child: the process.
        directory: the run's.
        what: its overrides.
    """

    child: Child
    directory: Path
    what: str

    def warm_up(self) -> None:
        """Wait until it is ready to measure.

        Raises:
            BertInferError: it failed.
        """
        message = self.child.receive()
        if message != _READY:
            raise self._failed(self._error(message))

    def turn(self) -> Turn:
        """Let it measure for a turn.

        Raises:
            BertInferError: it failed.
        """
        self._tell(_MEASURE)
        message = self.child.receive()
        if not isinstance(message, Turn):
            raise self._failed(self._error(message))
        return message

    def finish(self) -> BertInferError | None:
        """Let it write its record and end; return why it failed, if it did."""
        self._tell(_FINISH)
        error = self._error(self.child.receive())
        return self._failed(error) if error else None

    def _tell(self, what: str) -> None:
        with suppress(OSError):  # it has died already
            self.child.pipe.send(what)

    def _error(self, finished: Finished | None) -> dict[str, str]:
        """Return the error in its record, now that it has ended."""
        error: dict[str, str] = self.child.ended(self.directory, finished).metrics["error"]
        return error

    def _failed(self, error: dict[str, str]) -> BertInferError:
        return BertInferError(f"{self.what} failed: {error['message']}", error["remedy"])


@contextmanager
def warmed_up(
    directory: Path, overrides: Sequence[str], searchpath: Sequence[str] = ()
) -> Iterator[Side]:
    """Start a side, wait until it has warmed up, and yield it.

    One that is not finished when the block ends records that it was interrupted.

    Args:
        directory: gets its files; it is made.
        overrides: what it runs, as on the command line.
        searchpath: further directories with options.

    Raises:
        BertInferError: it failed.
    """
    from bert_infer.configuration.composition import config_from, runner_from
    from bert_infer.configuration.overrides import expand_short_forms, key_of

    gives_iterations = "iterations" in map(key_of, overrides)
    complete = [*([] if gives_iterations else [_DEFAULT]), *overrides]
    config = config_from(expand_short_forms(complete), searchpath)
    runner, assignment = runner_from(config), Assignment(directory, int(config.iterations))
    with process.recorded(directory):
        _describe(directory, config, complete)
        with process.started(_run, assignment, tuple(runner.preload), runner.variables()) as child:
            side = Side(child, directory, " ".join(overrides) or "The default")
            try:
                side.warm_up()
                yield side
            finally:
                child.interrupted(directory)


def _describe(directory: Path, config: DictConfig, overrides: Sequence[str]) -> None:
    """Write the files that ``recorded_runner`` and ``rerun`` read."""
    from omegaconf import OmegaConf

    hydra = directory / ".hydra"
    hydra.mkdir(parents=True)
    OmegaConf.save(config, hydra / "config.yaml")
    OmegaConf.save(OmegaConf.create(list(overrides)), hydra / "overrides.yaml")
    of_hydra = {"runtime": {"cwd": str(Path.cwd())}, "job": {"env_set": {}}}
    OmegaConf.save(OmegaConf.create({"hydra": of_hydra}), hydra / "hydra.yaml")


class Assignment(NamedTuple):
    """What a side's process is told: its run's directory, and the fewest passes of a turn."""

    directory: Path
    fewest: int


def _run(pipe: Connection, assignment: Assignment) -> None:
    """Make the run of a side, in its own process."""
    with process.set_apart(assignment.directory, process.TIME_TO_RECORD_S):
        pipe.send(
            worker.carry_out(
                lambda: recorded_runner(assignment.directory),
                assignment.directory,
                isolation="process",
                turns=partial(_turns, pipe, assignment.fewest),
            )
        )


def _turns(pipe: Connection, fewest: int, forwards: list[Forward], pauses: Pauses) -> Iterator[int]:
    """Yield the passes of each turn that ``pipe`` grants, and report the turn when it is over."""

    def is_granted() -> bool:
        with pauses.one():
            return bool(pipe.recv() == _MEASURE)

    index = 0
    try:
        pipe.send(_READY)
        while is_granted():
            turn, first = Turn(0, 0.0), index
            while index - first < fewest or turn.wall_s < TURN_S:
                before = len(forwards)
                yield index
                index += 1
                turn = turn.followed_by(forwards[before:])
            pipe.send(turn)
    except (EOFError, ConnectionError):  # the duel has ended
        signal.raise_signal(signal.SIGTERM)

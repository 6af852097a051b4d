"""A side of a duel: a run in a process of its own, which measures when it is told to."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self

from bert_infer import files
from bert_infer.errors import BertInferError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

    from bert_infer.records import Forward

TURN_S = 0.5
"""A turn lasts at least so long, and at least ``iterations`` passes."""
_TIME_TO_END_S = 60
_MEASURE, _FINISH = "measure", "finish"


class Turn(NamedTuple):
    """What one side measured in one turn."""

    sequences: int
    wall_s: float

    @property
    def sequences_per_s(self) -> float:
        """The throughput."""
        return self.sequences / self.wall_s


class Side:
    """One run in a process of its own, which measures when it is told to."""

    def __init__(self, directory: Path, overrides: Sequence[str]) -> None:
        self._directory = directory
        self._overrides = list(overrides)

    def __enter__(self) -> Self:
        """Start the process and wait until it has warmed up."""
        # A fresh interpreter: torch's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_run_side, args=(theirs, self._directory, self._overrides), daemon=True
        )
        self._process.start()
        theirs.close()
        try:
            self._receive()
        except BaseException:  # an interruption too: it has a record to write
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the process: one that still waits for a turn records that it was interrupted."""
        self._pipe.close()
        self._process.join(_TIME_TO_END_S)
        self._process.kill()
        self._process.join()

    def turn(self) -> Turn:
        """Let it measure for a turn."""
        try:
            self._pipe.send(_MEASURE)
        except OSError:
            raise self._failed() from None
        turn = self._receive()
        if not isinstance(turn, Turn):
            raise self._failed()
        return turn

    def finish(self) -> BertInferError | None:
        """Let it write its record and end; return why it failed, if it did."""
        with suppress(OSError):  # it has died already
            self._pipe.send(_FINISH)
        self._process.join()
        return self._failed() if self._process.exitcode else None

    def _receive(self) -> Turn | None:
        try:
            message: Turn | None = self._pipe.recv()
        except EOFError:
            raise self._failed() from None
        return message

    def _failed(self) -> BertInferError:
        self._process.join(_TIME_TO_END_S)
        what = " ".join(self._overrides)
        record = self._directory / "metrics.json"
        error = files.read_json_object(record)["error"] if record.is_file() else None
        if error:
            return BertInferError(f"{what} failed: {error['message']}", error["remedy"])
        code = self._process.exitcode or 0
        how = f"ended it by {signal.Signals(-code).name}" if code < 0 else "ended it"
        return BertInferError(
            f"{what} failed: the system {how}.",
            "Lower batch or choose a smaller model if memory was short; "
            f"{self._directory / 'run.log'} tells how far it came.",
        )


def _run_side(pipe: Connection, directory: Path, overrides: list[str]) -> None:
    """Make one side's run; the process ends with exit code 1 if it failed."""
    try:
        from omegaconf import OmegaConf

        from bert_infer import worker
        from bert_infer.composition import config_from, runner_from
        from bert_infer.overrides import expand_short_forms

        config = config_from(expand_short_forms(overrides))
        (directory / ".hydra").mkdir(parents=True)
        OmegaConf.save(config, directory / ".hydra" / "config.yaml")
        OmegaConf.save(OmegaConf.create(overrides), directory / ".hydra" / "overrides.yaml")
        logging.basicConfig(filename=directory / "run.log", level=logging.INFO)
        finished = worker.carry_out(
            lambda: runner_from(config, overrides),
            directory,
            isolation="process",
            passes=partial(_turns, pipe, int(config.iterations)),
        )
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if finished.metrics["error"]:
        raise SystemExit(1)


def _turns(pipe: Connection, fewest: int, forwards: list[Forward]) -> Iterator[int]:
    """Yield the passes of each turn that ``pipe`` grants, and report the turn when it is over."""
    pipe.send(None)  # ready
    index = 0
    while _granted(pipe):
        begin, first = len(forwards), index
        while index - first < fewest or _wall_s(forwards[begin:]) < TURN_S:
            yield index
            index += 1
        of_turn = forwards[begin:]
        pipe.send(Turn(sum(forward.sequences for forward in of_turn), _wall_s(of_turn)))


def _granted(pipe: Connection) -> bool:
    """Wait for the next turn; False when there is none.

    Raises:
        KeyboardInterrupt: the duel was broken off.
    """
    try:
        return bool(pipe.recv() == _MEASURE)
    except EOFError:
        raise KeyboardInterrupt from None


def _wall_s(forwards: list[Forward]) -> float:
    return sum(forward.wall_s for forward in forwards)

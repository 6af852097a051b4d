"""A sitting's rounds: engines are loaded, and asked in turn."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from peer_inputs import ceiling, once
from peer_tables import Row, Surroundings
from peer_workers import MEASURE, OUTPUTS, STOP, FailedError, Worker, convert, others_share, serve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from numpy.typing import NDArray
    from peer_engines import Engine, Files, Workload


@dataclass(eq=False, kw_only=True)
class Asked(ABC):
    """A process that takes a turn in every round; this is filled as the sitting goes on.

    Attributes:
        worker: None once it cannot go on, for the reason in ``failure``.
        turns: its answers, for the workload under way.
        rested: whether it left the processor to others between them.
    """

    name: str
    dtype: str
    worker: Worker | None = None
    failure: str | None = None
    turns: list[Any] = field(default_factory=list)
    rested: bool = True

    @abstractmethod
    def load(self, files: Files, stack: ExitStack) -> None:
        """Start the process, which lives as long as ``stack``."""

    def start(self, stack: ExitStack, files: Files, work: Any, *arguments: object) -> None:  # noqa: ANN401  a Worker's
        """Start ``work``, and wait until it is ready for its first turn."""
        log = files.scratch / f"{self.name}-{self.dtype}.log"
        worker = stack.enter_context(Worker(work, *arguments, log=log))
        try:
            worker.answer()
            self.worker, self.failure = worker, None
        except FailedError as error:
            self.failure = str(error)

    def ask(self, question: object) -> Any:  # noqa: ANN401  each question has its own answer
        """Return the answer; None, once and for all, where there is none."""
        if self.worker is None:
            return None
        try:
            return self.worker.ask(question)
        except FailedError as error:
            self.failure, self.worker = str(error), None
            return None

    def take_turn(self) -> float:
        """Let it measure, and return the processor time that it used."""
        worker = self.worker
        if worker is None:
            return 0.0
        before = worker.used_s()
        answer = self.ask(MEASURE)
        if self.worker is None:
            return 0.0
        self.rested &= worker.rests()
        self.turns.append(answer)
        return worker.used_s() - before


@dataclass(eq=False, kw_only=True)
class Roof(Asked):
    """The dense matmul rate in a dtype."""

    name: str = "ceiling"

    def load(self, files: Files, stack: ExitStack) -> None:
        """Look for the fastest matmul."""
        say(f"{self.dtype}: ceiling")
        self.start(stack, files, ceiling, files, self.dtype)


@dataclass(eq=False, kw_only=True)
class Entry(Asked):
    """One engine in one dtype."""

    engine: Engine

    def convert(self, files: Files) -> None:
        """Refuse what it does not have, and write what it loads."""
        try:
            self.engine.check(self.dtype)
            if self.engine.is_converted:
                say(f"{self.dtype}: {self.engine.label}: converting")
                log = files.scratch / f"{self.name}-{self.dtype}.log"
                once(convert, self.engine, files, self.dtype, log=log)
        except FailedError as error:
            self.failure = str(error)

    def load(self, files: Files, stack: ExitStack) -> None:
        """Load it."""
        say(f"{self.dtype}: {self.engine.label}: loading")
        self.start(stack, files, serve, self.engine, files, self.dtype)

    def warm_up(self, workload: Workload, expected: NDArray[Any]) -> float | None:
        """Prepare it for ``workload``; return its outputs' smallest cosine to those expected."""
        self.turns, self.rested = [], True
        if self.worker is None:
            return None
        say(f"{workload.name}: {self.dtype}: {self.engine.label}: warming up")
        self.ask(workload)
        pooled = self.ask(OUTPUTS)
        if self.worker is None:
            return None
        self.rested = self.worker.rests()
        return min_cosine(pooled, expected)

    def row(self, cosine: float | None, *, is_latency: bool) -> Row:
        """Let it finish the workload, and return its row of the table."""
        peak = self.worker.peak_bytes() if self.worker else None
        found = self.ask(STOP)
        return Row(
            name=self.name,
            label=self.engine.label,
            dtype=self.dtype,
            is_ours=self.engine.is_ours,
            overrides=self.engine.overrides(self.dtype),
            is_latency=is_latency,
            turns=self.turns,
            cosine=cosine,
            peak_bytes=peak,
            rested=self.rested,
            failure=self.failure,
            found=found,
        )


def started(entries: Sequence[Entry], files: Files, stack: ExitStack) -> None:
    """Convert for every engine, then load them, one after the other."""
    for entry in entries:
        entry.convert(files)
    for entry in entries:
        if not entry.failure:
            entry.load(files, stack)


def measure(
    entries: Sequence[Entry],
    roofs: Sequence[Roof],
    workload: Workload,
    rounds: int,
    expected: NDArray[Any],
) -> tuple[list[Row], Surroundings]:
    """Warm everyone up for ``workload``, and let them measure in turn."""
    cosines = [entry.warm_up(workload, expected) for entry in entries]
    for roof in roofs:
        roof.turns = []
    shares = []
    everyone: list[Asked] = [*entries, *roofs]
    for number in range(rounds):
        say(f"{workload.name}: round {number + 1} of {rounds}")
        order = everyone if number % 2 == 0 else everyone[::-1]
        shares.append(others_share(partial(_take_turns, order)))
    rows = [
        entry.row(cosine, is_latency=workload.is_latency)
        for entry, cosine in zip(entries, cosines, strict=True)
    ]
    return rows, Surroundings(
        ceilings={roof.dtype: roof.turns for roof in roofs},
        roofless={roof.dtype: roof.failure for roof in roofs if roof.failure},
        others=shares,
    )


def _take_turns(order: Sequence[Asked]) -> float:
    """Return the processor time that they used."""
    return sum(asked.take_turn() for asked in order)


def min_cosine(pooled: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the smallest cosine of two sequences' vectors; what cannot be compared is NaN."""
    if pooled.shape != expected.shape:
        return math.nan
    return float((_unit(pooled) * _unit(expected)).sum(1).min())


def likeness(expected: NDArray[np.float32]) -> float | None:
    """Return the largest cosine of two different sequences: what a wrong engine may well reach."""
    if len(expected) < 2:  # noqa: PLR2004  of one there are no two
        return None
    unit = _unit(expected)
    return float((unit @ unit.T)[~np.eye(len(unit), dtype=bool)].max())


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    lengths: NDArray[np.float64] = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / lengths


def say(what: str) -> None:
    """Tell the user what goes on."""
    print(what, file=sys.stderr, flush=True)

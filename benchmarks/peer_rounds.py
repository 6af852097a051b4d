"""A sitting's rounds: engines loaded for a dtype, and asked in turn."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from peer_inputs import once
from peer_tables import Row, Surroundings
from peer_workers import MEASURE, OUTPUTS, STOP, FailedError, Worker, convert, others_share, serve

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack
    from pathlib import Path

    from numpy.typing import NDArray
    from peer_engines import Engine, Files, Workload


@dataclass(eq=False)
class Entry:
    """One engine in one dtype; it is filled as the sitting goes on.

    Attributes:
        worker: None once it cannot go on, for the reason in ``failure``.
    """

    name: str
    engine: Engine
    overrides: str | None = None
    worker: Worker | None = None
    failure: str | None = None

    def row(self) -> Row:
        """Return an empty row of a table."""
        return Row(self.name, self.engine.label, self.engine.is_ours, self.overrides)

    def work_for(self, question: object) -> Any:  # noqa: ANN401  each question has its own answer
        """Return the answer; None, once and for all, where there is none."""
        if self.worker is None:
            return None
        try:
            return self.worker.work_for(question)
        except FailedError as error:
            self.failure, self.worker = str(error), None
            return None


def started(
    engines: Mapping[str, Engine], dtype: str, files: Files, stack: ExitStack
) -> list[Entry]:
    """Convert for every engine, then load them, one after the other."""
    entries = [Entry(name, engine, engine.overrides(dtype)) for name, engine in engines.items()]
    for entry in entries:
        try:
            entry.engine.check(dtype)
            say(f"{dtype}: {entry.engine.label}: converting")
            once(convert, entry.engine, files, dtype, log=log_of(files, entry.name, dtype))
        except FailedError as error:
            entry.failure = str(error)
    for entry in entries:
        if entry.failure:
            continue
        say(f"{dtype}: {entry.engine.label}: loading")
        worker = Worker(serve, entry.engine, files, dtype, log=log_of(files, entry.name, dtype))
        try:
            stack.enter_context(worker).answer()
            entry.worker = worker
        except FailedError as error:
            entry.failure = str(error)
    return entries


def log_of(files: Files, name: str, dtype: str) -> Path:
    """Return where a process writes what it has to say."""
    return files.scratch / f"{name}-{dtype}.log"


def measure(
    entries: list[Entry], roof: Entry, workload: Workload, rounds: int, expected: NDArray[Any]
) -> tuple[list[Row], Surroundings]:
    """Warm everyone up for ``workload``, and let them measure in turn."""
    rows = {e.name: e.row() for e in entries}
    for entry in entries:
        if entry.worker:
            say(f"{workload.name}: {entry.engine.label}: warming up")
        entry.work_for(workload)
        pooled = entry.work_for(OUTPUTS)
        if entry.worker:
            rows[entry.name].cosine = min_cosine(pooled, expected)
            rows[entry.name].rested = entry.worker.rests()
    rates: list[float] = []
    shares = []
    for number in range(rounds):
        say(f"{workload.name}: round {number + 1} of {rounds}")
        order = [*entries, roof] if number % 2 == 0 else [roof, *entries[::-1]]
        shares.append(others_share(lambda order=order: one_round(order, rows, rates)))
    for entry in entries:
        if entry.worker:
            rows[entry.name].peak_bytes = entry.worker.peak_bytes()
        entry.work_for(STOP)
        rows[entry.name].failure = entry.failure
    return list(rows.values()), Surroundings(rates, shares)


def one_round(order: list[Entry], rows: dict[str, Row], rates: list[float]) -> float:
    """Ask each for a turn, in this order; return the processor time that they used."""
    used_s = 0.0
    for entry in order:
        worker = entry.worker
        before = worker.used_s() if worker else 0.0
        answer = entry.work_for(MEASURE)
        if worker is None or entry.worker is None:
            continue
        rested = worker.rests()
        used_s += worker.used_s() - before
        if entry.name in rows:
            rows[entry.name].turns.append(answer)
            rows[entry.name].rested &= rested
        else:
            rates.append(answer)
    return used_s


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
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def say(what: str) -> None:
    """Tell the user what goes on."""
    print(what, file=sys.stderr, flush=True)

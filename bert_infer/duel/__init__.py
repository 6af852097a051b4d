"""``duel``: two configurations measured in turn, so that a change of the machine affects both.

Each side is a run in a process of its own, loaded and warmed up once. The parent gives them turns,
A B, B A, A B, ..., and waits blocked. The order within a round alternates, so that a machine that
slows down steadily favours neither. A round gives one ratio, and the verdict is a 99 % interval of
the typical ratio.

Processes of one configuration can differ from each other as well. With several pairs of processes,
a pair's ratio, not a round's, is taken as independent of the others (Kalibera and Jones, Rigorous
Benchmarking in Reasonable Time, 2013).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_infer import files
from bert_infer.configuration.options import searchpath
from bert_infer.configuration.settings import SweepSettings
from bert_infer.duel.side import warmed_up
from bert_infer.errors import (
    MAKE_ROOM,
    BertInferError,
    OptionError,
    RefusedError,
    RunDirectoryError,
)
from bert_infer.files.directories import check_writable
from bert_infer.measuring import intervals
from bert_infer.measuring.measure import Pace
from bert_infer.running.status import EVERY_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from bert_infer.duel.side import Side, Turn
    from bert_infer.measuring.intervals import Interval
    from bert_infer.running.execution import ShowProgress
    from bert_infer.running.preparation import Prepared

CONFIDENCE = 0.99
FEWEST_ROUNDS = intervals.FEWEST_PAIRS


Turns = Sequence[tuple["Turn", "Turn"]]
"""Of A and B, by round."""


@dataclass(frozen=True)
class Duel:
    """The outcome.

    Attributes:
        pairs: the turns of each pair of processes.
    """

    pairs: Sequence[Turns]

    @property
    def turns(self) -> Turns:
        """The turns of all pairs."""
        return [turn for pair in self.pairs for turn in pair]

    @property
    def ratios(self) -> list[float]:
        """B's throughput over A's, by round."""
        return _ratios(self.turns)

    @property
    def ratio(self) -> float:
        """Their geometric mean."""
        return intervals.geometric_mean(np.array(self.ratios))

    @property
    def of_pairs(self) -> list[float]:
        """The geometric mean of each pair of processes that finished a round."""
        return [intervals.geometric_mean(np.array(_ratios(p))) for p in self.pairs if p]

    @property
    def is_by_pairs(self) -> bool:
        """Whether there are enough pairs of processes to take them as what is independent."""
        return len(self.of_pairs) >= intervals.FEWEST_PAIRS

    @property
    def interval(self) -> Interval:
        """The 99 % interval of the ratio."""
        independent = self.of_pairs if self.is_by_pairs else self.ratios
        return intervals.of_paired_ratio(np.array(independent), CONFIDENCE)

    @property
    def sentence(self) -> str:
        """What the interval supports saying."""
        found = intervals.verdict(self.interval)
        return f"B is {found}." if " by " in found else f"{found.capitalize()}."

    def as_json(self) -> dict[str, Any]:
        """Return the content of duel.json."""
        return {
            "rounds": [
                {
                    "pair": number,
                    "a_sequences_per_s": a.sequences_per_s,
                    "b_sequences_per_s": b.sequences_per_s,
                }
                for number, pair in enumerate(self.pairs, start=1)
                for a, b in pair
            ],
            "ratio": self.ratio,
            "confidence": CONFIDENCE,
            "ratio_interval": self.interval,
            "interval_of": "pairs" if self.is_by_pairs else "rounds",
            "verdict": self.sentence,
        }


def _ratios(turns: Turns) -> list[float]:
    return [b.sequences_per_s / a.sequences_per_s for a, b in turns]


def fight(  # noqa: PLR0913  all that a duel is
    a: Sequence[str],
    b: Sequence[str],
    rounds: int,
    directory: Path,
    *,
    pairs: int = 1,
    force: bool = False,
    config_dir: str | None = None,
    progress: ShowProgress = lambda _done, _total: None,
) -> tuple[Duel, list[str]]:
    """Measure two configurations in turn, and leave the record of each in ``directory``.

    Args:
        a: overrides of the first, as on the command line.
        b: overrides of the second.
        rounds: turns of each process.
        directory: gets ``duel.json``, ``a`` and ``b``, of further pairs ``a2``, ``b2`` and so on;
            it is made.
        pairs: how often both are loaded anew.
        force: compare different work, too.
        config_dir: holds options of the user's own.
        progress: is told of every round.

    Returns:
        The outcome, and the errors of sides that failed after enough rounds.

    Raises:
        RefusedError: an override is wrong, or the two would do different work.
        BertInferError: a side failed before there were enough rounds; its record says why.
    """
    _check_amount(rounds, pairs)
    first, second = (_prepared(overrides, config_dir) for overrides in (a, b))
    first.device.check_beside(second.device)
    if not force:
        _check_same_work(first, second)
    check_writable(directory, "Start it in a directory that you may write.")
    met: list[list[tuple[Turn, Turn]]] = []
    failures: list[BertInferError] = []
    pace = Pace(EVERY_S)

    def so_far() -> Duel:
        return Duel(tuple(map(tuple, met)))

    def note() -> None:
        """Take note of a round that is done."""
        done = sum(map(len, met))
        if done >= FEWEST_ROUNDS:
            pace.do(lambda: _write(directory, so_far()))
        progress(done, rounds * pairs)

    try:
        for number in range(pairs):
            suffix = str(number + 1) if number else ""
            sides = [
                warmed_up(directory / f"{name}{suffix}", overrides, searchpath(config_dir))
                for name, overrides in (("a", a), ("b", b))
            ]
            met.append([])
            failures += _meet(sides, range(number, number + rounds), met[-1], note)
            if failures:
                break
    except BertInferError as error:  # a side died; the finished rounds may still tell
        failures.append(error)
    finally:
        if len(so_far().turns) >= FEWEST_ROUNDS:
            _write(directory, so_far())
    if failures and len(so_far().turns) < FEWEST_ROUNDS:
        raise failures[0]
    return so_far(), list(dict.fromkeys(str(failure) for failure in failures))


def _meet(
    sides: Sequence[AbstractContextManager[Side]],
    rounds: range,
    turns: list[tuple[Turn, Turn]],
    note: Callable[[], None],
) -> list[BertInferError]:
    """Measure a pair of processes in turn; return why a side failed at its end, if one did.

    Args:
        sides: A and B, which start as they are entered.
        rounds: a turn of each; B begins those of odd number.
        turns: gets those that are done.
        note: is called after each round.

    Raises:
        BertInferError: a side died before.
    """
    with ExitStack() as stack:
        # One after the other: a side that loads would disturb the other's warm-up.
        a, b = map(stack.enter_context, sides)
        for number in rounds:
            taken = {side: side.turn() for side in ((a, b) if number % 2 == 0 else (b, a))}
            turns.append((taken[a], taken[b]))
            note()
        return [failure for side in (a, b) if (failure := side.finish())]


def _check_amount(rounds: int, pairs: int) -> None:
    """Refuse fewer rounds in all than give an interval."""
    if pairs < 1:
        raise OptionError("--pairs", pairs, "a whole number from 1")
    fewest = -(-FEWEST_ROUNDS // pairs)
    if rounds < fewest:
        raise OptionError("--rounds", rounds, f"a whole number from {fewest}")


def _write(directory: Path, duel: Duel) -> None:
    """Write duel.json.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    try:
        files.write_json(directory / "duel.json", duel.as_json())
    except OSError as error:
        raise RunDirectoryError(f"duel.json cannot be written: {error}.", MAKE_ROOM) from error


def _prepared(overrides: Sequence[str], config_dir: str | None) -> Prepared:
    """Compose and check one side.

    Raises:
        RefusedError: it cannot be run, or not in a duel.
    """
    from bert_infer.configuration.composition import compose

    keys = "|".join(["hydra", "until", *(field.name for field in fields(SweepSettings))])
    for override in overrides:
        if re.match(rf"[+~]*({keys})([./=]|$)", override):
            raise RefusedError(
                f"{override} has no meaning in a duel, which decides itself how long to measure, "
                "in which processes, and where its files go.",
                "Leave it out; --rounds says how often.",
            )
    runner = compose(overrides, config_dir)
    runner.input.check_is_repeatable()
    return runner.prepare()


def _check_same_work(a: Prepared, b: Prepared) -> None:
    if a.work.is_same(b.work):
        return
    first, second = (" ".join(side.runner.overrides) or "nothing" for side in (a, b))
    raise RefusedError(
        f"The two would do different work: {a.work.difference(b.work)}. A is {first}. B is "
        f"{second}.",
        "Give both the same texts, model and max_length, or add --force.",
    )

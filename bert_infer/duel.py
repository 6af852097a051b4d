"""``duel``: two configurations measured in turn, so that what the machine does meets both.

Each side is a run in a process of its own, loaded and warmed once. The parent, which imports no
torch and waits blocked, gives them turns: A B, B A, A B, ... The order within a round alternates,
so that a machine that slows down steadily favours neither. A round gives one ratio, and the
verdict is a 99 % interval of the typical ratio of these two processes. How much another two of the
same configurations would differ from them is not in it.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_infer import files, statistics
from bert_infer.comparison import verdict
from bert_infer.directories import check_writable
from bert_infer.errors import (
    MAKE_ROOM,
    BertInferError,
    OptionError,
    RefusedError,
    RunDirectoryError,
)
from bert_infer.measure import Pace
from bert_infer.settings import SweepSettings
from bert_infer.side import warmed_up
from bert_infer.status import EVERY_S

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bert_infer.preparation import Prepared
    from bert_infer.runner import ShowProgress
    from bert_infer.side import Turn
    from bert_infer.statistics import Interval

CONFIDENCE = 0.99
FEWEST_ROUNDS = statistics.FEWEST_PAIRS


@dataclass(frozen=True)
class Duel:
    """The outcome.

    Attributes:
        turns: of A and B, by round.
        ratios: B's throughput over A's, by round.
        ratio: their geometric mean.
        interval: its 99 % interval.
    """

    turns: list[tuple[Turn, Turn]]

    @property
    def ratios(self) -> list[float]:
        """B's throughput over A's, by round."""
        return [b.sequences_per_s / a.sequences_per_s for a, b in self.turns]

    @property
    def ratio(self) -> float:
        """Their geometric mean."""
        return statistics.geometric_mean(np.array(self.ratios))

    @property
    def interval(self) -> Interval:
        """The 99 % interval of the ratio."""
        return statistics.paired_ratio(np.array(self.ratios), CONFIDENCE)

    @property
    def sentence(self) -> str:
        """What the interval supports saying."""
        found = verdict(self.interval)
        return f"B is {found}." if " by " in found else f"{found.capitalize()}."

    def as_json(self) -> dict[str, Any]:
        """Return the content of duel.json."""
        return {
            "rounds": [
                {"a_sequences_per_s": a.sequences_per_s, "b_sequences_per_s": b.sequences_per_s}
                for a, b in self.turns
            ],
            "ratio": self.ratio,
            "confidence": CONFIDENCE,
            "ratio_interval": self.interval,
            "verdict": self.sentence,
        }


def fight(  # noqa: PLR0913  all that a duel is
    a: Sequence[str],
    b: Sequence[str],
    rounds: int,
    directory: Path,
    *,
    force: bool = False,
    progress: ShowProgress = lambda _done, _total: None,
) -> tuple[Duel, list[str]]:
    """Measure two configurations in turn, and leave the record of each in ``directory``.

    Returns:
        The outcome, and why a side failed after enough rounds, if one did.

    Args:
        a: overrides of the first, as on the command line.
        b: overrides of the second.
        rounds: turns of each.
        directory: gets ``a``, ``b`` and ``duel.json``; it is made.
        force: compare different work, too.
        progress: is told of every round.

    Raises:
        RefusedError: an override is wrong, or the two would do different work.
        BertInferError: a side failed before there were enough rounds; its record says why.
    """
    if rounds < FEWEST_ROUNDS:
        raise OptionError("--rounds", rounds, f"a whole number from {FEWEST_ROUNDS}")
    first, second = (_prepared(overrides) for overrides in (a, b))
    first.device.check_beside(second.device)
    if not force:
        _check_same_work(first, second)
    check_writable(directory, "Start it in a directory that you may write.")
    turns: list[tuple[Turn, Turn]] = []
    failures: list[BertInferError] = []
    pace = Pace(EVERY_S)
    with ExitStack() as stack:
        # One after the other: a side that loads would disturb the other's warm-up.
        sides = [
            stack.enter_context(warmed_up(directory / name, overrides))
            for name, overrides in (("a", a), ("b", b))
        ]
        try:
            for number in range(rounds):
                order = sides if number % 2 == 0 else sides[::-1]
                taken = {side: side.turn() for side in order}
                turns.append((taken[sides[0]], taken[sides[1]]))
                if len(turns) >= FEWEST_ROUNDS:
                    pace.do(lambda: _write(directory, Duel(turns)))
                progress(number + 1, rounds)
        except BertInferError as error:  # a side died; the finished rounds may still tell
            failures.append(error)
            if len(turns) < FEWEST_ROUNDS:
                raise
        finally:
            if len(turns) >= FEWEST_ROUNDS:
                _write(directory, Duel(turns))
        failures += [failure for side in sides if (failure := side.finish())]
    return Duel(turns), list(dict.fromkeys(str(failure) for failure in failures))


def _write(directory: Path, duel: Duel) -> None:
    """Write duel.json.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    try:
        files.write_json(directory / "duel.json", duel.as_json())
    except OSError as error:
        raise RunDirectoryError(f"duel.json cannot be written: {error}.", MAKE_ROOM) from error


def _prepared(overrides: Sequence[str]) -> Prepared:
    """Compose and check one side.

    Raises:
        RefusedError: it cannot be run, or not in a duel.
    """
    from bert_infer.composition import compose

    keys = "|".join(["hydra", "until", *(field.name for field in fields(SweepSettings))])
    for override in overrides:
        if re.match(rf"[+~]*({keys})([./=]|$)", override):
            raise RefusedError(
                f"{override} has no meaning in a duel, which decides itself how long to measure, "
                "in which processes, and where its files go.",
                "Leave it out; --rounds says how often.",
            )
    runner = compose(overrides)
    runner.input.check_is_repeatable()
    return runner.prepare()


def _check_same_work(a: Prepared, b: Prepared) -> None:
    flop = [p.architecture.useful_flop(p.tokens.lengths) / len(p.tokens) for p in (a, b)]
    if a.tokens.sha256 != b.tokens.sha256 or flop[0] != flop[1]:
        raise RefusedError(
            f"The two would do different work: {flop[0] / 1e9:.4g} and {flop[1] / 1e9:.4g} useful "
            "GFLOP a sequence, or other texts.",
            "Give both the same texts, model and max_length, or add --force.",
        )

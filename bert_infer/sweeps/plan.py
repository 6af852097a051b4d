"""Which runs a sweep makes, and in which order."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from bert_infer.configuration.settings import Order

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence
    from pathlib import Path

    from bert_infer.configuration.settings import SweepSettings
    from bert_infer.devices import Device
    from bert_infer.report import Baseline
    from bert_infer.running.preparation import Content


class Planned(NamedTuple):
    """A run that is to be made.

    Attributes:
        overrides: as on the command line, short forms expanded.
        content: what it computes; repeats share it.
    """

    overrides: tuple[str, ...]
    content: Content

    def content_hash(self, tokens_sha256: str | None = None) -> str:
        """Return the hash of what it computes; of another input, if ``tokens_sha256`` is given."""
        return self.content._replace(input=tokens_sha256 or self.content.input).hash


class Place(NamedTuple):
    """Where a run takes place: a device, and the environment variables that it needs there."""

    device: Device
    variables: frozenset[tuple[str, str]]


class Plan(NamedTuple):
    """A sweep, each of whose runs has passed every check.

    Attributes:
        directory: where it goes, or lies already.
        overrides: of all runs together, and ``searchpath`` as in ``Request``.
        runs: each configuration once.
        preload: the modules that runs need.
        places: where they run.
    """

    directory: Path
    overrides: list[str]
    searchpath: list[str]
    settings: SweepSettings
    baseline: Baseline | None
    seed: int
    runs: list[Planned]
    preload: tuple[str, ...]
    places: tuple[Place, ...]


def shared(runs: Sequence[Sequence[str]]) -> set[str]:
    """Return the overrides that all of several runs have, which tell none of them apart."""
    return set(runs[0]).intersection(*runs) if len(runs) > 1 else set()


def ordered(runs: Sequence[Planned], repeats: int, order: Order, seed: int) -> list[Planned]:
    """Return each of ``runs`` ``repeats`` times.

    Interleaved, every second round goes backwards, so that a machine that slows down steadily
    favours none.
    """
    rounds = [list(runs) if number % 2 == 0 else list(runs)[::-1] for number in range(repeats)]
    if order is Order.interleaved:
        return [run for one_round in rounds for run in one_round]
    in_succession = [run for run in runs for _ in range(repeats)]
    if order is Order.random:
        random.Random(seed).shuffle(in_succession)  # noqa: S311  no secret
    return in_succession


def missing(planned: Sequence[Planned], done: Counter[str]) -> list[Planned]:
    """Return the runs of ``planned`` that are not in ``done``, a count by content hash."""
    left = done.copy()
    result = []
    for run in planned:
        content_hash = run.content_hash()
        if left[content_hash] > 0:
            left[content_hash] -= 1
        else:
            result.append(run)
    return result

"""The combinations that a sweep runs, each prepared before the first of them starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bert_infer import console, metrics
from bert_infer.configuration.composition import config_from, hydra_at_hand, runner_from
from bert_infer.configuration.overrides import of_run
from bert_infer.configuration.schema import interpolation_refused
from bert_infer.errors import RefusedError
from bert_infer.report.entries import alternatives
from bert_infer.sweeps.plan import Place, Planned, shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omegaconf import DictConfig


def checked(overrides: Sequence[list[str]], searchpath: Sequence[str]) -> list[Combination]:
    """Compose and prepare each of the runs that have these ``overrides``.

    Raises:
        RefusedError: listing every combination that is refused, and why.
    """
    found, common = [], shared(overrides)
    refused: dict[str, list[str]] = {}
    # Hydra is set up once for all; each of them still takes it a tenth of a second.
    with hydra_at_hand(), console.progress_bar("checking runs") as bar:
        for number, one in enumerate(overrides):
            bar.progress(number, len(overrides))
            try:
                found.append(Combination.of(one, searchpath, number))
            except RefusedError as error:
                own = " ".join(o for o in one if o not in common)
                refused.setdefault(str(error), []).append(own)
    if refused:
        raise _all_refused(refused, len(overrides))
    return found


class Combination(NamedTuple):
    """A run of the sweep that has passed every check.

    Attributes:
        config: Hydra's own node included.
        options: its options by key, once as resolved and once as asked for.
    """

    config: DictConfig
    planned: Planned
    preload: frozenset[str]
    place: Place
    options: list[dict[str, str]]

    @classmethod
    def of(cls, overrides: list[str], searchpath: Sequence[str], number: int) -> Combination:
        """Compose and prepare the run of this number.

        Raises:
            RefusedError: the first mistake.
        """
        config = config_from(overrides, searchpath, job=number)
        runner = runner_from(config)
        if not starts_runs_itself(config):
            runner.input.check_is_repeatable()
        prepared = runner.prepare()
        with interpolation_refused():
            variables = {**config.hydra.job.env_set, **runner.variables()}
        return cls(
            config,
            Planned(of_run(overrides), prepared.content()),
            runner.preload,
            Place(prepared.device, frozenset(variables.items())),
            alternatives(metrics.choice(prepared), overrides),
        )


def starts_runs_itself(config: DictConfig) -> bool:
    """Tell whether this process starts the runs, one by one, and no launcher's process does."""
    return str(config.hydra.launcher._target_).endswith(".BasicLauncher")


def _all_refused(refused: dict[str, list[str]], runs: int) -> RefusedError:
    """Return an error that lists every reason, and under it the runs refused for it."""
    if runs == 1 or (len(refused) == 1 and len(next(iter(refused.values()))) == runs):
        return RefusedError(next(iter(refused)), "")
    count = sum(map(len, refused.values()))
    lines = [
        f"{reason}\n    " + "\n    ".join(f"in {combination}" for combination in combinations)
        for reason, combinations in refused.items()
    ]
    others = " Sweep over the others first: resume=DIR KEY=VALUE,VALUE adds to a sweep."
    hint = others if count < runs else ""
    return RefusedError(
        f"{count} of {runs} runs are refused, and none is started.{hint}\n" + "\n".join(lines), ""
    )

"""A command line for runs: parsed, and checked as a whole before the first run is made."""

from __future__ import annotations

import logging
from argparse import Namespace
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from bert_infer.cli import flags
from bert_infer.cli.commands import COMMANDS
from bert_infer.configuration.composition import (
    check_values,
    config_from,
    hydra_at_hand,
    runner_from,
    searching,
    sweep_settings,
)
from bert_infer.configuration.limits import check_node
from bert_infer.configuration.options import groups, searchpath, values
from bert_infer.configuration.overrides import (
    check_agreement,
    check_is_one_run,
    check_overrides,
    expand_short_forms,
    key_of,
    sweep,
)
from bert_infer.configuration.settings import SweepSettings
from bert_infer.errors import OptionError, RefusedError, RunDirectoryError, nearest
from bert_infer.files.directories import check_apart, check_free, check_writable, usable
from bert_infer.processes.isolated import Isolated
from bert_infer.report import Baseline
from bert_infer.running import status
from bert_infer.sweeps import combinations, resumption
from bert_infer.sweeps.plan import Plan, shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omegaconf import DictConfig


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        asked: Hydra's own flags.
        overrides: short forms expanded.
        searchpath: further directories with options.
        is_sweep: whether every combination of the overrides is a run.
    """

    asked: Namespace
    overrides: list[str]
    searchpath: list[str]
    is_sweep: bool

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Request:
        """Return the request that ``arguments`` make; flags and overrides come in any order.

        Raises:
            RefusedError: an argument is none of Hydra's, or an override is wrong.
        """
        asked = flags.parsed(arguments)
        overrides = expand_short_forms(asked.overrides)
        directories = searchpath(asked.config_dir)
        if not asked.shell_completion:
            _check_words(overrides)
            check_overrides(overrides, directories)
            check_agreement(overrides)
        is_sweep = asked.multirun or "hydra.mode=MULTIRUN" in overrides
        return cls(asked, overrides, directories, is_sweep)

    @property
    def kind(self) -> str:
        """Hydra's word for it: run or sweep."""
        return "sweep" if self.is_sweep else "run"

    @property
    def only_shows(self) -> bool:
        """Whether Hydra prints something and nothing is run."""
        asked = self.asked
        return bool(asked.cfg or asked.info or asked.hydra_help or asked.shell_completion)

    def show(self) -> None:
        """Let Hydra print what is asked for.

        Raises:
            RefusedError: what it would compose has a mistake.
        """
        asked, overrides = self.asked, [*self.overrides, *searching(self.searchpath)]
        if not asked.shell_completion:
            self.check_view()
        logging.raiseExceptions = False  # Hydra logs what it shows, perhaps to a closed pipe
        with hydra_at_hand() as hydra:
            if asked.cfg:
                hydra.show_cfg("config", overrides, asked.cfg, asked.package, asked.resolve)
            elif asked.info:
                hydra.show_info(asked.info, "config", overrides)
            elif asked.hydra_help:
                hydra.hydra_help("config", get_args_parser(), Namespace(overrides=overrides))
            else:
                hydra.shell_completion("config", overrides)

    def check_view(self) -> None:
        """Compose what Hydra is to print, so that mistakes are reported as they are for a run.

        Raises:
            RefusedError: the first mistake.
        """
        check_is_one_run(self.overrides, "Give each key one value.", self.searchpath)
        config = config_from(self.overrides, self.searchpath, job=0)
        check_values(config)
        check_node(config.hydra, self.kind)
        part, key = self.asked.cfg or "all", self.asked.package
        if key in {None, "", "_global_"}:
            return
        keys = {"job": [*groups(), *values()], "hydra": ["hydra"], "all": [*config]}[part]
        parent = str(key).partition(".")[0]
        if parent not in keys or OmegaConf.select(config, str(key)) is None:
            allowed = f"what has a value in {', '.join(keys)}"
            raise OptionError("--package", key, allowed, nearest(parent, keys))

    def check(self) -> tuple[Path, Isolated | None]:
        """Compose and prepare the run, so that a mistake ends the command before anything is made.

        Returns:
            The run's directory, and what makes it in a process of its own if it gets one.

        Raises:
            RefusedError: the first mistake.
        """
        check_is_one_run(self.overrides, "Add --multirun (or -m) to make a sweep.", self.searchpath)
        self._check_kind()
        config = config_from(self.overrides, self.searchpath, job=0)
        settings = sweep_settings(config)
        settings.check_single()
        runner = runner_from(config)
        runner.prepare()
        check_node(config.hydra, self.kind)
        _check_directory(config, self.kind)
        directory = Path(config.hydra.run.dir)
        if (pid := status.writer(directory)) is not None:
            raise RunDirectoryError(
                f"{directory} is being written by process {pid}.",
                "Wait until it is done, or choose another: hydra.run.dir=DIR.",
            )
        if settings.wants_process(has_variables=bool(config.hydra.job.env_set)):
            return directory, Isolated(tuple(runner.preload), settings.timeout_s)
        return directory, None

    def plan(self) -> Plan:
        """Compose and prepare every run of a sweep.

        Raises:
            RefusedError: listing every combination that is refused, and why.
        """
        self._check_kind()
        before, directories = resumption.of(self.overrides, self.searchpath)
        request = replace(
            self,
            overrides=[*before, *self.overrides],
            searchpath=list(dict.fromkeys([*directories, *self.searchpath])),
        )
        overrides = sweep(request.overrides, request.searchpath)
        if not overrides:
            raise RefusedError(
                f"{' '.join(request.overrides)} asks for no run at all.",
                "Check the ranges and patterns in it.",
            )
        runs = combinations.checked(overrides, request.searchpath)
        configs = [run.config for run in runs]
        settings = {sweep_settings(config) for config in configs}
        if len(settings) > 1:
            names = ", ".join(field.name for field in fields(SweepSettings))
            raise RefusedError(
                f"A sweep has one value each of {names}.", "Give one value, without a comma."
            )
        one = settings.pop()
        baseline = Baseline.parse(one.baseline) if one.baseline is not None else None
        if baseline and not any(
            baseline.matches(options) for run in runs for options in run.options
        ):
            common = shared(overrides)
            own = dict.fromkeys(o for given in overrides for o in given if o not in common)
            there = ", ".join(own or overrides[0])
            raise OptionError("baseline", one.baseline, f"what a run of the sweep has: {there}")
        if one.fail_fast and not combinations.starts_runs_itself(configs[0]):
            raise OptionError("fail_fast", "true", "false with a launcher that starts all runs")
        check_node(configs[0].hydra, self.kind)
        folders = [config.hydra.sweep.subdir for config in configs]
        if one.resume is None:
            _check_directory(configs[0], self.kind, folders)
        if one.repeats > 1 or one.resume is not None:  # as for the first run, made once more
            later = config_from(overrides[0], request.searchpath, job=len(runs))
            folders.append(later.hydra.sweep.subdir)
        check_apart(folders)
        return Plan(
            directory=Path(one.resume or configs[0].hydra.sweep.dir),
            overrides=request.overrides,
            searchpath=request.searchpath,
            settings=one,
            baseline=baseline,
            seed=int(configs[0].seed),
            runs=[run.planned for run in runs],
            preload=tuple(sorted({name for run in runs for name in run.preload})),
            places=tuple({run.place for run in runs}),
        )

    def _check_kind(self) -> None:
        """Refuse what says where the other kind of request writes, and would mean nothing.

        Raises:
            RefusedError: naming the key.
        """
        other, belongs, remedy = _OTHER_KIND[self.kind]
        for key in map(key_of, self.overrides):
            if f"{key}.".startswith(f"hydra.{other}."):
                raise RefusedError(f"{key} belongs to {belongs}.", remedy)


_OTHER_KIND = {
    "run": (
        "sweep",
        "a sweep, and this is a single run",
        "Add --multirun, or write hydra.run.dir=DIR.",
    ),
    "sweep": ("run", "a single run, and this is a sweep", "Write hydra.sweep.dir=DIR."),
}
"""Of each kind of request: Hydra's word for the other, what belongs to that, what to do."""


def _check_words(overrides: Sequence[str]) -> None:
    """Refuse a word that is no override, and no command, as that would come first.

    Raises:
        RefusedError: naming the word, and what may be meant.
    """
    for word, following in pairwise([*overrides, "="]):
        if word in COMMANDS:
            raise RefusedError(
                f"{word} is a command, and comes first.",
                f"Write {word} before all else; {word} --help says what it takes.",
            )
        if "=" not in word and not word.startswith("~"):
            is_pair = "=" not in following and word in {*groups(), *values()}
            raise RefusedError(
                f"{word} is neither KEY=VALUE nor a command; the commands are "
                f"{' and '.join(COMMANDS)}, and come first.",
                nearest(word, [*COMMANDS, "--help", "--version"])
                or (f"Did you mean {word}={following}?" if is_pair else ""),
            )


def _check_directory(config: DictConfig, kind: str, folders: Sequence[str] = ()) -> None:
    """Refuse a directory that runs cannot be written to.

    Raises:
        RefusedError: naming the key to change.
    """
    directory = config.hydra[kind].dir
    if not directory:
        raise OptionError(f"hydra.{kind}.dir", "", "a directory")
    with usable(f"hydra.{kind}.dir"):
        check_free(Path(directory), kind, folders)
        check_writable(Path(directory), f"Choose another: hydra.{kind}.dir=DIR.")

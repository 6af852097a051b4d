"""A command line for runs: parsed, and checked as a whole before the first run is made."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bert_infer.composition import config_from, interpolation_refused, runner_from
from bert_infer.errors import OptionError, RefusedError, RunDirectoryError, nearest
from bert_infer.overrides import check_overrides, expand_short_forms, sweep

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from omegaconf import DictConfig

MOST_RUNS = 10_000
_RESULTS = ("metrics.json", "multirun.yaml")
_PROBE_BYTES = 1 << 16


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        flags: Hydra's own arguments.
        overrides: short forms expanded.
        searchpath: further directories with options.
        is_sweep: whether every combination of the overrides is a run.
        only_shows: whether Hydra prints something and nothing is run.
    """

    flags: list[str]
    overrides: list[str]
    searchpath: list[str]
    is_sweep: bool
    only_shows: bool

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Request:
        """Return what ``arguments`` ask, flags and overrides in any order.

        Raises:
            RefusedError: an argument is none of Hydra's, or an override is wrong.
        """
        from hydra._internal.utils import get_args_parser

        parser = get_args_parser()
        flags = [flag for action in parser._actions for flag in action.option_strings]  # noqa: SLF001
        parser.error = lambda message: _refuse(message, arguments, flags)  # type: ignore[method-assign]
        asked: argparse.Namespace = parser.parse_intermixed_args(list(arguments))
        if asked.experimental_rerun:
            raise RefusedError("--experimental-rerun is not supported.", "Give the overrides.")
        overrides = expand_short_forms(asked.overrides)
        searchpath = [str(Path(asked.config_dir).resolve())] if asked.config_dir else []
        shows = asked.cfg or asked.info or asked.hydra_help or asked.shell_completion
        if not asked.shell_completion:
            check_overrides(overrides, bundled_only=not searchpath)
        return cls(
            flags=[argument for argument in arguments if argument not in asked.overrides],
            overrides=overrides,
            searchpath=searchpath,
            is_sweep=asked.multirun or "hydra.mode=MULTIRUN" in overrides,
            only_shows=bool(shows),
        )

    @property
    def kind(self) -> str:
        """What Hydra calls it."""
        return "sweep" if self.is_sweep else "run"

    def check(self) -> Path:
        """Compose and prepare every run, so that a mistake in any ends the command first.

        Returns:
            The directory of the run, or of the sweep.

        Raises:
            RefusedError: the first mistake.
        """
        runs = sweep(self.overrides, MOST_RUNS)
        if not self.is_sweep and len(runs) > 1:
            raise RefusedError(
                f"{' '.join(self.overrides)} asks for several runs.",
                "Add --multirun (or -m) to make a sweep; a comma that belongs to a value is "
                "quoted: 'KEY=\"a, b\"'.",
            )
        if not runs:
            raise RefusedError(
                f"{' '.join(self.overrides)} asks for no run at all.",
                "Check the ranges and patterns in it.",
            )
        configs = [
            config_from(run if self.is_sweep else self.overrides, self.searchpath, job=number)
            for number, run in enumerate(runs)
        ]
        for config in configs:
            runner_from(config).prepare()
        with interpolation_refused():
            _check_hydra(configs, self.kind)
            return Path(configs[0].hydra[self.kind].dir)


def _check_hydra(configs: list[DictConfig], kind: str) -> None:
    """Refuse what Hydra offers and a run here cannot bear.

    Raises:
        RefusedError: naming the key to change.
    """
    hydra = configs[0].hydra
    if hydra.job.chdir:
        raise OptionError("hydra.job.chdir", "true", "false: paths are the command's own")
    if hydra.sweeper.params:
        raise RefusedError(
            "hydra.sweeper.params is not read here.", "Give its values as overrides: dtype=a,b."
        )
    if not hydra[kind].dir:
        raise OptionError(f"hydra.{kind}.dir", "", "a directory")
    folders = [config.hydra.sweep.subdir if kind == "sweep" else "" for config in configs]
    _check_free(Path(hydra[kind].dir), kind, folders)
    check_writable(Path(hydra[kind].dir))


def _check_free(root: Path, kind: str, folders: list[str]) -> None:
    """Refuse directories that hold results already, or that runs would share.

    Raises:
        RunDirectoryError: naming the key to change.
    """
    if any((d / name).exists() for d in (root, *map(root.joinpath, folders)) for name in _RESULTS):
        raise RunDirectoryError(
            f"{root} holds a run or sweep already.", f"Choose another: hydra.{kind}.dir=DIR."
        )
    if len(set(folders)) < len(folders):
        raise RunDirectoryError(
            "hydra.sweep.subdir gives several runs the same directory.",
            "Leave it out, or let it contain ${hydra.job.num}.",
        )


def check_writable(root: Path) -> None:
    """Write a little where the run's directory will be, and remove it again.

    Raises:
        RunDirectoryError: it cannot be written, or the disk is full.
    """
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0" * _PROBE_BYTES)
    except OSError as error:
        raise RunDirectoryError(
            f"The run directory cannot be written: {error}.", "Choose another: hydra.run.dir=DIR."
        ) from None


def _refuse(message: str, arguments: Sequence[str], flags: list[str]) -> NoReturn:
    """Raise what argparse found wrong, with the flag that was meant."""
    unknown = next((a for a in arguments if a.startswith("-") and a not in flags), "")
    raise RefusedError(f"{message}.", nearest(unknown, flags) or "Try --help.")

"""``resume``: what a sweep that is completed keeps of the overrides that it began with."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import ListConfig, OmegaConf

from bert_infer import console, files
from bert_infer.configuration.options import groups, options_with
from bert_infer.configuration.overrides import as_written, key_of, of_run, value_of, values_of
from bert_infer.errors import OptionError, RefusedError
from bert_infer.files.directories import usable
from bert_infer.report.baseline import Baseline

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def of(overrides: Sequence[str], searchpath: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the sweep's own overrides that stay, and its directories with options.

    Both are empty where ``overrides`` resume nothing.

    Args:
        overrides: those given now.
        searchpath: the directories with options that are given now.

    Raises:
        RefusedError: there is no such sweep, or its file is damaged and nothing else is given.
    """
    given = {key_of(override): override for override in overrides}
    if "resume" not in given or value_of(given["resume"]) is None:
        return [], []
    if "hydra.sweep.dir" in given:
        raise RefusedError(
            "hydra.sweep.dir and resume name a directory each.", "Leave hydra.sweep.dir out."
        )
    directory, *others = values_of(given["resume"])
    if others:
        raise OptionError("resume", f"{directory},{others[0]}", "one directory")
    path = Path(directory) / "multirun.yaml"
    with usable("resume"):
        is_there = path.is_file()
    if not is_there:
        raise RefusedError(
            f"resume={directory} is no sweep: there is no multirun.yaml in it.",
            "Name the directory that the sweep printed.",
        )
    remedy = f"Give its overrides again: --multirun resume={directory} KEY=VALUE,VALUE ..."
    try:
        before = _of_sweep(path, remedy)
    except RefusedError as error:
        if not of_run(overrides):
            raise
        console.show_text(f"{error.message} Only the overrides given here count.")
        return [], []
    searched = [o for o in before if key_of(o) == "hydra.searchpath"]
    directories = [d.removeprefix("file://") for o in searched for d in map(str, value_of(o))]
    own = [*directories, *searchpath]
    stay = [o for o in before if o not in searched and not _is_replaced(o, given, own)]
    _check_files(path, stay)
    return stay, directories


def baseline_of(directory: Path) -> Baseline | None:
    """Return the baseline that the sweep in ``directory`` was begun with, if that is known."""
    path = directory / "multirun.yaml"
    if not path.is_file():
        return None
    try:
        given = {key_of(override): override for override in _of_sweep(path, "")}
    except RefusedError as error:
        console.show_text(f"{error.message} The sweep's own baseline is not known.")
        return None
    named = value_of(given["baseline"]) if "baseline" in given else None
    return None if named is None else Baseline.parse(named)


def _of_sweep(path: Path, remedy: str) -> list[str]:
    """Return the overrides of a sweep by its multirun.yaml, without where it lies.

    Raises:
        RefusedError: the file is damaged.
    """
    keys = "hydra.overrides.task", "hydra.overrides.hydra"
    found = files.read_yaml(path, remedy, keys).hydra.overrides
    if not isinstance(found.task, ListConfig) or not isinstance(found.hydra, ListConfig):
        raise RefusedError(f"{path} is damaged: its overrides are no lists.", remedy)
    overrides = [*as_written(found.task), *as_written(found.hydra)]
    return [o for o in overrides if key_of(o) not in {"hydra.sweep.dir", "hydra.mode"}]


def _check_files(path: Path, overrides: Sequence[str]) -> None:
    """Refuse to resume a sweep where the files that its overrides name are others, or not there.

    Raises:
        RefusedError: naming the directory in which it was begun.
    """
    found = files.read_yaml(path, "")
    begun = Path(str(OmegaConf.select(found, "hydra.runtime.cwd", default=".")))
    if begun.resolve() == Path.cwd():
        return
    for override in overrides:
        value = override.partition("=")[2].strip("'\"")
        with suppress(OSError):  # a text may be too long for a name
            if value and not Path(value).is_absolute() and (begun / value).is_file():
                raise RefusedError(
                    f"{override} names a file in {begun}, where the sweep was begun.",
                    f"Resume it there, or give {key_of(override)} again.",
                )


def _is_replaced(override: str, given: Mapping[str, str], directories: Sequence[str]) -> bool:
    """Tell whether an override of a sweep makes way for those ``given``, by key.

    A field of an option stays while all options that are given for its group have it.

    Args:
        override: the sweep's.
        given: overrides by their keys.
        directories: those with options of the user's own.
    """
    key = key_of(override)
    group, _, name = key.partition(".")
    if group in given and group in groups() and name:
        having = options_with(group, name, directories)
        return key in given or not {*values_of(given[group])} <= {*having}
    above = (k.replace("/", ".") for k in given)
    return any(f"{key.replace('/', '.')}.".startswith(f"{k}.") for k in above)

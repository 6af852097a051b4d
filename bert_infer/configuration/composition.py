"""Overrides to a Runner: Hydra composes them, and each node becomes a checked component."""

from __future__ import annotations

import importlib
import inspect
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar, cast

from bert_infer.batching import Batching
from bert_infer.configuration import misfits
from bert_infer.configuration.options import CONF, groups, searchpath, values
from bert_infer.configuration.overrides import (
    check_is_one_run,
    check_overrides,
    expand_short_forms,
    literal,
)
from bert_infer.configuration.schema import checked, interpolation_refused
from bert_infer.configuration.settings import DriftSettings, Settings, SweepSettings, Until
from bert_infer.devices import DeviceChoice
from bert_infer.dtypes import Dtype
from bert_infer.engines import Engine
from bert_infer.errors import OptionError, RefusedError, nearest
from bert_infer.graphs import GraphChoice
from bert_infer.inputs import Input
from bert_infer.models import Model
from bert_infer.outputs import Output
from bert_infer.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from hydra._internal.hydra import Hydra
    from omegaconf import DictConfig

COMPONENTS: dict[str, type] = {
    "input": Input,
    "model": Model,
    "batching": Batching,
    "device": DeviceChoice,
    "dtype": Dtype,
    "engine": Engine,
    "graph": GraphChoice,
    "output": Output,
}
"""Every group, and the base class of its options."""

SECTIONS: dict[str, type] = {"until": Until, "drift": DriftSettings}
"""Top-level values that have keys of their own."""

ENTRY_POINTS = "bert_infer.components"
"""The entry-point group through which other packages' components are allowed."""

_ONE_AT_A_TIME = RLock()

C = TypeVar("C")


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Runner:
    """Return the Runner that ``overrides`` choose, each as on the command line: ``"dtype=bf16"``.

    Args:
        overrides: of configuration; what concerns files, processes or sweeps has no effect here. Of
            a key that is given twice the later value counts, so that a list may follow another.
        config_dir: holds options of your own, as for ``--config-dir``.

    Raises:
        RefusedError: an override is wrong; the message names the key and what it takes.
    """
    if isinstance(overrides, str):
        raise RefusedError(f"compose takes a list of overrides: {overrides}.", "Put it in [].")
    expanded, directories = expand_short_forms(overrides), searchpath(config_dir)
    check_overrides(expanded, directories)
    check_is_one_run(expanded, "Give each key one value.", directories)
    return runner_from(config_from(expanded, directories), overrides)


def config_from(
    overrides: Sequence[str], searchpath: Sequence[str] = (), job: int | None = None
) -> DictConfig:
    """Return the composed configuration.

    Args:
        overrides: as on the command line, short forms expanded.
        searchpath: further directories with options.
        job: the run's number in its sweep; with one, Hydra's own node is included, which says
            where the run is written.

    Raises:
        RefusedError: Hydra cannot compose them.
    """
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]  # of one name

    try:
        with hydra_at_hand():
            config = hydra_compose(
                "config",
                [*overrides, *searching(searchpath)],
                return_hydra_config=job is not None,
            )
    except (YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise RefusedError(f"An option's file is no YAML: {said}.", "Correct it.") from error
    except (HydraException, OmegaConfBaseException) as error:
        choices = [o for o in overrides if o.partition("=")[0] in {*groups(), "hydra/launcher"}]
        if len(choices) == len(overrides):  # what is wrong lies in an option's file
            raise RefusedError(str(error).strip(), "Try --help.") from error
        raise misfits.misfit(error, config_from(choices, searchpath, job=0)) from error
    if unknown := [str(key) for key in config if key not in {*groups(), *values(), "hydra"}]:
        raise misfits.stray(unknown[0])
    if job is not None:
        with open_dict(config):
            config.hydra.job.num = job
    return config


def searching(searchpath: Sequence[str]) -> list[str]:
    """Return the override that has Hydra look for options in these directories as well."""
    from hydra.core.override_parser.types import Quote, QuotedString

    paths = [QuotedString(f"file://{p}", Quote.single).with_quotes() for p in searchpath]
    return [f"hydra.searchpath=[{','.join(paths)}]"] if paths else []


@contextmanager
def hydra_at_hand() -> Iterator[Hydra]:
    """Set Hydra up for composing, and restore it: the calling program may use Hydra itself."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with _ONE_AT_A_TIME:  # Hydra's state is global
        before = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(CONF.resolve()), "run", "1.3"):
                yield cast("Hydra", GlobalHydra.instance().hydra)
        finally:
            GlobalHydra.instance().hydra = before


@interpolation_refused()
def runner_from(config: DictConfig, overrides: Sequence[str] = ()) -> Runner:
    """Return the Runner of a composed configuration.

    Args:
        config: the configuration.
        overrides: the user's, for the record.

    Raises:
        OptionError: a value is missing, unknown, or of another type than its field's.
    """
    return Runner(**_parts(config, COMPONENTS), overrides=tuple(overrides))


@interpolation_refused()
def check_values(config: DictConfig) -> None:
    """Refuse what ``runner_from`` and ``sweep_settings`` do, but no value that is yet to be given.

    Raises:
        OptionError: a value is unknown, or of another type than its field's.
    """
    from omegaconf import OmegaConf

    def is_complete(node: object) -> bool:
        return not (OmegaConf.is_config(node) and OmegaConf.missing_keys(node))

    _parts(config, {group: b for group, b in COMPONENTS.items() if is_complete(config[group])})
    sweep_settings(config)


def _parts(config: DictConfig, components: Mapping[str, type]) -> dict[str, Any]:
    """Return what a Runner is made of; of the groups only those in ``components``."""
    from omegaconf import OmegaConf

    settings = OmegaConf.masked_copy(config, [field.name for field in fields(Settings)])
    return {
        **{group: component(group, config[group], base) for group, base in components.items()},
        **{
            key: checked(schema, OmegaConf.select(config, key), key)
            for key, schema in SECTIONS.items()
        },
        "settings": checked(Settings, settings, ""),
    }


@interpolation_refused()
def sweep_settings(config: DictConfig) -> SweepSettings:
    """Return how the runs of a composed configuration are carried out.

    Raises:
        OptionError: a value is unknown, or of another type than its field's.
    """
    from omegaconf import OmegaConf

    names = [field.name for field in fields(SweepSettings)]
    return checked(SweepSettings, OmegaConf.masked_copy(config, names), "")


def component(group: str, node: DictConfig, base: type[C]) -> C:
    """Return the component that ``node`` describes: ``_target_`` and exactly its class's fields.

    Raises:
        OptionError: the class is none of ours, or a value does not fit its field.
    """
    from omegaconf import OmegaConf

    if not OmegaConf.is_dict(node):
        raise OptionError(group, node, "keys and values: _target_, and its class's fields")
    content = literal(OmegaConf.to_container(node, resolve=True))
    target = str(content.pop("_target_", None))
    chosen = resolve(target, group)
    if not issubclass(chosen, base):
        raise OptionError(f"{group}._target_", target, f"a component for {group}")
    made = checked(chosen, content, group)
    if lacking := [name for name in _declared(base) if not hasattr(made, name)]:
        raise RefusedError(
            f"{group}._target_={target} has no {' and no '.join(lacking)}.",
            f"Give the class what {base.__name__} declares.",
        )
    return made


def _declared(base: type) -> Iterator[str]:
    """Yield the attributes that a component of ``base`` must have."""
    for parent in base.__mro__:
        yield from inspect.get_annotations(parent)


def resolve(target: str, group: str) -> type:
    """Return the dataclass that ``target`` names, if it is defined in this package or declared.

    Hydra's own ``instantiate`` would call anything importable, and hides what went wrong inside.

    Raises:
        RefusedError: it names anything else, or names it in a module that merely imports it; or
            what declares it cannot be imported.
    """
    found: Any = None
    declared: dict[str, EntryPoint] = {}  # looked for only where needed: it takes milliseconds
    module, _, name = target.rpartition(".")
    if module.split(".")[0] == "bert_infer":
        with suppress(ImportError):
            found = getattr(importlib.import_module(module), name, None)
        if inspect.isclass(found) and found.__module__ != module:
            found = None  # an alias
    if found is None:
        points = entry_points(group=ENTRY_POINTS)
        declared = {point.value.replace(":", "."): point for point in points}
    if target in declared:
        try:
            found = declared[target].load()
        except Exception as error:
            raise RefusedError(
                f"{group}._target_={target} cannot be loaded: {error}.",
                "Correct the package that declares it.",
            ) from error
    if not (inspect.isclass(found) and is_dataclass(found)):
        raise OptionError(
            f"{group}._target_",
            target,
            f"a component of bert_infer, or one declared under the entry point {ENTRY_POINTS}: "
            + (", ".join(sorted(declared)) or "none is, in the packages of this Python"),
            nearest(target, declared),
        )
    return found

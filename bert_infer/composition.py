"""Overrides to a Runner: Hydra composes them, and each node becomes a checked component."""

from __future__ import annotations

import importlib
import inspect
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from importlib.metadata import entry_points
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar, cast

from bert_infer.batching import Batching
from bert_infer.devices import Device
from bert_infer.dtypes import Dtype
from bert_infer.engines import Engine
from bert_infer.errors import OptionError, RefusedError, nearest
from bert_infer.graphs import Graph
from bert_infer.inputs import Input
from bert_infer.models import Model
from bert_infer.options import CONF, options_with
from bert_infer.outputs import Output
from bert_infer.overrides import check_overrides, expand_short_forms, literal, unknown_key
from bert_infer.runner import Runner
from bert_infer.settings import DriftSettings, Settings, SweepSettings, Until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hydra._internal.hydra import Hydra
    from omegaconf import DictConfig

COMPONENTS: dict[str, type] = {
    "input": Input,
    "model": Model,
    "batching": Batching,
    "device": Device,
    "dtype": Dtype,
    "engine": Engine,
    "graph": Graph,
    "output": Output,
}
"""Every group, and what its options must be."""

SECTIONS: dict[str, type] = {"until": Until, "drift": DriftSettings}
"""Top-level values that have keys of their own."""

ENTRY_POINTS = "bert_infer.components"
"""The entry-point group through which other packages' components are allowed."""

_ONE_AT_A_TIME = RLock()

C = TypeVar("C")


def compose(overrides: Sequence[str] = ()) -> Runner:
    """Return the Runner that ``overrides`` choose, each as on the command line: ``"dtype=bf16"``.

    Raises:
        RefusedError: an override is wrong; the message names the key and what it takes.
    """
    expanded = expand_short_forms(overrides)
    check_overrides(expanded)
    return runner_from(config_from(expanded), overrides)


def config_from(
    overrides: Sequence[str], searchpath: Sequence[str] = (), job: int | None = None
) -> DictConfig:
    """Return the composed configuration.

    Args:
        overrides: as on the command line, short forms expanded.
        searchpath: further directories with options.
        job: the run's number in its sweep; includes Hydra's own node, which says where the run is
            written.

    Raises:
        RefusedError: Hydra cannot compose them.
    """
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException

    try:
        with hydra_at_hand():
            config = hydra_compose(
                "config",
                [*overrides, *searching(searchpath)],
                return_hydra_config=job is not None,
            )
    except (HydraException, OmegaConfBaseException) as error:
        key = getattr(error.__cause__, "full_key", None)
        if key:
            raise _unknown_key(str(key), overrides) from error
        raise RefusedError(str(error).strip(), "Try --help.") from error
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
    """Set Hydra up for composing, and leave it as it was: a program may use it for itself."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with _ONE_AT_A_TIME:  # Hydra's state is the process'
        before = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(CONF.resolve()), "run", "1.3"):
                yield cast("Hydra", GlobalHydra.instance().hydra)
        finally:
            GlobalHydra.instance().hydra = before


@contextmanager
def interpolation_refused() -> Iterator[None]:
    """Refuse a value that refers, by ``${...}``, to what is not there.

    Raises:
        RefusedError: naming the value's key.
    """
    from omegaconf.errors import InterpolationResolutionError

    try:
        yield
    except InterpolationResolutionError as error:
        where = f"{error.full_key}: " if error.full_key else ""
        reason = str(error).splitlines()[0]
        raise RefusedError(f"{where}{reason}.", "Write \\${ for a literal ${.") from error


def runner_from(config: DictConfig, overrides: Sequence[str] = ()) -> Runner:
    """Return the Runner of a composed configuration.

    Args:
        config: the configuration.
        overrides: how the user chose it, for the record.

    Raises:
        OptionError: a value is missing, unknown, or of another type than its field's.
    """
    from omegaconf import OmegaConf

    values = OmegaConf.masked_copy(config, [field.name for field in fields(Settings)])
    parts: dict[str, Any] = {
        group: component(group, config[group], base) for group, base in COMPONENTS.items()
    } | {key: _checked(schema, config[key], key) for key, schema in SECTIONS.items()}
    return Runner(**parts, settings=_checked(Settings, values, ""), overrides=tuple(overrides))


def sweep_settings(config: DictConfig) -> SweepSettings:
    """Return how the runs of a composed configuration are carried out.

    Raises:
        OptionError: a value is unknown, or of another type than its field's.
    """
    from omegaconf import OmegaConf

    names = [field.name for field in fields(SweepSettings)]
    return _checked(SweepSettings, OmegaConf.masked_copy(config, names), "")


def component(group: str, node: DictConfig, base: type[C]) -> C:
    """Return the component that ``node`` describes: ``_target_`` and exactly its class's fields.

    Raises:
        OptionError: the class is none of ours, or a value does not fit its field.
    """
    from omegaconf import OmegaConf

    with interpolation_refused():
        content = literal(OmegaConf.to_container(node, resolve=True))
    target = str(content.pop("_target_", None))
    chosen = resolve(target, group)
    if not issubclass(chosen, base):
        raise OptionError(f"{group}._target_", target, f"a kind of {base.__name__}")
    return _checked(chosen, content, group)


def resolve(target: str, group: str) -> type:
    """Return the dataclass that ``target`` names, if it is defined in this package or declared.

    Hydra's own ``instantiate`` would call anything importable, and hides what went wrong inside.

    Raises:
        OptionError: it names anything else, also by way of a module that merely imports it.
    """
    declared = {point.value.replace(":", "."): point for point in entry_points(group=ENTRY_POINTS)}
    if target in declared:
        found: Any = declared[target].load()
    else:
        module, _, name = target.rpartition(".")
        is_ours = module.split(".")[0] == "bert_infer"
        try:
            found = getattr(importlib.import_module(module), name, None) if is_ours else None
        except ImportError:
            found = None
        if inspect.isclass(found) and found.__module__ != module:
            found = None  # an alias
    if not (inspect.isclass(found) and is_dataclass(found)):
        raise OptionError(
            f"{group}._target_",
            target,
            f"a component of bert_infer, or one declared under the entry point {ENTRY_POINTS}",
        )
    return found


def _checked(schema: type[C], content: DictConfig | dict[Any, Any], group: str) -> C:
    """Return ``schema(**content)``, its types checked by omegaconf."""
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, ValidationError

    prefix = f"{group}." if group else ""
    names = [field.name for field in fields(schema)]  # type: ignore[arg-type]
    try:
        node = OmegaConf.structured(schema)
        OmegaConf.set_readonly(node, value=False)  # frozen classes make read-only nodes
        with interpolation_refused():
            made: C = OmegaConf.to_object(OmegaConf.merge(node, content))  # type: ignore[assignment]
    except ConfigKeyError as error:
        known = ", ".join(prefix + name for name in names) or "none"
        raise RefusedError(
            f"{prefix}{error.full_key} is no key. There are: {known}.",
            nearest(str(error.full_key), names),
        ) from error
    except MissingMandatoryValue as error:
        raise OptionError(
            f"{prefix}{error.full_key}", "(nothing)", "a value; it has no default"
        ) from error
    except ValidationError as error:
        reason = str(error.msg).splitlines()[0]
        top = str(error.full_key).split("[")[0]
        raise OptionError(
            f"{prefix}{error.full_key}", content.get(top), _type_name(schema, top), f"{reason}."
        ) from error
    except OptionError as error:
        raise (error.within(group) if group else error) from error
    return made


def _type_name(schema: type, name: str) -> str:
    """Return a field's type as a user would say it."""
    from enum import Enum
    from typing import get_type_hints

    hint = get_type_hints(schema)[name]
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return "one of " + ", ".join(hint.__members__)
    return _TYPE_NAMES.get(str(getattr(hint, "__name__", hint)), str(hint))


_TYPE_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "bool | None": "true, false or null",
    "int | None": "a whole number or null",
    "str | None": "a string or null",
    "float | None": "a number or null",
    "list": "a list of whole numbers",
    "int | str": "a whole number or a word",
}


def _unknown_key(key: str, overrides: Sequence[str]) -> RefusedError:
    """Say what there is instead of ``key``, a field of a group's option."""
    from omegaconf import OmegaConf

    parent, _, _ = key.rpartition(".")
    # The node as its group's choice makes it, without the keys set one by one.
    whole = [o for o in overrides if "." not in o.split("=")[0]]
    node = OmegaConf.select(config_from(whole), parent)
    keys = [k for k in node if k != "_target_"] if OmegaConf.is_dict(node) else []
    having = options_with(parent, key.removeprefix(f"{parent}."))
    if having and not keys:
        return RefusedError(
            f"{key} is no key here: it belongs to {' and '.join(having)}.", f"Add {having[0]}."
        )
    return unknown_key(key, [f"{parent}.{name}" for name in keys])

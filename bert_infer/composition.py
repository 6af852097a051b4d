"""Overrides to a Runner: Hydra composes them, and each node becomes a checked component."""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from bert_infer.batching import Batching
from bert_infer.devices import Device
from bert_infer.dtypes import Dtype
from bert_infer.engines import Engine
from bert_infer.errors import OptionError, RefusedError, nearest
from bert_infer.graphs import Graph
from bert_infer.inputs import Input
from bert_infer.models import Model
from bert_infer.options import CONF, PLANNED, groups, options
from bert_infer.outputs import Output
from bert_infer.runner import Runner, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hydra.core.override_parser.types import Override
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

ENTRY_POINTS = "bert_infer.components"
"""The entry-point group through which other packages' components are allowed."""

C = TypeVar("C")


def compose(overrides: Sequence[str] = ()) -> Runner:
    """Return the Runner that ``overrides`` choose, each as on the command line: ``"dtype=bf16"``.

    Raises:
        RefusedError: an override is wrong; the message names the key and what it takes.
    """
    overrides = expand_short_forms(overrides)
    check_overrides(overrides)
    return runner_from(config_from(overrides))


def config_from(
    overrides: Sequence[str], searchpath: Sequence[str] = (), *, with_hydra: bool = False
) -> DictConfig:
    """Return the composed configuration.

    Args:
        overrides: as on the command line, short forms expanded.
        searchpath: further directories with options.
        with_hydra: include Hydra's own node, which says where runs are written.

    Raises:
        RefusedError: Hydra cannot compose them.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    more = [f"hydra.searchpath=[{','.join(f'file://{path}' for path in searchpath)}]"]
    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            everything = [*overrides, *(more if searchpath else [])]
            return hydra_compose("config", everything, return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        key = getattr(error.__cause__, "full_key", None)
        if key:
            raise _unknown_key(str(key), overrides) from error
        raise RefusedError(str(error).strip(), "Try --help.") from error


def runner_from(config: DictConfig) -> Runner:
    """Return the Runner of a composed configuration.

    Raises:
        OptionError: a value is missing, unknown, or of another type than its field's.
    """
    from omegaconf import OmegaConf

    settings = OmegaConf.masked_copy(config, [str(key) for key in config if key not in COMPONENTS])
    components: dict[str, Any] = {
        group: component(group, config[group], base) for group, base in COMPONENTS.items()
    }
    return Runner(**components, settings=_checked(Settings, settings, ""))


def component(group: str, node: DictConfig, base: type[C]) -> C:
    """Return the component that ``node`` describes: ``_target_`` and exactly its class's fields.

    Raises:
        OptionError: the class is none of ours, or a value does not fit its field.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError

    try:
        content = _literal(OmegaConf.to_container(node, resolve=True))
    except InterpolationResolutionError as error:
        reason = str(error.msg).splitlines()[0]
        raise RefusedError(
            f"{error.full_key}: {reason}.", "Write \\${ for a literal ${."
        ) from error
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
        made: C = OmegaConf.to_object(OmegaConf.merge(node, content))  # type: ignore[assignment]
    except ConfigKeyError as error:
        known = ", ".join(prefix + name for name in names)
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
    "int | None": "a whole number or null",
    "str | None": "a string or null",
    "list": "a list of whole numbers",
    "int | str": "a whole number or a word",
}


def expand_short_forms(overrides: Sequence[str]) -> list[str]:
    """Write ``text=...`` as ``input.text=...``, and take the text of both as it is.

    Hydra's grammar would refuse "Don't panic!" and make two runs of "Hello, world"; a text that is
    a list or quoted in that grammar is left to it.
    """
    return [_verbatim(o) if o.startswith(("text=", "input.text=")) else o for o in overrides]


def _verbatim(override: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    text = override.split("=", 1)[1]
    if text.startswith(("[", "'", '"')):
        try:
            return str(_parser().parse_override(f"input.text={text}").input_line)
        except HydraException:
            pass  # a text that begins with a quote or bracket
    return f"input.text={QuotedString(_literal(text), Quote.single).with_quotes()}"


def _literal(value: Any) -> Any:  # noqa: ANN401  whatever YAML holds
    """Return ``value`` with its strings escaped: omegaconf finds no interpolation in them."""
    if isinstance(value, str):
        # Backslashes before the escaped "${" count by twos, and the last one escapes.
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, list):
        return [_literal(element) for element in value]
    if isinstance(value, dict):
        return {key: _literal(element) for key, element in value.items()}
    return value


@cache
def _parser() -> Any:  # noqa: ANN401  an untyped module
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def check_overrides(overrides: Sequence[str], *, bundled_only: bool = True) -> None:
    """Refuse overrides that are malformed or name an option or key that is not there.

    Args:
        overrides: as on the command line, short forms expanded.
        bundled_only: there are no options but those of this package.

    Raises:
        RefusedError: naming the nearest match.
    """
    known = groups()
    for override in _parsed(overrides):
        key = override.key_or_group
        if key in known and bundled_only:
            for value in _values(override):
                _check_option(key, value)
        elif "." not in key and key not in known and "@" not in key and key not in _top_level():
            raise _unknown_key(key, overrides)


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each run of a sweep, in Hydra's order.

    Raises:
        RefusedError: an override is malformed.
    """
    choices = [
        [f"{o.get_key_element()}={value}" for value in _values(o)]
        if o.is_sweep_override()
        else [str(o.input_line)]
        for o in _parsed(overrides)
    ]
    return [list(job) for job in itertools.product(*choices)]


def _parsed(overrides: Iterable[str]) -> list[Override]:
    from hydra.errors import HydraException

    parsed = []
    for override in overrides:
        try:
            parsed.append(_parser().parse_override(override))
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise RefusedError(
                f"{override} is not understood: {reason}.",
                "Write KEY=VALUE; quote a value with special characters: 'key=\"a, b\"'.",
            ) from error
    return parsed


def _values(override: Override) -> list[str]:
    from hydra.core.override_parser.types import Glob

    if not override.is_sweep_override():
        return [str(override.get_value_element_as_str())]
    value = override.value()
    if isinstance(value, Glob):
        return value.filter(list(options(override.key_or_group)))
    return [str(v) for v in override.sweep_string_iterator()]


def _check_option(group: str, option: str) -> None:
    if option == "null" and groups()[group] == "null":
        return
    available = options(group)
    if option in available:
        return
    if option in PLANNED.get(group, ()):
        raise OptionError(
            group, option, ", ".join(available), f"{group}={option} is promised, but not yet there."
        )
    raise OptionError(group, option, ", ".join(available), nearest(option, available))


@cache
def _top_level() -> frozenset[str]:
    return frozenset({*(field.name for field in fields(Settings)), "hydra"})


def _unknown_key(key: str, overrides: Sequence[str]) -> RefusedError:
    """Say what there is instead of ``key``."""
    parent, _, _ = key.rpartition(".")
    if parent:
        # The node as its group's choice makes it, without the keys set one by one.
        whole = [o for o in overrides if "." not in o.split("=")[0]]
        there = [k for k in config_from(whole).get(parent, {}) if k != "_target_"]
        known = [f"{parent}.{k}" for k in there]
    else:
        known = sorted({*_top_level(), *groups(), "text"} - {"hydra"})
    listed = ", ".join(known) or "none"
    return RefusedError(f"{key} is no key here. There are: {listed}.", nearest(key, known))

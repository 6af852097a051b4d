"""Overrides as they are typed: short forms, sweeps, and mistakes found before Hydra sees them."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

from bert_infer.configuration.limits import check_override
from bert_infer.configuration.options import groups, options, options_about, options_below, values
from bert_infer.configuration.settings import OF_SWEEPS, Settings, SweepSettings
from bert_infer.errors import OptionError, RefusedError, did_you_mean, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from hydra.core.override_parser.types import Override


_TOP = [part.name for schema in (Settings, SweepSettings) for part in fields(schema)]
# What keys so called take is a directory's name, also where it reads as a number.
_NAMES = {"dir", "subdir", "resume"}
MOST_RUNS = 10_000
"""The most runs that a sweep may have."""


def expand_short_forms(overrides: Sequence[str]) -> list[str]:
    """Write ``text=...`` as ``input.text=...``, and quote what Hydra's grammar cannot read.

    A text is quoted, unless it is a list or has quotes already: the grammar would refuse
    "Don't panic!" and make two runs of "Hello, world". So is a directory's name, or the value of an
    option's field, that the grammar would take for a number and write otherwise: 2026_11_28, or
    1.10. The field's type makes a number of it where one is meant. Not so true and false, which few
    names are and which options take. Any other value is quoted only where the grammar fails: a path
    with an umlaut, say.
    """
    return [_expanded(override) for override in overrides]


def _expanded(override: str) -> str:
    key, equals, value = override.partition("=")
    if key in {"text", "input.text"} and equals:
        key = "input.text"
        if not value.startswith(("[", "'", '"')):
            return quoted(key, literal(value))
    if not equals:
        return key
    if _can_parse(f"{key}={value}"):
        group, _, field = key.lstrip("+").rpartition(".")
        may_be_name = group in groups() or field in _NAMES
        read = value_of(override) if may_be_name else value
        is_other = type(read) in {int, float} and str(read) != value
        return quoted(key, value) if is_other else _override(key, value)
    is_text = key == "input.text"
    verbatim = quoted(key, literal(value) if is_text else value)
    return verbatim if _can_parse(verbatim) else override


def _override(key: str, value: str) -> str:
    """Return KEY=VALUE, or ~KEY, Hydra's null, for a group that has no option by default."""
    if value.lower() == "null" and groups().get(key) == "null":
        return f"~{key}"
    return f"{key}={value}"


def of_run(overrides: Iterable[str]) -> tuple[str, ...]:
    """Return ``overrides`` without those that belong to the sweep or to Hydra."""
    keys = "|".join(OF_SWEEPS)
    return tuple(o for o in overrides if not re.match(rf"[+~]*(hydra[./]|({keys})(=|$))", o))


def key_of(override: str) -> str:
    """Return the key that an override sets, adds or deletes."""
    return override.partition("=")[0].lstrip("+~")


def as_written(overrides: Any) -> list[str]:  # noqa: ANN401  omegaconf's list
    """Return overrides that omegaconf holds as they were typed: with ``${`` still escaped."""
    from omegaconf import OmegaConf

    written: Any = OmegaConf.to_container(overrides, resolve=False)
    return [str(override) for override in written]


def value_of(override: str) -> Any:  # noqa: ANN401  whatever the grammar reads
    """Return the value that an override gives its key."""
    return _parser().parse_override(override).value()


def values_of(override: str) -> list[str]:
    """Return the values that an override gives its key: several in a sweep."""
    parsed = _parser().parse_override(override)
    if parsed.is_sweep_override():
        return list(_values(parsed, _options(parsed.key_or_group)))
    value = parsed.value()
    return [value if isinstance(value, str) else override.partition("=")[2]]


def quoted(key: str, value: str) -> str:
    """Return the override that gives ``key`` the string ``value`` as it is."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def assigned(key: str, value: str) -> str:
    """Return what ``quoted`` does, without quotes where a string comes of it all the same."""
    plain = f"{key}={value}"
    return plain if _can_parse(plain) and str(value_of(plain)) == value else quoted(key, value)


def _can_parse(override: str) -> bool:
    from hydra.errors import HydraException

    try:
        _parser().parse_override(override)
    except HydraException:
        return False
    return True


def literal(value: Any) -> Any:  # noqa: ANN401  whatever YAML holds
    """Return ``value`` with its strings escaped, so that omegaconf interpolates nothing in them."""
    if isinstance(value, str):
        # Each backslash before "${" is doubled, and one more escapes the "${" itself.
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, list):
        return [literal(element) for element in value]
    if isinstance(value, dict):
        return {key: literal(element) for key, element in value.items()}
    return value


@cache
def _parser() -> Any:  # noqa: ANN401  an untyped module
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def check_overrides(overrides: Sequence[str], searchpath: Sequence[str] = ()) -> None:
    """Refuse overrides that are malformed or name an option or key that is not there.

    Args:
        overrides: as on the command line, short forms expanded.
        searchpath: further directories with options.

    Raises:
        RefusedError: naming the nearest match.
    """
    known = {*values(), *groups()}
    for override in _parsed(overrides):
        key = override.key_or_group
        if re.match(r"hydra\b", key):
            check_override(override)
        elif key in groups():
            _check_choice(override, searchpath)
        elif re.fullmatch(r"[^.@]*", key) and key not in known:
            raise unknown_key(key, sorted({*known, "text"}))
        elif _is_glob(override):
            raise RefusedError(
                f"{override.input_line} is refused: a pattern chooses among a group's options, "
                f"and {key} is no group.",
                f"List the values: {override.get_key_element()}=VALUE,VALUE.",
            )


def _options(group: str, searchpath: Sequence[str] = ()) -> list[str]:
    """Return the options of a group, those of one's own too; none of what is no group."""
    return [*options(group), *options_below(searchpath, group)] if group in groups() else []


def _is_glob(override: Override) -> bool:
    from hydra.core.override_parser.types import Glob

    return isinstance(override.value(), Glob)


def _check_choice(override: Override, searchpath: Sequence[str]) -> None:
    """Refuse an option that its group does not have."""
    group = override.key_or_group
    if override.is_add() or override.is_force_add():
        raise RefusedError(
            f"{override.input_line} is refused: {group} has an option already.",
            f"Write {str(override.input_line).lstrip('+')}.",
        )
    available = _options(group, searchpath)
    default = groups()[group]
    for written in _values(override, available):
        option = value_of(f"{group}={written}")
        if option is None and default == "null":
            continue
        if not (isinstance(option, str) and option in available):
            allowed = ", ".join(dict.fromkeys([default, *available]))
            remedy = did_you_mean(options_about(group, written)) or nearest(written, available)
            raise OptionError(group, written, allowed, remedy)


def check_agreement(overrides: Sequence[str]) -> None:
    """Refuse overrides that contradict each other.

    Raises:
        RefusedError: naming the key.
    """
    given: dict[str, str] = {}
    for override in _parsed(overrides):
        key, text = override.get_key_element().lstrip("+~"), str(override.input_line)
        if given.setdefault(key, text) != text:
            raise RefusedError(f"{key} is given twice: {given[key]} and {text}.", "Give it once.")


def sweep(overrides: Sequence[str], searchpath: Sequence[str] = ()) -> list[list[str]]:
    """Return the overrides of each run of a sweep, in Hydra's order.

    Args:
        overrides: checked by ``check_overrides``.
        searchpath: further directories with options.

    Raises:
        RefusedError: an override is malformed, or there are more than ``MOST_RUNS`` runs.
    """
    most = MOST_RUNS + 1  # values of one key: ranges may be endless

    def alternatives(o: Override) -> list[str]:
        if not o.is_sweep_override():
            return [str(o.input_line)]
        available = _options(o.key_or_group, searchpath) if _is_glob(o) else []
        values = itertools.islice(_values(o, available), most)
        return [_override(o.get_key_element(), value) for value in values]

    choices = [alternatives(override) for override in _parsed(overrides)]
    if math.prod(map(len, choices)) > MOST_RUNS:
        raise RefusedError(
            f"{' '.join(overrides)} asks for more than {MOST_RUNS:,} runs.", "Make several sweeps."
        )
    return [list(job) for job in itertools.product(*choices)]


def check_is_one_run(overrides: Sequence[str], remedy: str, searchpath: Sequence[str] = ()) -> None:
    """Refuse overrides that ask for several runs.

    Raises:
        RefusedError: naming them, with ``remedy``.
    """
    if len(sweep(overrides, searchpath)) > 1:
        raise RefusedError(
            f"{' '.join(overrides)} asks for several runs.",
            f"{remedy} A comma that belongs to a value is quoted: 'KEY=\"a, b\"'.",
        )


def _parsed(overrides: Iterable[str]) -> list[Override]:
    from hydra.errors import HydraException

    parsed = []
    for override in overrides:
        try:
            parsed.append(_parser().parse_override(override))
        except HydraException as error:
            if "=" not in override:
                known = [*groups(), *_TOP]
                raise RefusedError(
                    f"{override} is no KEY=VALUE.", nearest(override, known)
                ) from error
            reason = str(error).splitlines()[0]
            raise RefusedError(
                f"{override} is not understood: {reason}.",
                "Quote a value with special characters: 'KEY=\"a, b\"'.",
            ) from error
    return parsed


def _values(override: Override, available: list[str]) -> Iterator[str]:
    """Yield what is asked for, as it is written; a pattern asks for those ``available``."""
    value: Any = override.value()
    if not override.is_sweep_override():
        yield str(override.get_value_element_as_str())
    elif _is_glob(override):
        yield from value.filter(available)
    else:
        yield from map(str, override.sweep_string_iterator())


def unknown_key(key: str, known: Sequence[str]) -> RefusedError:
    """Return the error that says what there is instead of ``key``."""
    listed = f" There are: {', '.join(known)}." if known else ""
    return RefusedError(f"{key} is no key here.{listed}", nearest(key, known))

"""Overrides as they are typed: short forms, sweeps, and mistakes found before Hydra sees them."""

from __future__ import annotations

import itertools
import re
from functools import cache
from typing import TYPE_CHECKING, Any

from bert_infer.errors import OptionError, RefusedError, nearest
from bert_infer.options import PLANNED, groups, options, values

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hydra.core.override_parser.types import Override


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
    return f"input.text={QuotedString(literal(text), Quote.single).with_quotes()}"


def literal(value: Any) -> Any:  # noqa: ANN401  whatever YAML holds
    """Return ``value`` with its strings escaped: omegaconf finds no interpolation in them."""
    if isinstance(value, str):
        # Backslashes before the escaped "${" count by twos, and the last one escapes.
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
            raise unknown_key(key, sorted({*_top_level(), *known, "text"} - {"hydra"}))


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
    return frozenset({*values(), "hydra"})


def unknown_key(key: str, known: Sequence[str]) -> RefusedError:
    """Return the error that says what there is instead of ``key``."""
    listed = ", ".join(known) or "none"
    return RefusedError(f"{key} is no key here. There are: {listed}.", nearest(key, known))

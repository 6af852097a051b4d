"""Configuration against its schema: what does not fit is refused, by its key."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from bert_infer.errors import OptionError, RefusedError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

C = TypeVar("C")


@contextmanager
def interpolation_refused() -> Iterator[None]:
    """Refuse a value whose ``${...}`` refers to something missing, or to what does not fit.

    Raises:
        RefusedError: naming the value's key.
    """
    from omegaconf.errors import InterpolationResolutionError, InterpolationValidationError

    try:
        yield
    except InterpolationResolutionError as error:
        where = f"{error.full_key}: " if error.full_key else ""
        reason = str(error).splitlines()[0]
        was_found = isinstance(error, InterpolationValidationError)
        remedy = "Refer to a value that fits." if was_found else "Write \\${ for a literal ${."
        raise RefusedError(f"{where}{reason}.", remedy) from error


def checked(schema: type[C], content: object, group: str) -> C:
    """Return ``schema(**content)``, its types checked by omegaconf.

    Args:
        schema: a dataclass.
        content: a configuration's node, or what it holds.
        group: where it lies in the configuration; empty at the top.

    Raises:
        RefusedError: a value is missing, unknown, or of another type than its field's.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import (
        ConfigKeyError,
        ConfigTypeError,
        MissingMandatoryValue,
        ValidationError,
    )

    prefix = f"{group}." if group else ""
    names = [field.name for field in fields(schema)]  # type: ignore[arg-type]
    known = ", ".join(prefix + name for name in names) or "none"
    if not isinstance(content, dict | DictConfig):
        raise OptionError(group, content, f"keys of its own: {known}")
    try:
        node = OmegaConf.structured(schema)
        OmegaConf.set_readonly(node, value=False)  # frozen classes make read-only nodes
        made: C = OmegaConf.to_object(OmegaConf.merge(node, content))  # type: ignore[assignment]
    except ConfigKeyError as error:
        raise RefusedError(
            f"{prefix}{error.full_key} is no key. There are: {known}.",
            nearest(str(error.full_key), names),
        ) from error
    except MissingMandatoryValue as error:
        raise OptionError(
            f"{prefix}{error.full_key}", "(nothing)", "a value; it has no default"
        ) from error
    except ValidationError as error:
        top = str(error.full_key).split("[")[0]
        given = content.get(top)
        remedy = closest(schema, top, given) or f"{str(error.msg).splitlines()[0]}."
        raise OptionError(
            f"{prefix}{error.full_key}", given, type_of(schema, top), remedy
        ) from error
    except ConfigTypeError as error:  # of another package, and not all of it is there
        raise RefusedError(f"{group}: {error.msg}.", "Complete the class.") from error
    except OptionError as error:
        raise (error.within(group) if group else error) from error
    for name in names:
        object.__setattr__(made, name, _hashable(getattr(made, name)))
    return made


def _hashable(value: Any) -> Any:  # noqa: ANN401  any field's
    """Return ``value``, with tuples for omegaconf's lists: components are keys of caches."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def type_of(schema: type, name: str) -> str:
    """Return the type of a dataclass' field in a user's words."""
    *others, last = _alternatives(get_type_hints(schema)[name])
    return f"{', '.join(others)} or {last}" if others else last


def closest(schema: type, name: str, given: object) -> str:
    """Return a "Did you mean" for what is near a value of a field's Enum; nothing otherwise."""
    hint = get_type_hints(schema)[name]
    kinds = [kind for kind in (hint, *get_args(hint)) if inspect.isclass(kind)]
    return nearest(str(given), [m for k in kinds if issubclass(k, Enum) for m in k.__members__])


def _alternatives(hint: Any) -> tuple[str, ...]:  # noqa: ANN401  types have no common type
    arguments = get_args(hint)
    if get_origin(hint) in {list, tuple}:
        (one,) = _alternatives(arguments[0])
        return (f"a list of {one.removeprefix('a ')}s",)
    if get_origin(hint) is dict or is_dataclass(hint):
        return ("keys of its own",)
    if arguments:
        return tuple(name for argument in arguments for name in _alternatives(argument))
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return ("one of " + ", ".join(hint.__members__),)
    return _NAMES.get(hint, (str(hint),))


_NAMES = {
    int: ("a whole number",),
    float: ("a number",),
    str: ("a string",),
    bool: ("true", "false"),
    NoneType: ("null",),
}

"""What does not fit the configuration, said with what would: Hydra's errors, and stray keys."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from bert_infer.configuration.options import groups, options_with, values
from bert_infer.configuration.overrides import unknown_key
from bert_infer.configuration.schema import closest, type_of
from bert_infer.errors import RefusedError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def stray(key: str) -> RefusedError:
    """Return an error that says what an experiment's file may hold instead of ``key``."""
    error = unknown_key(key, sorted({*groups(), *values()}))
    remedy = "In a file it is input.text." if key == "text" else error.remedy
    return RefusedError(f"An option's file is refused: {error.message}", remedy)


def misfit(error: Exception, defaults: DictConfig) -> RefusedError:
    """Return an error that says which override is wrong, and what it could be instead.

    Args:
        error: what Hydra raised when it set keys one by one.
        defaults: the configuration before any key was set.
    """
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

    cause = error.__cause__
    if not isinstance(cause, OmegaConfBaseException) or not cause.full_key:
        return RefusedError(str(error).strip(), "Try --help.")
    key = str(cause.full_key)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return _unknown_key(key, defaults)
    override = str(error).removeprefix("Error merging override ")
    taken, remedy = _taken_by(key, override.partition("=")[2], defaults)
    reason = f"{str(cause.msg).splitlines()[0].rstrip('.')}."
    return RefusedError(f"{override} is refused: {key} takes {taken}.", remedy or reason)


def _unknown_key(key: str, defaults: DictConfig) -> RefusedError:
    """Return an error that lists the keys there are instead of ``key``, an option's field."""
    from omegaconf import OmegaConf

    parent, _, name = key.rpartition(".")
    if not parent:
        return unknown_key(key, [k for k in defaults.hydra.runtime.choices if "/" in k])
    node = OmegaConf.select(defaults, parent)
    keys = [k for k in node if k != "_target_"] if OmegaConf.is_dict(node) else []
    having = [f"{parent}={option}" for option in options_with(parent, name)]
    if having:
        here = f" Here there are: {', '.join(f'{parent}.{k}' for k in keys)}." if keys else ""
        return RefusedError(
            f"{key} is no key here: it belongs to {' and '.join(having)}.{here}",
            f"Choose {having[0]}, or leave {key} out.",
        )
    return unknown_key(key, [f"{parent}.{name}" for name in keys])


def _taken_by(key: str, given: str, defaults: DictConfig) -> tuple[str, str]:
    """Return what kind of value Hydra takes for ``key``, and which one is near the ``given``."""
    from omegaconf import OmegaConf

    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(defaults, parent)
    content: Any = OmegaConf.to_container(node, resolve=False)
    if isinstance(keys := content.get(name), dict):
        return f"keys of its own: {', '.join(f'{key}.{k}' for k in keys)}".removesuffix(": "), ""
    schema = OmegaConf.get_type(node)
    if not is_dataclass(schema):
        return "a value of another kind", ""
    return type_of(schema, name), closest(schema, name, given)

"""Features of Hydra that runs here do not support."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bert_infer.errors import OptionError, RefusedError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


def check_override(override: Override) -> None:
    """Refuse an override of Hydra's own keys that is not supported.

    Raises:
        RefusedError: naming the key.
    """
    key = override.key_or_group
    if override.is_sweep_override():
        raise RefusedError(
            f"{key} cannot be swept over: it is no part of a run's configuration.",
            "Give it one value.",
        )
    if key.startswith("hydra.sweeper"):
        raise RefusedError(f"{key} is not read here.", "Give its values as overrides.")
    if key in {"hydra.launcher", "hydra.launcher._target_"}:
        raise RefusedError(
            f"{override.input_line} is refused: a launcher is chosen by its name.",
            "Write hydra/launcher=joblib, say.",
        )
    value = override.value()
    if key == "hydra.job.env_copy" and isinstance(value, list):
        for name in value:
            if str(name) not in os.environ:
                raise OptionError(key, name, "names of environment variables that are set")
    if key == "hydra" and not isinstance(value, dict):
        raise RefusedError(
            f"{override.input_line} is refused: hydra takes keys of its own.",
            "Set one of them: hydra.run.dir=DIR, say.",
        )
    if "/" in key and not isinstance(value, str):
        raise RefusedError(
            f"{override.input_line} is refused: an option of Hydra's is chosen by its name.",
            "Write hydra/launcher=joblib, say.",
        )


def check_node(hydra: DictConfig, kind: str) -> None:
    """Refuse values of Hydra's own keys that are not supported.

    Args:
        hydra: Hydra's node of a composed configuration.
        kind: run or sweep.

    Raises:
        RefusedError: naming the key to change.
    """
    from omegaconf import ListConfig

    if hydra.job.chdir:
        raise OptionError("hydra.job.chdir", "true", "false: paths are the command's own")
    if hydra.output_subdir != ".hydra":
        given = "null" if hydra.output_subdir is None else hydra.output_subdir
        raise OptionError(
            "hydra.output_subdir",
            given,
            ".hydra: report, rerun and resume read it",
            "Leave it out.",
        )
    if not isinstance(hydra.verbose, bool | str | ListConfig):
        raise OptionError("hydra.verbose", hydra.verbose, "true, false or names of loggers")
    if kind == "run" and hydra.mode is not None and hydra.mode.name != "RUN":
        raise OptionError("hydra.mode", hydra.mode.value, "RUN or MULTIRUN", "Write its name.")
    if hydra.sweeper.params:
        raise RefusedError(
            "hydra.sweeper.params is not read here.", "Give its values as overrides: dtype=a,b."
        )

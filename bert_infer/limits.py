"""What Hydra offers and a run here cannot bear."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bert_infer.errors import OptionError, RefusedError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def check_override(override: Override) -> None:
    """Refuse an override of Hydra's own that cannot be met.

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

"""The user's cache: what takes long to make, and can be made again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from platformdirs import user_cache_path

from bert_infer.files import whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEPT = 64
"""How many files of a kind are kept."""
_LOG = logging.getLogger(__name__)


def path_of(kind: str, name: str) -> Path:
    """Return where the file ``name`` of a kind is, or would be."""
    return user_cache_path("bert_infer") / kind / name


def keep(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` make the file ``path``, and delete all but the latest ``KEPT`` beside it.

    Without it all is as it was, but slower: a cache that cannot be written is logged, no error.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as beside:
            write(beside)
        latest_first = sorted(path.parent.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
        for old in latest_first[KEPT:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        _LOG.warning("%s is not cached: %s", path.name, error)

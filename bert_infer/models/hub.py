"""A model's files from the Hugging Face hub: its cache first, then the network, briefly."""

from __future__ import annotations

import errno
import logging
import threading
import urllib.error
import urllib.request
from functools import cache
from http.client import HTTPException
from pathlib import Path

from bert_infer import tokens
from bert_infer.errors import WeightsError
from bert_infer.records import ModelFiles

PATIENCE_S = 3.0
"""How long an unreachable hub is waited for. Its own client would retry for about a minute."""

_DESCRIPTION = ["config.json", *tokens.FILES]
_WEIGHTS = ["model.safetensors", "model.safetensors.index.json"]

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
_LOG = logging.getLogger(__name__)


@cache
def cached(name: str, revision: str | None) -> ModelFiles | None:
    """Return the files of ``name`` in the local hub cache; None if it has none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:  # not a possible hub name
        return None
    return _from_hub(Path(config).parent, name) if isinstance(config, str) else None


@cache
def described(name: str, revision: str | None) -> ModelFiles | None:
    """Fetch the configuration and tokenizer of ``name`` into the cache; otherwise as ``whole``."""
    return _fetched(name, revision, _DESCRIPTION)


@cache
def whole(name: str, revision: str | None) -> ModelFiles | None:
    """Fetch ``name`` into the cache; None if the hub lacks it or cannot be reached.

    Asked once per process, so the runs of a sweep share the answer.

    Raises:
        WeightsError: the cache cannot be written.
    """
    files = _fetched(name, revision, [*_DESCRIPTION, *_WEIGHTS])
    if files is None or files.find("model.safetensors"):
        return files
    # Only then: most models offer the same gigabyte in both forms.
    return _fetched(name, revision, ["pytorch_model.bin"])


def _fetched(name: str, revision: str | None, patterns: list[str]) -> ModelFiles | None:
    from huggingface_hub import constants, snapshot_download

    if constants.HF_HUB_OFFLINE or not _offers(constants.ENDPOINT, name, revision or "main"):
        return None
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=patterns)
    except Exception as error:  # noqa: BLE001  its client passes on what its libraries raise
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            raise WeightsError(
                f"The hub's cache cannot be written: {error}.",
                "Make room, choose another directory (HF_HOME=DIR), or do without the hub: "
                "HF_HUB_OFFLINE=1.",
            ) from None
        _LOG.warning("%s could not be fetched from the hub: %s", name, error)
        return None
    cached.cache_clear()
    return _from_hub(Path(folder), name)


def _from_hub(folder: Path, name: str) -> ModelFiles:
    # The cache names a snapshot's directory by its commit.
    return ModelFiles(folder, {"source": "hub", "name": name, "revision": folder.name})


@cache
def _offers(endpoint: str, name: str, revision: str) -> bool:
    """Tell whether the hub offers the model's config.json, asking for ``PATIENCE_S`` at most.

    In a thread: looking up a host's name has no timeout of its own.
    """
    from huggingface_hub import get_token

    token = get_token()  # from the environment, or from a login
    request = urllib.request.Request(  # noqa: S310  the hub's endpoint
        f"{endpoint}/{name}/resolve/{revision}/config.json",
        method="HEAD",
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(_answers(request)), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return answers == [True]


def _answers(request: urllib.request.Request) -> bool:
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S):  # noqa: S310  the hub's endpoint
            return True
    except (OSError, ValueError, HTTPException):
        return False

"""A model's weights: read from a file, or made at random from the seed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_infer.errors import WeightsError
from bert_infer.models import WeightsPolicy, checkpoints
from bert_infer.records import Weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from bert_infer.models import Model
    from bert_infer.models.architecture import Architecture

_SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class WeightsSource:
    """Where weights will come from: the file at ``path``, or ``seed`` where there is no path."""

    kind: str
    path: Path | None
    seed: int
    provenance: Mapping[str, Any]


def locate(model: Model, seed: int) -> WeightsSource:
    """Settle which weights ``model`` means, without reading them.

    Raises:
        WeightsError: they are in several files, or ``model.weights=pretrained`` and there are none.
    """
    if model.checkpoint is not None:
        path = Path(model.checkpoint)
        return WeightsSource("checkpoint", path, seed, {"source": "file", "path": str(path)})
    if model.weights is not WeightsPolicy.random:
        files = model.files()
        found = files.weights if files else None
        if files and not found and files.find(*_SHARDED):
            raise WeightsError(
                f"The weights of {model.name} are in several files (shards), which are not read.",
                "Save them as one: model.save_pretrained(DIR, max_shard_size='100GB').",
            )
        if files and found:
            return WeightsSource(
                "pretrained", found, seed, {**files.provenance, "file": found.name}
            )
        if model.weights is WeightsPolicy.pretrained:
            raise WeightsError(
                f"model.weights=pretrained: {model.name} has no weights on this machine, and the "
                "hub does not offer them or cannot be reached.",
                "Go online once, set model.checkpoint, or allow model.weights=random.",
            )
    return WeightsSource("random", None, seed, {"source": "random", "seed": seed})


def load(source: WeightsSource, architecture: Architecture) -> Weights:
    """Return the weights of ``source``; a file without a pooler gets a random one.

    Raises:
        WeightsError: the file does not fit the model.
    """
    at_random = partial(make, architecture, source.seed)
    if source.path is None:
        return Weights("random", at_random, source.provenance)
    file, provenance = checkpoints.reader(source.path, architecture), identity(source)
    if not file.lacks:
        return Weights(source.kind, file.read, provenance)

    def read(names: Iterable[str]) -> dict[str, torch.Tensor]:
        wanted = set(names)
        return file.read(wanted - file.lacks) | at_random(wanted & file.lacks)

    return Weights(source.kind, read, provenance | {"pooler": f"random, seed={source.seed}"})


def identity(source: WeightsSource) -> dict[str, Any]:
    """Return what tells these weights from any others.

    A hub commit identifies its files; any other file is known by its content.
    """
    if source.path is None or "revision" in source.provenance:
        return dict(source.provenance)
    read = source.path.stat()
    content = checkpoints.sha256(source.path, (read.st_mtime_ns, read.st_size))
    return {**source.provenance, "sha256": content}


def make(architecture: Architecture, seed: int, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return random weights for ``names``, initialised as BERT's are for training.

    Matrices are normal with the config's ``initializer_range``, LayerNorm is the identity, biases
    are zero. Each parameter draws from a stream of its own, so neither threads nor the order in
    which parts are asked for change the result.
    """
    import torch

    scale = np.float32(architecture.initializer_range)
    known = list(architecture.parameters)
    streams = dict(zip(known, np.random.SeedSequence(seed).spawn(len(known)), strict=True))
    wanted = list(names)

    def draw(name: str) -> torch.Tensor:
        shape = architecture.parameters[name]
        if len(shape) == 1:
            return torch.ones(shape) if name.endswith("LayerNorm.weight") else torch.zeros(shape)
        # SFC64 is numpy's fastest generator; torch's own takes four times as long here.
        values = np.random.Generator(np.random.SFC64(streams[name])).standard_normal(
            shape, dtype=np.float32
        )
        values *= scale
        return torch.from_numpy(values)

    with ThreadPoolExecutor() as pool:
        return dict(zip(wanted, pool.map(draw, wanted), strict=True))

"""A model's weights: read from a file, or made at random from the seed."""

from __future__ import annotations

import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bert_infer.errors import WeightsError
from bert_infer.models import WeightsPolicy
from bert_infer.records import Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

    import torch

    from bert_infer.architecture import Architecture
    from bert_infer.models import Model

_HEADS = ("cls.", "classifier.", "qa_outputs.")
"""Prefixes of what transformers' BERT classes keep beside the encoder."""

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
        WeightsError: ``model.weights=pretrained`` and there are none.
    """
    if model.checkpoint is not None:
        path = Path(model.checkpoint)
        return WeightsSource("checkpoint", path, seed, {"source": "file", "path": str(path)})
    if model.weights is not WeightsPolicy.random:
        files = model.files()
        found = files.find("model.safetensors", "pytorch_model.bin") if files else None
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
    """Return the weights of ``source``.

    Raises:
        WeightsError: the file does not fit the model.
    """
    if source.path is None:
        return Weights("random", partial(make, architecture, source.seed), source.provenance)
    return Weights(source.kind, reader(source.path, architecture), identity(source))


def identity(source: WeightsSource) -> dict[str, Any]:
    """Return what tells these weights from any others.

    A hub commit identifies its files; any other file is known by its content.
    """
    if source.path is None or "revision" in source.provenance:
        return dict(source.provenance)
    read = source.path.stat()
    content = sha256(source.path, (read.st_mtime_ns, read.st_size))
    return {**source.provenance, "sha256": content}


def make(
    architecture: Architecture, seed: int, names: Iterable[str] | None = None
) -> dict[str, torch.Tensor]:
    """Return the random weights of these ``names``, or all, as BERT's are before training.

    Matrices are normal with the config's ``initializer_range``, LayerNorm is the identity, biases
    are zero. Each parameter draws from a stream of its own, so neither threads nor the order in
    which parts are asked for change the result.
    """
    import torch

    scale = np.float32(architecture.initializer_range)
    known = list(architecture.parameters)
    streams = dict(zip(known, np.random.SeedSequence(seed).spawn(len(known)), strict=True))
    wanted = known if names is None else list(names)

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


def check(source: WeightsSource, architecture: Architecture) -> None:
    """Check what a file says it holds, before its values are read.

    Raises:
        WeightsError: as ``reader``.
    """
    path = source.path
    if path is None:
        return
    if _is_safetensors(path):
        fit(path, _safetensors_header(path), architecture)
    else:
        tensors = _read_torch(path, mmap=_is_mappable(path))  # only torch can tell
        fit(path, _described(tensors), architecture)


def reader(
    path: Path, architecture: Architecture
) -> Callable[[Iterable[str]], dict[str, torch.Tensor]]:
    """Return what reads a file's encoder weights by transformers' names; nothing is executed.

    The file is opened anew for each part that is asked for: as long as it is mapped, every page
    that was ever read counts as memory.

    Raises:
        WeightsError: not a weights file, or its keys or shapes are not the model's.
    """
    if _is_safetensors(path):
        stored = fit(path, _safetensors_header(path), architecture)
        return lambda names: _read_safetensors(path, {name: stored[name] for name in names})
    if _is_mappable(path):
        stored = fit(path, _described(_read_torch(path, mmap=True)), architecture)

        def mapped(names: Iterable[str]) -> dict[str, torch.Tensor]:
            tensors = _read_torch(path, mmap=True)
            return {name: tensors[stored[name]] for name in names}

        return mapped
    tensors = _read_torch(path)
    stored = fit(path, _described(tensors), architecture)
    return lambda names: {name: tensors[stored[name]] for name in names}


class Stored(NamedTuple):
    """What a file says of a tensor; ``kind`` is "float" or what it is instead."""

    shape: tuple[int, ...]
    kind: str


def fit(path: Path, stored: Mapping[str, Stored], architecture: Architecture) -> dict[str, str]:
    """Return the file's name of each parameter of the model.

    Task heads beside an encoder are left out, as is a buffer of old versions.

    Raises:
        WeightsError: listing what is missing, unexpected, there twice or of another shape or kind.
    """
    has_prefix = any(name.startswith("bert.") for name in stored)
    names: dict[str, str] = {}
    twice = []
    for name in stored:
        is_head = has_prefix and name.startswith(_HEADS)
        if is_head or name.endswith("embeddings.position_ids"):
            continue
        if _canonical(name) in names:
            twice.append(f"{name} and {names[_canonical(name)]}")
        names[_canonical(name)] = name
    expected = architecture.parameters
    known = {name: stored[old] for name, old in names.items() if name in expected}
    problems = [
        *_listed("missing", [name for name in expected if name not in names]),
        *_listed("unexpected", [name for name in names if name not in expected]),
        *_listed("there twice", twice),
        *_listed(
            "of another shape",
            [
                f"{name} {list(shape)} instead of {list(expected[name])}"
                for name, (shape, _) in known.items()
                if shape != expected[name]
            ],
        ),
        *_listed(
            "no floating-point numbers",
            [f"{name} is {kind}" for name, (_, kind) in known.items() if kind != "float"],
        ),
    ]
    if problems:
        raise WeightsError(
            f"The weights in {path} do not fit the model:\n  " + "\n  ".join(problems),
            "Choose the model group that the file was saved from.",
        )
    return names


@lru_cache(maxsize=8)
def sha256(path: Path, version: Hashable) -> str:
    """Return a file's SHA-256, read once for each ``version`` of it."""
    del version
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(what: str, names: list[str]) -> list[str]:
    return [f"{len(names)} {what}:", *(f"  {name}" for name in names)] if names else []


def _canonical(name: str) -> str:
    """Return the name that transformers uses now; LayerNorm's were gamma and beta in TensorFlow."""
    return (
        name.removeprefix("bert.")
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias")
    )


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _is_mappable(path: Path) -> bool:
    """Tell whether torch can map the file: those from before torch 1.6 are no zip archives."""
    return zipfile.is_zipfile(path)


def _read_safetensors(path: Path, stored: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Return tensors of the file by new names, given the stored ones."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(old) for name, old in stored.items()}
    except SafetensorError as error:
        raise _unreadable(path, str(error)) from None


def _safetensors_header(path: Path) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    def stored(part: Any) -> Stored:  # noqa: ANN401  an untyped library
        kind = str(part.get_dtype())
        return Stored(tuple(part.get_shape()), "float" if "F" in kind else kind.lower())

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: stored(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _unreadable(path, str(error)) from None


def _described(tensors: Mapping[str, torch.Tensor]) -> dict[str, Stored]:
    import torch

    def kind(tensor: torch.Tensor) -> str:
        if tensor.layout is not torch.strided or tensor.is_meta:
            return "sparse, or has no values"
        return "float" if tensor.is_floating_point() else str(tensor.dtype)

    return {name: Stored(tuple(tensor.shape), kind(tensor)) for name, tensor in tensors.items()}


def _read_torch(path: Path, *, mmap: bool = False) -> dict[str, torch.Tensor]:
    import pickle

    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        # torch's own message advises to load it all the same.
        raise _unreadable(
            path, "it holds objects that are no tensors, or is no PyTorch file"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  the reader trips over garbage in many ways
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise _unreadable(path, f"PyTorch cannot read it ({reason})") from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise _unreadable(path, "it holds something else than a state dict of tensors")
    return content


def _unreadable(path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{path} is not a file of weights alone: {reason}.",
        "Save the model's state_dict with safetensors or torch.save; nothing else is loaded.",
    )

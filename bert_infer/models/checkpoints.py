"""A checkpoint: a safetensors or PyTorch file with an encoder's parameters; their names vary."""

from __future__ import annotations

import hashlib
import zipfile
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from bert_infer.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping
    from pathlib import Path

    import torch

    from bert_infer.models.architecture import Architecture

_FIRST = "embeddings.word_embeddings.weight"
_MOST = 10  # names listed of a kind of problem
_HEADS = ("cls.", "classifier.", "qa_outputs.")
"""Prefixes of the parameters that transformers' BERT classes have besides the encoder's."""
POOLER = ("pooler.dense.weight", "pooler.dense.bias")
"""The pooler's parameters, which models for token-level tasks lack."""


class Reader(NamedTuple):
    """Reads a file's parameters by transformers' names; the file has none of those in ``lacks``."""

    read: Callable[[Iterable[str]], dict[str, torch.Tensor]]
    lacks: frozenset[str]


def reader(path: Path, architecture: Architecture) -> Reader:
    """Return a reader of a file's encoder weights; no code in the file is executed.

    The file is opened anew for each part of the model: while it is mapped, every page that was
    ever read counts as memory. One that torch cannot map is read whole, once.

    Raises:
        WeightsError: not a weights file, or its keys or shapes are not the model's.
    """
    read: Callable[[Mapping[str, str]], dict[str, torch.Tensor]]
    if _is_safetensors(path):
        stored = fit(path, _safetensors_header(path), architecture)
        read = partial(_read_safetensors, path)
    elif _is_mappable(path):
        stored = fit(path, _described(_read_torch(path, mmap=True)), architecture)
        read = partial(_read_mapped, path)
    else:
        tensors = _read_torch(path)
        stored = fit(path, _described(tensors), architecture)
        read = partial(_renamed, tensors)
    return Reader(
        lambda names: read({name: stored[name] for name in names}),
        frozenset(POOLER) - stored.keys(),
    )


class Stored(NamedTuple):
    """A tensor as the file describes it; ``kind`` is "float", or says what it holds instead."""

    shape: tuple[int, ...]
    kind: str


def fit(path: Path, stored: Mapping[str, Stored], architecture: Architecture) -> dict[str, str]:
    """Return the file's name for each parameter of the model.

    Left out are a buffer of old versions and task heads: transformers' own, and whatever lies
    outside the prefix of the encoder's names. The pooler may be missing.

    Raises:
        WeightsError: listing what is missing, unexpected, there twice or of another shape or kind.
    """
    prefix = _prefix(stored)
    heads = tuple(prefix.removesuffix("bert.") + head for head in _HEADS)
    names: dict[str, str] = {}
    twice = []
    for name in stored:
        is_head = prefix and (not name.startswith(prefix) or name.startswith(heads))
        if is_head or name.endswith("embeddings.position_ids"):
            continue
        canonical = _canonical(name.removeprefix(prefix or "bert."))
        if canonical in names:
            twice.append(f"{name} and {names[canonical]}")
        names[canonical] = name
    expected = architecture.parameters
    missing = [name for name in expected if name not in names]
    if set(missing) == set(POOLER):
        missing = []
    known = {name: stored[old] for name, old in names.items() if name in expected}
    problems = [
        *_listed("missing", missing),
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


def _prefix(names: Iterable[str]) -> str:
    """Return what stands before all of an encoder's names: ``bert.``, or a wrapper's too.

    Empty where there is nothing, or where several encoders are there.
    """
    ends = f".{_FIRST}"
    found = {name.removesuffix(_FIRST) for name in names if f".{name}".endswith(ends)}
    return found.pop() if len(found) == 1 else ""


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = [f"  and {len(names) - _MOST} more"] if len(names) > _MOST else []
    return [f"{len(names)} {what}:", *(f"  {name}" for name in names[:_MOST]), *more]


def _canonical(name: str) -> str:
    """Return the name that transformers uses now; LayerNorm's were gamma and beta in TensorFlow."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def _is_safetensors(path: Path) -> bool:
    """Look at the name, and at the content, where a header of JSON follows its length."""
    if path.suffix.lower() == ".safetensors":
        return True
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _is_mappable(path: Path) -> bool:
    """Tell whether torch can map the file: one from before torch 1.6 is not a zip archive."""
    return zipfile.is_zipfile(path)


def _read_safetensors(path: Path, stored: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Return tensors by transformers' names; ``stored`` has the file's name for each."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(old) for name, old in stored.items()}
    except SafetensorError as error:
        raise _unreadable(path, str(error)) from None


def _read_mapped(path: Path, stored: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Do the same for a PyTorch file, which torch maps."""
    return _renamed(_read_torch(path, mmap=True), stored)


def _renamed(
    tensors: Mapping[str, torch.Tensor], stored: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    return {name: tensors[old] for name, old in stored.items()}


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

"""The records that travel from one step of a run to the next."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Tokens:
    """The token ids of every sequence, laid end to end.

    Attributes:
        ids: ``int32 [real tokens]``.
        offsets: ``int64 [sequences + 1]``; sequence i is ``ids[offsets[i]:offsets[i + 1]]``.
        positions: ``int64 [texts]``, each text's position in the input, empty ones counted.
        truncated: texts that were longer than the maximum and lost their end.
        skipped: empty texts, which have no tokens here.
        sha256: hash of the input's ids and offsets, which copies share.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    positions: NDArray[np.int64]
    truncated: int
    skipped: int
    sha256: str

    @classmethod
    def of(
        cls,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int64],
        positions: NDArray[np.int64] | None = None,
        truncated: int = 0,
        skipped: int = 0,
    ) -> Self:
        """Return the sequences of these ``lengths``, which lie end to end in ``ids``.

        Without ``positions``, the texts are numbered from 0.
        """
        offsets = _offsets(lengths)
        return cls(
            ids=ids,
            offsets=offsets,
            positions=np.arange(len(lengths)) if positions is None else positions,
            truncated=truncated,
            skipped=skipped,
            sha256=hashlib.sha256(ids.tobytes() + offsets.tobytes()).hexdigest(),
        )

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Real tokens of each sequence, ``int64 [sequences]``."""
        return np.diff(self.offsets)

    @property
    def texts(self) -> int:
        """How many texts there are; a repeated text counts once."""
        return len(self.positions)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, sequence: int) -> NDArray[np.int32]:
        return self.ids[self.offsets[sequence] : self.offsets[sequence + 1]]

    def repeat(self, times: int) -> Tokens:
        """Return ``times`` copies of these sequences, still of the same texts."""
        return replace(
            self, ids=np.tile(self.ids, times), offsets=_offsets(np.tile(self.lengths, times))
        )


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)])


@dataclass(frozen=True, eq=False)
class Outputs:
    """What one forward pass computes.

    Attributes:
        hidden_states: the last layer's, as the batch is laid out: ``[rows, width, hidden]``,
            ``[tokens, hidden]`` or, of first tokens alone, ``[sequences, hidden]``.
        pooled: ``[sequences, hidden]``, the pooler's.
    """

    hidden_states: torch.Tensor
    pooled: torch.Tensor


class Computed(NamedTuple):
    """A forward pass that has been waited for: its outputs in host memory, and its seconds.

    ``copy_in_s`` and ``copy_out_s`` are the copies to the device and back, ``duration_s`` is the
    synchronised computation between them.
    """

    outputs: Outputs
    copy_in_s: float
    duration_s: float
    copy_out_s: float


class Forward(NamedTuple):
    """One measured forward pass; times in seconds.

    ``start_s`` is read from the measuring clock, ``lay_out_s`` is planning and padding the batch
    on the host, the next three are as in ``Computed``. ``wall_s`` is the forward's share of the
    pass' wall time: from its start until its outputs are in host memory. Where forwards overlap, a
    forward starts when the outputs of the one before it are there, and its parts add up to more
    than ``wall_s``.
    """

    pass_index: int
    batch_index: int
    sequences: int
    real_tokens: int
    padded_tokens: int
    start_s: float
    lay_out_s: float
    copy_in_s: float
    duration_s: float
    copy_out_s: float
    wall_s: float


def wall_s(forwards: Iterable[Forward]) -> float:
    """Return the wall time of all ``forwards``, in seconds."""
    return sum(forward.wall_s for forward in forwards)


@dataclass(frozen=True)
class Caveat:
    """A reason not to trust a figure, and what to do about it."""

    code: str
    message: str
    remedy: str


@dataclass(frozen=True, eq=False)
class Weights:
    """A BERT encoder's parameters, and where they came from.

    Attributes:
        kind: "pretrained", "checkpoint" or "random".
        read: takes transformers' names, and returns these parameters. They are read, or drawn,
            only then: an engine that takes a part at a time never holds two copies of all.
        provenance: what a reader needs to find the same ones again.
    """

    kind: str
    read: Callable[[Iterable[str]], dict[str, torch.Tensor]]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class ModelFiles:
    """A directory with a model's files, and where it came from.

    ``provenance`` names the source: a local directory, an installed package, or the hub with its
    commit.
    """

    directory: Path
    provenance: Mapping[str, Any] = field(compare=False)  # a mapping has no hash

    @property
    def weights(self) -> Path | None:
        """The file that holds all weights; None where there is none, or they are in several."""
        return self.find("model.safetensors", "pytorch_model.bin")

    def find(self, *names: str) -> Path | None:
        """Return the first of ``names`` that exists here."""
        return next((p for n in names if (p := self.directory / n).is_file()), None)

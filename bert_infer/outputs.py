"""The ``output`` group: what is kept of the last pass, in input order and without padding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from bert_infer.errors import MAKE_ROOM, RunDirectoryError
from bert_infer.files import whole

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from bert_infer.batching.layouts import Batch
    from bert_infer.devices import Device
    from bert_infer.engines import Encode
    from bert_infer.measuring.measure import Batches
    from bert_infer.records import Outputs, Tokens


class Save(Enum):
    """What is saved."""

    none = "none"
    hidden_states = "hidden_states"
    pooled = "pooled"


class Pooling(Enum):
    """How a sequence's states become one vector."""

    pooler = "pooler"
    cls = "cls"
    mean = "mean"


@dataclass(frozen=True)
class Output:
    """What is kept besides the metrics."""

    save: Save
    pooling: Pooling

    def sinks(self, tokens: Tokens) -> tuple[Sink, ...]:
        """Return the sinks that were asked for."""
        return _SINKS[self.save](tokens, self.pooling)

    @property
    def of_all_tokens(self) -> dict[str, str]:
        """The choices that need every token's state, each with choices that do not."""
        found = {}
        if self.pooling is Pooling.mean:
            found["output.pooling=mean"] = "output.pooling=pooler or cls"
        if self.save is Save.hidden_states:
            found["output.save=hidden_states"] = "output.save=pooled or none"
        return found

    def pooled(self, batch: Batch, outputs: Outputs) -> torch.Tensor:
        """Return what ``pooling`` makes of a batch's outputs, ``[sequences, hidden]``."""
        import torch

        pool = _POOL[self.pooling]
        return torch.stack([pool(batch, outputs, index) for index in range(len(batch.sequences))])


class Sink(ABC):
    """Takes the outputs of measured passes, batch by batch, and leaves a file about the last."""

    @abstractmethod
    def collect(self, batch: Batch, outputs: Outputs) -> None:
        """Take a batch's outputs, which lie in host memory."""

    def watch(self, batches: Batches, encode: Encode, device: Device) -> None:
        """Run another pass, of ``batches``, if the sink needs more than outputs."""

    @abstractmethod
    def write(self, directory: Path) -> None:
        """Write a file into ``directory``."""


class Texts(Sink):
    """Keeps a tensor of each text; of a repeated text only one."""

    def __init__(self, tokens: Tokens, wanted: Collection[int] | None = None) -> None:
        """Keep the ``wanted`` texts, by their place among the tokens; None wants all."""
        self._positions: NDArray[np.int64] = tokens.positions
        self._wanted = range(tokens.texts) if wanted is None else wanted
        self._texts: dict[int, torch.Tensor] = {}

    def collect(self, batch: Batch, outputs: Outputs) -> None:
        """Keep what is wanted of a batch's outputs."""
        for index, sequence in enumerate(batch.sequences.tolist()):
            if sequence in self._wanted:
                self._texts[sequence] = self._of(batch, outputs, index)

    @abstractmethod
    def _of(self, batch: Batch, outputs: Outputs, index: int) -> torch.Tensor:
        """Return a copy of what is kept of one of the batch's sequences."""

    @property
    def in_order(self) -> list[torch.Tensor]:
        """What was kept, in input order."""
        return [self._texts[text] for text in sorted(self._texts)]


class HiddenStates(Texts):
    """``hidden_states.safetensors``: ``[tokens, hidden]`` a text, named by its position."""

    def _of(self, batch: Batch, outputs: Outputs, index: int) -> torch.Tensor:
        import torch

        with torch.inference_mode(mode=False):  # a copy that may be changed, and differentiated
            return batch.states(outputs.hidden_states, index).clone()

    def write(self, directory: Path) -> None:
        """Write the file."""
        names = (str(position) for position in self._positions)
        _write(
            directory / "hidden_states.safetensors", dict(zip(names, self.in_order, strict=True))
        )


class Pooled(Texts):
    """``pooled.safetensors``: ``pooled [texts, hidden]`` and the texts' ``positions [texts]``."""

    def __init__(
        self, tokens: Tokens, pooling: Pooling, wanted: Collection[int] | None = None
    ) -> None:
        super().__init__(tokens, wanted)
        self._pool = _POOL[pooling]

    def _of(self, batch: Batch, outputs: Outputs, index: int) -> torch.Tensor:
        return self._pool(batch, outputs, index)

    def stacked(self) -> torch.Tensor:
        """Return ``[texts, hidden]``."""
        import torch

        return torch.stack(self.in_order)

    def write(self, directory: Path) -> None:
        """Write the file."""
        import torch

        positions = torch.from_numpy(np.array(self._positions))
        _write(directory / "pooled.safetensors", {"pooled": self.stacked(), "positions": positions})


def _pooler(batch: Batch, outputs: Outputs, index: int) -> torch.Tensor:
    del batch
    return outputs.pooled[index].clone()


def _cls(batch: Batch, outputs: Outputs, index: int) -> torch.Tensor:
    return batch.states(outputs.hidden_states, index)[0].clone()


def _mean(batch: Batch, outputs: Outputs, index: int) -> torch.Tensor:
    states = batch.states(outputs.hidden_states, index)
    # In float32: a sum of 512 bfloat16 numbers would lose half of their few digits.
    return states.float().mean(0).to(states.dtype)


_POOL: dict[Pooling, Callable[[Batch, Outputs, int], torch.Tensor]] = {
    Pooling.pooler: _pooler,
    Pooling.cls: _cls,
    Pooling.mean: _mean,
}

_SINKS: dict[Save, Callable[[Tokens, Pooling], tuple[Sink, ...]]] = {
    Save.none: lambda _tokens, _pooling: (),
    Save.hidden_states: lambda tokens, _: (HiddenStates(tokens),),
    Save.pooled: lambda tokens, pooling: (Pooled(tokens, pooling),),
}


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with whole(path) as beside:
        beside.touch()
        mode = beside.stat().st_mode  # of other files here; the library's are for the owner alone
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
        except SafetensorError as error:
            message = f"{path.name} cannot be written: {error}."
            raise RunDirectoryError(message, MAKE_ROOM) from error
        beside.chmod(mode)

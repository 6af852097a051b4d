"""The ``graph`` group: how the host's overhead for each operator is removed.

The modes of one kind of device alone have a file each.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from bert_infer import machine
from bert_infer.errors import RefusedError
from bert_infer.graphs.buckets import Buckets

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from bert_infer.batching import Batching
    from bert_infer.batching.groups import Group, Shape
    from bert_infer.batching.layouts import Batch
    from bert_infer.devices import Device
    from bert_infer.engines import Encode
    from bert_infer.models.architecture import Architecture


class Work(NamedTuple):
    """One pass, as far as choosing a graph mode goes.

    Attributes:
        groups: those of the pass.
        lengths: ``int64 [sequences]``, real tokens of each.
        batching: made the groups.
        layout: how the engine lays them out.
        architecture: of the model.
    """

    groups: Sequence[Group]
    lengths: NDArray[np.int64]
    batching: Batching
    layout: type[Batch]
    architecture: Architecture


class GraphChoice(ABC):
    """What can be asked for: a graph mode, or that one is picked."""

    name: str

    @abstractmethod
    def resolve(self, device: Device) -> Graph:
        """Return the mode that is meant on ``device``."""


class Graph(GraphChoice):
    """A graph mode.

    Attributes:
        keeps_mask: the attention mask is passed even when it masks nothing, since a recording of
            a batch without padding is replayed for one with padding.
    """

    keeps_mask: ClassVar[bool] = False

    def resolve(self, device: Device) -> Graph:
        """Return itself."""
        del device
        return self

    def check(self, device: Device) -> None:
        """Refuse a device or machine without this mode.

        Raises:
            RefusedError: naming ``graph``.
        """

    def settled(self, work: Work) -> tuple[Graph, Buckets]:
        """Return the mode that will be used for ``work``, and how it has groups filled up.

        Unless a mode says otherwise it is itself, and leaves groups as they are.

        Raises:
            RefusedError: they have more shapes than this mode may record.
        """
        return self, Buckets(work.layout)

    @property
    def first_forwards(self) -> int:
        """How many forwards of a shape also compile or record."""
        return 0

    def without_graph(self, shapes: Collection[Shape]) -> int:
        """Return how many of ``shapes`` run operator by operator in spite of this mode."""
        del shapes
        return 0

    @abstractmethod
    def wrap(self, encode: Encode, shapes: Collection[Shape], device: Device) -> Encode:
        """Return ``encode`` made faster for batches of ``shapes`` on ``device``."""


@dataclass(frozen=True)
class Eager(Graph):
    """One operator after the other."""

    name = "eager"

    def wrap(self, encode: Encode, shapes: Collection[Shape], device: Device) -> Encode:
        """Return ``encode`` itself."""
        del shapes, device
        return encode


class CompileMode(Enum):
    """torch.compile's own modes, with underscores for hyphens."""

    default = "default"
    reduce_overhead = "reduce-overhead"
    max_autotune = "max-autotune"
    max_autotune_no_cudagraphs = "max-autotune-no-cudagraphs"

    @property
    def records(self) -> bool:
        """Whether inductor makes CUDA graphs of what it compiles for a GPU."""
        return self in {CompileMode.reduce_overhead, CompileMode.max_autotune}


@dataclass(frozen=True)
class Compile(Graph):
    """torch.compile with the device's backend, inductor except on Gaudi."""

    mode: CompileMode = CompileMode.default

    name = "compile"
    keeps_mask: ClassVar[bool] = True

    @property
    def first_forwards(self) -> int:
        """One to compile; inductor's CUDA graphs take another to record, and a third to replay."""
        return 3 if self.mode.records else 1

    def check(self, device: Device) -> None:
        """Refuse a machine on which inductor, where it is the backend, cannot build C++."""
        if not device.has_inductor:
            return
        import os

        compiler = os.environ.get("CXX", "g++")
        header = machine.python_header()
        missing = [
            *([] if shutil.which(compiler) else [f"a C++ compiler ({compiler})"]),
            *([] if header.is_file() else [f"Python's headers ({header})"]),
        ]
        if missing:
            raise RefusedError(
                f"graph=compile is refused: this machine lacks {' and '.join(missing)}.",
                "Install them (Debian: g++ and python3-dev), set CXX, or use graph=eager.",
            )

    def wrap(self, encode: Encode, shapes: Collection[Shape], device: Device) -> Encode:
        """Compile as the device does."""
        import torch

        # A compilation of an earlier run in this process must not count as one of this run's.
        torch.compiler.reset()
        return device.compile(encode, distinct(shapes), self.mode)


@dataclass(frozen=True)
class Auto(GraphChoice):
    """The device's preferred mode."""

    name = "auto"

    def resolve(self, device: Device) -> Graph:
        """Ask the device."""
        return device.preferred_graph()


def distinct(shapes: Collection[Shape]) -> int:
    """Return how many of ``shapes`` a compiler tells apart: it does not see padding."""
    return len({(shape.sequences, shape.slots) for shape in shapes})
